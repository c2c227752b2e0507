"""Pictures while training: what they show, where they are kept, and that training does not feel them."""

import sys
import types
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import dataset_tool
import generate
import train
from edm3d.formats.facts import Facts
from edm3d.formats.intensity import Intensity
from edm3d.formats.sample_meta import SampleMeta
from edm3d.formats.samples import Samples, SamplesFile
from edm3d.formats.training_state import TrainingState
from edm3d.formats.volumes import VolumesFile
from edm3d.inference.batch import Sample
from edm3d.networks.autoencoder import Reconstruction
from edm3d.training.preview import (
    MadePreview,
    Preview,
    Shown,
    drawn_png,
    is_lack_of_memory,
    pixels,
    write_preview,
)
from edm3d.training.resume import read_state
from edm3d.training.tasks.previews import given_back, latent_blocks, shades
from edm3d.utils import distributed
from edm3d.utils.config_hash import config_hash
from edm3d.utils.runs import list_files
from edm3d.utils.schema import Validation
from edm3d.utils.stats import StatsFiles
from edm3d.utils.stop import Stop
from tests.commands import refused, succeed
from tests.ranks import on_ranks
from tests.toy import OPTIONS, learned, make_trainer, stopped

PLAIN = [f"training.options.{key}" for key in (
    "batch_size=4", "total_kimg=0.016", "kimg_per_tick=0.004", "num_threads=1", "device=cpu", "precision=fp32",
    "min_psnr=null", "lr_schedule=constant")] + ["training.validation.max_items=2"]
SHOWN = ["training.validation.preview_ticks=3", "training.validation.preview_items=2"]
VAE = ["-cn=echo_vae", "training.network.channels=[4,8]", *PLAIN]
MODEL = [f"training.network.model.{key}" for key in (
    "model_channels=8", "channel_mult=[1]", "num_blocks=1", "attention_levels=[]", "dropout=0.1")]
TOLD = ["++training.network.model.semantic_dim=auto", "++training.network.model.semantic_hidden=4"]
EDM = ["-cn=echo_edm", *MODEL, *PLAIN, "sampling.sampler.num_steps=2", "sampling.batch_size=1"]
NAMES = ["preview-000000.012", "preview-000000.016"]  # of the third tick and the fourth, which is the last
FLAT = [Shown([("Flat", [(np.zeros((1, 4, 4)), None)])], {"spacing": [1, 1]})]


def fit(root: str, *words: str) -> Path:
    """Train below `root`; the run folder."""
    succeed(train.main, *words, f"training.options.run_root={root}")
    return next(Path(root).glob("0*"))


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A folder with phantoms, a first stage trained under previews, its latents, and diffusion on these likewise."""
    folder, threads = tmp_path_factory.mktemp("preview"), torch.get_num_threads()
    with chdir(folder):
        for name, dims in (("echo", "3"), ("flat", "2")):
            succeed(dataset_tool.main, "phantom", "--dest", f"data/{name}.h5", "--num", "20", "--size", "8",
                    "--spatial-dims", dims)
        stage = fit("vae", *VAE, *SHOWN)
        succeed(dataset_tool.main, "encode", "--autoencoder", str(stage), "--source", "data/echo.h5", "--dest",
                "data/echo_latents.h5")
        fit("edm", *EDM, *SHOWN)
    torch.set_num_threads(threads)
    return folder


def run_in(root: str) -> Path:
    return next(Path(root).glob("0*"))


def previews(run_dir: Path, suffix: str) -> list[str]:
    """Names of the previews of a run, without their suffix."""
    return sorted(path.stem for path in (run_dir / "previews").glob(f"*{suffix}"))


def weights_of(run_dir: Path) -> str:
    return learned(TrainingState.read(list_files(run_dir, "training-state")[-1]))


# ---- what is shown ----


class Inverter(torch.nn.Module):
    """A first stage that gives back the negative, and class 1 where that is above 0."""

    def forward(self, image, label):
        return Reconstruction(-image, torch.cat([torch.zeros_like(image), -image], dim=1), None, None)


def test_a_first_stage_is_shown_below_what_it_was_given_in_stored_units():
    image = np.linspace(-1, 1, 4, dtype=np.float32).reshape(1, 2, 2)
    label = np.array([[0, 0], [1, 2]], np.uint8)
    facts = Facts("", "", ("echo",), intensity=Intensity(lo=0, hi=300, clip=True, unit=""), spatial_shape=(2, 2))
    show = given_back([Sample(image, label)], facts, torch.device("cpu"), "fp32")
    (above, [real]), (below, [back]) = show(Inverter()).blocks
    assert (above, below) == ("Held out", "Given back")
    np.testing.assert_allclose(real[0], [[[0, 100], [200, 300]]], atol=1e-4)
    np.testing.assert_allclose(back[0], [[[300, 200], [100, 0]]], atol=1e-4)
    assert real[1].tolist() == [[0, 0], [1, 2]] and back[1].tolist() == [[1, 1], [0, 0]]


def test_latents_that_nothing_decodes_are_shown_by_channel_in_their_middle_plane():
    drawn = np.arange(2 * 2 * 2 * 2 * 3).reshape(2, 2, 2, 2, 3)
    blocks = latent_blocks(drawn, drawn[:1] + 100)
    assert [title for title, _ in blocks] == ["Channel 1, real", "Channel 1, generated", "Channel 2, real",
                                              "Channel 2, generated"]
    assert [len(pictures) for _, pictures in blocks] == [1, 2, 1, 2]
    assert blocks[2][1][0][0].tolist() == [[113, 116], [119, 122]]  # item 0, channel 1, the second of three planes
    assert [title for title, _ in latent_blocks(drawn, None)] == ["Channel 1, generated", "Channel 2, generated"]
    assert shades(drawn, np.arange(201.0)) == (1, 199)
    flat = latent_blocks(np.ones((2, 3, 5)), None)
    assert [(title, [picture[0].shape for picture in pictures]) for title, pictures in flat] == [
        ("Generated", [(3, 5), (3, 5)])]


def test_signals_are_shown_as_curves():
    one, two = (np.full((1, 8), value, np.float32) for value in (0, 1))
    shown, swapped = (
        pixels(drawn_png(Shown([("Real", [(one, None)]), ("Generated", [(a, None), (b, None)])], {"spacing": [1.0]})))
        for a, b in ((one, two), (two, one)))
    height, width = shown.shape[:2]
    assert 300 < width < 500 and 300 < height < 500  # two rows of two
    differs = (shown != swapped).any(-1)
    assert not differs[:height // 2].any()
    assert differs[height // 2:, :width // 2].any() and differs[height // 2:, width // 2:].any()


# ---- the commands ----


def test_a_first_stage_leaves_pictures_every_few_ticks_and_at_the_end(at):
    run_dir = run_in("vae")
    assert previews(run_dir, ".png") == NAMES and previews(run_dir, ".npz") == []
    found = EventAccumulator(str(run_dir), size_guidance={"images": 0}).Reload().Images("preview")
    assert [image.step for image in found] == [12, 16]
    height, width = imread(run_dir / f"previews/{NAMES[0]}.png").shape[:2]
    assert (found[0].height, found[0].width) == (height, width)
    assert width < height  # two columns of two times four tiles


def test_latents_are_drawn_as_generate_draws_them_and_keep_their_seeds(at):
    run_dir = run_in("edm")
    assert previews(run_dir, ".png") == previews(run_dir, ".npz") == NAMES
    succeed(generate.main, "-cn=echo_edm", f"sampling.network={run_dir}", "sampling.seeds=0-1", "sampling.outdir=drawn",
            "sampling.sampler.num_steps=2", "sampling.batch_size=1", "sampling.num_threads=1", "sampling.device=cpu",
            "sampling.montage=0", "sampling.nifti=false")
    ours, theirs = SamplesFile(run_dir / f"previews/{NAMES[1]}.npz"), SamplesFile("drawn/samples.h5")
    assert ours.seeds.tolist() == [0, 1] and set(ours.names) == {"latents", "labels"}
    np.testing.assert_array_equal(ours.array("latents"), theirs.array("latents"))
    np.testing.assert_array_equal(ours.array("labels"), theirs.array("labels"))
    before = SamplesFile(run_dir / f"previews/{NAMES[0]}.npz").array("latents")
    np.testing.assert_allclose(before, ours.array("latents"), atol=0.5)  # the same noise, weights of one step before
    assert (before != ours.array("latents")).any()


def test_the_arrays_of_a_preview_can_be_decoded(at):
    path = run_in("edm") / f"previews/{NAMES[1]}.npz"
    succeed(dataset_tool.main, "decode", "--latents", str(path), "--dest", "decoded.h5")
    file = VolumesFile("decoded.h5")
    assert file.read(file.splits[0], 1).image.shape == (1, 8, 8, 8)


def test_training_does_not_feel_the_pictures(at):
    plain = fit("plain", *EDM, "training.validation.preview_ticks=null")
    assert not (plain / "previews").exists()
    assert weights_of(plain) == weights_of(run_in("edm"))


def test_a_resumed_run_may_begin_to_show_and_ends_the_same(at):
    half = [word.replace("total_kimg=0.016", "total_kimg=0.008") for word in EDM]
    fit("halves", *half, "training.validation.preview_ticks=null")
    run_dir = fit("halves", *EDM, "training.options.resume=latest", *SHOWN)
    assert [p.name for p in Path("halves").iterdir()] == [run_dir.name] and previews(run_dir, ".npz") == NAMES
    assert weights_of(run_dir) == weights_of(run_in("edm"))
    for name in NAMES:
        np.testing.assert_array_equal(*(SamplesFile(run / f"previews/{name}.npz").array("latents")
                                        for run in (run_dir, run_in("edm"))))


def test_latents_are_shown_as_they_are_where_nothing_is_to_be_decoded(at):
    run_dir = fit("bare", *EDM, *SHOWN, "sampling.decode=false")
    assert set(SamplesFile(run_dir / f"previews/{NAMES[1]}.npz").names) == {"latents"}
    height, width = imread(run_dir / f"previews/{NAMES[1]}.png").shape[:2]
    assert height > 8 * 168 and width < 3 * 168  # four channels, real and drawn, of two items


def test_slices_are_shown_with_real_ones_above(at):
    run_dir = fit("flat", "-cn=voxels_edm", "training.dataset.path=data/flat.h5", *MODEL, *PLAIN, *SHOWN,
                  "sampling.sampler.num_steps=2")
    samples = SamplesFile(run_dir / f"previews/{NAMES[1]}.npz")
    assert samples.array("images").shape == (2, 1, 8, 8) and set(samples.names) == {"images"}
    shown = imread(run_dir / f"previews/{NAMES[1]}.png")
    assert shown.shape[0] > 3 * 168  # twice a real slice, bare and with its labels, above one without any


def test_what_held_out_items_are_asked_by_stands_above_what_was_drawn(at):
    """A network that is told maps: three blocks, the held-out ones and those drawn with outlines as well."""
    run_dir = fit("told", "-cn=voxels_edm", "training.dataset.path=data/flat.h5", *MODEL, *PLAIN, *SHOWN,
                  "sampling.sampler.num_steps=2", *TOLD)
    samples = SamplesFile(run_dir / f"previews/{NAMES[1]}.npz")
    held_out = VolumesFile("data/flat.h5").read("val", 0).label
    np.testing.assert_array_equal(samples.array("maps")[0], held_out)
    assert imread(run_dir / f"previews/{NAMES[1]}.png").shape[0] > 5 * 168


def test_what_cannot_be_shown_does_not_keep_a_network_from_being_trained(at):
    for root, words, wanted in (
            ("nothing", [*VAE, "training.validation.max_items=0"], "no volumes are held out"),
            ("refused", [*EDM, "~sampling.sampler.num_steps", "+sampling.sampler.sigmas=[1,2]"],
             "sampling.sampler.sigmas=[1.0, 2.0]: ")):
        run_dir = fit(root, *words, *SHOWN)
        assert not (run_dir / "previews").exists()
        line, = [line for line in (run_dir / "log.txt").read_text().splitlines() if "no pictures" in line]
        assert line.startswith("Warning: ") and "training.validation.preview_ticks=3" in line and wanted in line


@pytest.mark.parametrize(("key", "wanted"), [("preview_ticks", "wanted 1 or more, or null for no pictures"),
                                             ("preview_items", "wanted 1 or more")])
def test_settings_that_show_nothing_are_refused(at, key, wanted):
    line = refused(at, train.main, *EDM, f"training.validation.{key}=0")
    assert line == f"Error: training.validation.{key}=0: {wanted}"


def test_previews_are_off_by_default_and_no_part_of_the_configs_hash():
    assert Validation().preview_ticks is None and Validation().preview_items == 4
    half = {"options": {"seed": 0}, "validation": {"preview_ticks": None}}
    assert config_hash(half) == config_hash({**half, "validation": {"preview_ticks": 3, "preview_items": 1}})


# ---- the loop ----


def shown(run_dir: Path, preview: Preview | None, options=OPTIONS, resume: Path | None = None) -> tuple[str, list[str]]:
    """Train the toy network under a preview; hash of what it learned, and what the log says."""
    said: list[str] = []
    trainer = make_trainer(run_dir, options, dropout=0.3)
    trainer.log, trainer.preview = said.append, preview
    if resume:
        trainer.restore(read_state(resume, trainer.record))
    trainer.run(Stop(run_dir))
    if distributed.rank():
        return "", said
    return learned(TrainingState.read(list_files(run_dir, "training-state")[-1])), said


def sight(seen: list):
    """A show that calls the network, and takes from the global generator what it may not miss."""
    def show(net: torch.nn.Module) -> Shown:
        torch.randn(3)
        seen.append(float(net(torch.ones(1, 1, 4), torch.ones(1)).sum()))
        return FLAT[0]

    return show


def test_the_averaged_weights_are_shown_and_the_run_stays_what_it_was(tmp_path):
    seen: list[float] = []
    wanted, _ = shown(tmp_path / "plain", None)
    got, _ = shown(tmp_path / "shown", Preview(sight(seen), 3))
    assert got == wanted and not (tmp_path / "plain/previews").exists()
    assert previews(tmp_path / "shown", ".png") == ["preview-000000.180", "preview-000000.240"]
    trainer = make_trainer(tmp_path / "again", dropout=0.3)
    trainer.restore(read_state(list_files(tmp_path / "shown", "training-state")[-1], trainer.record))
    assert seen[-1] == float(trainer.ema(torch.ones(1, 1, 4), torch.ones(1)).sum()) != seen[0]
    state = stopped(tmp_path / "stopped", 7, dropout=0.3)
    assert shown(tmp_path / "stopped", Preview(sight([]), 1), resume=state)[0] == wanted
    assert len(previews(tmp_path / "stopped", ".png")) == 3  # the tick that the run stopped in, and those after it


def test_a_run_that_a_file_ends_shows_its_end(tmp_path):
    (tmp_path / "STOP").touch()
    shown(tmp_path, Preview(sight([]), 3))
    assert previews(tmp_path, ".png") == ["preview-000000.012"]


@pytest.mark.parametrize("error", [MemoryError("no room"), torch.OutOfMemoryError("no room"),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: no room")])
def test_want_of_memory_is_said_once_and_does_not_end_the_run(tmp_path, error):
    calls = []

    def show(net: torch.nn.Module) -> Shown:
        calls.append(0)
        raise error

    _, said = shown(tmp_path, Preview(show, 1))
    line, = [line for line in said if line.startswith("Warning: no memory")]
    assert "no room" in line and "sampling.tile" in line and len(calls) == 1
    assert not (tmp_path / "previews").exists()


@pytest.mark.parametrize("error", [KeyError("a"), RuntimeError("shapes"), ValueError("b")])
def test_all_other_errors_come_out(tmp_path, error):
    def show(net: torch.nn.Module) -> Shown:
        raise error

    with pytest.raises(type(error)):
        shown(tmp_path, Preview(show, 1))


def test_what_the_allocators_say_is_known():
    for allocate in (lambda: torch.empty(2 ** 50), lambda: np.empty(2 ** 55)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            allocate()
        assert is_lack_of_memory(caught.value)


def test_pictures_go_to_wandb_too(tmp_path, monkeypatch):
    logged = []
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(Image=lambda pixels: ("image", pixels.tolist())))
    run = types.SimpleNamespace(log=lambda fields, step: logged.append((fields, step)), finish=lambda: None)
    files = StatsFiles(tmp_path, wandb_run=run)
    files.write_picture("preview", np.full((1, 1, 3), 7, np.uint8), 12)
    files.close()
    assert logged == [({"preview": ("image", [[[7, 7, 7]]])}, 12)]


def test_files_hold_what_was_drawn_and_nothing_half_written(tmp_path):
    (tmp_path / "previews").mkdir()
    (tmp_path / "previews/.tmp-1-preview-000001.png").touch()
    meta = SampleMeta(Facts("", ""), "", "", {})
    arrays = {"images": np.ones((2, 1, 4), np.float32), "latents": np.zeros((2, 1, 2), np.float32)}
    write_preview(tmp_path, "000002", MadePreview(b"png", Samples([0, 1], arrays, meta)))
    assert sorted(p.name for p in (tmp_path / "previews").iterdir()) == ["preview-000002.npz", "preview-000002.png"]
    file = SamplesFile(tmp_path / "previews/preview-000002.npz")
    assert set(file.names) == {"latents"} and file.seeds.tolist() == [0, 1]
    assert file.meta.snapshot == str(tmp_path / "network-snapshot-000002.pt")


# ---- ranks ----


def on_rank(folder: Path) -> None:
    """One of two processes that hold the network in shares, with memory for a first preview on one of them only."""
    options = replace(OPTIONS, parallel="fsdp", total_kimg=0.12)

    def lack(*_) -> None:
        raise MemoryError("no room")

    def short(net: torch.nn.Module) -> Shown:
        net(torch.ones(1, 1, 4), torch.ones(1))
        if distributed.rank() == 1:
            net.layers[2].register_forward_pre_hook(lack)  # in the midst of a call, weights are whole
        net(torch.ones(1, 1, 4), torch.ones(1))
        return FLAT[0]

    learned_by = [shown(folder / name, preview, options) for name, preview in (
        ("plain", None), ("shown", Preview(sight([]), 1)), ("short", Preview(short, 1)))]
    if distributed.rank() == 0:
        (folder / "learned.txt").write_text("\n".join(text for text, _ in learned_by))
        (folder / "said.txt").write_text("\n".join(learned_by[2][1]))


@pytest.mark.slow
def test_shares_are_called_by_all_ranks_which_agree_on_what_is_lacking(tmp_path):
    on_ranks(on_rank, tmp_path)
    assert len(set((tmp_path / "learned.txt").read_text().splitlines())) == 1
    assert previews(tmp_path / "shown", ".png") == ["preview-000000.060", "preview-000000.120"]
    assert (tmp_path / "said.txt").read_text().count("no room") == 1
