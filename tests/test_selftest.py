"""What is looked at before the first step."""

import shutil
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
import torch

from edm3d.formats.facts import Facts, LatentFacts
from edm3d.formats.intensity import Intensity
from edm3d.formats.refinement import Refinement
from edm3d.inference.batch import Sample
from edm3d.training import selftest
from edm3d.training.batch_transforms import Identity
from edm3d.training.loss import EDMLoss
from edm3d.training.selftest import (
    Trial,
    bf16_of_all_ranks,
    bf16_warnings,
    bytes_to_come,
    check_folder,
    data_lines,
)
from edm3d.training.tasks.diffusion import diffusion_task
from edm3d.training.validation import Held
from edm3d.utils import distributed
from tests.toy import BLANK, OPTIONS, Points, Toy, make_trainer, trained

TRAINING = {"network": {"_target_": "networks.precond.EDMPrecond"}, "loss": {"_target_": "training.loss.EDMLoss"},
            "options": {"seed": 0}}
CPU = torch.device("cpu")


class Normal:
    """Items [1,1000] of a normal law with mean 3, as latents or as images."""

    def __init__(self, std: float, latents: bool = True, clip: bool = True):
        known = LatentFacts("", "", [0.0], [1.0], None, "standardize", "gaussian") if latents else None
        self.std, self.facts = std, Facts("", "", intensity=Intensity(0, 1, clip, ""), latents=known)

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> Sample:
        return Sample(np.random.default_rng(index).normal(3, self.std, (1, 1000)).astype(np.float32))


def task_with(sigma_data: float | None):
    """A diffusion task whose network was made for a standard deviation."""
    net = Toy()
    if sigma_data is not None:
        net.sigma_data = sigma_data
    return diffusion_task(net, EDMLoss(), torch.optim.Adam(net.parameters()), Identity(), BLANK)


@pytest.mark.parametrize(("std", "warned"), [(0.5, False), (0.53, False), (0.57, True), (0.43, True)])
def test_spread_of_the_data_is_held_against_sigma_data(std, warned):
    lines = data_lines(task_with(0.5), Normal(std), TRAINING, CPU)
    assert float(lines[0].split()[2]) == pytest.approx(std, rel=0.01) and "sigma_data 0.5" in lines[0]
    assert len(lines) == 1 + warned
    if warned:
        assert lines[1].startswith("Warning") and float(lines[1].split()[6]) == pytest.approx(std / 0.5, rel=0.02)


def test_spread_is_told_without_sigma_data_and_left_out_where_nothing_is_to_be_learned():
    assert len(data_lines(task_with(None), Normal(2), TRAINING, CPU)) == 1
    assert data_lines(replace(task_with(0.5), seen=None), Normal(2), TRAINING, CPU) == []


@pytest.mark.parametrize(("network", "loss", "keys"), [
    ({"sigma_data": 0.5}, {"sigma_data": 0.5}, "give training.network.sigma_data={0} training.loss.sigma_data={0}, or"),
    ({}, {}, "give +training.network.sigma_data={0} +training.loss.sigma_data={0}, or scale"),
    ({"sigma_data": 0.5}, {"_target_": "training.loss.VPLoss"}, "give training.network.sigma_data={0}, or scale"),
    ({"_target_": "networks.precond.VPPrecond"}, {"_target_": "training.loss.VPLoss"}, "sigma_data; scale the data"),
])
def test_only_keys_that_there_are_are_named(network, loss, keys):
    training = {**TRAINING, "network": TRAINING["network"] | network, "loss": TRAINING["loss"] | loss}
    measured, warning = data_lines(task_with(0.5), Normal(0.1), training, CPU)
    assert keys.format(measured.split()[2]) in warning


@pytest.mark.parametrize(("std", "clip", "warned"), [(0.5, True, True), (0.5, False, False), (5, False, True)])
def test_images_far_outside_their_range_are_warned_of(std, clip, warned):
    data = Normal(std, latents=False, clip=clip)
    values = np.concatenate([data[i].image for i in torch.linspace(0, 49, 16).long().tolist()])
    lines = data_lines(replace(task_with(None), seen=None), data, TRAINING, CPU)
    said = f"Warning: images must be in [-1, 1], those of 16 items go from {values.min():.4g} to {values.max():.4g}"
    assert [line.partition(";")[0] for line in lines] == [said] * warned


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_bf16_convolution_is_right_here(dims):
    assert bf16_warnings(dims, CPU) == []


@pytest.mark.parametrize(("part", "factor", "memory", "words"), [
    (2, 1.05, 1, "3D bf16 convolution is off by 5%"), (0, float("nan"), 1, "off by nan"),
    (1, 1, 3, "takes 3.0 times the memory"),
])  # fmt: skip
def test_bf16_convolution_that_is_wrong_or_greedy_is_warned_of(monkeypatch, part, factor, memory, words):
    right = selftest.try_convolution(3, CPU, torch.float32).tensors

    def wrong(dims: int, device: torch.device, dtype: torch.dtype) -> Trial:
        if dtype == torch.float32:
            return Trial(right, 1000)
        return Trial([t * (factor if i == part else 1) for i, t in enumerate(right)], 1000 * memory)

    monkeypatch.setattr(selftest, "try_convolution", wrong)
    line, = bf16_warnings(3, CPU)
    assert words in line and torch.__version__ in line and "cuDNN" in line


def test_bf16_of_every_rank_is_looked_at_and_named(monkeypatch):
    monkeypatch.setattr(selftest, "bf16_warnings", lambda dims, device: [f"Warning: {dims}D is off on {device}"])
    assert bf16_of_all_ranks(3, CPU) == ["Warning: 3D is off on cpu"]
    monkeypatch.setattr(distributed, "gather_objects", lambda own: [[], own, [], [*own, "Warning: greedy"]])
    assert bf16_of_all_ranks(2, CPU) == ["Warning: rank 1: 2D is off on cpu", "Warning: rank 3: 2D is off on cpu",
                                         "Warning: rank 3: greedy"]


def test_size_of_the_files_to_come_is_about_right(tmp_path):
    options = replace(OPTIONS, total_kimg=0.2, snapshot_ticks=1, state_ticks=2, keep_snapshots=3, keep_states=1,
                      ema_halflife_kimg=[0.1, 0.2])
    task = make_trainer(tmp_path / "other").task
    task.net.layers.append(torch.nn.Linear(4, 40_000))  # weights that outweigh the format
    task.net.layers.append(torch.nn.Linear(40_000, 4))
    task.phases[0].optimizer = torch.optim.Adam(task.net.parameters())
    promised = bytes_to_come(task, options, with_best=True)
    trained(tmp_path / "run", options, task=task, held=Held(Points(), 1))
    written = sum(p.stat().st_size for p in (tmp_path / "run").glob("*.pt"))
    assert len(list((tmp_path / "run").glob("*.pt"))) == 3 * 2 + 1 + 1
    assert promised == pytest.approx(written, rel=0.02)


def test_disk_without_room_and_folder_without_permission_are_refused(tmp_path, monkeypatch):
    task, usage = make_trainer(tmp_path).task, namedtuple("usage", "total used free")
    check_folder(tmp_path / "a/b", task, OPTIONS, with_best=True)
    needed = bytes_to_come(task, OPTIONS, with_best=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2 ** 40, 0, needed))
    with pytest.raises(ValueError, match="MiB needed"):  # a file more while it is written
        check_folder(tmp_path, task, OPTIONS, with_best=True)
    (tmp_path / "network-best.pt").write_bytes(bytes(needed))  # what is there will make room
    check_folder(tmp_path, task, OPTIONS, with_best=True)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file: no files can be written there .*training\.options\.run_root"):
        check_folder(tmp_path / "file", task, OPTIONS, with_best=True)


def test_a_target_that_is_scaled_by_places_is_not_warned_of():
    task = task_with(0.5)
    task.snapshot = replace(task.snapshot, refines=Refinement("f", "residual", [[[0.0]]], [[[0.0]]], [[[1.0]]]))
    assert len(data_lines(task, Normal(0.4), TRAINING, CPU)) == 1
    assert len(data_lines(task_with(0.5), Normal(0.4), TRAINING, CPU)) == 2
