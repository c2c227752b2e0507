"""Networks of PET draw in units of activity, told scans that are simulated by the seed, or the user's own."""

import shutil
import subprocess
import sys
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import dataset_tool
import generate
from edm3d.formats import phantom_files
from edm3d.formats.dose import DoseRecord
from edm3d.formats.facts import AttributeStatistics, Facts
from edm3d.formats.intensity import Intensity
from edm3d.formats.sample_meta import SampleMeta
from edm3d.formats.samples import SamplesFile
from edm3d.inference import scans
from edm3d.inference.asking_scans import open_scans
from edm3d.inference.conditions import Conditions
from edm3d.inference.model import Model
from edm3d.inference.scans import Grid
from edm3d.inference.snapshot import Snapshot
from edm3d.networks.conditioning import Part
from edm3d.physics.dose import DoseSimulation
from edm3d.physics.pet_phantoms import pet_phantom
from edm3d.samplers.noise import ImageGenerators
from edm3d.training.datasets.phantoms import PhantomDataset
from edm3d.utils.config import build
from edm3d.utils.schema import Sampling
from tests.commands import call, refused, succeed

SIZE, SLICES = 16, 12
SIMULATION = {"_target_": "physics.dose.DoseSimulation", "size": SIZE, "pixel_mm": 4.0, "counts": 2e4, "dose": 0.25,
              "iterations": 6}
SCALE = {"_target_": "physics.activity_scale.ActivityScale", "kind": "total", "factor": 8.0}
RECORD = DoseRecord(SIMULATION, SCALE, "Bq/ml", "high", 5.0, 0.01)
DRAW = ["-cn=pet_phantoms", "sampling.network=pet.pt", "sampling.num_threads=1", "sampling.device=cpu",
        "sampling.outdir=out", "sampling.sampler.num_steps=2", "sampling.montage=0"]
DATASET = {"_target_": "training.datasets.phantoms.PhantomDataset", "path": "phantoms.npz", "split": "train"}


def net_node(channels: int = 1, **more) -> dict:
    return {"_target_": "networks.precond.EDMPrecond", "model": {
        "_target_": "networks.unet.ADMUNet", "in_channels": channels, "out_channels": channels, "spatial_dims": 2,
        "model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attention_levels": [], **more}}


def write_snapshot(path: str, dataset: PhantomDataset, *, drawn: str = "high", dose: dict | None = None,
                   node: dict | None = None, **model) -> None:
    """A snapshot of a small network, with random weights."""
    channels = ("high dose", "low dose") if drawn == "pair" else ("high dose",)
    model = {"image_dim": 1, "image_dropout": 0.1, **model} if drawn == "high" else model
    facts = Facts(str(dataset.facts.source), dataset.facts.content_hash, channels, intensity=dataset.facts.intensity,
                  spatial_shape=(SIZE, SIZE), condition_channels=("low dose",) if drawn == "high" else None,
                  attribute_names=("slice_height",), attribute_units=("share",),
                  attribute_statistics=AttributeStatistics.of(dataset.heights))
    network = net_node(2 if drawn == "pair" else 1, attribute_dim=1, attribute_dropout=0.1, attribute_mean=[0.5],
                       attribute_std=[0.3], **model)
    torch.manual_seed(0)
    net = build(network)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)  # what ends in zeros draws what says nothing
    record = RECORD._replace(drawn=drawn, **(dose or {}))
    config = {"training": {"dataset": node or DATASET, "validation": {"split": "val"}}}
    Snapshot("diffusion", network, facts, (len(channels), SIZE, SIZE), config=config, weights=net.state_dict(),
             dose=record).save(Path(path))


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A folder with phantoms of three subjects, the last of which is held out, and networks."""
    folder = tmp_path_factory.mktemp("scans")
    slices = np.stack([pet_phantom(i, size=SIZE).activity for i in range(SLICES)])
    with chdir(folder):
        np.savez("phantoms.npz", phantoms=slices, subjects=np.repeat([0, 1, 2], 4), unit=np.array("Bq/ml"))
        dataset = PhantomDataset("phantoms.npz")
        write_snapshot("pet.pt", dataset)
        write_snapshot("pair.pt", dataset, drawn="pair")
        write_snapshot("odd.pt", dataset, dose={"simulation": {**SIMULATION, "scale": {"_target_": "os.getcwd"}}})
        node = net_node()
        Snapshot("diffusion", node, dataset.facts, (1, SIZE, SIZE), weights=build(node).state_dict()
                 ).save(Path("plain.pt"))
        for name, value in (("large.pt", {"iterations": 10 ** 12}), ("wide.pt", {"angles": 10 ** 5, "shifts": 10 ** 5}),
                            ("size.pt", {"size": 32})):
            write_snapshot(name, dataset, dose={"simulation": {**SIMULATION, **value}})
        write_snapshot("other.pt", dataset, dose={"scale": {"_target_": "pathlib.Path"}})
        write_snapshot("as_scale.pt", dataset, dose={"scale": SIMULATION})
        write_snapshot("as_simulation.pt", dataset, dose={"simulation": SCALE})
        write_snapshot("scaled.pt", dataset, dose={"scale": {**SCALE, "factor": 1e300}})
        write_snapshot("volumes.pt", dataset, node={"_target_": "training.datasets.volumes.VolumesDataset",
                                                    "path": "volumes.h5", "split": "train"})
        np.savez("bad.npz", phantoms=-slices)
    return folder


@pytest.fixture(autouse=True)
def work_at(at):
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def drawn(out: str, *arguments: str) -> SamplesFile:
    """Samples of a command."""
    suffix = "npz" if "sampling.format=npz" in arguments else "h5"
    succeed(generate.main, *DRAW, f"sampling.outdir={out}", *arguments)
    return SamplesFile(f"{out}/samples.{suffix}")


@pytest.fixture(scope="module")
def held_out(here) -> Path:
    """Samples of seeds 0-5, of held-out phantoms."""
    with chdir(here):
        drawn("held", "sampling.seeds=0-5", "sampling.montage=3", "sampling.format=npz")
    return here / "held/samples.npz"


# ---- simulated ----


def test_samples_hold_scan_and_phantom_in_units_of_activity(held_out):
    file, val = SamplesFile(held_out), PhantomDataset("phantoms.npz", "val")
    assert set(file.names) == {"images", "attributes", "cond_images", "phantom", "high_images", "scales", "doses",
                               "slice_ids", "draws"}
    assert file.array("slice_ids").tolist() == [0, 1, 2, 3, 0, 1] and not file.array("draws").any()
    assert file.array("doses").tolist() == [0.25] * 6
    np.testing.assert_allclose(file.row("phantom", 1)[0], val.slices[9], atol=1e-5)
    np.testing.assert_allclose(file.array("attributes")[:4], val.heights)
    with np.load(held_out) as arrays:
        assert str(arrays["unit"]) == "Bq/ml" and arrays["seeds"].tolist() == list(range(6))
    assert file.meta.id_of(5) == val.ids[1] == "id2slice1" and file.meta.facts.intensity.unit == "Bq/ml"
    simulation = DoseSimulation(**{k: v for k, v in SIMULATION.items() if k != "_target_"})
    pair = simulation.pair(torch.from_numpy(file.row("phantom", 5)[None]), ImageGenerators([5], purpose="scan"))
    np.testing.assert_allclose(file.row("cond_images", 5), pair.low[0], atol=1e-4)
    np.testing.assert_allclose(file.row("high_images", 5), pair.high[0], atol=1e-4)
    assert file.array("scales")[5] == pytest.approx(8 * float(pair.low.mean()), rel=1e-5)
    assert (file.row("cond_images", 1) != file.row("cond_images", 5)).any()  # another seed, another scan


def test_what_the_network_draws_is_scaled_back_by_the_scale_of_its_scan(held_out):
    file, model = SamplesFile(held_out), Model.load("pet.pt")
    net = model.sample([2], sampler="multistep", num_steps=2)
    np.testing.assert_allclose(net.images[0], file.row("images", 2), atol=1e-3)
    low, scale = torch.from_numpy(file.row("cond_images", 2)[None]), float(file.array("scales")[2])
    seen = []

    def spy(x, sigma, condition=None, **more):
        seen.append(condition.images)
        return original(x, sigma, condition=condition, **more)

    original = model.net.forward
    model.net.forward = spy
    model.sample([2], num_steps=2)
    torch.testing.assert_close(seen[0], 2 * low / scale - 1, atol=1e-5, rtol=1e-5)


def test_files_say_what_they_are_of_and_are_read_again(held_out):
    assert "0 problems" in (said := succeed(dataset_tool.main, "check", str(held_out))) or "agrees" in said
    assert "condition images asked for, of low dose" in succeed(dataset_tool.main, "info", str(held_out))
    succeed(dataset_tool.main, "export", str(held_out), "--dest", "exported", "--format", "png")
    assert len(list(Path("exported").glob("*.png"))) == 6
    settings = SamplesFile(held_out).meta.sampling
    assert settings["scan"]["simulation"]["dose"] == 0.25 and settings["conditions"]["source"] == "phantoms.npz"
    assert (held_out.parent / "samples.png").stat().st_size > 10_000


def test_batches_ranks_and_resuming_change_nothing(held_out):
    whole = SamplesFile(held_out)
    drawn("parts", "sampling.seeds=1,4", "sampling.batch_size=1", "sampling.format=npz")
    said = succeed(generate.main, *DRAW, "sampling.outdir=parts", "sampling.seeds=0-5", "sampling.format=npz",
                   "sampling.batch_size=3")
    assert "6 asked for, 2 there already" in said
    parts = SamplesFile("parts/samples.npz")
    for name in ("cond_images", "high_images", "phantom", "scales", "images"):
        np.testing.assert_allclose(parts.array(name), whole.array(name), atol=1e-3, err_msg=name)


@pytest.mark.slow
def test_two_ranks_draw_the_images_of_one(held_out, root):
    arguments = [*DRAW, "sampling.outdir=ranks", "sampling.seeds=0-5", "sampling.batch_size=2"]
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
                           str(root / "generate.py"), *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = SamplesFile(held_out), SamplesFile("ranks/samples.h5")
    for name in ("cond_images", "high_images", "phantom", "scales", "slice_ids"):
        np.testing.assert_array_equal(two.array(name), one.array(name), err_msg=name)
    np.testing.assert_allclose(two.array("images"), one.array("images"), atol=1e-3)


def test_phantoms_dose_and_heights_of_ones_own():
    file = drawn("own", "sampling.seeds=11,30", "sampling.conditions=phantoms.npz", "sampling.scan.dose=0.05",
                 "sampling.scan.counts=1e5", "sampling.attributes.slice_height=0.7")
    assert file.array("slice_ids").tolist() == [11, 6] and file.array("doses") == pytest.approx([0.05] * 2)
    assert file.array("attributes").ravel().tolist() == pytest.approx([0.7, 0.7])
    assert file.meta.sampling["scan"]["simulation"]["counts"] == 1e5
    line = refused(Path(), generate.main, *DRAW, "sampling.outdir=own", "sampling.conditions=phantoms.npz",
                   "sampling.scan.dose=0.1", "sampling.scan.counts=1e5", "sampling.attributes.slice_height=0.7")
    assert "another sampling (sampling.scan.simulation.dose: 0.05, asked for is 0.1)" in line


# ---- several draws ----


def test_draws_of_a_scan_are_the_same_whatever_their_number(held_out):
    one = SamplesFile(held_out)
    two, three = (drawn(f"k{k}", "sampling.seeds=0-1", f"sampling.samples_per_condition={k}") for k in (2, 3))
    assert three.seeds.tolist() == list(range(6)) and three.array("draws").tolist() == [0, 1, 2] * 2
    assert three.array("slice_ids").tolist() == [0] * 3 + [1] * 3
    for seed in (0, 1):
        for k in (0, 1):
            np.testing.assert_allclose(three.row("images", 3 * seed + k), two.row("images", 2 * seed + k), atol=1e-3)
            np.testing.assert_allclose(three.row("cond_images", 3 * seed + k), one.row("cond_images", seed), atol=1e-4)
        np.testing.assert_allclose(three.row("images", 3 * seed), one.row("images", seed), atol=1e-3)
        assert np.abs(three.row("images", 3 * seed + 1) - three.row("images", 3 * seed)).max() > 0.01
    assert three.meta.id_of(4) == one.meta.id_of(1)
    table = Path("k3/asked.csv").read_text().splitlines()
    assert table[0].split(",")[:5] == ["name", "id", "number", "draw", "seed"] and ",5,2,1," in table[6]


def test_the_second_of_antithetic_draws_has_minus_the_noise_of_the_first():
    conditions = Conditions({}, {}, (), draws=4, antithetic=True)
    noise = conditions.generators(range(4, 8)).randn((2, 3))
    np.testing.assert_array_equal(noise[0], ImageGenerators([1], purpose="sample").randn((2, 3))[0])
    np.testing.assert_array_equal(noise[2], ImageGenerators(["1.draw2"], purpose="sample").randn((2, 3))[0])
    np.testing.assert_array_equal(noise[1::2], -noise[::2])
    later = conditions.generators([5]).for_purpose("later").randn((2,))
    np.testing.assert_array_equal(later, -conditions.generators([4]).for_purpose("later").randn((2,)))
    assert not torch.equal(conditions.generators([4], attempt=1).randn((2, 3))[0], noise[0])


def test_antithetic_draws_are_those_of_before_at_even_numbers():
    draws = ["sampling.seeds=0-1", "sampling.samples_per_condition=2"]
    plain, pairs = drawn("plain", *draws), drawn("pairs", *draws, "sampling.antithetic=true")
    for seed in (0, 1):
        np.testing.assert_allclose(pairs.row("images", 2 * seed), plain.row("images", 2 * seed), atol=1e-3)
        assert np.abs(pairs.row("images", 2 * seed + 1) - plain.row("images", 2 * seed + 1)).max() > 0.01
    assert pairs.meta.sampling["antithetic"] and "antithetic" not in plain.meta.sampling


def test_a_joint_network_draws_both_doses_by_the_typical_scale():
    file = drawn("pair", "sampling.network=pair.pt", "sampling.seeds=0-1", "sampling.montage=2")
    assert file.shape("images") == (2, 2, SIZE, SIZE) and file.meta.facts.channels == ("high dose", "low dose")
    assert file.meta.facts.intensity == Intensity(0.0, 5.0, False, "Bq/ml")
    line = refused(Path(), generate.main, *DRAW, "sampling.network=pair.pt", "sampling.conditions=phantoms.npz")
    assert "pair.pt draws both doses and is told no scan" in line


def test_a_scan_may_be_started_from():
    file = drawn("late", "sampling.seeds=0-1", "sampling.start_sigma=0.01")
    np.testing.assert_allclose(file.array("images"), file.array("cond_images"), atol=0.3 * file.array("scales").max())
    assert file.meta.sampling["start"] == "condition"


# ---- bad input ----


def test_a_grid_goes_there_and_back():
    for found, wanted in (((5, 8), (6, 6)), ((7, 6), (6, 7)), ((6, 6), (6, 6))):
        images, grid = np.random.default_rng(0).random((2, 1, *found)), Grid.centred(found, wanted)
        there = grid.put(images)
        assert there.shape == (2, 1, *wanted)
        back = grid.back(there, found)
        assert np.array_equal(back[back > 0], images[back > 0]) and (back > 0).sum() == (there > 0).sum()


@pytest.mark.parametrize(("arguments", "wanted"), [
    (["sampling.scan.dose=0"], "sampling.scan.dose=0: wanted a share of the high dose, above 0 and up to 1"),
    (["sampling.scan.dose=1.5"], "sampling.scan.dose=1.5: wanted a share"),
    (["sampling.scan.dose=much"], "sampling.scan.dose='much': wanted a number"),
    (["sampling.scan.iterations=0"], "sampling.scan.iterations=0: wanted a whole number of 1 or more"),
    (["sampling.scan.size=32"], "sampling.scan.size: no such setting of a scan"),
    (["sampling.scan.fit=true"], "phantoms.npz are phantoms, which are of the network's size"),
    (["sampling.samples_per_condition=0"], "sampling.samples_per_condition=0: wanted 1 or more"),
    (["sampling.samples_per_condition=3", "sampling.antithetic=true"], "ask for an even number"),
    (["sampling.antithetic=true"], "there are sampling.samples_per_condition=1; ask for an even number"),
    (["sampling.samples_per_condition=2", "sampling.sweep.slice_height=[0,1,3]"], "ask for one of the two"),
    (["sampling.network=odd.pt"], "is not on the list of what a file may name"),
    (["sampling.network=large.pt"], "large.pt: dose.simulation.iterations=1000000000000: wanted no more than"),
    (["sampling.network=wide.pt"], "wide.pt: simulating scans by 100000 angles x 100000 shifts"),
    (["sampling.network=size.pt"], "size.pt: dose.simulation.size is 32, its network draws"),
    (["sampling.network=other.pt"], "is not on the list of what a file may name"),
    (["sampling.conditions=nowhere.nii.gz"], "nowhere.nii.gz: no such file; wanted a low-dose scan"),
    (["sampling.start_sigma=1000000"], "starts at noise level 1e+06, in which a mean is lost"),
    (["sampling.conditions_split=test"], "wanted train, val or all"),
    (["sampling.network=as_scale.pt"], "as_scale.pt: dose.scale: config._target_=physics.dose.DoseSimulation is not"),
    (["sampling.network=as_simulation.pt"], "as_simulation.pt: dose.simulation: config._target_=physics.activity_"),
    (["sampling.network=scaled.pt"], "scaled.pt: dose.scale: 'physics.activity_scale.ActivityScale' cannot be built of "
                                     "what is said of it there (factor=1e+300: wanted 1e+06 or less)"),
    (["sampling.scan.iterations=1000000000000"], "sampling.scan.iterations=1000000000000: wanted no more than 100000"),
    (["sampling.scan.angles=100001"], "sampling.scan.angles=100001: wanted no more than 100000"),
    (["sampling.scan.counts=1e300"], "sampling.scan.counts=1e+300: wanted at most 1e+15"),
    (["sampling.scan.blur=1e9"], "sampling.scan.blur=1000000000.0: wanted at most 16, the shifts"),
    (["sampling.network=volumes.pt", "sampling.conditions_split=val"],
     "sampling.conditions_split=val: volumes.pt was not trained on phantoms; name some by sampling.conditions=FILE"),
    (["sampling.conditions=bad.npz"], "Error: sampling.conditions=bad.npz: bad.npz: slice 0 has activities that are"),
    (["sampling.conditions=."], "Error: sampling.conditions=.: a folder without slices; wanted a low-dose scan"),
])
def test_what_cannot_be_asked_for_is_said(arguments, wanted):
    assert wanted in refused(Path(), generate.main, *DRAW, *arguments)


def test_phantoms_that_are_gone_or_others_are_said(tmp_path):
    gone = Path("phantoms.npz").rename("moved.npz")
    try:
        line = refused(Path(), generate.main, *DRAW, "sampling.seeds=0")
        assert "the phantoms that pet.pt was trained on cannot be read (" in line and "sampling.conditions=FILE" in line
        np.savez("phantoms.npz", phantoms=np.ones((3, SIZE, SIZE)), subjects=[0, 1, 2], unit=np.array("Bq/ml"))
        said = succeed(generate.main, *DRAW, f"sampling.outdir={tmp_path / 'out'}", "sampling.seeds=0")
        assert "phantoms.npz is not what the network was trained on" in said
        np.savez("phantoms.npz", phantoms=np.ones((3, SIZE, SIZE)), subjects=[0, 1, 2], unit=np.array("MBq"))
        line = refused(Path(), generate.main, *DRAW, "sampling.seeds=0")
        assert "phantoms.npz: is in 'MBq', the network was trained on 'Bq/ml'" in line
    finally:
        gone.rename("phantoms.npz")


def test_phantoms_are_known_by_what_they_are_wherever_they_lie(tmp_path):
    """BrainWeb's order and number of subjects are kept for a copy, and not taken for another file."""
    slices = np.stack([pet_phantom(i, size=SIZE).activity for i in range(24)])
    np.savez("brain.npz", phantoms=slices, unit=np.array("Bq/ml"))
    node = {**DATASET, "path": "brain.npz", "order": "string", "subjects": 2}
    dataset = PhantomDataset("brain.npz", order="string", subjects=2)
    write_snapshot("brain.pt", dataset, node=node)
    shutil.copy("brain.npz", "copy.npz")
    np.savez("other.npz", phantoms=slices[:12], unit=np.array("Bq/ml"))
    ask = [*DRAW, "sampling.network=brain.pt", "sampling.seeds=0-2", f"sampling.outdir={tmp_path}"]
    succeed(generate.main, *ask, "sampling.conditions=copy.npz", "sampling.conditions_split=val")
    file, val = SamplesFile(tmp_path / "samples.h5"), PhantomDataset("brain.npz", "val", order="string", subjects=2)
    assert file.meta.ids == val.ids and val.ids[0] == "id1slice0"
    np.testing.assert_allclose(file.row("phantom", 2)[0], slices[16], atol=1e-5)  # 0, 1, 10, 11, 2
    np.testing.assert_allclose(file.array("attributes")[:, 0], val.heights[:3, 0])
    assert "3 there already" in succeed(generate.main, *ask, "sampling.conditions=brain.npz",
                                        "sampling.conditions_split=val")
    write_snapshot("order.pt", dataset, node={**node, "order": "file"})
    hashes = {open_scans(Snapshot.read(Path(name)), Sampling(conditions="copy.npz"), None, "results")[0].hash
              for name in ("brain.pt", "order.pt")}
    assert len(hashes) == 2
    said = succeed(generate.main, *ask, f"sampling.outdir={tmp_path / 'other'}", "sampling.conditions=other.npz")
    assert "other.npz is not what the network was trained on: training.dataset.order, subjects of that are not" in said


def test_names_of_phantoms_are_looked_at_without_unpacking(monkeypatch):
    monkeypatch.setattr(phantom_files, "read_npz", lambda *_: 1 / 0)
    assert phantom_files.is_phantoms("phantoms.npz") and not phantom_files.is_phantoms("pet.pt")


def test_units_out_of_files_are_fit_for_a_line(tmp_path):
    odd = "Bq\x1b[31m/ml\n"
    assert DoseRecord.from_plain(RECORD._replace(unit=odd)._asdict(), "f").unit == "Bq\\x1b[31m/ml\\n"
    write_snapshot("odd_unit.pt", PhantomDataset("phantoms.npz"), dose={"unit": odd})
    with np.load("phantoms.npz") as arrays:
        np.savez("odd_unit.npz", images=arrays["phantoms"], unit=np.array(odd))
    said = succeed(generate.main, *DRAW, "sampling.network=odd_unit.pt", "sampling.conditions=odd_unit.npz",
                   "sampling.seeds=0", f"sampling.outdir={tmp_path}", "sampling.montage=1")
    assert "Bq\\x1b[31m/ml\\n" in said and "\x1b" not in said
    assert SamplesFile(tmp_path / "samples.h5").meta.facts.intensity.unit == "Bq\\x1b[31m/ml\\n"


# ---- conditions besides, stacks and pictures ----


def test_the_class_of_a_slice_is_its_own_and_none_where_none_is_known():
    dataset = PhantomDataset("phantoms.npz", heights=3)
    facts = replace(dataset.facts, channels=("high dose",), condition_channels=("low dose",))
    for dropout in (0.1, 0):
        model = {"image_dim": 1, "label_dim": 3}
        node = {**net_node(**model), "label_dropout": dropout}
        Snapshot("diffusion", node, facts, (1, SIZE, SIZE), weights=build(node).state_dict(), dose=RECORD,
                 config={"training": {"dataset": {**DATASET, "heights": 3}, "validation": {"split": "val"}}}
                 ).save(Path(f"classes{dropout}.pt"))
    file = drawn("classes", "sampling.network=classes0.pt", "sampling.seeds=0-3")
    known = PhantomDataset("phantoms.npz", "val", heights=3)
    assert file.array("classes").tolist() == [0, 1, 2, 2] == known.classes.tolist()
    asked = drawn("asked", "sampling.network=classes0.pt", "sampling.seeds=0-1", "sampling.classes=[height2]",
                  "sampling.guidance.strength=1")
    assert asked.array("classes").tolist() == [2, 2]
    np.savez("own.npz", images=file.array("cond_images"))
    own = drawn("unknown", "sampling.network=classes0.1.pt", "sampling.conditions=own.npz")
    assert own.array("classes").tolist() == [-1] * 4
    line = refused(Path(), generate.main, *DRAW, "sampling.network=classes0.pt", "sampling.conditions=own.npz")
    assert "own.npz: has no classes, and the network was never trained without; say them by sampling.classes" in line


def test_stacks_are_simulated_drawn_and_enhanced_whole():
    dataset = PhantomDataset("phantoms.npz", stack=4)
    facts = replace(dataset.facts, channels=("high dose",), condition_channels=("low dose",))
    node = net_node(image_dim=1)
    node["model"]["spatial_dims"] = 3
    Snapshot("diffusion", node, facts, dataset.shape, weights=build(node).state_dict(), dose=RECORD, config={
        "training": {"dataset": {**DATASET, "stack": 4}, "validation": {"split": "val"}}}).save(Path("stacks.pt"))
    file = drawn("stacks", "sampling.network=stacks.pt", "sampling.seeds=0-1", "sampling.montage=2")
    assert file.shape("phantom") == file.shape("images") == (2, 1, 4, SIZE, SIZE)
    volume, affine = np.moveaxis(file.row("cond_images", 0)[0], 0, 2), np.diag([-4.0, 4, 6, 1])
    nibabel.save(nibabel.Nifti1Image(volume, affine), "volume.nii.gz")
    own = drawn("volume", "sampling.network=stacks.pt", "sampling.conditions=volume.nii.gz", "sampling.nifti=true")
    assert len(own) == 1 and own.affine_of(0).tolist() == np.array(
        [[0, -4, 0, 0], [0, 0, 4, 0], [6, 0, 0, 0], [0, 0, 0, 1]]).tolist()
    found = nibabel.load("volume/volume_enhanced.nii.gz")
    np.testing.assert_allclose(np.moveaxis(found.get_fdata(), 2, 0), own.row("images", 0)[0], rtol=1e-6)
    assert (found.affine == affine).all()
    long = np.concatenate([volume, volume[..., 1:]], 2) * np.arange(1, 8, dtype=np.float32)
    nibabel.save(nibabel.Nifti1Image(long, affine), "long.nii.gz")
    line = succeed(generate.main, *DRAW, "sampling.outdir=long", "sampling.network=stacks.pt",
                   "sampling.conditions=long.nii.gz", "sampling.nifti=true")
    assert "7 slices are 2 stacks of 4, each drawn by itself" in line
    own = SamplesFile("long/samples.h5")
    np.testing.assert_allclose(own.row("cond_images", 1)[0, :3], np.moveaxis(long[..., 4:], 2, 0), rtol=1e-6)
    assert not own.row("cond_images", 1)[0, 3].any() and own.affine_of(1)[:3, 3].tolist() == [0, 0, 24]
    found = nibabel.load("long/long_enhanced.nii.gz").get_fdata()
    np.testing.assert_allclose(np.moveaxis(found, 2, 0), own.array("images").reshape(8, SIZE, SIZE)[:7], rtol=1e-6)
    np.savez("long.npz", images=np.moveaxis(long, 2, 0))
    line = refused(Path(), generate.main, *DRAW, "sampling.network=stacks.pt", "sampling.conditions=long.npz",
                   "sampling.scan.fit=true")
    assert "long.npz: stacks are of 7 slices, the network is told 4, and sampling.scan.fit crops within" in line


def test_pictures_and_niftis_of_every_kind_are_written():
    drawn("pictures", "sampling.format=png", "sampling.seeds=0", "sampling.nifti=true")
    ends = {path.name.removeprefix("id2slice0_seed000000") for path in Path("pictures").glob("*/*.*")}
    assert ends == {".png", "_cond.png", "_high.png", "_phantom.png",
                    *(f"_{kind}.nii.gz" for kind in ("image", "cond", "high", "phantom"))}


def test_numbers_of_draws_say_seed_and_noise():
    told = Conditions({"class_labels": Part(3)}, {}, (5,), draws=3)
    assert told.numbers([2, 5]) == [6, 7, 8, 15, 16, 17] and told.seeds([7, 15]) == [2, 5]
    assert told.keys([6, 7, 8, 15]) == [2, "2.draw1", "2.draw2", 5]
    assert told([6, 7, 8, 9]).class_labels.argmax(1).tolist() == [2, 2, 2, 0]  # of the seed
    meta = SampleMeta(Facts("x", ""), "a.pt", "", {"samples_per_condition": 3})
    assert SampleMeta.from_plain(meta.plain(), "f") == meta
    assert [(meta.noise_of(n), meta.draw_of(n), meta.key_of(n)) for n in (6, 8)] == [(2, 0, 2), (2, 2, "2.draw2")]
    for wrong in ({"samples_per_condition": 0}, {"samples_per_condition": "3"}, {"samples_per_condition": 10 ** 30}):
        with pytest.raises(ValueError, match="f: sampling.samples_per_condition"):
            SampleMeta.from_plain(meta._replace(sampling=wrong).plain(), "f")


def test_a_scan_without_a_count_is_named():
    line = succeed_not("sampling.scan.counts=1e-6", "sampling.seeds=1")
    assert "seed 1 (id2slice1): nothing of its scan was counted; wanted more by sampling.scan.counts" in line
    line = succeed_not("sampling.scan.counts=100", "sampling.scan.dose=0.1", "sampling.scan.subsets=11")
    assert "sampling.scan.subsets=11: counts=100 and dose=0.1 leave 10 counts" in line
    succeed(generate.main, *DRAW, "sampling.scan.counts=1000", "sampling.scan.dose=0.1", "sampling.scan.subsets=16",
            "sampling.seeds=0-7", "sampling.outdir=few")  # all have counts, and so all have images
    assert "nothing that samples could share" in succeed_not("sampling.network=plain.pt",
                                                             "sampling.samples_per_condition=2")


def succeed_not(*arguments: str) -> str:
    """What is said of arguments by which nothing can be drawn."""
    result = call(generate.main, *DRAW, *arguments)
    assert result.exit_code and "Traceback" not in result.output
    return result.output


def test_a_projector_of_many_pixels_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(scans, "LARGE", 8)
    made = DoseSimulation(size=SIZE)
    assert scans.keep_projector(made, tmp_path) is None and len(list((tmp_path / "cache").glob("*.npz"))) == 1
    monkeypatch.setattr(scans, "system_matrix", lambda geometry: 1 / 0)  # and is not made again
    again = DoseSimulation(size=SIZE)
    scans.keep_projector(again, tmp_path)
    assert (made.matrix != again.matrix).nnz == 0
    small = DoseSimulation(size=8)
    assert scans.keep_projector(small, tmp_path) is None and small.matrix is None
