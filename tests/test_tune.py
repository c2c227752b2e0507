"""What is chosen by measurement: the fastest, the same on all ranks, and never anew."""

from contextlib import chdir
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from edm3d.formats.training_state import TrainingState
from edm3d.training import run, tune
from edm3d.training.tune import Switches, choose, measured, taken_over
from edm3d.utils import distributed
from edm3d.utils.runs import list_files
from tests.commands import succeed
from tests.ranks import on_ranks
from tests.test_arrays import TRAIN
from tests.toy import OPTIONS, Points
from tests.tuning import Clock, compiling_marked

CPU = torch.device("cpu")


def plain(size: int) -> Switches:
    return Switches(False, False, size)


@pytest.mark.parametrize(("seconds", "wanted", "tried"), [
    ({}, plain(12), [12, 6]),  # all alike: the plainest
    ({plain(6): 0.9, plain(3): 0.8, plain(1): 0.7}, plain(1), [12, 6, 3, 1]),
    ({plain(6): 0.98}, plain(12), [12, 6]),  # within the margin
    ({plain(12): inf, plain(6): inf}, plain(4), [12, 6, 4, 2]),
    ({Switches(True, False, 12): 0.9, Switches(True, True, 12): 0.5, Switches(False, True, 12): 0.6},
     Switches(True, True, 12), [12, 6]),
    ({Switches(False, True, 12): 0.98}, plain(12), [12, 6]),
    ({Switches(False, True, 12): inf, Switches(True, False, 12): 0.9}, Switches(True, False, 12), [12, 6]),
])
def test_the_fastest_is_chosen(seconds, wanted, tried):
    asked = []

    def took(choice: Switches) -> float:
        asked.append(choice)
        return seconds.get(choice, 1)

    assert choose(12, None, took) == wanted
    assert [c.batch_gpu for c in asked[:-3]] == tried and {c[:2] for c in asked[-3:]} == set(tune.WAYS)
    with pytest.raises(ValueError, match="not even a step with one image"):
        choose(4, 2, lambda choice: inf)


def test_candidates_are_made_and_measured_by_the_clock():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    clock = Clock(lambda choice: 1 + choice.channels_last + (-0.5 if choice.compile else 0) + 6 / choice.batch_gpu,
                  frozenset({plain(12)}))
    with compiling_marked():
        options, lines = measured(OPTIONS, Points(), clock.assemble, CPU, clock)
    assert (options.batch_gpu, options.compile, options.channels_last) == (6, True, False)
    assert options == replace(OPTIONS, batch_gpu=6, compile=True)
    assert lines == ["Tune        12 at a time, plain: no memory, or not to be compiled",
                     "Tune        6 at a time, plain: 2000.0 ms a step",
                     "Tune        3 at a time, plain: 3000.0 ms a step",
                     "Tune        6 at a time, compiled: 1500.0 ms a step, chosen",
                     "Tune        6 at a time, compiled and channels_last: 2500.0 ms a step",
                     "Tune        6 at a time, channels_last: 3000.0 ms a step",
                     "Tune        the same from the start, without measuring: training.options.channels_last=false "
                     "training.options.compile=true training.options.batch_gpu=6"]
    assert torch.equal(torch.get_rng_state(), before)
    assert clock.tried.count(plain(12)) == 1  # memory ran out at once


def test_what_a_state_was_made_under_is_taken_over_and_fits_other_ranks():
    was = {"channels_last": True, "compile": True, "batch_gpu": 4}
    assert taken_over(OPTIONS, was) == replace(OPTIONS, channels_last=True, compile=True, batch_gpu=4)
    assert taken_over(replace(OPTIONS, batch_size=9), was).batch_gpu == 3
    assert taken_over(replace(OPTIONS, compile=True), {}) == replace(OPTIONS, batch_gpu=12)


def on_rank(folder: Path) -> None:
    """One of two, on which other choices are fast: both take what the slower one is fastest at."""
    rank = distributed.rank()
    fast = {0: {Switches(True, False, 6): 0.2}, 1: {Switches(False, True, 6): 0.4}}[rank]
    clock = Clock(lambda choice: fast.get(choice, 0.5 if choice[:2] == (True, True) else 1))
    with compiling_marked():
        options, lines = measured(OPTIONS, Points(), clock.assemble, CPU, clock)
    assert lines[0] == "Tune        6 at a time, plain: 500.0 ms a step"
    seen = distributed.gather_objects([options.channels_last, options.compile, options.batch_gpu, lines])
    assert seen[0] == seen[1] and seen[0][:3] == [True, True, 6]
    (folder / str(rank)).touch()


@pytest.mark.slow
def test_two_ranks_choose_the_same(tmp_path):
    on_ranks(on_rank, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"0", "1"}


def test_a_run_is_tuned_once_and_goes_on_as_it_began(tmp_path, monkeypatch):
    threads, more = torch.get_num_threads(), ["training.dataset.path=x.npy", "training.options.tune=true"]
    monkeypatch.setattr(tune, "seconds_of", lambda options, *rest: 2 - options.channels_last + options.compile
                        + 4 / options.batch_gpu)
    with chdir(tmp_path):
        np.save("x.npy", np.random.default_rng(0).normal(size=(12, 1, 16)).astype(np.float32))
        said = succeed(train.main, *TRAIN, *more, "training.options.run_root=cpu")
        assert "Note: training.options.tune: nothing is measured on cpu, the options stand" in said
        monkeypatch.setattr(run, "DEVICES", ("cpu",))
        said = succeed(train.main, *TRAIN, *more)
        assert "Tune        4 at a time, channels_last: 2000.0 ms a step, chosen" in said
        monkeypatch.setattr(tune, "seconds_of", None)
        said = succeed(train.main, *TRAIN, *more, "training.options.total_kimg=0.012", "training.options.resume=latest")
        assert "Tune        as at the start of the run: training.options.channels_last=True" in said
        assert "Warning: channels_last" not in said
        states = [TrainingState.read(path) for path in list_files(Path("results/00000-voxels_edm"), "training-state")]
    assert [(s.nimg, s.environment["channels_last"], s.environment["batch_gpu"]) for s in states] == [
        (12, True, 4)]
    torch.set_num_threads(threads)
