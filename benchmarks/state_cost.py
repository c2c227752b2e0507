"""Claim: writing a training state takes at most 2 % of a tick at default settings, on the network of the demo.

Run from the top of the checkout: python -m benchmarks.state_cost
"""

import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import json_line
from edm3d.formats.facts import Facts
from edm3d.inference.batch import Sample
from edm3d.inference.snapshot import Snapshot
from edm3d.training.resume import RunRecord
from edm3d.training.tasks.diffusion import diffusion_task
from edm3d.training.training_loop import Trainer
from edm3d.utils import distributed
from edm3d.utils.checkpoint import tensor_bytes
from edm3d.utils.compose import compose
from edm3d.utils.config import build, fill
from edm3d.utils.log import RunLog
from edm3d.utils.schema import Options
from edm3d.utils.stop import Stop

LIMIT = 0.02
CHANNELS, SIZE = 4, 8  # latents of the demo
STEPS = 12             # in two ticks, of which the second is measured
REPEATS = 7


FACTS = Facts("noise", "")


class RandomLatents:
    """64 items of random means and standard deviations [2C,*s]."""

    shape = (CHANNELS, SIZE, SIZE, SIZE)

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Sample:
        return Sample(np.random.default_rng(index).random((2 * CHANNELS, SIZE, SIZE, SIZE), np.float32))


def demo_trainer(folder: Path) -> Trainer:
    """A trainer with the network, loss, optimiser and batch size of echo_edm, that runs for a few steps."""
    config = compose("echo_edm", [])
    training = config["training"]
    options = Options(**training["options"])
    kimg = STEPS * options.batch_size / 1000
    options = replace(options, total_kimg=kimg, kimg_per_tick=kimg / 2, state_ticks=None, snapshot_ticks=None)
    device = distributed.init(options.device)
    distributed.set_threads(options.num_threads)
    net = build(fill(training["network"], in_channels=CHANNELS, out_channels=CHANNELS, spatial_dims=3, num_classes=0))
    optimizer = build({**training["optimizer"], "_partial_": True})(net.parameters())
    draw = fill(training["batch_transform"], channel_mean=[0.0] * CHANNELS, channel_std=[1.0] * CHANNELS)
    task = diffusion_task(net, build(training["loss"]), optimizer, build(draw), Snapshot("diffusion", {}, FACTS, ()))
    return Trainer(task, RandomLatents(), options, run_dir=folder, device=device, log=RunLog(False),
                   record=RunRecord(config, FACTS))


def write_seconds(trainer: Trainer) -> float:
    """Wall time of one state: gathered, hashed, written, synced, renamed."""
    start = time.perf_counter()
    trainer.save_state()
    return time.perf_counter() - start


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        trainer = demo_trainer(Path(folder))
        with Stop(Path(folder)) as stop:
            trainer.run(stop)
        ticks = [json.loads(line) for line in Path(folder, "stats.jsonl").read_text().splitlines()]
        seconds = statistics.median(write_seconds(trainer) for _ in range(REPEATS))
        size = tensor_bytes(trainer.state())
    tick = ticks[-1]["time/sec_per_kimg"] * Options.kimg_per_tick
    share = seconds / tick / Options.state_ticks
    print(json_line("writing states, share of the time of training at default settings", ours=round(share, 6),
                    limit=LIMIT, share_of_a_tick_with_state=round(seconds / tick, 5), state_seconds=round(seconds, 4),
                    tick_seconds=round(tick, 2), state_mib=round(size / 2**20, 1), device=trainer.device.type,
                    threads=torch.get_num_threads()))


if __name__ == "__main__":
    main()
