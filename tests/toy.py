"""A network, data and trainer small enough for a test to train, and what two runs are compared by."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from edm3d.formats.facts import Facts
from edm3d.formats.training_state import TrainingState
from edm3d.inference.batch import Batch, Sample
from edm3d.inference.snapshot import Snapshot
from edm3d.training.batch_transforms import Identity
from edm3d.training.loss import EDMLoss
from edm3d.training.phases import LossOutput, Phase, Task
from edm3d.training.resume import RunRecord, read_state
from edm3d.training.tasks.diffusion import diffusion_task
from edm3d.training.training_loop import Trainer
from edm3d.training.validation import Held
from edm3d.utils import checkpoint, distributed
from edm3d.utils.log import RunLog
from edm3d.utils.runs import list_files
from edm3d.utils.schema import Options
from edm3d.utils.stop import Stop

OPTIONS = Options(batch_size=12, total_kimg=0.24, kimg_per_tick=0.06, precision="fp32", ema_halflife_kimg=0.05,
                  ema_rampup_ratio=0.5, num_threads=1, device="cpu", snapshot_ticks=None, state_ticks=None)


BLANK = Snapshot("diffusion", {}, Facts("points", "data"), (1, 4))


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


class Codebook(torch.nn.Module):
    """Toy with two entries that every forward pass in training draws to the mean of what it sees, as VQ does."""

    def __init__(self):
        super().__init__()
        self.toy = Toy()
        self.register_buffer("entries", torch.tensor([[0.0], [1.0]]))

    def forward(self, x, sigma, condition=None):
        if self.training:
            self.entries.data.lerp_(x.detach().mean().expand(2, 1), 0.3)
        return self.toy(x, sigma) + self.entries.sum() / 10


class Critic(torch.nn.Module):
    """One number per image, behind a batch norm."""

    def __init__(self):
        super().__init__()
        self.norm, self.out = torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1)
        torch.nn.init.constant_(self.out.weight, 0.1)
        torch.nn.init.zeros_(self.out.bias)

    def forward(self, x):
        return self.out(self.norm(x[:, 0]))


def two_phases(bad_calls: set[int] = frozenset()) -> Task:
    """Two modules and optimisers; forward passes of both move buffers; the critic's loss is bad at some calls."""
    net, critic, calls = Codebook(), Critic(), []

    def net_loss(module, batch: Batch, generators) -> LossOutput:
        return LossOutput(module(batch.images, torch.ones(len(batch.images))).square().sum(), len(batch.images), {})

    def critic_loss(module, batch: Batch, generators) -> LossOutput:
        calls.append(0)
        loss = (module(batch.images) - 1).square().sum()
        return LossOutput(loss * np.nan if len(calls) - 1 in bad_calls else loss, len(batch.images), {})

    return Task([Phase("net", net, torch.optim.Adam(net.parameters(), lr=1e-2), net_loss),
                 Phase("critic", critic, torch.optim.AdamW(critic.parameters(), lr=1e-2), critic_loss)], net, BLANK)


def make_trainer(run_dir: Path, options: Options = OPTIONS, *, dropout: float = 0.0, task: Task | None = None,
                 config: dict | None = None, data_hash: str = "data", held: Held | None = None) -> Trainer:
    """A trainer of a fresh toy network in a run folder."""
    run_dir.mkdir(parents=True, exist_ok=True)
    if task is None:
        net = Toy(dropout)
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-2, eps=0.1)  # a large eps: feels the gradients' scale
        task = diffusion_task(net, EDMLoss(), optimizer, Identity(), BLANK)
    config = config or {"training": {"options": {"seed": 0}}}
    record = RunRecord(config, Facts("points", data_hash))
    return Trainer(task, Points(), options, run_dir=run_dir, device=torch.device(options.device), log=RunLog(False),
                   record=record, held=held)


def trained(run_dir: Path, options: Options = OPTIONS, *, resume: Path | None = None, dropout: float = 0.0,
            task: Task | None = None, held: Held | None = None) -> TrainingState | None:
    """Train to the end; what the final state holds (of rank 0, which writes it)."""
    trainer = make_trainer(run_dir, options, dropout=dropout, task=task, held=held)
    if resume:
        trainer.restore(read_state(resume, trainer.record))
    trainer.run(Stop(run_dir))
    return TrainingState.read(list_files(run_dir, "training-state")[-1]) if distributed.rank() == 0 else None


def stopped(run_dir: Path, step: int, options: Options = OPTIONS, *, dropout: float = 0.0) -> Path:
    """Train until the last rank gets a SIGTERM in the middle of a step (the first is 0); the state that is left."""
    trainer, stop = make_trainer(run_dir, options, dropout=dropout), Stop(run_dir)
    if distributed.rank() == distributed.world_size() - 1:
        in_step(trainer, step, lambda: stop.ask(signal.SIGTERM, None))
    assert trainer.run(stop).why == "SIGTERM"
    return list_files(run_dir, "training-state")[-1]


def in_step(trainer: Trainer, step: int, action: Callable[[], object]) -> None:
    """Have a trainer do something in the middle of a step (the first is 0)."""
    gradients, calls = trainer.stepper.gradients, []

    def act(*arguments) -> float:
        calls.append(0)
        if len(calls) - 1 == step:
            action()
        return gradients(*arguments)

    trainer.stepper.gradients = act


def learned(state: TrainingState) -> str:
    """Hash of all that has been learned: weights, averages, optimisers, and how far."""
    parts = {k: getattr(state, k) for k in ("modules", "ema", "more_emas", "optimizers")}
    return checkpoint.checksum({**parts, **{k: state.progress[k] for k in ("nimg", "tick", "tick_nimg")}})


def weights(state: TrainingState, part: str = "modules") -> torch.Tensor:
    """All weights of a state in one vector."""
    tree = state.ema if part == "ema" else state.modules["diffusion"]
    return torch.cat([w.reshape(-1) for w in tree.values()])


def ticks(run_dir: Path) -> list[dict]:
    """What stats.jsonl says of every tick, times and machine aside."""
    lines = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    aside = ("time/", "images_per_sec", "memory")
    return [{k: v for k, v in line.items() if not k.startswith(aside)} for line in lines]
