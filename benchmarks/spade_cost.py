"""Claim: a map that modulates the norms (SPADE) adds at most 25 % to the time of a training step of the same network.

A step is forward, backward and fused Adam; the features of the map are a fifth of the channels wide. The networks take
their steps in turn, round by round, and the claim is of the medians. Run from the top of the checkout:
python -m benchmarks.spade_cost [--precision fp32] [--rounds 15] [--threads N] [--only 2d] [--shared]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from benchmarks.common import json_line
from edm3d.networks.conditioning import NOTHING, Condition
from edm3d.networks.precond import EDMPrecond
from edm3d.networks.unet import ADMUNet, SongUNet
from edm3d.utils.precision import PRECISIONS, autocast, resolve_precision

LIMIT = 0.25
CLASSES = 4


class SpadeCase(NamedTuple):
    """Images [N,C,*s] of so many channels in the network, whose cells have `factor` voxels along every axis."""

    network: type
    shape: tuple[int, ...]
    channels: int
    factor: int
    levels: tuple[int, ...] = (1, 2)

    def make(self, mapped: bool) -> torch.nn.Module:
        """A network with random weights everywhere, which is told a map or not."""
        torch.manual_seed(0)
        told = {"semantic_dim": CLASSES, "semantic_hidden": self.channels // 5, "grid_factor": self.factor} if mapped \
            else {}
        net = self.network(self.shape[1], self.shape[1], len(self.shape) - 2, model_channels=self.channels,
                           channel_mult=self.levels, num_blocks=2, attention_levels=[], dropout=0, **told)
        for weight in net.parameters():
            torch.nn.init.normal_(weight, std=0.02)
        return EDMPrecond(net)

    def condition(self) -> Condition:
        """Random maps of the full grid."""
        size = [n * self.factor for n in self.shape[2:]]
        return Condition(semantic=torch.randint(CLASSES, (self.shape[0], *size), dtype=torch.int16))


CASES = {
    "latents, 64 channels": SpadeCase(ADMUNet, (2, 4, 20, 20, 16), 64, 8),
    "latents, 128 channels": SpadeCase(ADMUNet, (2, 4, 20, 20, 16), 128, 8),
    "latents, DDPM++, 64 channels": SpadeCase(SongUNet, (2, 4, 20, 20, 16), 64, 8),
    "3d, 64 channels": SpadeCase(ADMUNet, (2, 1, 32, 32, 32), 64, 1),
    "2d, 64 channels": SpadeCase(ADMUNet, (4, 1, 64, 64), 64, 1),
    "2d, DDPM++, 128 channels": SpadeCase(SongUNet, (4, 1, 32, 32), 128, 1, (1, 2, 2)),
    "2d latents, 128 channels": SpadeCase(ADMUNet, (4, 4, 32, 32), 128, 4),
}


class Stepper:
    """A network that is trained on one batch of noise."""

    def __init__(self, case: SpadeCase, mapped: bool, precision: str):
        self.net, self.precision = case.make(mapped), precision
        self.condition = case.condition() if mapped else NOTHING
        self.x, self.sigma = torch.randn(case.shape), torch.rand(case.shape[0]) + 0.5
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-6, fused=True)

    def seconds(self, clock: Callable[[], float]) -> float:
        """Time of a step."""
        start = clock()
        with autocast(self.precision, torch.device("cpu")):
            loss = self.net(self.x, self.sigma, self.condition).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return clock() - start


def measure(case: SpadeCase, precision: str, rounds: int, clock: Callable[[], float]) -> tuple[float, float]:
    """Median seconds of a step without a map and with one, in turn, after a step each that does not count."""
    both = [Stepper(case, mapped, precision) for mapped in (False, True)]
    found = [[each.seconds(clock) for each in both] for _ in range(rounds + 1)][1:]
    plain, mapped = (statistics.median(times) for times in zip(*found, strict=True))
    return plain, mapped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--shared", action="store_true", help="seconds of the process, one thread: for a busy machine")
    options = parser.parse_args()
    threads, clock = (1, time.process_time) if options.shared else (options.threads, time.perf_counter)
    torch.set_num_threads(threads)
    precision = resolve_precision(options.precision, torch.device("cpu"))
    shares = {}
    for name, case in CASES.items():
        if options.only in name:
            plain, mapped = measure(case, precision, options.rounds, clock)
            shares[name] = {"share": round(mapped / plain - 1, 4), "plain_ms": round(1000 * plain, 1),
                            "with_map_ms": round(1000 * mapped, 1)}
    print(json_line("what a map adds to a training step, the most of all networks, as a share",
                    ours=max(each["share"] for each in shares.values()), limit=LIMIT, precision=precision,
                    rounds=options.rounds, threads=threads, clock="process" if options.shared else "wall",
                    cases=shares))


if __name__ == "__main__":
    main()
