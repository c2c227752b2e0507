"""Samples while training: what is measured of them, that training does not feel them, and what the best goes by."""

import json
from contextlib import chdir
from math import inf
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import dataset_tool
import train
from edm3d.formats.training_state import TrainingState
from edm3d.reporting import montages
from edm3d.reporting.cases import Layout
from edm3d.training.phases import Best
from edm3d.training.sampling import choose_best
from edm3d.training.tasks.sampled import MeasuredSample, numbers_of_rows
from edm3d.utils import checkpoint
from edm3d.utils.config_hash import config_hash
from edm3d.utils.runs import list_files
from edm3d.utils.schema import Validation
from tests.commands import refused, succeed
from tests.toy import learned

FLAT = ["-cn=voxels_edm", "training.dataset.path=data/flat.h5", *(f"training.network.model.{key}" for key in (
    "model_channels=8", "channel_mult=[1]", "num_blocks=1", "attention_levels=[]", "dropout=0.1")),
    *(f"training.options.{key}" for key in (
        "batch_size=4", "total_kimg=0.012", "kimg_per_tick=0.004", "num_threads=1", "device=cpu", "precision=fp32",
        "min_psnr=null", "lr_schedule=constant", "state_ticks=1")),
    "training.validation.max_items=8", "training.validation.every_ticks=1", "training.validation.preview_ticks=null",
    "sampling.sampler.num_steps=2"]
SAMPLED = ["training.validation.sample_ticks=2", "training.validation.num_samples=5"]


def fit(root: str, *words: str) -> Path:
    """Train below `root`; the run folder."""
    succeed(train.main, *FLAT, *words, f"training.options.run_root={root}")
    return next(Path(root).glob("0*"))


def numbers(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]


def state_of(run_dir: Path) -> TrainingState:
    return TrainingState.read(list_files(run_dir, "training-state")[-1])


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A folder with flat phantoms, a run that draws samples, and one that does not."""
    folder, threads = tmp_path_factory.mktemp("sampling"), torch.get_num_threads()
    with chdir(folder):
        succeed(dataset_tool.main, "phantom", "--dest", "data/flat.h5", "--num", "80", "--size", "16",
                "--spatial-dims", "2")
        fit("plain")
        fit("sampled", *SAMPLED, "training.validation.best=sample_frechet")
    torch.set_num_threads(threads)
    return folder


def run_in(root: str) -> Path:
    return next(Path(root).glob("0*"))


def test_training_does_not_feel_the_samples(at):
    assert learned(state_of(run_in("plain"))) == learned(state_of(run_in("sampled")))


def test_a_small_table_is_in_log_files_and_tensorboard_every_few_ticks(at):
    run_dir = run_in("sampled")
    found = numbers(run_dir)
    assert [("sample/frechet" in tick) for tick in found] == [False, True, True]  # the second, and the last
    for name in ("frechet", "frechet_floor", "frechet_floor_p95", "kid", "kid_floor", "ks", "ks_floor",
                 "ks_intensity_mean", "ms_ssim", "ms_ssim_floor"):
        assert np.isfinite(found[-1][f"sample/{name}"]), name
    assert "sample/frechet" not in numbers(run_in("plain"))[-1] and found[-1]["time/sample_sec"] > 0
    lines = [line for line in (run_dir / "log.txt").read_text().splitlines() if line.startswith("Samples")]
    assert len(lines) == 2 and "5 drawn and measured in " in lines[0] and "(real to real " in lines[0]
    events = EventAccumulator(str(run_dir), size_guidance={"images": 0}).Reload()
    assert [image.step for image in events.Images("samples")] == [8, 12]
    assert "sample/frechet" in events.Tags()["scalars"]


def test_the_best_snapshot_goes_by_the_measure_that_is_chosen(at):
    run_dir = run_in("sampled")
    found = [(tick["sample/frechet"], tick["kimg"]) for tick in numbers(run_dir) if "sample/frechet" in tick]
    best = checkpoint.load(run_dir / "network-best.pt", "snapshot").content
    assert best["val_sample_frechet"] == min(found)[0] and best["nimg"] == round(min(found)[1] * 1000)
    assert state_of(run_dir).progress["best"] == min(found)[0] < inf
    plain = checkpoint.load(run_in("plain") / "network-best.pt", "snapshot").content
    assert plain["val_loss"] == min(tick["val/loss"] for tick in numbers(run_in("plain")))


def test_held_out_items_are_not_shown_where_they_are_private(at, monkeypatch):
    pytest.importorskip("opacus")
    shown, draw = [], montages.montage
    monkeypatch.setattr(montages, "montage", lambda blocks, *given, **named: (
        shown.append([title for title, _ in blocks]), draw(blocks, *given, **named))[1])
    for root, words in (("seen", []), ("private", ["privacy=eps10", "training.network.model.dropout=0"])):
        fit(root, *SAMPLED, *words, "training.options.total_kimg=0.004")
        assert "sample/frechet" in numbers(run_in(root))[-1]
    assert shown == [["Held out", "Drawn"], ["Drawn"]]


def test_resuming_keeps_the_best_and_another_measure_begins_anew_with_a_note(at):
    half = ["training.options.total_kimg=0.008"]
    chosen = [*SAMPLED, "training.validation.best=sample_frechet"]
    fit("halves", *half, *chosen)
    kept = state_of(run_in("halves")).progress
    run_dir = fit("halves", *chosen, "training.options.resume=latest")
    assert learned(state_of(run_dir)) == learned(state_of(run_in("sampled")))
    assert state_of(run_dir).progress["best"] <= kept["best"]
    assert "chosen anew" not in (run_dir / "log.txt").read_text()
    fit("halves", *SAMPLED, "training.options.total_kimg=0.016", "training.options.resume=latest")
    assert "network-best.pt is chosen anew" in (run_dir / "log.txt").read_text()
    assert state_of(run_dir).progress["best"] == numbers(run_dir)[-1]["val/loss"]


def test_numbers_are_those_of_the_features_and_values():
    layout = Layout(("a",), (), (1.0, 1.0), 0, 1, "")
    real = [MeasuredSample(np.array([i, 0.0]), None, {"x": float(i)}, None) for i in range(8)]
    drawn = [MeasuredSample(np.array([i + 100.0, 0.0]), None, {"x": i + 100.0}, None) for i in range(4)]
    found = numbers_of_rows(real, drawn, layout)
    assert found["ks"] == found["ks_x"] == 1 and found["frechet"] > 90 ** 2 > 100 > found["frechet_floor_p95"]
    assert found["kid"] > 1000 > abs(found["kid_floor"])
    same = numbers_of_rows(real, real, layout)
    assert same["ks"] == 0 and same["frechet"] < 10
    broken = [row._replace(features=row.features * np.nan) for row in drawn]
    found = numbers_of_rows(real, broken, layout)
    assert found["frechet"] == found["kid"] == inf


def test_settings_that_cannot_be_followed_are_refused_before_there_is_a_run(at):
    for words, wanted in (
            (["sample_ticks=0"], "training.validation.sample_ticks=0: wanted 1 or more, or null for no samples"),
            (["num_samples=1"], "training.validation.num_samples=1: wanted 2 or more"),
            (["best=fid"], "training.validation.best='fid': wanted one of loss, sample_frechet"),
            (["best=sample_ks"], "training.validation.best=sample_ks: no samples are drawn while training"),
            (["sample_ticks=1", "best=sample_latents_frechet"], "of these samples are measured sample_frechet"),
            (["sample_ticks=1", "best=sample_ks", "max_items=0"], "best=sample_ks: 0 items are held out")):
        said = refused(at, train.main, *FLAT, *(f"training.validation.{word}" for word in words),
                       "training.options.run_root=none")
        assert wanted in said


def test_measures_are_those_of_the_task_and_samples_are_no_part_of_the_hash():
    own = Best("dice", higher=True)
    settings = {"best": "dice", "sample_ticks": None}
    assert choose_best(settings, own, False) == own == choose_best({**settings, "best": None}, own, False)
    assert choose_best({**settings, "best": "loss"}, own, False) == Best("loss", chosen=True)
    with pytest.raises(ValueError, match="wanted one of dice, loss"):
        choose_best({"best": "sample_frechet", "sample_ticks": 1}, own, False)
    assert Validation().sample_ticks is None and Validation().best is None
    half = {"options": {"seed": 0}, "validation": {"sample_ticks": None}}
    assert config_hash(half) == config_hash({**half, "validation": {"sample_ticks": 3, "best": "loss"}})
