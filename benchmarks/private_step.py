"""Claim: a private step takes at most three times the CPU time of a plain one at the same physical batch.

Measured on one thread is a whole step of real trainers on latents of noise: network, loss, backward, optimiser and
averages, and of a private one clipping and noise as well. Each step is of `--images` images, of which both read
`--batch-gpu` at a time: in the private one every unit enters with the probability 1. The steps take turns in one run;
medians.

Run from the top of the checkout: OMP_NUM_THREADS=1 python -m benchmarks.private_step [--images 32] [--batch-gpu 32]
"""

import argparse
import tempfile
from pathlib import Path

import torch

from benchmarks.common import in_turns, json_line
from benchmarks.plan_memory import real_trainer
from edm3d.formats.facts import Facts
from edm3d.training.tasks.base import PlannedData
from edm3d.utils.compose import compose

LIMIT = 3
ROWS = {  # experiment, its overrides, shape [C,*S] of latents
    "echo_edm, 4x8^3": ("echo_edm", [], (4, 8, 8, 8)),
    "private_demo_ldm, 4x13x6x6": ("private_demo_ldm", [], (4, 13, 6, 6)),
}


def times(name: str, asked: argparse.Namespace) -> dict[str, float]:
    """Seconds of a plain and of a private step, and their ratio."""
    experiment, overrides, shape = ROWS[name]
    options = [f"training.options.batch_size={asked.images}", f"training.options.batch_gpu={asked.batch_gpu}",
               "training.options.precision=fp32", "training.options.num_threads=1", "training.options.device=cpu"]
    with tempfile.TemporaryDirectory() as folder:
        steps = {}
        for kind, more in {"plain": [], "private": ["privacy=eps10"]}.items():
            training = compose(experiment, [*overrides, *options, *more])["training"]
            trainer = real_trainer(training, PlannedData(shape, Facts("", ""), {}), Path(folder))
            steps[kind] = (trainer, trainer.batches())
        took = in_turns({kind: lambda trainer=trainer, data=data: trainer.step(data)
                         for kind, (trainer, data) in steps.items()}, asked.repeats)
    return {**{kind: round(value, 3) for kind, value in took.items()},
            "ratio": round(took["private"] / took["plain"], 2)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=32, help="in a step")
    parser.add_argument("--batch-gpu", type=int, default=32, help="of them at a time")
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    torch.manual_seed(0)
    found = {name: times(name, asked) for name in ROWS}
    worst = max(each["ratio"] for each in found.values())
    print(json_line("CPU seconds of a private step against a plain one", configs=found, ratio=worst, limit=LIMIT,
                    holds=worst <= LIMIT, images=asked.images, batch_gpu=asked.batch_gpu, repeats=asked.repeats,
                    threads=1))


if __name__ == "__main__":
    main()
