"""Runs of segmenters and classifiers: bit for bit after a stop, and the same by any number of ranks."""

import json
import signal
from contextlib import chdir
from math import nan
from pathlib import Path

import numpy as np
import pytest

import train
from edm3d.formats.intensity import Intensity
from edm3d.formats.volumes import Item, VolumesMeta, VolumesWriter, full_box
from edm3d.utils.log import read_status
from tests.commands import call, succeed
from tests.test_ranks import apart, last_state, run
from tests.test_resume import kill_in_step
from tests.toy import learned

OPTIONS = ["training.dataset.path=discs.h5", *(f"training.options.{key}" for key in (
    "batch_size=6", "total_kimg=0.036", "kimg_per_tick=0.018", "state_ticks=1", "lr_schedule=constant",
    "lr_rampup_kimg=0", "num_threads=1", "device=cpu", "precision=fp32")),
    "training.validation.every_ticks=1", "training.validation.max_items=3", "training.validation.preview_ticks=null"]
SEGMENTER = ["-cn=echo3d_segmentation", "augment=mild_patches", "training.augment.steps.patches.size=8",
             "training.augment.steps.patches.intensity=0.8", "training.loss.class_weights=balanced",
             *(f"training.network.{key}" for key in (
                 "kernel_size=[3,3,3]", "strides=[1,2,2]", "upsample_kernel_size=[2,2]", "filters=[4,8,8]",
                 "dropout=0.2")),
             *OPTIONS]
CLASSIFIER = ["-cn=echo2d_classification", "network=densenet", "training.loss.class_weights=balanced",
              *(f"training.network.{key}" for key in (
                  "init_features=8", "growth_rate=8", "block_config=[1,1]", "norm=[group,{num_groups:4}]",
                  "dropout_prob=0.2")), *OPTIONS, "training.options.batch_gpu=2"]
STILL = {"segmentation": "training.network.dropout=null", "classification": "training.network.dropout_prob=0"}
BOTH = pytest.mark.parametrize("experiment", [SEGMENTER, CLASSIFIER], ids=["segmentation", "classification"])


def write_discs(path: Path, count: int = 15, size: int = 16, *, classes: tuple[str, ...] = ("small", "large"),
                same: bool = False) -> None:
    """Images of a disc, small or large (same: all small), with its label, its class and how large it is.

    A fifth have no class, a third no attribute; the last three are held out.
    """
    meta = VolumesMeta(2, ("grey",), ("target",), ("background", "disc"), ("radius",), ("mm",), classes,
                       Intensity(0.0, 1.0, True, "a.u."))
    rng, distance = np.random.default_rng(0), np.hypot(*(np.mgrid[:size, :size] - size / 2))
    with VolumesWriter(path, meta, {"kind": "test"}) as writer:
        for i in range(count):
            large = 0 if same else i % 2
            label = (distance < size / 6 * (1 + large)).astype(np.uint8)
            image = (0.6 * label + 0.3 * rng.random(label.shape)).astype(np.float32)[None]
            radius = np.array([nan if i % 3 == 0 else 3 + 3 * large], np.float32)
            writer.add("val" if i >= count - 3 else "train",
                       Item(image, label, radius, None if i % 5 == 0 else large, f"item-{i}", f"item-{i}", np.eye(4),
                            full_box(label.shape)))


def run_of(root: str) -> Path:
    return next(Path(root).glob("0*"))


@BOTH
def test_a_run_goes_on_bit_for_bit(tmp_path, monkeypatch, experiment):
    """Stopped in the middle of a tick; augmentation, dropout and balanced weights included."""
    with chdir(tmp_path):
        write_discs(Path("discs.h5"))
        succeed(train.main, *experiment, "training.options.run_root=whole")
        with monkeypatch.context() as patch:
            kill_in_step(patch, 3, signal.SIGTERM)
            assert call(train.main, *experiment, "training.options.run_root=broken").exit_code == 75
        assert read_status(run_of("broken"))["nimg"] == 24
        succeed(train.main, *experiment, "training.options.run_root=broken", "training.options.resume=latest")
        whole, broken = last_state(run_of("whole")), last_state(run_of("broken"))
        assert broken.progress["nimg"] == 36 and learned(broken) == learned(whole)
        ticks = [json.loads((run_of(root) / "stats.jsonl").read_text().splitlines()[-1]) for root in
                 ("whole", "broken")]
        measured = [{key: value for key, value in tick.items() if key.startswith(("val/", "loss/"))} for tick in ticks]
        assert measured[0] == measured[1] and len(measured[0]) > 4


@BOTH
def test_a_batch_in_rounds_is_one_batch(tmp_path, experiment):
    """What ranks do to a batch too: each image has its own random numbers and its own share of the loss."""
    name = {"-cn=echo3d_segmentation": "segmentation", "-cn=echo2d_classification": "classification"}[experiment[0]]
    with chdir(tmp_path):
        write_discs(Path("discs.h5"))
        for count in (2, 6):
            succeed(train.main, *experiment, STILL[name], f"training.options.batch_gpu={count}",
                    f"training.options.run_root=of-{count}")
        two, six = last_state(run_of("of-2")), last_state(run_of("of-6"))
    assert apart(two.modules[name], six.modules[name]) < 1e-5


@pytest.mark.slow
@BOTH
def test_two_ranks_end_in_the_weights_of_one(tmp_path, request, experiment):
    name = request.node.callspec.id
    experiment = [*experiment, STILL[name], "training.options.batch_gpu=null", "training.options.total_kimg=0.12"]
    with chdir(tmp_path):
        write_discs(Path("discs.h5"))
        one, two = (last_state(run(ranks, f"ranks-{ranks}", *experiment)) for ranks in (1, 2))
        ticks = [json.loads((run_of(f"ranks-{ranks}") / "stats.jsonl").read_text().splitlines()[-1])
                 for ranks in (1, 2)]
    assert one.progress["nimg"] == two.progress["nimg"] == 120 and two.environment["ranks"] == 2
    assert max(apart(one.modules[name], two.modules[name]), apart(one.ema, two.ema)) < 1e-5
    measured = [key for key in ticks[0] if key.startswith("val/")]
    assert [ticks[1][key] for key in measured] == pytest.approx([ticks[0][key] for key in measured], abs=1e-4)


@pytest.mark.slow
@BOTH
def test_three_ranks_go_on_bit_for_bit(tmp_path, experiment):
    experiment = [*experiment, "training.options.batch_gpu=null", "training.options.kimg_per_tick=0.012"]
    with chdir(tmp_path):
        write_discs(Path("discs.h5"))
        whole = last_state(run(3, "whole", *experiment))
        again = [*experiment, "training.options.resume=latest"]
        run_dir = run(3, "broken", *again, "training.options.total_kimg=0.012")
        (run_dir / "STOP").touch()  # is obeyed after a step
        run(3, "broken", *again)
        assert read_status(run_dir)["nimg"] == 18  # in the middle of a tick
        broken = last_state(run(3, "broken", *again))
    assert broken.progress["nimg"] == 36 and broken.environment["ranks"] == 3 and learned(broken) == learned(whole)
