"""Claim: a training step of our AutoencoderKL takes at most the time and memory of MONAI's of equal FLOPs.

The widths of ours are chosen so that encoder and decoder together take within 5 % of the peer's FLOPs (`comparable`
says whether); both see images without label maps, draw the latents, and have as many blocks and the same attention.
Ours is of the layout that experiments have unless they name one, or by --layout monai the peer's own network.
A step is forward, mean absolute error and KL, backward, Adam. Tutorial and best settings are those of
benchmarks/train_step.py; on a CPU the best of each is the faster of weights as they are and in channels_last. All take
turns in one run; medians. Memory: on CUDA the most that torch allocates in a step of each alone, on a CPU what resident
memory rises by in a process of its own.

Run from the top of the checkout: OMP_NUM_THREADS=1 python -m benchmarks.autoencoder_step [--settings small]
[--device cuda --settings diff3 patches] [--compile] [--graphs] [--repeats 7] (one JSON line for each setting)
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from monai.networks.nets import AutoencoderKL as Peer
from torch.nn.functional import l1_loss

from benchmarks.common import FREEING, clock_of, in_turns, json_line, with_peak
from benchmarks.train_step import APART, LIMIT, add_switches, device_name, flops, nearest, stepper, switches
from edm3d.networks.autoencoder import AutoencoderKL

KL_WEIGHT, LATENTS, STEP = 1e-6, 4, 2  # widths of the first level are multiples of STEP
ROOT = Path(__file__).resolve().parents[1]


class StepSetting(NamedTuple):
    """Volumes of `size` voxels along each axis, so many in a step, and MONAI's network for them."""

    size: int
    images: int
    channels: list[int]
    blocks: int
    attends: bool


SETTINGS = {
    "diff3": StepSetting(160, 2, [32, 64, 128, 128], 2, True),
    "patches": StepSetting(32, 16, [32, 64, 128], 1, False),
    "small": StepSetting(32, 4, [16, 32, 64], 1, False),
    "tiny": StepSetting(8, 2, [8, 16], 1, False),
}


def peer(setting: StepSetting) -> torch.nn.Module:
    """MONAI's: x -> image, mean and standard deviation of its latents."""
    return Peer(3, 1, 1, channels=setting.channels, num_res_blocks=setting.blocks, latent_channels=LATENTS,
                attention_levels=[False] * len(setting.channels), norm_num_groups=8,
                with_encoder_nonlocal_attn=setting.attends, with_decoder_nonlocal_attn=setting.attends)


class Ours(torch.nn.Module):
    """Ours of some width, called as the peer is."""

    def __init__(self, setting: StepSetting, width: int, layout: str):
        super().__init__()
        channels = [width * c // setting.channels[0] for c in setting.channels]
        self.net = AutoencoderKL(1, 0, LATENTS, 3, channels, num_blocks=setting.blocks,
                                 num_blocks_decoder=setting.blocks, bottleneck_attention=setting.attends,
                                 layout=layout)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        posterior = self.net.encode(x)
        image, _ = self.net.decode(posterior.mean + posterior.std * torch.randn_like(posterior.mean))
        return image, posterior.mean, posterior.std


def matched(setting: StepSetting, layout: str) -> dict[int, float]:
    """By what share the FLOPs of ours differ from the peer's, by width."""
    shape, first = [1, 1, *[setting.size] * 3], setting.channels[0]
    wanted = flops(lambda: peer(setting), shape)
    return {width: flops(lambda width=width: Ours(setting, width, layout), shape) / wanted - 1
            for width in range(first, first * 8 // 5 + 1, STEP)}


def loss_of(x: torch.Tensor) -> Callable[[Callable], torch.Tensor]:
    """Mean absolute error and KL of what an autoencoder makes of x."""
    def loss(call: Callable) -> torch.Tensor:
        image, mean, std = (y.float() for y in call(x))
        kl = 0.5 * (mean.square() + std.square() - 2 * std.log() - 1).sum() / len(x)
        return l1_loss(image, x) + KL_WEIGHT * kl
    return loss


def steps(asked: argparse.Namespace, setting: StepSetting, width: int) -> dict[str, Callable[[], Callable[[], None]]]:
    """What makes a step of each, by name."""
    device = torch.device(asked.device)
    tutorial, best = switches(asked)
    x = torch.rand(setting.images, 1, *[setting.size] * 3, device=device) * 2 - 1
    both = {"monai": lambda: peer(setting), "edm3d": lambda: Ours(setting, width, asked.layout)}
    made = {"monai_tutorial": lambda: stepper(peer(setting), loss_of(x), device, **tutorial)}
    for name, net in both.items():
        made[f"{name}_best"] = lambda net=net: stepper(net(), loss_of(x), device, **best)
        if device.type == "cpu":
            made[f"{name}_best_channels_last"] = lambda net=net: stepper(
                net(), loss_of(x), device, **{**best, "channels_last": True})
    return made


def peak_here(made: Callable[[], Callable[[], None]]) -> int:
    """Bytes that resident memory rises by."""
    return with_peak(lambda: [step() for step in [made()] * 2])[1]


def peak(asked: argparse.Namespace, name: str, made: Callable[[], Callable[[], None]]) -> int:
    """Bytes that two steps take at most, with weights, averages and what Adam keeps."""
    if asked.device == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step = made()
        step()
        step()
        return torch.cuda.max_memory_allocated() - before
    done = subprocess.run([sys.executable, "-m", "benchmarks.autoencoder_step", *sys.argv[1:], "--peak-of", name],
                          cwd=ROOT, env={**os.environ, **FREEING}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_switches(parser)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=["small"])
    parser.add_argument("--layout", choices=("compact", "monai"), default="compact", help="monai: the same network")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)  # what a process of its own measures
    asked = parser.parse_args()
    for key in asked.settings:
        setting = SETTINGS[key]
        apart = matched(setting, asked.layout)
        width = nearest(apart)
        made = steps(asked, setting, width)
        if asked.peak_of:
            print(peak_here(made[asked.peak_of]))
            return
        bytes_of = {name: peak(asked, name, make) for name, make in made.items()}
        took = in_turns({name: make() for name, make in made.items()}, asked.repeats, clock_of(asked.device))
        fastest = {name: min((key for key in took if key.startswith(name)), key=took.get)
                   for name in ("edm3d", "monai")}
        print(json_line("a training step of AutoencoderKL takes at most as long as MONAI's of equal FLOPs",
                        ours=round(took[fastest["edm3d"]] / took[fastest["monai"]], 3), limit=LIMIT,
                        memory=round(bytes_of[fastest["edm3d"]] / bytes_of[fastest["monai"]], 3),
                        limit_memory=LIMIT, setting=key, size=setting.size, images=setting.images,
                        peer_channels=setting.channels, width=width, flops_apart=round(apart[width], 4),
                        comparable=abs(apart[width]) <= APART, device=device_name(torch.device(asked.device)),
                        precision=asked.precision, compile=asked.compile or asked.graphs, graphs=asked.graphs,
                        threads=torch.get_num_threads(), layout=asked.layout, repeats=asked.repeats, fastest=fastest,
                        seconds={name: round(value, 4) for name, value in took.items()},
                        mib={name: round(value / 2 ** 20, 1) for name, value in bytes_of.items()}), flush=True)


if __name__ == "__main__":
    main()
