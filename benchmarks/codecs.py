"""Which is learned faster in the same minutes, voxels or cells: EDM on 32^3 phantoms without a codec, folded, by Haar.

All networks have the same levels and blocks; that with a codec is as wide as gives about the FLOPs per step of that
without. They see the same phantoms, and train for the same minutes, measuring and drawing aside, with a learning rate
that falls to 0 by a cosine of the time. A JSON line each: the EDM loss on held-out phantoms, the same noise for all, by
the minutes of training, and how far the spectra of drawn samples are from those of held-out phantoms (the mean of
|log10 of the ratio of power| over shells of frequency), beside the distance of other phantoms to these. The averaged
weights are measured. Run from the top of the checkout:
python -m benchmarks.codecs [--minutes 20] [--only none fold haar] [--channels 16] [--samples 32] [--seed N]
    [--threads N] [--device cuda]
"""

import argparse
import copy
import time
from collections.abc import Iterator
from math import cos, pi
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import json_line
from benchmarks.segmenter import images_of, phantoms
from edm3d.networks.codecs import CODECS
from edm3d.networks.precond import EDMPrecond
from edm3d.networks.unet import ADMUNet
from edm3d.samplers import ImageGenerators, edm_sampler
from edm3d.training.ema import ema_beta, update_ema
from edm3d.training.loss import EDMLoss

SIZE, BATCH, SIGMA_DATA, LR, RAMPUP, HALFLIFE_KIMG = 32, 4, 0.5, 1e-3, 0.02, 1
CHECKS = (1 / 8, 1 / 4, 1 / 2, 1)  # shares of the minutes after which the loss is measured
TRAIN, HELD_OUT = 512, 32


class PhantomSets(NamedTuple):
    """Phantoms [N,1,*S] of mean 0 and standard deviation SIGMA_DATA, by those of the training."""

    train: torch.Tensor
    held_out: torch.Tensor
    others: torch.Tensor

    @classmethod
    def draw(cls, seed: int, device: str) -> "PhantomSets":
        """Three sets of phantoms that share none."""
        sets = [torch.from_numpy(images_of(phantoms(num, 10 * seed + place, SIZE))).float()
                for place, num in enumerate((TRAIN, HELD_OUT, HELD_OUT))]
        mean, std = sets[0].mean(), sets[0].std()
        return cls(*((images - mean) / std * SIGMA_DATA for images in sets))._on(device)

    def _on(self, device: str) -> "PhantomSets":
        return PhantomSets(*(images.to(device) for images in self))


def network(codec: str, channels: int) -> EDMPrecond:
    """A small ADM on voxels or cells."""
    return EDMPrecond(ADMUNet(1, 1, 3, model_channels=channels, channel_mult=[1, 2, 3], num_blocks=1,
                              attention_levels=[], bottleneck_attention=False, dropout=0, codec=codec), SIGMA_DATA)


def step_gflop(codec: str, channels: int) -> float:
    """GFLOP of forward and backward of a batch."""
    with torch.device("meta"):
        net, x = network(codec, channels), torch.zeros(BATCH, 1, *[SIZE] * 3)
        with FlopCounterMode(display=False) as flops:
            net(x, torch.ones(BATCH)).sum().backward()
    return flops.get_total_flops() / 1e9


def as_costly(codec: str, channels: int) -> int:
    """The width, in steps of 4, of which a step has about the FLOPs of one without a codec at `channels`."""
    wanted, width = step_gflop("none", channels), channels
    for _ in range(2 if codec != "none" else 0):  # they grow about with its square
        width = max(4, 4 * round(width * (wanted / step_gflop(codec, width)) ** 0.5 / 4))
    return width


class TimedRun:
    """A network that is trained for some minutes, and what is measured of it on the way."""

    def __init__(self, codec: str, channels: int, data: PhantomSets, seed: int):
        torch.manual_seed(seed)
        self.data, self.loss, self.seed = data, EDMLoss(sigma_data=SIGMA_DATA), seed
        self.net = network(codec, channels).to(data.train.device)
        self.average = copy.deepcopy(self.net).eval()
        self.optimizer = torch.optim.Adam(self.net.parameters(), LR, (0.9, 0.99))
        self.steps, self.losses = 0, {}

    def batches(self) -> Iterator[torch.Tensor]:
        """Images of the training in an order of the seed."""
        order = np.random.default_rng(self.seed)
        while True:
            yield self.data.train[order.integers(0, TRAIN, BATCH)]

    def train(self, minutes: float) -> None:
        """Steps until the minutes are over, the loss measured at shares of them."""
        used, due, batches = 0.0, list(CHECKS), self.batches()
        while due:
            start = time.perf_counter()
            self.step(next(batches), used / (60 * minutes))
            used += time.perf_counter() - start
            if used >= due[0] * 60 * minutes:
                self.losses[f"{due.pop(0) * minutes:.3g}"] = self.held_out()

    def step(self, images: torch.Tensor, share: float) -> None:
        """A step after a share of the time."""
        lr = LR * min(1, share / RAMPUP + 0.01) * (1 + cos(pi * min(share, 1))) / 2
        self.optimizer.param_groups[0]["lr"] = lr
        loss = self.loss(self.net, images).loss.mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1)
        self.optimizer.step()
        self.steps += 1
        update_ema(self.average, self.net, ema_beta(self.steps * BATCH, BATCH, HALFLIFE_KIMG, 0.1))
        loss.item()  # a GPU's step is over before the clock is read

    @torch.no_grad()
    def held_out(self) -> float:
        """The EDM loss on held-out phantoms, each with 4 draws of noise, the same for all networks."""
        found = []
        for draw in range(4):
            for rows in torch.arange(HELD_OUT).split(BATCH):
                images = self.data.held_out[rows]
                noise = ImageGenerators(rows.tolist(), seed=draw, device=images.device)
                found.append(self.loss(self.average, images, noise=noise).loss.mean())
        return round(float(torch.stack(found).mean()), 5)

    def samples(self, num: int) -> torch.Tensor:
        """Drawn images [N,1,*S]."""
        drawn = []
        for seeds in torch.arange(num).split(BATCH):
            noise = ImageGenerators(seeds.tolist(), device=self.data.train.device)
            drawn.append(edm_sampler(self.average, noise.randn([1, *[SIZE] * 3]), randn_like=noise.randn_like))
        return torch.cat(drawn)


def shell_power(images: torch.Tensor) -> torch.Tensor:
    """Mean power of images [N,1,*S] in shells of whole frequencies 1 .. SIZE / 2."""
    power = torch.fft.fftn(images.double(), dim=(2, 3, 4)).abs().square().mean((0, 1)).flatten().cpu()
    axis = torch.fft.fftfreq(SIZE, 1 / SIZE, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
    shells = grid.square().sum(0).sqrt().round().long().flatten()
    total = torch.zeros(int(shells.max()) + 1, dtype=torch.float64).index_add_(0, shells, power)
    return (total / torch.bincount(shells))[1:SIZE // 2 + 1]


def spectral_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean of |log10 of the ratio of power| over the shells of two sets of images."""
    return round(float((shell_power(a) / shell_power(b)).log10().abs().mean()), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--only", nargs="+", choices=CODECS, default=CODECS)
    parser.add_argument("--channels", type=int, default=16, help="width of the network without a codec")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = PhantomSets.draw(options.seed, options.device)
    for codec in options.only:
        channels = as_costly(codec, options.channels)
        run = TimedRun(codec, channels, data, options.seed)
        run.train(options.minutes)
        print(json_line("voxel-space EDM with and without a codec, in equal minutes", codec=codec, channels=channels,
                        parameters_m=round(sum(p.numel() for p in run.net.parameters()) / 1e6, 2),
                        gflop_per_step=round(step_gflop(codec, channels), 1), minutes=options.minutes, steps=run.steps,
                        loss_by_minute=run.losses,
                        spectral_distance=spectral_distance(run.samples(options.samples), data.held_out),
                        spectral_distance_of_others=spectral_distance(data.others, data.held_out),
                        samples=options.samples, seed=options.seed, threads=options.threads, device=options.device),
              flush=True)


if __name__ == "__main__":
    main()
