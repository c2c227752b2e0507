"""Runs with every kind of condition at once: bit for bit after a stop, and one rank against two."""

import signal
from contextlib import chdir
from math import nan
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from edm3d.formats.intensity import Intensity
from edm3d.formats.volumes import Item, VolumesMeta, VolumesWriter, full_box
from edm3d.inference.batch import collate
from edm3d.inference.snapshot import Snapshot
from edm3d.networks.conditioning import Part
from edm3d.training.datasets.volumes import VolumesDataset
from edm3d.utils.log import read_status
from edm3d.utils.runs import list_files
from tests.commands import call, succeed
from tests.test_ranks import apart, last_state, run
from tests.test_resume import kill_in_step
from tests.toy import learned

MODEL = [f"training.network.model.{key}" for key in (
    "model_channels=8", "channel_mult=[1]", "num_blocks=1", "attention_levels=[]", "channels_per_head=8",
    "label_dim=auto", "attribute_dim=auto", "attribute_dropout=0.3", "attribute_gaps=0.2", "semantic_dim=auto",
    "semantic_dropout=0.3", "semantic_hidden=4", "image_dim=auto", "image_dropout=0.3")]
TRAIN = ["-cn=voxels_edm", "training.dataset.path=all.h5", *MODEL, "training.network.label_dropout=0.3",
         *(f"training.options.{key}" for key in (
             "batch_size=6", "total_kimg=0.036", "kimg_per_tick=0.018", "state_ticks=1", "lr_schedule=constant",
             "lr_rampup_kimg=0", "num_threads=1", "device=cpu", "precision=fp32")),
         "training.validation.max_items=2", "training.validation.preview_ticks=null"]
STILL = "training.network.model.dropout=0"  # its stream is that of a rank
ALL = {"class_labels": Part(2, 0.3), "attributes": Part(2, 0.3, 0.2), "semantic": Part(3, 0.3), "images": Part(1, 0.3)}


def write_all(path: Path) -> None:
    """Fourteen images of 8x8 with a class, two attributes, a map and a condition channel; a third lack something."""
    meta = VolumesMeta(2, ("full", "low"), ("target", "condition"), (), ("volume", "age"), ("mL", "a"), ("ED", "ES"),
                       Intensity(0.0, 1.0, True, "a.u."), ("background", "wall", "cavity"))
    rng = np.random.default_rng(0)
    with VolumesWriter(path, meta, {"kind": "test"}) as writer:
        for i in range(14):
            semantic = np.repeat(np.repeat(rng.integers(0, 3, (4, 4)), 2, 0), 2, 1).astype(np.uint8)
            image = np.stack([semantic / 2, rng.random((8, 8))]).astype(np.float32)
            attributes = np.array([nan if i % 3 == 0 else semantic.sum(), 40 + i], np.float32)
            writer.add("val" if i > 11 else "train",
                       Item(image, None, attributes, None if i % 3 == 1 else i % 2, f"item-{i}", f"item-{i}",
                            np.eye(4), full_box((8, 8)), semantic))


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A folder with data that has every kind of condition."""
    folder = tmp_path_factory.mktemp("conditioned")
    write_all(folder / "all.h5")
    return folder


def test_a_run_with_every_condition_goes_on_bit_for_bit(at, monkeypatch):
    """Stopped in the middle of a tick."""
    succeed(train.main, *TRAIN, "training.options.run_root=whole")
    with monkeypatch.context() as patch:
        kill_in_step(patch, 3, signal.SIGTERM)
        assert call(train.main, *TRAIN, "training.options.run_root=broken").exit_code == 75
    run_dir = Path("broken/00000-voxels_edm")
    assert read_status(run_dir)["nimg"] == 24
    succeed(train.main, *TRAIN, "training.options.run_root=broken", "training.options.resume=latest")
    whole, broken = last_state(Path("whole/00000-voxels_edm")), last_state(run_dir)
    assert broken.progress["nimg"] == 36 and learned(broken) == learned(whole)


def test_a_run_learns_from_every_condition(at):
    """So that what other runs are held against is no run that is blind to one."""
    if not Path("whole").exists():
        succeed(train.main, *TRAIN, "training.options.run_root=whole")
    net = Snapshot.read(list_files(Path("whole/00000-voxels_edm"), "network-snapshot")[-1], "diffusion").build().eval()
    assert net.takes == ALL
    data = VolumesDataset("all.h5")
    batch = collate([data[i] for i in range(len(data))])
    with torch.no_grad():
        told = net(batch.images, torch.ones(12), batch.condition)
        for name, part in ALL.items():
            untold = net(batch.images, torch.ones(12), batch.condition.null(name, part.width))
            changed = (told - untold).abs().flatten(1).amax(1)
            assert changed.max() > 1e-5, name
            here = (batch.condition[name] != batch.condition.null(name, part.width)[name]).flatten(1).any(1)
            assert (changed[~here] == 0).all(), name


@pytest.mark.slow
def test_two_ranks_with_every_condition_end_in_the_weights_of_one(tmp_path):
    with chdir(tmp_path):
        write_all(tmp_path / "all.h5")
        one, two = (last_state(run(ranks, f"ranks-{ranks}", *TRAIN, STILL)) for ranks in (1, 2))
    assert one.progress["nimg"] == two.progress["nimg"] == 36 and two.environment["ranks"] == 2
    found = {part: apart(weights, two.modules[part]) for part, weights in one.modules.items()}
    assert max(*found.values(), apart(one.ema, two.ema)) < 1e-5, found
