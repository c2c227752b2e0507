"""Segmentation and classification as tasks: losses and numbers known by hand, what is refused, and what is shown."""

import json
import re
from contextlib import chdir
from math import log
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from monai.networks.nets import DynUNet

import dataset_tool
import edm3d
import generate
import train
from edm3d.formats.prediction import Prediction
from edm3d.inference.batch import collate
from edm3d.inference.model import Model
from edm3d.inference.snapshot import Snapshot
from edm3d.samplers.noise import ImageGenerators
from edm3d.training.autoencoder_loss import soft_dice
from edm3d.training.build import held_out
from edm3d.training.class_counts import check_classes, image_counts, voxel_counts
from edm3d.training.datasets.volumes import VolumesDataset
from edm3d.training.downstream_loss import ClassificationLoss, ClassWeights, SegmentationLoss
from edm3d.training.plan import find_source
from edm3d.training.plan_fit import plan
from edm3d.training.targets import ClassTarget, VoxelTarget
from edm3d.training.tasks import TASKS
from edm3d.training.tasks.classification import ClassificationTask
from edm3d.training.tasks.downstream_checks import check_norms, check_output, divisor
from edm3d.training.tasks.segmentation import SegmentationTask
from edm3d.utils.compose import compose
from edm3d.utils.config import build
from edm3d.utils.runs import list_files
from tests.commands import refused, succeed
from tests.test_downstream_runs import CLASSIFIER, SEGMENTER, write_discs

DYNUNET = {"_target_": "monai.networks.nets.DynUNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 2,
           "kernel_size": [3, 3, 3], "strides": [1, 2, [1, 3]], "upsample_kernel_size": [2, [1, 3]],
           "filters": [4, 8, 8], "norm_name": ["instance", {"affine": True}]}
DENSENET = {"_target_": "monai.networks.nets.DenseNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 2,
            "init_features": 8, "growth_rate": 8, "block_config": [1, 1], "norm": ["GROUP", {"num_groups": 4}]}


def close(found, wanted, atol=1e-6):
    torch.testing.assert_close(found, torch.as_tensor(wanted, dtype=found.dtype), rtol=0, atol=atol)


# ---- losses ----


def test_cross_entropy_weighs_voxels_and_knows_ones_without_a_class():
    logits, target = torch.zeros(1, 2, 4), torch.tensor([[0, 0, 0, 1]])
    loss = SegmentationLoss(2, 0, [1, 4])
    close(loss(logits, target)["ce"], [2 * log(2) * (3 + 4) / 4])
    flat = ClassificationLoss([1, 4])
    close(flat(torch.zeros(3, 2), torch.tensor([0, 1, -1]))["ce"], [log(2), 4 * log(2), 0])
    assert set(SegmentationLoss(0, 1)(logits, target)) == {"dice_loss"}


def test_deep_supervision_weighs_levels_by_halves():
    logits = torch.randn(2, 3, 2, 5, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 0, 0, 0]])
    found, each = SegmentationLoss()(logits, target), [SegmentationLoss()(head, target) for head in logits.unbind(1)]
    for name in ("ce", "dice_loss"):
        close(found[name], (each[0][name] * 4 + each[1][name] * 2 + each[2][name]) / 7)
    close(each[0]["dice_loss"], soft_dice(logits[:, 0], target))


def test_balanced_weights_are_inverse_frequencies_of_mean_1():
    weights = ClassWeights("balanced")
    assert weights.by_data and weights.on(torch.zeros(1)) is None
    weights.settle(["a", "b", "c"], [6, 3, 1])
    close(weights.on(torch.zeros(1)), [10 / 18, 10 / 9, 10 / 3])
    assert sum(w * n for w, n in zip(weights.values, [6, 3, 1])) == pytest.approx(10)
    with pytest.raises(ValueError, match="class_weights=balanced: no target is b, whose weight would be infinite"):
        ClassWeights("balanced").settle(["a", "b"], [6, 0])


@pytest.mark.parametrize("asked", [[-1, 1], [0, 0], [], "balance", [float("nan"), 1], [float("inf"), 1]])
def test_weights_that_are_none_are_refused(asked):
    with pytest.raises(ValueError, match="class_weights=.*wanted a number of 0 or more for each class"):
        SegmentationLoss(class_weights=asked)
    with pytest.raises(ValueError, match="class_weights="):
        ClassificationLoss(class_weights=asked)


def test_weights_for_other_classes_are_refused():
    with pytest.raises(ValueError, match=r"training\.loss\.class_weights=\[1, 2\]: 2 numbers, wanted 3, .*a, b, c"):
        ClassWeights([1, 2]).settle(["a", "b", "c"])


# ---- counts ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with discs of two sizes, and with small ones alone."""
    folder = tmp_path_factory.mktemp("downstream")
    write_discs(folder / "discs.h5")
    write_discs(folder / "same.h5", same=True)
    return folder


def test_targets_are_counted_without_reading_images(folder, monkeypatch):
    data, target = VolumesDataset(str(folder / "discs.h5")), ClassTarget()
    target.prediction(data.facts)
    by_attribute = ClassTarget("radius", 4.0)
    by_attribute.prediction(data.facts)
    voxels = voxel_counts(data, VoxelTarget(), 2)
    assert voxels.sum() == 12 * 256 and voxels[1] == sum(int(data[i].label.sum()) for i in range(12))
    monkeypatch.setattr(VolumesDataset, "__getitem__", None)
    assert image_counts(data, target, 2).tolist() == [4, 5]  # of 12 three have no class
    assert image_counts(data, by_attribute, 2).tolist() == [4, 4]  # of 12 four have no radius


def test_one_class_only_is_refused_and_an_empty_one_is_said():
    with pytest.raises(ValueError, match=r"KEY: F has one class only: a 7 of its training images; wanted images of a"):
        check_classes(("a", "b"), (7, 0), "KEY", "F")
    with pytest.raises(ValueError, match="F has no image with a class of its training images"):
        check_classes(("a", "b"), (0, 0), "KEY", "F")
    assert check_classes(("a", "b", "c"), (1, 0, 3), "KEY", "F") == ["Warning: KEY: no training image is b"]
    assert check_classes(("a", "b", "c"), (1, 0, 3), "KEY", "F", "voxel") == [
        "Warning: KEY: no training voxel of up to 200 items is b"]
    with pytest.raises(ValueError, match="one class only: a 7 of its training voxels; wanted voxels of two classes"):
        check_classes(("a", "b", "c"), (7, 0, 0), "KEY", "F", "voxel")


# ---- numbers of held-out images ----


def snapshot_of(*names: str) -> SimpleNamespace:
    return SimpleNamespace(shape=(1, 4), predicts=Prediction("labels", names))


def test_dice_counts_the_classes_that_are_there():
    """Class b is half found in the first image, c is nowhere, and the second image has neither."""
    images = torch.tensor([[[0.0, 0, 1, 1]], [[0.0, 0, 0, 0]]])
    target = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0]])
    net = lambda x: torch.cat([1 - x, x, x - 5], dim=1)  # noqa: E731 - class b where the image is 1
    found = SegmentationTask().measured(net, SegmentationLoss(), images, target, snapshot_of("a", "b", "c"))
    assert {name: float(value.count) for name, value in found.items()} == {"loss": 2, "dice": 1, "dice_b": 1,
                                                                          "dice_c": 0}
    assert float(found["dice"].total) == float(found["dice_b"].total) == 0.5 and float(found["dice_c"].total) == 0


def test_accuracy_counts_images_with_a_target():
    logits = torch.tensor([[2.0, 0], [0, 2.0], [2.0, 0], [2.0, 0]])
    found = ClassificationTask().measured(lambda x: logits, ClassificationLoss(), torch.zeros(4, 1, 2),
                                          torch.tensor([0, 1, 1, -1]), snapshot_of("a", "b"))
    assert {name: (float(value.total), int(value.count)) for name, value in found.items() if name != "loss"} == {
        "accuracy": (2, 3), "accuracy_a": (1, 1), "accuracy_b": (1, 2)}
    assert int(found["loss"].count) == 3


def test_what_has_no_target_does_not_count_in_the_mean_of_the_loss(folder):
    with chdir(folder):
        training = compose(CLASSIFIER[0][4:], CLASSIFIER[1:])["training"]
        data = VolumesDataset("discs.h5")
        task = TASKS["classification"].assemble(training, data)
    batch = collate([data[i] for i in range(6)])  # items 0 and 5 have no class
    phase = task.phases[0]
    out = phase.loss(phase.module.eval(), batch, ImageGenerators(range(6)))
    known = collate([data[i] for i in (1, 2, 3, 4)])
    close(out.loss, phase.loss(phase.module.eval(), known, ImageGenerators(range(4))).loss, 1e-5)
    assert int(out.count) == 4


# ---- networks ----


@pytest.mark.parametrize(("node", "layer", "wanted"), [
    ({**DYNUNET, "norm_name": "batch"}, "input_block.norm1 is a BatchNorm2d", "norm_name=[instance,{affine:true}]"),
    ({**DYNUNET, "norm_name": ["instance", {"track_running_stats": True}]}, "InstanceNorm2d with track_running_stats",
     "norm_name=[instance,{affine:true}]"),
    ({**DYNUNET, "norm_name": "syncbatch"}, "SyncBatchNorm", "norm_name="),
    ({**DENSENET, "norm": "batch"}, "features.norm0 is a BatchNorm2d", "norm=[group,{num_groups:8}]")])
def test_batch_norm_is_refused_by_name(node, layer, wanted):
    with torch.device("meta"):
        net = build(node)
    with pytest.raises(ValueError, match=re.escape(layer)) as error:
        check_norms(net, node)
    assert f"write training.network.{wanted}" in str(error.value)


def test_what_sizes_must_divide_by_is_found_by_trying():
    assert divisor(DYNUNET, 1, 2) == (2, 6)
    assert divisor({**DENSENET, "in_channels": 3}, 1, 2) is None


@pytest.mark.parametrize(("node", "shape", "wanted"), [
    (DYNUNET, (1, 13, 20), r"DynUNet: size \(13, 20\) must divide by \(2, 6\); nearest that do: \(12, 18\) and "),
    ({**DYNUNET, "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]}, (1, 4, 4),
     r"DynUNet fails on images of \[1, 4, 4\]: .*its smallest level must be larger than one voxel"),
    ({**DYNUNET, "out_channels": 3}, (1, 12, 12), r"gives \[2, 3, 12, 12\].*wanted \[2, 2, 12, 12\].*leave training\."
     r"network\.out_channels out, or write 2"),
    ({**DYNUNET, "in_channels": 3}, (1, 12, 12), r"training\.network\.in_channels=3: .*leave it out, or write 1"),
    (DENSENET, (1, 16, 16), r"DenseNet gives \[2, 2\].*wanted \[2, 2, 16, 16\].*choose another network")])
def test_networks_that_do_not_fit_are_refused(node, shape, wanted):
    with pytest.raises(ValueError, match=wanted):
        check_output(node, shape, ("a", "b"), True)


def test_networks_that_fit_are_taken_and_deep_supervision_too():
    check_output(DYNUNET, (1, 12, 12), ("a", "b"), True)
    check_output({**DYNUNET, "deep_supervision": True}, (1, 12, 12), ("a", "b"), True)
    check_output(DENSENET, (1, 16, 16), ("a", "b"), False)
    net = DynUNet(2, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 8, 8], deep_supervision=True)
    assert net.train()(torch.zeros(1, 1, 16, 16)).shape == (1, 2, 2, 16, 16)  # what the loss takes apart
    assert net.eval()(torch.zeros(1, 1, 16, 16)).shape == (1, 2, 16, 16)


# ---- what commands refuse, in a line ----

PATCH = "training.augment.steps.patches.size"
WHOLE = [key for key in SEGMENTER if "augment" not in key]


@pytest.mark.parametrize(("experiment", "overrides", "wanted"), [
    (SEGMENTER, [f"{PATCH}=20"], r"training\.augment\.steps\.patches\.size=\[20, 20\]: larger than the volumes"),
    (SEGMENTER, [f"{PATCH}=10"], r"must divide by \(4, 4\).*training\.augment\.steps\.patches\.size=\[12,12\] cuts"),
    (WHOLE, ["augment=none", "training.dataset.size=[16,18]"],
     r"must divide by \(4, 4\).*training\.dataset\.size=\[16,20\] pads the volumes"),
    (SEGMENTER, ["training.network.norm_name=[batch,{}]"], "BatchNorm2d.*training.network.norm_name="),
    (SEGMENTER, ["training.loss.class_weights=[1,2,3]"], r"class_weights=\[1, 2, 3\]: 3 numbers, wanted 2"),
    (SEGMENTER, ["batch_transform=image_class"], "learns a training.targets.VoxelTarget"),
    (CLASSIFIER, ["training.dataset.path=same.h5"], "same.h5 has one class only: small 9 of its training images"),
    (CLASSIFIER, ["training.batch_transform.attribute=radius", "training.batch_transform.threshold=1"],
     r"training\.batch_transform\.threshold=1: .* has one class only: radius >= 1 8 of its training"),
    (CLASSIFIER, ["augment=patches", "training.augment.size=8"], r"augment\.size=\[8, 8\]: a classifier sees"),
    (CLASSIFIER, ["training.network.norm=batch"], r"write training\.network\.norm=\[group")])
def test_what_no_run_could_follow_is_refused_in_a_line(folder, experiment, overrides, wanted):
    with chdir(folder):
        assert re.search(wanted, refused(folder, train.main, *experiment, *overrides))


def test_changes_that_the_network_is_not_told_of_are_refused_for_denoisers(folder):
    small = ["-cn=voxels_edm", "training.dataset.path=discs.h5", "training.network.model.model_channels=8",
             "training.network.model.channel_mult=[1]", "training.network.model.attention_levels=[]"]
    with chdir(folder):
        for augment in ("rand", "mild_patches"):
            assert "are for first stages" in refused(folder, train.main, *small, f"augment={augment}")


# ---- a run, and what is said of it ----


@pytest.fixture(scope="module")
def runs(folder) -> dict[str, Path]:
    """A run of each task, with pictures."""
    shown = ["training.validation.preview_ticks=1", "training.validation.preview_items=2"]
    with chdir(folder):
        said = {name: succeed(train.main, *experiment, *shown, f"training.options.run_root={name}")
                for name, experiment in (("seg", SEGMENTER), ("cls", CLASSIFIER))}
        for name, text in said.items():
            Path(name, "said.txt").write_text(text)
    return {name: next((folder / name).glob("0*")) for name in said}


def test_the_line_of_a_tick_says_what_the_number_is(runs):
    for name, number in (("seg", "dice"), ("cls", "accuracy")):
        text = (runs[name].parent / "said.txt").read_text()
        ticks = [json.loads(line) for line in (runs[name] / "stats.jsonl").read_text().splitlines()]
        assert f"validation {number} {ticks[-1][f'val/{number}']:.4g}" in text
        assert {"seg": "val/dice_disc", "cls": "val/accuracy_small"}[name] in ticks[-1]
        best = Snapshot.read(runs[name] / "network-best.pt")
        highest = max(ticks, key=lambda tick: tick[f"val/{number}"])
        assert best.nimg == highest["kimg"] * 1000 and best.predicts.names[1] == {"seg": "disc", "cls": "large"}[name]
    assert "Note: training.loss.class_weights=balanced: background 0.6" in (runs["seg"].parent / "said.txt").read_text()


def test_previews_show_targets_and_what_was_found(runs, folder):
    for name in ("seg", "cls"):
        assert len(list((runs[name] / "previews").glob("*.png"))) == 2
    for name, experiment in (("seg", SEGMENTER), ("cls", CLASSIFIER)):
        config = compose(experiment[0][4:], experiment[1:])
        with chdir(folder):
            kind, held = TASKS[config["training"]["task"]], held_out(config["training"])
            task = kind.assemble(config["training"], VolumesDataset("discs.h5"), held)
            shown = kind.preview(config, task, held, 2, torch.device("cpu"))(task.net.eval())
            with pytest.raises(ValueError, match="no images are held out"):
                kind.preview(config, task, None, 2, torch.device("cpu"))
        first = held.dataset[0]
        assert [title for title, _ in shown.blocks] == ["Held out", "Predicted"][:len(shown.blocks)]
        assert shown.blocks[0][1][0][0].min() >= 0 and shown.blocks[0][1][0][0].max() <= 1  # in stored units
        if name == "seg":
            assert (shown.blocks[0][1][0][1] == first.label).all() and len(shown.blocks) == 2
            assert shown.look["label_classes"] == ("background", "disc")
        else:
            with torch.no_grad():
                p = task.net(torch.from_numpy(first.image)[None]).softmax(1)[0]
            found = f"found: {('small', 'large')[int(p.argmax())]} {float(p.max()):.2f}"
            assert shown.look["captions"][0].endswith(found) and shown.look["captions"][0].startswith("small, ")


def test_commands_say_what_downstream_networks_give_and_that_they_draw_nothing(runs, folder):
    with chdir(folder):
        for name, said in (("seg", "gives the class of every voxel, of labels: background, disc"),
                           ("cls", "gives the class of an image, of classes: small, large")):
            snapshot = str(list_files(runs[name], "network-snapshot")[-1])
            assert said in succeed(dataset_tool.main, "info", snapshot)
            assert said in succeed(dataset_tool.main, "check", snapshot)
            assert "told nothing" not in succeed(dataset_tool.main, "info", str(list_files(
                runs[name], "training-state")[-1]))
            succeed(dataset_tool.main, "publish", snapshot, "--dest", f"pub-{name}", "--licence", "apache-2.0")
            card = Path(f"pub-{name}/README.md").read_text()
            head = yaml.safe_load(card.split("---")[1])
            assert head["pipeline_tag"] == {"seg": "image-segmentation", "cls": "image-classification"}[name]
            assert said in card and "draw" not in card and "diffusion" not in head["tags"]
            assert Snapshot.read(Path(f"pub-{name}")).predicts == Snapshot.read(Path(snapshot)).predicts
            with pytest.raises(ValueError, match=f"draws nothing, it {said}"):
                Model.load(snapshot)
            assert edm3d.load(f"pub-{name}").predicts == Snapshot.read(Path(snapshot)).predicts
        assert "draws nothing" in refused(folder, generate.main, "-cn=echo3d_segmentation")


def test_a_run_starts_from_the_weights_of_another(runs, folder):
    with chdir(folder):
        said = succeed(train.main, *SEGMENTER, f"training.options.init_from={runs['seg']}",
                       "training.options.run_root=from", "training.options.total_kimg=0.006")
    assert re.search(r"(\d+) of the network's \1 taken", said)


# ---- plans ----


@pytest.mark.parametrize(("name", "shape", "overrides"), [
    ("echo3d_segmentation", (1, 16, 16, 16), []), ("echo2d_segmentation", (1, 128, 128), ["batch_transform.of=maps"]),
    ("echo2d_classification", (1, 32, 32), []),
    ("echo2d_classification", (1, 32, 32), ["batch_transform.attribute=EF", "batch_transform.threshold=40"])])
def test_downstream_tasks_are_planned_without_data(name, shape, overrides):
    small = ["network=densenet"] if "classification" in name else []
    config = compose(name, [*small, *(f"training.{key}" for key in overrides), "training.options.batch_size=2"])
    source = find_source(config["training"], shape, 3)
    found = plan(config, source)
    assert found.step.peak > found.step.activations > 0 and found.decode is None


def test_a_plan_proposes_patches_that_the_network_divides():
    config = compose("echo3d_segmentation", ["training.options.batch_size=1", "training.options.precision=bf16"])
    levers = list(TASKS["segmentation"].levers(config["training"], find_source(config["training"], (1, 64, 64, 64), 4)))
    assert [lever.value for lever in levers] == [[32, 64, 64], [32, 32, 64], [32, 32, 32]]  # of 8 times a whole number
    assert all(lever.group == "augment=patches" for lever in levers)
    on_patches = compose("echo3d_segmentation", ["augment=mild_patches"])["training"]
    levers = list(TASKS["segmentation"].levers(on_patches, find_source(on_patches, (1, 128, 128, 128), 4)))
    assert (levers[0].key, levers[0].value, levers[0].group) == (PATCH, [32, 64, 64], "")


def test_a_plan_of_classes_must_know_how_many():
    config = compose("echo2d_classification", [])
    with pytest.raises(ValueError, match="write --classes K, 2 or more"):
        plan(config, find_source(config["training"], (1, 64, 64), 0))
