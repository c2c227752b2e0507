"""Claim: `dataset_tool.py plan` is within 10 % of the measured peak memory of a training step, for five configs.

Measured on CPU is what torch's allocator holds, step by step, of a real trainer on random data in a process of its own;
`rss` is the most that the process took of the machine above what it took before: that includes what kernels take
for themselves and what the C library keeps, and is no part of the claim. On CUDA it is torch.cuda.max_memory_allocated.
Run from the top of the checkout: python -m benchmarks.plan_memory
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch
from torch._C._profiler import _EventType

from benchmarks.common import json_line
from edm3d.formats.facts import Facts
from edm3d.inference.batch import Sample
from edm3d.training.plan import imagined_release, plan_step
from edm3d.training.private.start import asked_privacy
from edm3d.training.resume import RunRecord
from edm3d.training.tasks import TASKS
from edm3d.training.tasks.base import PlannedData
from edm3d.training.training_loop import Trainer
from edm3d.utils import distributed
from edm3d.utils.compose import compose
from edm3d.utils.log import RunLog
from edm3d.utils.schema import Options

LIMIT = 0.1
CONFIGS = {  # name: experiment, overrides, shape [C,*S], label classes
    "first stage, 64^3": ("echo_vae", [], (1, 64, 64, 64), 4),
    "latents, 4x16^3": ("echo_edm", ["training.options.precision=fp32"], (4, 16, 16, 16), 0),
    "DDPM++ on voxels, 48^3, 2 + 2 images": ("voxels_edm", [
        "network=ddpmpp", "training.network.model.model_channels=16", "training.network.model.channel_mult=[1,2,2]",
        "training.network.model.attention_levels=[2]", "training.options.batch_size=4",
        "training.options.batch_gpu=2"],
        (1, 48, 48, 48), 0),
    "latents, 4x16^3, private, 2 + 2 images": ("echo_edm", [
        "privacy=eps10", "training.options.precision=fp32", "training.options.batch_size=4",
        "training.options.batch_gpu=2"], (4, 16, 16, 16), 0),
    "first stage against a discriminator, 64^3, checkpointing": ("echo_vae", [
        "discriminator=patch", "training.options.checkpointing=true", "training.network.channels=[16,32,64]",
        "training.discriminator.network.channels=16"], (1, 64, 64, 64), 4),
}


class NoiseItems:
    """32 items of noise with label maps where there are classes."""

    def __init__(self, source: PlannedData):
        self.shape, self.facts = source.shape, source.facts

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> Sample:
        random, classes = np.random.default_rng(index), len(self.facts.label_classes)
        label = random.integers(classes, size=self.shape[1:]).astype(np.uint8) if classes else None
        return Sample(random.random(self.shape, np.float32) * 2 - 1, label)


def chosen(name: str) -> tuple[dict, PlannedData]:
    """The training half of a config and the data it is planned for."""
    experiment, overrides, shape, classes = CONFIGS[name]
    training = compose(experiment, overrides)["training"]
    return training, PlannedData(shape, Facts("", "", label_classes=tuple(map(str, range(classes)))), {})


def trainer_of(training: dict, dataset: Sequence[Sample], folder: Path) -> Trainer:
    """A trainer as train.py makes it."""
    options = Options(**training["options"])
    device = distributed.init(options.device)
    distributed.set_threads(options.num_threads)
    torch.manual_seed(options.seed)
    task = TASKS[training["task"]].assemble(training, dataset)
    privacy = asked_privacy(training, options)
    return Trainer(task, dataset, replace(options, total_kimg=1e3), run_dir=folder, device=device, log=RunLog(False),
                   record=RunRecord({"training": training}, dataset.facts),
                   private=imagined_release(privacy, options.batch_size) if privacy else None)


def real_trainer(training: dict, source: PlannedData, folder: Path) -> Trainer:
    """The same on noise; latents come as they are."""
    training = {**training, "batch_transform": {"_target_": "training.batch_transforms.Identity"}}
    return trainer_of(training, NoiseItems(source), folder)


def measured(name: str) -> dict[str, float | str]:
    """Peak bytes of a trainer over its first two steps, and how they were counted."""
    before = psutil.Process().memory_info().rss
    with tempfile.TemporaryDirectory() as folder, \
            torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        trainer = real_trainer(*chosen(name), Path(folder))
        data = trainer.batches()
        trainer.step(data)
        trainer.step(data)
    if trainer.device.type == "cuda":
        return {"peak": torch.cuda.max_memory_allocated(), "how": "torch.cuda.max_memory_allocated", "rss": None}
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {"peak": most_allocated(profile), "how": "torch's CPU allocator (torch.profiler)", "rss": rss}


class Allocation(NamedTuple):
    """Bytes that torch's CPU allocator handed out, below 0 for those that came back, with what it held then.

    operation: time at which the operation of torch began that asked for them, None outside of all.
    """

    time: int
    size: int
    held: int
    address: int
    operation: int | None


def allocations(profile: torch.profiler.profile) -> list[Allocation]:
    """All of a profile in order."""
    found, events = [], [(event, None) for event in profile.profiler.kineto_results.experimental_event_tree()]
    while events:
        event, operation = events.pop()
        if event.typed[0] == _EventType.Allocation:
            fields = event.extra_fields
            found.append(Allocation(event.start_time_ns, fields.alloc_size, fields.total_allocated, fields.ptr,
                                    operation))
        elif event.typed[0] == _EventType.TorchOp:
            inner = operation or event.start_time_ns
            operation = inner if event.name.startswith("aten::") else None
        events += [(child, operation) for child in event.children]
    return sorted(found)


def most_allocated(profile: torch.profiler.profile) -> int:
    """The most bytes that the CPU allocator held above what it held before."""
    found = allocations(profile)
    return max(a.held for a in found) - (found[0].held - found[0].size)


def main() -> None:
    """Plan and measure every config, print the line, and exit with 1 when one is further off than the limit."""
    rows = {}
    for name in CONFIGS:
        command = [sys.executable, "-m", "benchmarks.plan_memory", name]
        answer = subprocess.run(command, check=True, capture_output=True, text=True,
                                env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}).stdout
        found, planned = json.loads(answer.splitlines()[-1]), plan_step(*chosen(name)).peak
        rows[name] = {"planned_gib": round(planned / 2 ** 30, 3), "measured_gib": round(found["peak"] / 2 ** 30, 3),
                      "ratio": round(planned / found["peak"], 4), "how": found["how"],
                      "rss_gib": found["rss"] and round(found["rss"] / 2 ** 30, 3)}
    worst = max(abs(row["ratio"] - 1) for row in rows.values())
    print(json_line("planned peak memory against measured", configs=rows, worst=round(worst, 4), limit=LIMIT,
                    holds=worst <= LIMIT))
    sys.exit(worst > LIMIT)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measured(sys.argv[1])))
    else:
        main()
