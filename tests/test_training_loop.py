"""The training loop with a toy network: resume bit for bit, ranks and rounds that do not matter, and its files."""

import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from training.batch import Batch, LossOutput, Phase, Sample, Task
from training.batch_transforms import DrawLatents, Identity
from training.diffusion import diffusion_task
from training.loss import EDMLoss
from training.training_loop import Held, Trainer, different_keys, read_state, split_batch
from utils import checkpoint, distributed
from utils.config import Options
from utils.files import plain_hash
from utils.log import RunLog
from utils.runs import list_files

OPTIONS = Options(batch_size=12, total_kimg=0.24, kimg_per_tick=0.06, precision="fp32", ema_halflife_kimg=0.05,
                  ema_rampup_ratio=0.5, num_threads=1, device="cpu", snapshot_ticks=None, state_ticks=None)


class Points:
    """31 items [1,4] of a smooth pattern."""

    shape = (1, 4)

    def __len__(self) -> int:
        return 31

    def __getitem__(self, index: int) -> Sample:
        return Sample(np.sin(np.arange(4, dtype=np.float32) + index)[None] / 2)


class Toy(torch.nn.Module):
    """D(x, sigma) with two layers and dropout."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.SiLU(), torch.nn.Dropout(dropout),
                                          torch.nn.Linear(16, 4))
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.2)

    def forward(self, x, sigma, condition=None):
        level = sigma.log().reshape(-1, 1, 1) / 4
        return self.layers(torch.cat([x / (1 + sigma.reshape(-1, 1, 1)), level], dim=2))


def make_trainer(run_dir: Path, options: Options = OPTIONS, *, dropout: float = 0.0, task: Task | None = None,
                 config: dict | None = None, data_hash: str = "data", held: Held | None = None) -> Trainer:
    """A trainer of a fresh toy network in a run folder."""
    run_dir.mkdir(parents=True, exist_ok=True)
    if task is None:
        net = Toy(dropout)
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-2, eps=0.1)  # a large eps: feels the gradients' scale
        task = diffusion_task(net, EDMLoss(), optimizer, Identity(), {"task": "diffusion"})
    config = config or {"training": {"options": {"seed": 0}}}
    record = {"config": config, "config_hash": plain_hash(config), "data_hash": data_hash, "spatial_dims": 1}
    return Trainer(task, Points(), options, run_dir=run_dir, device=torch.device("cpu"), log=RunLog(False),
                   record=record, held=held)


def trained(run_dir: Path, options: Options = OPTIONS, *, resume: Path | None = None, dropout: float = 0.0) -> dict:
    """Train to the end; what the final state holds (of rank 0, which writes it)."""
    trainer = make_trainer(run_dir, options, dropout=dropout)
    if resume:
        trainer.restore(read_state(resume, trainer.record))
    trainer.run()
    return checkpoint.load(list_files(run_dir, "training-state")[-1], "state") if distributed.rank() == 0 else {}


def learned(state: dict) -> str:
    """Hash of all that has been learned: weights, average, optimiser, and how far."""
    parts = {k: state[k] for k in ("modules", "ema", "optimizers")}
    return checkpoint.checksum({**parts, "nimg": state["progress"]["nimg"]})


def weights(state: dict, part: str = "modules") -> torch.Tensor:
    """All weights of a state in one vector."""
    tree = state["ema"] if part == "ema" else state["modules"]["diffusion"]
    return torch.cat([w.reshape(-1) for w in tree.values()])


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict:
    """The state after 20 steps of one process, 12 images at once."""
    return trained(tmp_path_factory.mktemp("plain"))


# ---- resume ----


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_resume_in_the_middle_is_bit_identical(tmp_path, dropout):
    options = replace(OPTIONS, batch_gpu=4, lr_rampup_kimg=0.1, lr_schedule="cosine")
    whole = trained(tmp_path / "whole", options, dropout=dropout)
    first = make_trainer(tmp_path / "first", options, dropout=dropout)
    data = first.batches()
    for _ in range(7):
        first.step(data)
    first.save("state", "training-state", first.state(), 1)
    torch.manual_seed(1234)  # whatever the process drew in between
    state = list_files(tmp_path / "first", "training-state")[0]
    second = trained(tmp_path / "second", options, resume=state, dropout=dropout)
    assert learned(second) == learned(whole)
    assert second["progress"]["nimg"] == 240


def test_every_trained_thing_is_in_the_comparison_above(plain, tmp_path):
    other = trained(tmp_path, replace(OPTIONS, total_kimg=0.228))
    for part in ("modules", "ema", "optimizers"):
        assert checkpoint.checksum(other[part]) != checkpoint.checksum(plain[part])


def test_state_of_another_experiment_or_data_is_refused_with_the_keys(tmp_path):
    first = make_trainer(tmp_path / "a", config={"training": {"options": {"seed": 0}, "network": {"width": 8}}})
    first.save("state", "training-state", first.state(), 1)
    state = list_files(tmp_path / "a", "training-state")[0]
    other = make_trainer(tmp_path / "b", config={"training": {"options": {"seed": 1}, "network": {"width": 9}}})
    with pytest.raises(ValueError, match=r"training\.options\.resume") as error:
        other.restore(read_state(state, other.record))
    assert "training.network.width, training.options.seed" in str(error.value) and "configuration" in str(error.value)
    changed = make_trainer(tmp_path / "c", config=first.record["config"], data_hash="other")
    with pytest.raises(ValueError, match="data set"):
        changed.restore(read_state(state, changed.record))


def test_different_keys_are_named_by_path():
    assert different_keys({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 4, "d": 3}, "e": 5}) == "b.c, e"
    assert different_keys({"a": 1}, {"a": 1}) == ""


# ---- ranks and rounds ----


def test_accumulation_gives_what_one_round_gives(plain, tmp_path):
    for batch_gpu in (3, 1):
        state = trained(tmp_path / str(batch_gpu), replace(OPTIONS, batch_gpu=batch_gpu))
        for part in ("modules", "ema"):
            torch.testing.assert_close(weights(state, part), weights(plain, part), rtol=1e-5, atol=1e-6)


def on_rank(rank: int, ranks: int, port: int, folder: str) -> None:
    """One of several processes: the plain run, and a run with dropout, whole and broken off at 8 of 20 steps."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init("cpu")
    try:
        root = Path(folder)
        trained(root / "plain")
        trained(root / "whole", dropout=0.3)
        trained(root / "first", replace(OPTIONS, total_kimg=0.096), dropout=0.3)
        distributed.barrier()
        trained(root / "second", resume=list_files(root / "first", "training-state")[0], dropout=0.3)
    finally:
        distributed.shutdown()


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_give_what_one_process_gives_and_resume_bit_for_bit(plain, tmp_path, ranks):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(on_rank, (ranks, port, str(tmp_path)), nprocs=ranks)
    states = {p.name: checkpoint.load(list_files(p, "training-state")[-1], "state") for p in tmp_path.iterdir()}
    for part in ("modules", "ema"):
        torch.testing.assert_close(weights(states["plain"], part), weights(plain, part), rtol=0, atol=1e-5)
    assert learned(states["second"]) == learned(states["whole"])
    assert learned(states["whole"]) != learned(states["plain"])


@pytest.mark.parametrize(("batch_size", "batch_gpu", "ranks", "wanted"), [
    (64, None, 1, (64, 1)), (64, 8, 2, (8, 4)), (8, 100, 2, (4, 1)), (1, None, 1, (1, 1)),
])
def test_batch_is_split_into_rounds(batch_size, batch_gpu, ranks, wanted):
    assert split_batch(batch_size, batch_gpu, ranks) == wanted


@pytest.mark.parametrize(("batch_size", "batch_gpu", "ranks"), [(10, None, 4), (0, None, 1), (-8, None, 1), (12, 5, 1),
                                                               (12, -1, 1)])
def test_batch_that_does_not_divide_is_refused_with_the_key(batch_size, batch_gpu, ranks):
    with pytest.raises(ValueError, match=r"training\.options\.batch_"):
        split_batch(batch_size, batch_gpu, ranks)


# ---- average, data, bad gradients ----


def test_average_is_that_of_a_loop_by_hand(tmp_path):
    trainer = make_trainer(tmp_path)
    data, nimg = trainer.batches(), 0
    average = {k: v.clone().double() for k, v in trainer.task.net.state_dict().items()}
    for _ in range(15):
        trainer.step(data)
        halflife = min(50, nimg * 0.5)  # images: 0.05 kimg, and half of what was seen
        beta = 0.5 ** (12 / halflife) if halflife else 0
        for name, value in trainer.task.net.state_dict().items():
            average[name] = beta * average[name] + (1 - beta) * value.double()
        nimg += 12
    for name, value in trainer.ema.state_dict().items():
        torch.testing.assert_close(value.double(), average[name], rtol=1e-5, atol=1e-6)
    assert not torch.equal(trainer.ema.layers[0].weight, trainer.task.net.layers[0].weight)


def faulty_task(bad_calls: set[int]) -> Task:
    """A task whose loss is not a number at the given calls."""
    net, calls = Toy(), []

    def loss(module: torch.nn.Module, batch: Batch, generators) -> LossOutput:
        calls.append(0)
        value = module(batch.images, torch.ones(len(batch.images))).square().sum()
        return LossOutput(value * (float("nan") if len(calls) - 1 in bad_calls else 1), len(batch.images), {})

    return Task([Phase("faulty", net, torch.optim.Adam(net.parameters(), lr=1e-2), loss)], net, {})


def test_gradients_that_are_not_finite_are_skipped_and_counted(tmp_path):
    trainer = make_trainer(tmp_path, task=faulty_task({2, 3}))
    data, seen, counts = trainer.batches(), [], []
    for _ in range(6):
        trainer.step(data)
        seen.append(checkpoint.checksum([trainer.task.net.state_dict(), trainer.ema.state_dict(),
                                         trainer.task.phases[0].optimizer.state_dict()["state"]]))
        counts.append(trainer.progress.bad_steps)
    assert seen[2] == seen[3] == seen[1] and len(set(seen)) == 4
    assert counts == [0, 0, 1, 2, 0, 0]
    assert trainer.stats.means()["bad_steps"] == pytest.approx(2 / 6)
    assert trainer.progress.nimg == 72  # the images were seen all the same


def test_run_stops_after_max_bad_steps_in_a_row(tmp_path):
    trainer = make_trainer(tmp_path, replace(OPTIONS, max_bad_steps=3), task=faulty_task(set(range(2, 100))))
    with pytest.raises(ValueError, match=r"not finite in 4 steps in a row .*training\.optimizer\.lr"):
        trainer.run()
    assert trainer.progress.nimg == 5 * 12


def test_gradient_clip_bounds_the_step(tmp_path):
    def step_length(clip: float | None) -> float:
        net = Toy()
        task = diffusion_task(net, EDMLoss(), torch.optim.SGD(net.parameters(), lr=1.0), Identity(), {})
        trainer = make_trainer(tmp_path, replace(OPTIONS, grad_clip=clip), task=task)
        data = trainer.batches()
        trainer.step(data)  # at 0 images the rate is 0
        before = torch.nn.utils.parameters_to_vector(net.parameters()).detach().clone()
        trainer.step(data)
        return float((torch.nn.utils.parameters_to_vector(net.parameters()) - before).detach().norm())

    assert step_length(1e-3) == pytest.approx(1e-3, rel=1e-3)
    assert step_length(None) > 0.01


def test_latents_are_drawn_and_whitened_image_by_image():
    from networks.conditioning import Condition
    from samplers.noise import ImageGenerators
    mean, std = torch.randn(3, 2, 4), torch.rand(3, 2, 4)
    transform = DrawLatents([1.0, -1.0], [2.0, 4.0], sigma_data=0.5)
    x, condition = transform(Batch(torch.cat([mean, std], 1), None, Condition()), ImageGenerators([5, 6, 7]))
    eps = ImageGenerators([5, 6, 7]).for_purpose("posterior").randn((2, 4))
    channel_mean, channel_std = torch.tensor([[1.0], [-1.0]]), torch.tensor([[2.0], [4.0]])
    torch.testing.assert_close(x, (mean + std * eps - channel_mean) / channel_std * 0.5)
    assert condition.parts() == []


# ---- files ----


def test_stats_have_a_line_per_tick(tmp_path):
    trained(tmp_path)
    ticks = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert [t["tick"] for t in ticks] == [1, 2, 3, 4]
    assert [t["kimg"] for t in ticks] == pytest.approx([0.06, 0.12, 0.18, 0.24])
    assert {"loss/diffusion", "grad_norm", "bad_steps", "time/sec_per_kimg", "memory_gib"} <= set(ticks[0])
    assert all(np.isfinite(t["loss/diffusion"]) for t in ticks)
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_old_snapshots_and_states_are_deleted(tmp_path):
    options = replace(OPTIONS, batch_size=500, total_kimg=5, kimg_per_tick=1, snapshot_ticks=1, state_ticks=2,
                      keep_snapshots=2, keep_states=1)
    trained(tmp_path, options)
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == [
        "network-snapshot-000004.pt", "network-snapshot-000005.pt", "training-state-000005.pt"]
    assert not list(tmp_path.glob(".*"))


def test_snapshot_holds_the_average(plain, tmp_path):
    state = trained(tmp_path)
    snapshot = checkpoint.load(list_files(tmp_path, "network-snapshot")[-1], "snapshot")
    assert len({checkpoint.checksum(average) for average in (snapshot["ema"], state["ema"], plain["ema"])}) == 1
    assert snapshot["task"] == "diffusion" and snapshot["nimg"] == 240


def test_validation_repeats_itself_and_does_not_touch_the_training(plain, tmp_path):
    trainer = make_trainer(tmp_path, held=Held(Points(), 1))
    assert trainer.validate() == trainer.validate()
    trainer.run()
    assert learned(trainer.state()) == learned(plain)
    ticks = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert all(np.isfinite(t["val/loss"]) for t in ticks) and ticks[-1]["val/loss"] < ticks[0]["val/loss"]
