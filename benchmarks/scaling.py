"""Claim: none; what a training step of ours takes per image over grids, batches and ranks.

Run from the top of the checkout: OMP_NUM_THREADS=1 python -m benchmarks.scaling [--sizes 16 32 64] [--batches 1 4 16]
[--ranks 1 2] [--device cuda] [--experiment voxels_edm] [--overrides KEY=VALUE ...] [--voxels 2000000]

One JSON line with `rows` of size, batch and ranks and their seconds per image: medians of --repeats steps that take
turns, on a CPU of the CPU time of all ranks, on CUDA by the wall. A step is that of train.py on random voxels
[1,n,n,n]: loading, loss, gradients summed over the ranks, Adam, average. A batch is that of all ranks together; those
of more voxels than --voxels are left out, as are those that the ranks do not divide.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.common import clock_of, in_turns, json_line
from benchmarks.plan_memory import real_trainer
from benchmarks.train_step import device_name
from edm3d.formats.facts import Facts
from edm3d.training.tasks.base import PlannedData
from edm3d.utils import distributed
from edm3d.utils.compose import compose

ROOT = Path(__file__).resolve().parents[1]


class Steps:
    """A trainer on noise that takes steps."""

    def __init__(self, asked: argparse.Namespace, size: int, batch: int, folder: Path):
        training = compose(asked.experiment, [*asked.overrides, f"training.options.batch_size={batch}",
                                              f"training.options.device={asked.device}"])["training"]
        self.trainer = real_trainer(training, PlannedData((1, *[size] * 3), Facts("", ""), {}), folder)
        self.data = self.trainer.batches()

    def __call__(self) -> None:
        self.trainer.step(self.data)
        if self.trainer.device.type == "cuda":
            torch.cuda.synchronize()


def rows(asked: argparse.Namespace, folder: Path) -> list[dict]:
    """What every rank measures together."""
    ranks = int(os.environ["WORLD_SIZE"])
    steps = {(size, batch): Steps(asked, size, batch, folder) for size in asked.sizes for batch in asked.batches
             if batch % ranks == 0 and batch * size ** 3 <= asked.voxels}
    took = in_turns(steps, asked.repeats, clock_of(asked.device))
    share = ranks if asked.device == "cpu" else 1
    return [{"size": size, "batch": batch, "ranks": ranks, "s_per_image": round(seconds * share / batch, 5)}
            for (size, batch), seconds in took.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--experiment", default="voxels_edm")
    parser.add_argument("--overrides", nargs="*", default=[])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--voxels", type=float, default=2e6)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)  # what ranks of one number write
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if asked.to:
            found = rows(asked, Path(name))
            if distributed.rank() == 0:
                asked.to.write_text(json.dumps(found))
            distributed.shutdown()
            return
        found, to = [], Path(name) / "rows.json"
        for ranks in asked.ranks:
            subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone",
                            f"--nproc_per_node={ranks}", "-m", "benchmarks.scaling", *sys.argv[1:], "--to", str(to)],
                           cwd=ROOT, check=True, stdout=sys.stderr)
            found += json.loads(to.read_text())
    print(json_line("seconds per image of a training step, by grid, batch and ranks", experiment=asked.experiment,
                    overrides=" ".join(asked.overrides), device=device_name(torch.device(asked.device)),
                    clock=clock_of(asked.device).__name__, threads=torch.get_num_threads(), repeats=asked.repeats,
                    rows=found))


if __name__ == "__main__":
    main()
