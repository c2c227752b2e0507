"""What generate.py says before it draws: arguments, guides and files that cannot be, and what will draw."""

import os
from collections.abc import Callable
from contextlib import chdir
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

import dataset_tool
import generate
from edm3d.formats.asked_words import captions
from edm3d.formats.facts import Facts, volume_facts
from edm3d.formats.intensity import Intensity
from edm3d.formats.privacy import Ledger, PrivacyStatement
from edm3d.formats.sample_meta import SampleMeta
from edm3d.formats.samples import SamplesFile, write_samples
from edm3d.formats.volumes import VolumesFile, VolumesMeta, VolumesWriter, full_box
from edm3d.inference import generation, sample_files
from edm3d.inference.conditions import Conditions
from edm3d.inference.drawing import Blank, Drawer, around, draw
from edm3d.inference.real_pictures import real_pictures, real_volume, shown_channels
from edm3d.inference.snapshot import Snapshot
from edm3d.samplers import (
    ImageGenerators,
    ShownItsEstimate,
    ablation_sampler,
    ddim_sampler,
    edm_sampler,
    multistep_sampler,
)
from edm3d.samplers.denoiser import Wrapper
from edm3d.training.tasks import TASKS
from edm3d.utils.config import build
from edm3d.utils.runs import find_file
from tests.commands import call, refused, succeed
from tests.denoisers import Denoiser, gaussian
from tests.test_locks import hold
from tests.test_volumes import make_item

DRAW = ["-cn=brainweb2d_edm", "sampling.network=edm.pt", "sampling.seeds=0-2", "sampling.num_threads=1",
        "sampling.device=cpu", "sampling.outdir=out", "sampling.sampler.num_steps=2"]
MODEL = {"_target_": "networks.unet.ADMUNet", "in_channels": 1, "out_channels": 1, "spatial_dims": 2, "label_dim": 2,
         "model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attention_levels": []}
FACTS = Facts("nowhere.h5", "", ("t1",), class_names=("ED", "ES"), intensity=Intensity(0.0, 1.0, True, ""))


def write_snapshot(path: str, precond: str, config: dict | None = None) -> None:
    """A snapshot of a small network of such a preconditioner, untrained."""
    node = {"_target_": f"networks.precond.{precond}", "label_dropout": 0.1, "model": MODEL}
    weights = build(node).state_dict()
    Snapshot("diffusion", node, FACTS, (1, 8, 8), weights=weights, config=config or {}).save(Path(path))


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A folder with snapshots: of every noise level, of DDPM's, and one that was inflated."""
    folder = tmp_path_factory.mktemp("drawing")
    with chdir(folder):
        write_snapshot("edm.pt", "EDMPrecond")
        write_snapshot("ddpm.pt", "DDPMPrecond")
        write_snapshot("inflated.pt", "EDMPrecond", {"imported": {"inflate_mode": "centre"}})
    return folder


@pytest.mark.parametrize(("overrides", "wanted"), [
    (["sampling.sampler.num_steps=1"], ".num_steps=1: wanted a whole number of 2 or more"),
    (["sampler=multistep", "sampling.sampler.order=5"], ".order=5: wanted one of 1, 2, 3, 4"),
    (["sampler=ddim", "sampling.sampler.eta=2"], ".eta=2: wanted 0"),
    (["sampler=ddim", "sampling.sampler.grid=spiral"], ".grid='spiral': wanted one of"),
    (["sampler=ddim", "sampling.sampler.grid=table"], ".grid='table': "),
    (["sampler=ddim", "sampling.network=ddpm.pt", "sampling.sampler.num_steps=1001"],
     ".num_steps=1001: wanted no more"),
    (["sampling.network=ddpm.pt", "+sampling.sampler.sigmas=[1000,1,0]"], ": sigmas go from 1000.0 to 1.0"),
    (["sampler=edm_sde", "sampling.sampler.S_min=60"], ".S_min=60, S_max=50: wanted S_min <= S_max"),
    (["sampler=ablation", "sampling.sampler.solver=rk4"], ".solver='rk4': wanted one of"),
])
def test_arguments_of_the_sampler_are_refused_at_once(at, overrides, wanted):
    arguments = [*DRAW, *overrides]
    said = refused(at, generate.main, *arguments)
    assert said.startswith(f"Error: sampling.sampler{wanted}")
    assert "Seeds" not in call(generate.main, *arguments).stdout


@pytest.fixture
def graphs(monkeypatch):
    """Graphs that torch.compile makes, run as they are; it has compiled nothing before."""
    found = []

    def keep(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=keep))
    torch.compiler.reset()
    yield found
    torch.compiler.reset()


def test_a_compiled_network_draws_the_same_and_is_compiled_once_for_a_size_of_batch(at, graphs):
    arguments = [*DRAW, "sampling.sampler.num_steps=3", "sampling.guidance.strength=2"]
    succeed(generate.main, *arguments, "sampling.outdir=uncompiled")
    assert not graphs
    said = succeed(generate.main, *arguments, "sampling.outdir=compiled", "sampling.compile=true")
    assert "Compiled    the first step is long" in said and len(graphs) == 1
    plain, compiled = (SamplesFile(f"{name}/samples.npz") for name in ("uncompiled", "compiled"))
    assert np.array_equal(compiled.array("images"), plain.array("images"))
    assert {**plain.meta.sampling, "compile": True} == compiled.meta.sampling
    again = ["sampling.outdir=uncompiled", "sampling.compile=true"]
    assert "compile" in refused(at, generate.main, *arguments, *again)  # samples of both are not mixed


@pytest.mark.parametrize(("overrides", "wanted"), [
    (["strength=2", "network=edm.pt"], ["sampling.guidance.network=edm.pt", "the network itself"]),
    (["strength=2", "network=copy.pt"], ["sampling.guidance.network=copy.pt", "the network itself"]),
    (["interval=[0.2,5]"], ["sampling.guidance.interval=[0.2, 5.0]", "sampling.guidance.strength=1"]),
    (["network=ddpm.pt"], ["sampling.guidance.network=ddpm.pt", "sampling.guidance.strength=1"]),
])
def test_guidance_that_moves_nothing_is_refused(at, overrides, wanted):
    Path("copy.pt").write_bytes(Path("edm.pt").read_bytes())
    said = refused(at, generate.main, *DRAW, *(f"sampling.guidance.{each}" for each in overrides))
    assert all(text in said for text in wanted), said


def test_what_draws_is_said(at):
    said = succeed(generate.main, *DRAW, "sampler=multistep", "sampling.guidance.strength=2",
                   "sampling.guidance.interval=[0.2,5]", "sampling.guidance.network=ddpm.pt", "sampling.outdir=said")
    line = next(line for line in said.splitlines() if line.startswith("Drawing"))
    assert line.startswith("Drawing   [1, 8, 8] voxels by EDMPrecond(ADMUNet, 0.01 M weights), multistep_sampler num_s")
    assert "num_steps=2 order=4 grid=exponential" in line
    assert line.endswith(", guidance 2 in [0.2, 5.0] by ddpm.pt")
    samples = SamplesFile("said/samples.npz")
    found = captions(samples.meta, samples.seeds[:2], samples.array("classes"))
    assert found == ["class ED\nseed 0", "class ES\nseed 1"]
    assert Path("said/samples.png").is_file() and "never trained" not in said


def test_pngs_lie_beside_samples_that_are_not_drawn_again(at):
    arguments = [*DRAW, "sampling.format=png", "sampling.outdir=pictures"]
    said = succeed(generate.main, *arguments)
    assert "PNG       pictures/png" in said
    samples, paths = SamplesFile("pictures/samples.h5"), sorted(Path("pictures/png").iterdir())
    assert [path.name for path in paths] == [f"seed{seed:06d}.png" for seed in range(3)]
    for i, path in enumerate(paths):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), np.rint(255 * samples.row("images", i)[0]))
    paths[1].unlink()
    assert "3 asked for, 3 there already" in succeed(generate.main, *arguments) and paths[1].is_file()
    assert not Path("pictures/nifti").exists() and Path("pictures/samples.png").is_file()


def test_nothing_of_another_network_stays_beside_samples_and_two_at_once_are_kept_apart(at):
    arguments = [*DRAW, "sampling.format=png", "sampling.outdir=anew", "sampling.montage=0"]
    succeed(generate.main, *arguments)
    process = hold(Path("anew").resolve(), is_folder=True)
    said = refused(at, generate.main, *arguments, "sampling.seeds=7")
    assert "sampling.outdir anew: another command is at work on it" in said and f"process {process.pid} on" in said
    process.kill()
    process.wait()
    other = ["sampling.seeds=1", "sampling.network=ddpm.pt", "sampling.overwrite=true"]
    said = succeed(generate.main, *arguments, *other, "sampling.format=h5", "sampling.nifti=false")
    assert "3 files made of something else before are gone" in said and list(Path("anew/png").iterdir()) == []
    succeed(generate.main, *arguments, *other)
    assert [path.name for path in Path("anew/png").iterdir()] == ["seed000001.png"]
    Path("anew/png.json").write_text("[]")
    assert "delete it, and what lies beside it is written anew" in refused(at, generate.main, *arguments, *other[:2])


def test_a_network_that_was_never_trained_in_three_dimensions_draws_with_a_note(at):
    said = succeed(generate.main, *DRAW, "sampling.network=inflated.pt", "sampling.outdir=inflated")
    assert "never trained since: a start for training" in said and "guidance" not in said


FILES = {
    "README.md": (b"# edm3d\n", r"starts with b'# edm3d\n'"),
    "volumes.h5": (b"\x89HDF\r\n\x1a\n", "this file holds data (HDF5)"),
    "official.pkl": (b"\x80\x04\x95", "dataset_tool.py import-edm"),
    "renamed.pt": (b"\x80\x04\x95", "dataset_tool.py import-edm"),
    "empty.pt": (b"", "is empty"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_another_kind_are_refused_by_key(at, name):
    content, wanted = FILES[name]
    Path(name).write_bytes(content)
    said = refused(at, generate.main, *DRAW, f"sampling.network={name}")
    assert said.startswith(f"Error: sampling.network={name}: wanted a network-snapshot (.pt), ") and wanted in said
    assert ("import-edm" in said) is (content[:1] == b"\x80")
    with pytest.raises(ValueError, match=f"training.options.init_from={name}: wanted a network-snapshot"):
        find_file(name, "network-snapshot", Path("results"), "training.options.init_from")


def test_as_many_real_volumes_are_shown_as_there_are_held_out_ones_first(at):
    succeed(dataset_tool.main, "phantom", "--dest", "echo.h5", "--num", "10", "--size", "8")
    file = VolumesFile("echo.h5")
    assert (file.length("test"), file.length("val")) == (1, 1)
    places = [("test", 0), ("val", 0), ("train", 0), ("train", 1)]
    snapshot = Snapshot("diffusion", {}, FACTS, (1, 8, 8, 8))
    shown, why = real_pictures(snapshot, "echo.h5", 4, False)
    for (image, label), place in zip(shown, places, strict=True):
        item = file.read(*place)
        assert np.array_equal(image, item.image) and np.array_equal(label, item.label)
    assert len(real_pictures(snapshot, "echo.h5", 100, False)[0]) == 10 and why == ""


def two_channels(path: str, names: tuple[str, str] = ("t2", "t1")) -> VolumesFile:
    """A file with an image of zeros, and ones in its second channel."""
    image = np.stack([np.zeros((8, 8)), np.ones((8, 8))]).astype(np.float32)
    meta = VolumesMeta(2, names, ("target",) * 2, (), (), (), (), Intensity(0.0, 1.0, True, ""))
    with VolumesWriter(path, meta, {}) as writer:
        writer.add("train", make_item(
            0, image=image, label=None, attributes=None, class_index=None, box=full_box((8, 8))))
    return VolumesFile(path)


def test_channels_of_real_volumes_are_chosen_by_name_or_refused_before_anything_is_drawn(at):
    two_channels("two.h5")
    two_channels("others.h5", ("pd", "flair"))
    succeed(dataset_tool.main, "phantom", "--dest", "solid.h5", "--num", "4", "--size", "8")
    said = succeed(generate.main, *DRAW, "sampling.real=two.h5", "sampling.outdir=beside")
    assert said.endswith("Montage   beside/samples.png\n")
    (image, _), = real_pictures(Snapshot.read(Path("edm.pt")), "two.h5", 3, False)[0]
    assert image.shape == (1, 8, 8) and image.min() == 1
    for name, words in (("others", "its volumes are in 2D, of channels pd, flair; wanted channels t1 in 2D"),
                        ("solid", "its volumes are in 3D, of channels echo; wanted channels t1 in 2D")):
        said = refused(at, generate.main, *DRAW, f"sampling.real={name}.h5", "sampling.outdir=never")
        assert f"sampling.real={name}.h5: {words}" in said


@pytest.mark.parametrize(("names", "count", "fits"), [
    (("t1", "t2"), 2, [1, 0]), ((), 2, [0, 1]), (("t1", "flair"), 2, None), ((), 3, None), (("pd",), 1, None)])
def test_channels_of_samples_are_found_by_name_or_by_number_where_they_have_none(at, names, count, fits):
    file, snapshot = two_channels("two.h5"), Snapshot("diffusion", {}, Facts("", "", names), (count, 8, 8))
    if fits is None:
        with pytest.raises(ValueError, match="^x: its volumes are in 2D, of channels t2, t1; wanted "):
            shown_channels(file, snapshot, "x")
    else:
        assert shown_channels(file, snapshot, "x") == fits


def test_a_file_of_the_name_of_the_training_data_is_not_taken_for_them(at):
    file, node = two_channels("was.h5"), {"_target_": "training.datasets.volumes.VolumesDataset", "path": "was.h5"}
    config = {"training": {"dataset": node}}
    snapshot = Snapshot("diffusion", {}, volume_facts(file, "train"), (2, 8, 8), config=config)
    assert len(real_pictures(snapshot, None, 3, False)[0]) == 1
    Path("was.h5").unlink()
    assert real_pictures(snapshot, None, 3, False) == ([], "there is no file was.h5")
    said = PrivacyStatement(1.0, 1e-5, Ledger("record", 9, 1.0, "prv", "1"), 1, "none", "random", [])
    private = replace(snapshot, privacy=said, facts=replace(snapshot.facts, source="private data", content_hash=""))
    assert real_pictures(private, None, 3, False) == (
        [], "the network was trained privately, and its snapshot does not say on which volumes")
    with pytest.raises(ValueError, match="trained privately"):
        real_volume(private, None)
    two_channels("was.h5", ("t1", "t2"))
    assert real_pictures(snapshot, None, 3, False) == (
        [], "was.h5 is not what the network was trained on, but another file of that name")


def test_plain_arrays_are_shown_as_long_as_they_are_those_of_training(at):
    np.save("was.npy", np.arange(40, dtype=np.float32).reshape(10, 1, 2, 2))
    node = {"_target_": "training.datasets.arrays.ArraysDataset", "path": "was.npy", "split": "train"}
    config = {"training": {"dataset": node, "validation": {"split": "val"}}}
    snapshot = Snapshot("diffusion", {}, build(node).facts, (1, 2, 2), config=config)
    (image, _), = real_pictures(snapshot, None, 3, False)[0]
    assert image.max() == 35  # the last item, clipped to what training spans
    np.save("was.npy", np.zeros((10, 1, 2, 2), np.float32) + np.arange(2))
    assert real_pictures(snapshot, None, 3, False)[1].startswith("was.npy is not what the network was trained on")


def test_a_run_that_was_stopped_goes_on_and_draws_a_damaged_part_anew(at, monkeypatch):
    real, seeds = generation.draw_kept, []

    def drawing(drawer: Drawer, batch: list[int]) -> dict[str, np.ndarray]:
        if batch[0] == 4 and len(seeds) == 4:
            raise OSError("pulled the plug")
        seeds.extend(batch)
        return real(drawer, batch)

    monkeypatch.setattr(generation, "draw_kept", drawing)
    arguments = [*DRAW, "sampling.seeds=0-5", "sampling.batch_size=2", "sampling.montage=0", "sampling.nifti=false"]
    assert call(generate.main, *arguments, "sampling.outdir=stopped").exit_code == 1 and seeds == [0, 1, 2, 3]
    parts = sorted(Path("stopped/parts").rglob("*.npz"))
    content = bytearray(parts[2].read_bytes())
    content[-300] ^= 1
    parts[2].write_bytes(content)
    np.savez(parts[3], **dict(np.load(parts[3])) | {"images": np.full((1, 8, 8), np.nan, np.float32)})
    assert "6 asked for, 2 there already" in succeed(generate.main, *arguments, "sampling.outdir=stopped")
    assert seeds[4:] == [2, 3, 4, 5] and os.listdir("stopped") == ["samples.npz"]
    succeed(generate.main, *arguments, "sampling.outdir=unstopped")
    found, wanted = (SamplesFile(f"{name}/samples.npz") for name in ("stopped", "unstopped"))
    np.testing.assert_allclose(found.array("images"), wanted.array("images"), atol=1e-5)
    assert found.array("classes").tolist() == [0, 1, 0, 1, 0, 1]


# ---- trajectories ----


def drawn(net: Denoiser, sampler, seeds: list[int]) -> dict[str, np.ndarray]:
    """Latents [N,2,3] of seeds, with their trajectory."""
    return draw(Drawer(lambda seeds: net, Conditions({}, {}, (3,)), True, None, sampler, (2, 3),
                       Intensity(0, 1, True, ""), torch.device("cpu"), "fp32", trajectory=True), seeds)


@pytest.mark.parametrize("sampler", [
    partial(edm_sampler, num_steps=5), partial(edm_sampler, num_steps=5, S_churn=2),
    partial(multistep_sampler, num_steps=5, order=3), partial(ddim_sampler, num_steps=5, eta=1),
    partial(ablation_sampler, num_steps=5, solver="euler", discretization="vp", sigma_max=80)])
def test_a_trajectory_goes_from_the_first_guess_to_the_sample(sampler):
    arrays = drawn(gaussian(0.5), sampler, [3, 8])
    steps = arrays["trajectory"]
    assert steps.shape == (2, 5, 2, 3) and steps.dtype == np.float32
    np.testing.assert_allclose(steps[:, -1], arrays["latents"], rtol=1e-5)
    if "S_churn" not in sampler.keywords:  # which adds noise before the first step
        x = 80 * ImageGenerators([3, 8], purpose="sample").randn((2, 3)).numpy()
        np.testing.assert_allclose(steps[:, 0], x * 0.25 / (0.25 + 80 ** 2), rtol=1e-4)  # D = x sd^2 / (sd^2 + sigma^2)


def test_what_is_called_may_hold_something_of_every_seed():
    class OfSeeds(Wrapper):
        """D = the number of the seed."""

        def __init__(self, net, seeds):
            super().__init__(net)
            self.seeds = torch.tensor(seeds, dtype=torch.float64).reshape(-1, 1, 1)

        def __call__(self, x, sigma, condition=None, augment_labels=None):
            return torch.zeros_like(x) + self.seeds

    drawer = Drawer(lambda seeds: OfSeeds(gaussian(0.5), seeds), Conditions({}, {}, (3,)), True, None,
                    partial(edm_sampler, num_steps=4), (2, 3), Intensity(0, 1, True, ""), torch.device("cpu"), "fp32")
    for seeds in ([3, 8], [5]):
        assert draw(drawer, seeds)["latents"][:, 0, 0].tolist() == pytest.approx(seeds)


def test_the_denoiser_of_a_batch_is_made_anew_and_shown_no_estimate_of_another():
    net = Denoiser(lambda x, sigma: x)
    net.self_condition = True
    first, second = (around(net, None, [0]) for _ in range(2))
    assert isinstance(first, ShownItsEstimate) and first is not second
    guided = around(net, lambda inner: Blank(inner), [0])
    assert isinstance(guided, Blank) and isinstance(guided.net, ShownItsEstimate)
    net.self_condition = False
    assert around(net, None, [0]) is net


def test_a_denoiser_that_always_says_the_same_has_that_at_every_step():
    net = Denoiser(lambda x, sigma: torch.full_like(x, 0.25))
    assert (drawn(net, partial(edm_sampler, num_steps=4), [0])["trajectory"] == 0.25).all()


def test_a_further_task_that_draws_is_drawn_from(at, monkeypatch):
    monkeypatch.setitem(TASKS, "mine", TASKS["diffusion"])
    replace(Snapshot.read(Path("edm.pt")), task="mine").save(Path("mine.pt"))
    keys = ["training.task=mine", "sampling.network=mine.pt", "sampling.outdir=mine", "sampling.guidance.strength=2"]
    succeed(generate.main, *DRAW, *keys, "sampling.montage=0", "sampling.nifti=false")
    assert len(SamplesFile("mine/samples.npz")) == 3
    assert "wanted a snapshot of task mine, this is one of diffusion" in refused(
        at, generate.main, *DRAW, *keys, "sampling.guidance.network=edm.pt")


@pytest.mark.parametrize("kind", ["h5", "npz"])
def test_trajectories_are_filed_by_seed_whatever_the_batch(at, kind):
    keys = ["sampling.trajectory=true", f"sampling.format={kind}", "sampling.montage=0", "sampling.nifti=false"]
    for size in (1, 3):
        succeed(generate.main, *DRAW, *keys, f"sampling.batch_size={size}", f"sampling.outdir=by{size}{kind}")
    one, three = (SamplesFile(f"by{size}{kind}/samples.{kind}") for size in (1, 3))
    steps = three.array("trajectory")
    assert steps.shape == (3, 2, 1, 8, 8) and steps.dtype == np.float32 and steps.std((0, 1)).min() > 0
    np.testing.assert_allclose(one.array("trajectory"), steps, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.clip((steps[:, -1] + 1) / 2, 0, 1), three.array("images"), atol=1e-5)
    said = refused(at, generate.main, *DRAW, *keys[1:], f"sampling.outdir=by3{kind}")
    assert "was drawn with another sampling" in said
    succeed(generate.main, *DRAW, *keys, "sampling.seeds=0-3", f"sampling.outdir=by3{kind}")
    more = SamplesFile(f"by3{kind}/samples.{kind}")
    assert len(more) == 4 and np.array_equal(more.array("trajectory")[:3], steps)
    assert "trajectory" not in three.meta.sampling["sampler"] and three.meta.sampling["trajectory"] is True


def test_without_trajectory_there_is_none(at):
    succeed(generate.main, *DRAW, "sampling.outdir=plain")
    samples = SamplesFile("plain/samples.npz")
    assert "trajectory" not in samples.names and "trajectory" not in samples.meta.sampling


# ---- what is written ----


def test_nifti_of_images_has_their_unit_and_of_label_maps_none(tmp_path):
    facts = replace(FACTS, intensity=Intensity(0.0, 1.0, True, "HU"))
    write_samples(tmp_path / "s.h5", [3], {"images": np.ones((1, 1, 4, 4, 4), np.float32),
                                           "labels": np.ones((1, 4, 4, 4), np.uint8)}, np.eye(4),
                  SampleMeta(facts, "x.pt", "0", {}))
    sample_files.write_niftis(tmp_path, SamplesFile(tmp_path / "s.h5"))
    paths = {kind: tmp_path / f"nifti/seed000003_{kind}.nii.gz" for kind in ("image", "label")}
    units = {kind: bytes(nibabel.load(path).header["descrip"].item()).rstrip(b"\0") for kind, path in paths.items()}
    assert units == {"image": b"HU", "label": b""}


def test_an_outdir_that_cannot_be_is_refused_before_anything_is_drawn(here, monkeypatch):
    with chdir(here):
        monkeypatch.setattr(generation, "draw_kept", lambda *_: pytest.fail("it was drawn"))
        Path("taken").write_text("mine")
        assert "taken is a file, wanted a folder" in refused(here, generate.main, *DRAW, "sampling.outdir=taken")
        Path("damaged").mkdir()
        Path("damaged/samples.npz").write_text("mine")
        for more in ([], ["sampling.overwrite=true"]):
            assert "nothing of another kind is overwritten: delete it" in refused(here, generate.main, *DRAW,
                                                                                  "sampling.outdir=damaged", *more)
        write_samples("damaged/samples.npz", [3], {"images": np.ones((1, 1, 2, 2), np.float32)}, np.eye(4),
                      SampleMeta(FACTS, "x.pt", "0", {}))
        content = bytearray(Path("damaged/samples.npz").read_bytes())
        content[content.index(np.ones(4, np.float32).tobytes())] ^= 1
        Path("damaged/samples.npz").write_bytes(content)
        assert "or draw anew by sampling.overwrite=true" in refused(here, generate.main, *DRAW,
                                                                    "sampling.outdir=damaged")
        monkeypatch.undo()
        succeed(generate.main, *DRAW, "sampling.outdir=damaged", "sampling.overwrite=true")
        assert SamplesFile("damaged/samples.npz").seeds.tolist() == [0, 1, 2]
