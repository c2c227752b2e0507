"""How noise is drawn belongs to a run and to a samples file: both go on as they began, and nothing mixes two ways."""

from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import dataset_tool
import edm3d
import generate
import train
from edm3d.formats.samples import SamplesFile
from edm3d.formats.training_state import TrainingState
from edm3d.inference import drawing
from edm3d.inference.snapshot import Snapshot
from edm3d.samplers import philox
from edm3d.samplers.noise import COUNTERS, GENERATORS
from edm3d.training import resume
from edm3d.training.resume import with_noise
from edm3d.utils import checkpoint
from edm3d.utils.runs import list_files
from edm3d.utils.schema import Options
from tests.commands import refused, succeed
from tests.test_arrays import DRAW
from tests.test_arrays import TRAIN as ARRAYS
from tests.toy import learned

TRAIN = [*ARRAYS, "training.dataset.path=x.npy", "training.options.lr_schedule=constant",
         "training.options.kimg_per_tick=0.008"]
LONGER, LATEST = "training.options.total_kimg=0.016", "training.options.resume=latest"
BY_COUNTERS = "training.options.noise=counters"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Signals, and networks trained on them by each scheme, to the end and half way."""
    folder, threads = tmp_path_factory.mktemp("noise"), torch.get_num_threads()
    with chdir(folder):
        np.save("x.npy", np.random.default_rng(0).normal(size=(12, 1, 16)).astype(np.float32))
        for name, more in (("generators", []), ("counters", [BY_COUNTERS])):
            fit(name, *more, LONGER)
            fit(f"half-{name}", *more)
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def at(folder):
    """Work in that folder."""
    threads = torch.get_num_threads()
    with chdir(folder):
        yield folder
    torch.set_num_threads(threads)


def fit(root: str, *overrides: str) -> str:
    return succeed(train.main, *TRAIN, f"training.options.run_root={root}", *overrides)


def last(root: str) -> TrainingState:
    """The newest state below a folder."""
    return TrainingState.read(list_files(sorted(Path(root).glob("0*"))[-1], "training-state")[-1])


def draw(outdir: str, *overrides: str) -> SamplesFile:
    keys = [*DRAW, "training.options.run_root=counters", f"sampling.outdir={outdir}", "sampling.montage=0"]
    succeed(generate.main, *keys, *overrides)
    return SamplesFile(next(Path(outdir).glob("samples.*")))


# ---- training ----


def test_a_run_by_counters_goes_on_bit_for_bit_and_says_what_it_is(at):
    said = fit("half-counters", LONGER, LATEST)  # without a word of how
    assert "Resumed from" in said and "Warning: noise" not in said
    assert learned(last("half-counters")) == learned(last("counters")) != learned(last("generators"))
    assert last("counters").environment["noise"] == COUNTERS
    said = refused(at, train.main, *TRAIN, "training.options.run_root=counters", LATEST,
                   "training.options.noise=generators")
    assert "training.options.noise=generators: the noise of" in said and "is drawn by counters" in said
    snapshot = list_files(next(Path("counters").glob("0*")), "network-snapshot")[-1]
    assert Snapshot.read(snapshot).noise == COUNTERS
    assert "trained by noise of counters" in succeed(dataset_tool.main, "info", str(snapshot))
    checkpoint.save(Path("dice.pt"), "snapshot", checkpoint.load(snapshot, "snapshot").content | {"noise": "dice"})
    with pytest.raises(ValueError, match=r"dice\.pt: noise='dice': wanted one of generators, counters"):
        Snapshot.read(Path("dice.pt"))


def test_an_old_state_goes_on_by_generators_wherever_it_does(at, monkeypatch):
    path = list_files(next(Path("half-generators").glob("0*")), "training-state")[-1]
    state = TrainingState.read(path)
    assert state.environment.pop("noise") == GENERATORS  # as those of before, which do not say so
    checkpoint.save(path, "state", state.plain())
    monkeypatch.setattr(resume, "scheme_on", lambda device: COUNTERS)  # as on CUDA
    assert "Warning: noise" not in fit("half-generators", LONGER, LATEST)
    assert learned(last("half-generators")) == learned(last("generators"))
    snapshot = list_files(next(Path("half-generators").glob("0*")), "network-snapshot")[-1]
    assert "noise" not in checkpoint.load(snapshot, "snapshot").content


def test_a_new_run_draws_as_asked_or_by_the_device(at, monkeypatch):
    monkeypatch.setattr(philox, "has_kernels", lambda device: True)
    options = Options(batch_size=4, total_kimg=1)
    state = last("counters")
    for asked, found, device, wanted in ((None, None, "cuda", COUNTERS), (None, None, "cpu", GENERATORS),
                                         (GENERATORS, None, "cuda", GENERATORS), (None, state, "cpu", COUNTERS)):
        assert with_noise(replace(options, noise=asked), found, torch.device(device)).noise == wanted
    state.environment["noise"] = "dice"
    with pytest.raises(ValueError, match=r"environment\.noise='dice': wanted one of generators, counters"):
        with_noise(options, state, torch.device("cpu"))
    assert "training.options.noise='dice': wanted one of" in refused(at, train.main, *TRAIN,
                                                                     "training.options.noise=dice")


# ---- drawing ----


@pytest.mark.parametrize("kind", ["h5", "npz"])
def test_samples_of_two_schemes_never_lie_in_one_file(at, monkeypatch, kind):
    out = [f"out-{kind}", f"sampling.format={kind}"]
    plain, counted = draw(*out), draw(f"counted-{kind}", *out[1:], "sampling.noise=counters")
    assert (plain.meta.noise, counted.meta.noise) == (GENERATORS, COUNTERS) and "noise" not in plain.meta.sampling
    before = counted.array("images")
    assert np.isclose(plain.array("images"), before).mean() < 0.5  # clipped ones are alike
    more = [*DRAW, "training.options.run_root=counters", f"sampling.format={kind}", "sampling.seeds=0-3"]
    said = refused(at, generate.main, *more, f"sampling.outdir={out[0]}", "sampling.noise=counters")
    assert "(sampling.noise: none, asked for is counters); its noise was drawn by sampling.noise='generators'" in said
    assert "its noise was drawn by sampling.noise='counters'" in refused(
        at, generate.main, *more, f"sampling.outdir=counted-{kind}")
    monkeypatch.setattr(drawing, "scheme_on", lambda device: COUNTERS)  # as on CUDA
    longer = draw(f"counted-{kind}", *out[1:], "sampling.seeds=0-3", "sampling.batch_size=3")
    np.testing.assert_allclose(longer.array("images")[:2], before, atol=1e-5)
    assert draw(*out, "sampling.seeds=0-1", "sampling.noise=generators").meta.noise == GENERATORS


def test_a_model_draws_what_the_command_does(at):
    model = edm3d.load("voxels_edm", run_root="counters", device="cpu")
    for noise in (None, COUNTERS):
        asked = {"noise": noise, "num_steps": 3, "batch_size": 2}
        found = model.sample(range(2), **asked)
        wanted = draw(f"model-{noise}", *([f"sampling.noise={noise}"] if noise else []), "sampling.batch_size=2")
        np.testing.assert_array_equal(found.images, wanted.array("images"))
        assert found.meta.noise == wanted.meta.noise
    with pytest.raises(ValueError, match="sampling.noise='dice'"):
        model.sample([0], noise="dice")
