"""Reading in other processes: errors come through in their own words, and no process outlives what asked for it."""

import os
import subprocess
import sys
import time
from contextlib import chdir
from dataclasses import replace
from itertools import islice
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest
import torch
from torch.utils.data import _utils

from edm3d.inference.batch import Sample
from edm3d.networks.conditioning import Condition
from edm3d.training.data_sampler import InfiniteSampler
from edm3d.training.loader import Rounds
from edm3d.utils.log import read_status
from edm3d.utils.stop import Stop
from tests.test_encode import TINY, write_volumes
from tests.toy import OPTIONS, Points, in_step, make_trainer

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


class Odd(Points):
    """Points of which one is damaged and one takes as long as a file system that has gone."""

    def __init__(self, damaged: int = -1, stuck: int = -1):
        self.damaged, self.stuck = damaged, stuck

    def __getitem__(self, index: int) -> Sample:
        if index == self.damaged:
            raise OSError(5, "Input/output error", "points.h5")
        if index == self.stuck:
            time.sleep(1000)
        return super().__getitem__(index)


def no_workers() -> bool:
    """Whether no process of ours is left."""
    return not [p for p in psutil.Process().children() if "pt_data_worker" in p.name()]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_rounds_are_those_of_the_sampler_until_an_error_that_comes_as_it_is(num_workers):
    rounds = Rounds(Odd(damaged=7), [3, 1, 2, 0, 5, 7], 2, num_workers, CPU)
    for wanted in ([3, 1], [2, 0]):
        indices, batch = next(rounds)
        assert indices == wanted
        assert torch.equal(batch.images, torch.stack([torch.from_numpy(Points()[i].image) for i in wanted]))
    with pytest.raises(OSError) as error:
        next(rounds)
    assert type(error.value) is OSError and str(error.value) == "[Errno 5] Input/output error: 'points.h5'"
    assert "in __getitem__" in error.value.__notes__[0]
    rounds.close()
    assert no_workers()


class Told(Points):
    """Points of a class and with an attribute."""

    def __getitem__(self, index: int) -> Sample:
        condition = Condition(class_labels=np.eye(2, dtype=np.float32)[index % 2], attributes=np.full(1, index / 2))
        return super().__getitem__(index)._replace(condition=condition)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_conditions_come_along_from_other_processes(num_workers):
    rounds = Rounds(Told(), [3, 4], 2, num_workers, CPU)
    _, batch = next(rounds)
    assert list(batch.condition) == ["class_labels", "attributes"]
    assert batch.condition.class_labels.tolist() == [[0, 1], [1, 0]]
    assert batch.condition.attributes.tolist() == [[1.5], [2]]
    rounds.close()


def test_no_process_outlives_a_run_that_fails_though_it_does_not_listen(tmp_path, monkeypatch):
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.2)  # how long torch waits for it
    trainer = make_trainer(tmp_path, replace(OPTIONS, num_workers=2))
    first, second = torch.tensor(list(islice(InfiniteSampler(Points(), seed=0), 24))).chunk(2)
    trainer.dataset = Odd(stuck=next(i for i in second.tolist() if i not in first))
    in_step(trainer, 0, lambda: 1 / 0)
    start = time.monotonic()
    with pytest.raises(ZeroDivisionError), Stop(tmp_path) as asked:
        trainer.run(asked)
    assert time.monotonic() - start < 20 and no_workers()


def test_a_damaged_row_ends_a_run_with_workers_in_one_line(tmp_path):
    with chdir(tmp_path):
        write_volumes(Path("vols.h5"), counts=(32, 1))
        with h5py.File("vols.h5", "r+") as file:
            file["train/images"][3] = 0  # not one of the items that are looked at before the first step
        command = [sys.executable, str(ROOT / "train.py"), *TINY, "dataset=volumes", "batch_transform=voxels",
                   "training.dataset.path=vols.h5", "training.options.total_kimg=1", "training.options.num_workers=1"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 1
        line, = done.stderr.splitlines()
        assert line.startswith("Error: vols.h5: ") and "train" in line and "3" in line
        assert read_status(Path("results/00000-echo_edm"))["why"] == f"ValueError: {line.removeprefix('Error: ')}"
