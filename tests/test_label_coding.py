"""Label maps as channels beside images: what the coding is, and networks of voxels that draw both, in 2D and 3D."""

from contextlib import chdir
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import dataset_tool
import edm3d
import generate
import train
from edm3d.formats.facts import Facts, LatentScaling
from edm3d.formats.sample_layout import check_layout
from edm3d.formats.samples import SamplesFile
from edm3d.formats.training_state import TrainingState
from edm3d.formats.volumes import VolumesFile
from edm3d.inference.batch import Batch
from edm3d.inference.card import about
from edm3d.inference.conditions import Conditions
from edm3d.inference.drawing import Drawer, arrays_of
from edm3d.inference.generation import check_part
from edm3d.inference.guidance import drawn_space
from edm3d.inference.real_pictures import channel_count
from edm3d.inference.snapshot import CarriedStage, Snapshot
from edm3d.networks.conditioning import NOTHING
from edm3d.networks.label_coding import KINDS, LabelCoding
from edm3d.training.batch_transforms import Identity
from edm3d.training.plan import find_source, plan_step
from edm3d.utils import checkpoint
from edm3d.utils.compose import compose
from edm3d.utils.config_hash import config_hash
from edm3d.utils.runs import list_files
from tests.commands import refused, succeed
from tests.test_conditioned_runs import write_all
from tests.toy import learned

CLASSES = ("background", "cavity", "myocardium", "atrium")
FACTS = Facts("vols.h5", "ab", ("echo",), CLASSES, spatial_shape=(8, 8))
LABELS = "training.batch_transform.labels"


# ---- the coding ----


def test_bits_of_four_classes_are_those_of_their_numbers_the_least_first():
    code = LabelCoding("bits", 4).encode(torch.arange(4, dtype=torch.uint8)[:, None])
    assert code[..., 0].tolist() == [[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]]
    assert code.dtype == torch.float32


def test_onehot_of_three_classes_is_up_at_its_own():
    code = LabelCoding("onehot", 3, scale=2).encode(torch.tensor([[2], [0]]))
    assert code[..., 0].tolist() == [[-2, -2, 2], [2, -2, -2]]


def test_bits_that_are_no_class_go_to_the_nearest_that_there_is():
    """Of three classes 11 is none: 10 (class 1) is nearer where the first bit is the surer, else 01 (class 2)."""
    coding = LabelCoding("bits", 3)
    x = torch.tensor([[0.9, 0.1], [0.1, 0.9], [-0.1, -0.2], [3.0, -0.1]])[..., None]
    assert coding.decode(x)[:, 0].tolist() == [1, 2, 0, 1]


@pytest.mark.parametrize("classes", [3, 5, 6, 7, 129, 200])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_decoded_is_nearest_of_all_codes(kind, classes):
    coding = LabelCoding(kind, classes)
    x = torch.randn(3, coding.channels, 7, 5, generator=torch.Generator().manual_seed(classes))
    codes = coding.encode(torch.arange(classes)[:, None])[..., 0]
    wanted = (x.movedim(1, -1)[..., None, :] - codes).square().sum(-1).argmin(-1)
    assert torch.equal(coding.decode(x).long(), wanted) and coding.decode(x).dtype == torch.uint8


def test_every_number_of_classes_comes_back_as_it_was():
    for classes in range(2, 257):
        labels = torch.arange(classes, dtype=torch.uint8).reshape(1, -1, 1).expand(2, -1, 3)
        for kind, channels in (("bits", int(np.ceil(np.log2(classes)))), ("onehot", classes)):
            coding = LabelCoding(kind, classes)
            assert coding.channels == channels and coding.encode(labels).shape == (2, channels, classes, 3)
            assert torch.equal(coding.decode(coding.encode(labels)), labels)


@pytest.mark.parametrize("kind", KINDS)
def test_the_root_mean_square_is_the_scale(kind):
    labels = torch.randint(0, 5, (2, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    assert LabelCoding(kind, 5).encode(labels).square().mean().sqrt() == 0.5  # EDM's sigma_data


def test_images_keep_their_values_beside_label_maps():
    coding, images = LabelCoding("bits", 4), torch.rand(2, 3, 4, 4)
    labels = torch.randint(0, 4, (2, 4, 4), dtype=torch.uint8)
    x = coding.join(images, labels)
    assert x.shape == (2, 5, 4, 4) and x.is_contiguous()
    back = coding.split(x)
    assert torch.equal(back[0], images) and torch.equal(back[1], labels)


@pytest.mark.parametrize(("arguments", "wanted"), [
    (("bit", 4), "kind='bit': wanted one of bits, onehot"), (("bits", 1), "of 1 classes: wanted 2 to 256"),
    (("onehot", 257), "of 257 classes"), (("bits", 4, 0), "scale=0: wanted a number above 0"),
    (("bits", 4, float("inf")), "scale=inf")])
def test_codings_that_cannot_be_are_refused(arguments, wanted):
    with pytest.raises(ValueError, match=wanted):
        LabelCoding(*arguments)


def test_a_label_map_with_more_classes_than_the_data_name_is_refused():
    """As a data set of the user's own may yield."""
    transform = Identity("bits")
    transform.see(FACTS, (1, 2, 2))
    assert transform.shape == (3, 2, 2)
    for labels, wanted in ((torch.full((1, 2, 2), 4), "has the value 4, and there are 4 classes"),
                           (torch.full((1, 2, 2), -1), "has the value -1"),
                           (None, "an item of the data has no label map")):
        with pytest.raises(ValueError, match=f"{LABELS}=bits: .*{wanted}"):
            transform(Batch(torch.zeros(1, 1, 2, 2), labels, NOTHING), None)


# ---- snapshots ----


@cache
def node() -> dict:
    """A network of three channels in 2D."""
    model = {"_target_": "networks.unet.ADMUNet", "in_channels": 3, "out_channels": 3, "spatial_dims": 2,
             "model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attention_levels": []}
    return {"_target_": "networks.precond.EDMPrecond", "model": model}


def snapshot_of(**changes: object) -> Snapshot:
    """A snapshot without weights of image and bits."""
    return replace(Snapshot("diffusion", node(), FACTS, (3, 8, 8), label_coding=LabelCoding("bits", 4)), **changes)


def test_a_snapshot_comes_back_and_one_without_labels_says_nothing_of_them(tmp_path):
    snapshot_of().save(tmp_path / "a.pt")
    assert Snapshot.read(tmp_path / "a.pt").label_coding == LabelCoding("bits", 4, 0.5)
    assert "label_coding" not in snapshot_of(label_coding=None).plain()


CODED = {"kind": "bits", "classes": 4, "scale": 0.5}
DOCTORED = [
    ({"label_coding": {**CODED, "kind": "gray"}}, r"label_coding: kind='gray': wanted one of bits, onehot"),
    ({"label_coding": {**CODED, "scale": 0.0}}, r"label_coding: scale=0.0: wanted a number above 0"),
    ({"label_coding": {**CODED, "scale": float("nan")}}, r"label_coding.scale is nan"),
    ({"label_coding": {**CODED, "classes": True}}, r"label_coding.classes is True, wanted int"),
    ({"label_coding": {**CODED, "more": 1}}, r"label_coding.more' is unknown"),
    ({"label_coding": {"kind": "bits"}}, r"label_coding: classes missing"),
    ({"label_coding": []}, r"label_coding is a list, wanted names with values"),
    ({"label_coding": {**CODED, "classes": 3}}, r"label_coding is of 3 classes, data names 4 label_classes"),
    ({"shape": [4, 8, 8]}, r"shape has 4 channels, and label_coding \(bits of 4 classes\) takes 2; wanted 1 of images"),
    ({"shape": [2, 8, 8]}, r"shape has 2 channels, .*; wanted 1 of images before these"),
    ({"data": replace(FACTS, channels=()).plain(), "shape": [2, 8, 8]}, r"wanted some of images before these"),
    ({"first_stage": CarriedStage(LatentScaling([0.0] * 3, [1.0] * 3)).plain()}, r"is there beside first_stage")]


@pytest.mark.parametrize(("change", "wanted"), DOCTORED, ids=[wanted for _, wanted in DOCTORED])
def test_doctored_snapshots_are_refused_by_name(tmp_path, change, wanted):
    path = tmp_path / "a.pt"
    checkpoint.save(path, "snapshot", {**snapshot_of().plain(), **change})
    with pytest.raises(ValueError, match=rf"a\.pt: .*{wanted}"):
        Snapshot.read(path)


def test_networks_of_other_codings_draw_something_else():
    """By which guides, and notes on first weights, tell them apart."""
    spaces = [drawn_space(snapshot_of(label_coding=coding)) for coding in (LabelCoding("bits", 4), None)]
    assert spaces == ["[3, 8, 8] voxels with label maps as bits (2 channels)", "[3, 8, 8] voxels"]
    unnamed = snapshot_of(facts=replace(FACTS, channels=()))
    assert channel_count(unnamed) == 1 and channel_count(replace(unnamed, label_coding=None)) == 3
    assert "It works on voxels with label maps as bits (2 channels)" in about(snapshot_of(), torch.nn.Module())


# ---- what is drawn ----


def drawer_of(coding: LabelCoding | None) -> Drawer:
    """What draws two channels of images and those of a coding."""
    channels = 2 + (coding.channels if coding else 0)
    return Drawer(lambda seeds: None, Conditions({}, {}, (2, 2)), False, None, lambda: None, (channels, 2, 2),
                  FACTS.intensity, torch.device("cpu"), "fp32", label_coding=coding)


def test_what_is_drawn_becomes_images_in_stored_units_and_label_maps():
    coding, labels = LabelCoding("onehot", 3), torch.tensor([[[0, 1], [2, 1]]], dtype=torch.uint8)
    x = coding.join(torch.full((1, 2, 2, 2), 0.5), labels)
    made = arrays_of(drawer_of(coding), x, [0], NOTHING)
    assert list(made) == ["images", "labels"] and torch.equal(made["labels"], labels)
    assert torch.equal(made["images"], torch.full((1, 2, 2, 2), 0.75))
    assert list(arrays_of(drawer_of(None), x[:, :2], [0], NOTHING)) == ["images"]


def test_parts_of_a_sample_need_their_label_map():
    drawer = drawer_of(LabelCoding("bits", 4))
    made = {"images": np.zeros((2, 2, 2), np.float32), "labels": np.zeros((2, 2), np.uint8)}
    check_part(drawer, 0, made)
    for name, odd in (("labels", None), ("labels", made["labels"][:1]), ("images", np.zeros((4, 2, 2), np.float32))):
        with pytest.raises(ValueError, match=name):
            check_part(drawer, 0, {key: value for key, value in (made | {name: odd}).items() if value is not None})


@pytest.mark.parametrize(("changes", "fits"), [
    ({}, True), ({"labels": None}, False), ({"trajectory": (2, 5, 3, 8, 9)}, False),
    ({"labels": None, "trajectory": (2, 5, 1, 8, 8)}, True), ({"trajectory": (2, 5, 1, 8, 8)}, True),
    ({"latents": (2, 1, 4, 4)}, False)])
def test_steps_may_have_channels_of_label_maps_where_there_are_some(changes, fits):
    shapes = {"seeds": (2,), "affine": (4, 4), "images": (2, 1, 8, 8), "labels": (2, 8, 8),
              "trajectory": (2, 5, 3, 8, 8)} | changes
    types = {"seeds": "int64", "affine": "float64", "labels": "uint8"}
    layout = {name: (np.dtype(types.get(name, "float32")), shape) for name, shape in shapes.items() if shape}
    if fits:
        check_layout(Path("a.h5"), layout, FACTS, None)
    else:
        with pytest.raises(ValueError, match="trajectory is"):
            check_layout(Path("a.h5"), layout, FACTS, None)


# ---- the whole road at toy size ----

MODEL = [f"training.network.model.{key}" for key in (
    "model_channels=8", "channel_mult=[1]", "num_blocks=1", "attention_levels=[]")]
OPTIONS = [f"training.options.{key}" for key in (
    "batch_size=4", "total_kimg=0.016", "kimg_per_tick=0.008", "num_threads=1", "device=cpu", "precision=fp32",
    "lr_schedule=constant")]
TRAIN = ["-cn=voxels_edm", *MODEL, *OPTIONS, "training.validation.max_items=2", "training.validation.preview_items=1",
         "sampling.sampler.num_steps=2"]
DRAW = ["-cn=voxels_edm", "sampling.seeds=0-1", "sampling.num_threads=1", "sampling.device=cpu", "sampling.montage=2",
        "sampling.sampler.num_steps=3"]
TOLD = [f"training.network.model.attribute_{key}" for key in ("dim=auto", "dropout=0.3", "gaps=0.3")]
ROADS = {"flat": ("bits", 2, ["augment=edm", *TOLD]), "echo": ("onehot", 4, [])}


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A folder with 2D and 3D phantoms, and a network of each: with augmentation and a condition, and without."""
    folder, threads = tmp_path_factory.mktemp("joint"), torch.get_num_threads()
    with chdir(folder):
        for name, dims in (("flat", "2"), ("echo", "3")):
            succeed(dataset_tool.main, "phantom", "--dest", f"data/{name}.h5", "--num", "16", "--size", "8",
                    "--spatial-dims", dims)
            kind, _, more = ROADS[name]
            said = succeed(train.main, *TRAIN, f"training.dataset.path=data/{name}.h5", f"{LABELS}={kind}", *more,
                           f"training.options.run_root={name}")
            (folder / f"{name}.txt").write_text(said)
    torch.set_num_threads(threads)
    return folder


@pytest.mark.parametrize("name", ROADS)
def test_snapshots_say_what_stands_in_their_channels(at, name):
    kind, channels, _ = ROADS[name]
    snapshot = Snapshot.read(list_files(next(Path(name).glob("0*")), "network-snapshot")[-1])
    assert snapshot.label_coding == LabelCoding(kind, 4, 0.5)
    assert snapshot.shape == (1 + channels, *[8] * (2 if name == "flat" else 3))
    said = (at / f"{name}.txt").read_text()
    assert "label maps" not in said and "semantic maps" not in said  # which are not left aside


@pytest.mark.parametrize("name", ROADS)
def test_images_are_drawn_with_their_label_maps(at, name):
    kind, channels, _ = ROADS[name]
    size, more = ((8, 8), ["sampling.format=png", "sampling.attributes.lv_volume=80",
                                     "sampling.guidance.strength=2"]) if name == "flat" else (
        (8, 8, 8), ["sampling.format=npz"])
    said = succeed(generate.main, *DRAW, f"sampling.network={name}/00000-voxels_edm", f"sampling.outdir=out/{name}",
                   "sampling.trajectory=true", *more)
    assert f"voxels with label maps as {kind} ({channels} channels) by" in said
    samples = SamplesFile(f"out/{name}/samples.{'h5' if name == 'flat' else 'npz'}")
    images, labels, steps = (samples.array(array) for array in ("images", "labels", "trajectory"))
    assert images.shape == (2, 1, *size) and labels.shape == (2, *size) and labels.dtype == np.uint8
    assert labels.max() <= 3 and steps.shape == (2, 3, 1 + channels, *size)
    facts, last = samples.meta.facts, torch.from_numpy(steps[:, -1])
    drawn, decoded = LabelCoding(kind, 4).split(last)
    np.testing.assert_allclose(facts.intensity.from_network(drawn).numpy(), images, atol=1e-5)
    assert (decoded.numpy() == labels).mean() > 0.99 and len(np.unique(labels)) > 1
    names = {path.name for path in Path(f"out/{name}").rglob("*")}
    assert {"seed000000_image.nii.gz", "seed000001_label.nii.gz", "samples.png"} <= names
    assert name == "echo" or {"seed000000_label.png", "seed000000_overlay.png"} <= names


@pytest.mark.parametrize("name", ROADS)
def test_pictures_while_training_have_label_maps(at, name):
    run = next(Path(name).glob("0*"))
    shown = SamplesFile(run / "previews/preview-000000.016.npz")
    assert {"images", "labels"} <= set(shown.names) and shown.shape("images")[1] == 1
    assert shown.row("labels", 0).shape == shown.row("images", 0).shape[1:]


def test_python_and_a_published_folder_draw_the_same(at):
    run, words = "echo/00000-voxels_edm", {"num_steps": 3, "sampler": "edm_ode"}
    succeed(generate.main, *DRAW, f"sampling.network={run}", "sampling.outdir=out/bits", "sampling.batch_size=2")
    succeed(dataset_tool.main, "publish", run, "--dest", "shown", "--licence", "apache-2.0")
    for source in (run, "shown"):
        samples = edm3d.load(source, device="cpu").sample(range(2), batch_size=2, **words)
        for array in ("images", "labels"):
            np.testing.assert_array_equal(samples.arrays[array], SamplesFile("out/bits/samples.h5").array(array))
        assert samples.label_classes == CLASSES
    assert "It works on voxels with label maps as onehot (4 channels)" in Path("shown/README.md").read_text()
    assert "[5, 8, 8, 8] with label maps as onehot (4 channels);" in succeed(dataset_tool.main, "check", "shown")


def test_a_run_that_goes_on_ends_in_the_same_weights(at):
    words = [*TRAIN, "training.dataset.path=data/flat.h5", f"{LABELS}=bits", *ROADS["flat"][2],
             "training.options.run_root=short"]
    succeed(train.main, *words, "training.options.total_kimg=0.008")
    succeed(train.main, *words, "training.options.resume=latest")
    ends = [TrainingState.read(list_files(next(Path(root).glob("0*")), "training-state")[-1])
            for root in ("flat", "short")]
    assert learned(ends[0]) == learned(ends[1])


def test_a_plan_counts_the_channels_of_label_maps(at):
    training = compose("voxels_edm", [*TRAIN[1:], "training.dataset.path=data/flat.h5", f"{LABELS}=bits",
                                      "training.network.model.attribute_dim=auto"])["training"]
    net = Snapshot.read(list_files(next(Path("flat").glob("0*")), "network-snapshot")[-1]).build()
    without_augmentation = sum(p.numel() for name, p in net.named_parameters() if "map_augment" not in name)
    assert plan_step(training, find_source(training, None, 0)).parameters == without_augmentation
    with pytest.raises(ValueError, match=f"{LABELS}=bits: .* no label maps; wanted none, or their .* by --classes"):
        plan_step(training, find_source(training, (1, 8, 8), 0))


def test_a_network_that_is_told_what_it_draws_says_so(at):
    said = succeed(train.main, *TRAIN, "training.dataset.path=data/flat.h5", f"{LABELS}=bits",
                   "training.network.model.semantic_dim=auto", "training.network.model.semantic_hidden=4",
                   "training.validation.preview_ticks=null", "training.options.total_kimg=0.004",
                   "training.options.run_root=told")
    assert f"Note: {LABELS}=bits draws the label map that the network is told" in said


def test_data_without_label_maps_and_odd_values_are_refused(at):
    write_all(at / "maps.h5")
    assert not VolumesFile("maps.h5").meta.label_classes
    np.save("signals.npy", np.random.default_rng(0).random((12, 1, 8, 8), np.float32))
    words = [train.main, *TRAIN, f"{LABELS}=bits"]
    for more, file in ((["training.dataset.path=maps.h5"], "maps.h5"),
                       (["dataset=arrays", "training.dataset.path=signals.npy"], "signals.npy")):
        assert refused(at, *words, *more) == (f"Error: {LABELS}=bits: {file} has no label maps; wanted none, or data "
                                              "with label maps")
    data = "training.dataset.path=data/flat.h5"
    assert f"{LABELS}='bit': wanted one of none, bits, onehot" in refused(at, *words, data, f"{LABELS}=bit")
    assert "training.batch_transform.label_scale=0: wanted more than 0" in refused(
        at, *words, data, "training.batch_transform.label_scale=0")


def test_the_keys_are_typed_without_a_plus_and_no_part_of_the_hash_while_nothing_is_drawn():
    found = [config_hash(compose("voxels_edm", [f"{LABELS}={kind}"])["training"]) for kind in ("none", *KINDS)]
    assert len(set(found)) == 3 and found[0] == config_hash(compose("voxels_edm", [])["training"])
