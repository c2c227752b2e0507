"""Claim: a step of training on a CPU takes at most 1.3 times as long per image with one volume a round as with two.

Measured are a convolution with its gradients, the first stage of diff3_vae_200 and the UNet of echo_edm on latents: CPU
time of forward and backward per image, of one volume by oneDNN (`ours`), of one by PyTorch's own way, and of two.
Latents of 8^3 miss the limit: there one volume takes three quarters of the time of two together. Beside it
stand convolutions of what has been up-sampled, in the way of RepeatConv and in PyTorch's, weights in channels_last,
which the first stage of echo_vae gains by, and what threads that spin cost beside a busy process. All variants take
turns in one run; medians.

Run from the top of the checkout: OMP_NUM_THREADS=1 python -m benchmarks.train_step_cpu [--size 32] [--repeats 7]
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from unittest.mock import patch

import torch

from benchmarks.common import in_turns, json_line, repeated_first
from edm3d.networks.autoencoder import AutoencoderKL
from edm3d.networks.layers import conv
from edm3d.networks.unet import ADMUNet
from edm3d.training.machine import LAYOUTS
from edm3d.utils.compose import compose

LIMIT = 1.3
BUSY = "while True: pass"
WAITING = """
import sys, time
import torch
from torch.nn.functional import conv3d
torch.set_num_threads(2)
x, w = torch.randn(4, 32, 8, 8, 8, requires_grad=True), torch.randn(32, 32, 3, 3, 3, requires_grad=True)
seconds, end = [], time.perf_counter() + 3
while time.perf_counter() < end or len(seconds) < 3:
    start = time.perf_counter()
    conv3d(x, w, padding=1).sigmoid().sum().backward()
    seconds.append(time.perf_counter() - start)
print(sorted(seconds[1:])[len(seconds[1:]) // 2])
"""


def first_stage(name: str, size: int) -> tuple[torch.nn.Module, Callable[[int], None]]:
    """The autoencoder of an experiment, and forward and backward of so many random volumes [1,size,size,size]."""
    node = {k: v for k, v in compose(name, [])["training"]["network"].items() if k != "_target_"}
    net = AutoencoderKL(**{**node, "in_channels": 1, "num_classes": 3, "spatial_dims": 3})
    x, labels = torch.randn(4, 1, size, size, size), torch.randint(0, 3, (4, size, size, size))

    def step(count: int) -> None:
        made = net.decode(net.encode(x[:count], labels[:count]).mean)
        (made[0].square().mean() + made[1].square().mean()).backward()

    return net, step


def unet(size: int, most: int = 2) -> Callable[[int], None]:
    """Forward and backward of the UNet of echo_edm on so many latents, `most` of them."""
    node = {k: v for k, v in compose("echo_edm", [])["training"]["network"]["model"].items() if k != "_target_"}
    net = ADMUNet(**{**node, "in_channels": 4, "out_channels": 4, "spatial_dims": 3, "image_size": [size] * 3,
                     "label_dim": 0})
    x = torch.randn(most, 4, size, size, size)
    return lambda count: net(x[:count], torch.zeros(count)).square().mean().backward()


def one_convolution() -> Callable[[int], None]:
    """Forward and backward of 16 channels at 32^3."""
    layer, x = conv(3, 16, 16), torch.randn(2, 16, 32, 32, 32, requires_grad=True)
    return lambda count: layer(x[:count]).sum().backward()


def pytorch() -> AbstractContextManager:
    """PyTorch's own way."""
    return patch("edm3d.networks.layers.is_single", return_value=False)


def one_and_two(step: Callable[[int], None], repeats: int) -> dict[str, float]:
    """Seconds per image: one volume by our way and by PyTorch's, and two."""
    def under(way: AbstractContextManager, count: int) -> None:
        with way:
            step(count)

    took = in_turns({"ours": lambda: under(nullcontext(), 1), "pytorch": lambda: under(pytorch(), 1),
                     "two": lambda: under(nullcontext(), 2)}, repeats)
    took["two"] /= 2
    return {**{name: round(value, 4) for name, value in took.items()}, "ratio": round(took["ours"] / took["two"], 2)}


def layouts(name: str, size: int, count: int, repeats: int) -> dict[str, float]:
    """Seconds per image of a first stage with weights as they are and in channels_last."""
    net, step = first_stage(name, size)

    def under(layout: torch.memory_format) -> None:
        for p in net.parameters():
            if p.ndim in LAYOUTS:
                p.data = p.data.contiguous(memory_format=layout)
        net.zero_grad()
        step(count)

    took = in_turns({"plain": lambda: under(torch.contiguous_format), "channels_last": lambda: under(LAYOUTS[5])},
                    repeats)
    return {key: round(value / count, 4) for key, value in took.items()}


def up_convolution(images: int, wide: int, narrow: int, size: int) -> Callable[[], None]:
    """Forward and backward of a convolution of so many images that are up-sampled by 2 on each axis."""
    layer, x = conv(3, wide, narrow, repeat=(2, 2, 2)), torch.randn(images, wide, size, size, size, requires_grad=True)
    return lambda: layer(x).sum().backward()


def both_ways(step: Callable[[], None], repeats: int) -> dict[str, float]:
    """Milliseconds by sums of weights, and of what is up-sampled first."""
    def plain() -> None:
        with repeated_first():
            step()

    took = in_turns({"ours": step, "plain": plain}, repeats)
    return {**{name: round(1000 * value, 1) for name, value in took.items()},
            "ratio": round(took["ours"] / took["plain"], 2)}


def up_sampled(repeats: int) -> dict[str, dict[str, float]]:
    """Of convolutions alone, and of whole steps, by name."""
    alone = [(16, 64, 64, 4), (4, 64, 32, 8), (1, 32, 32, 8), (4, 32, 8, 16), (2, 64, 64, 16), (1, 64, 32, 32)]
    stages = [("echo_vae", 4), ("diff3_vae_100", 2), ("diff3_vae_200", 2), ("brats_vae_32g", 2)]
    return {**{f"{n} of {wide} to {narrow} channels, {size}^3":
               both_ways(up_convolution(n, wide, narrow, size), repeats) for n, wide, narrow, size in alone},
            **{f"{name}, batch {count}, 32^3": both_ways(partial(first_stage(name, 32)[1], count), repeats)
               for name, count in stages},
            "echo_edm, batch 16, latents of 8^3": both_ways(partial(unet(8, 16), 16), repeats)}


def waiting_threads(repeats: int, busy: bool) -> dict[str, float]:
    """Median seconds of a step of two threads, alone or beside one busy process, by how its threads wait."""
    ways = {"spinning": {}, "1000 turns": {"GOMP_SPINCOUNT": "1000"}, "asleep": {"OMP_WAIT_POLICY": "passive"}}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    rest = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    other = subprocess.Popen([sys.executable, "-c", BUSY if busy else ""])
    try:
        for _ in range(repeats):
            for name, more in ways.items():
                done = subprocess.run([sys.executable, "-c", WAITING], env={**rest, "OMP_NUM_THREADS": "2", **more},
                                      capture_output=True, text=True, check=True)
                seconds[name].append(float(done.stdout))
    finally:
        other.kill()
        other.wait()
    return {name: round(statistics.median(column), 4) for name, column in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=32, help="of the volumes of diff3_vae_200")
    parser.add_argument("--repeats", type=int, default=7)
    asked = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    found = {"convolution": one_and_two(one_convolution(), asked.repeats),
             "diff3_vae_200": one_and_two(first_stage("diff3_vae_200", asked.size)[1], asked.repeats),
             **{f"echo_edm, latents of {size}^3": one_and_two(unet(size), asked.repeats) for size in (16, 8)}}
    print(json_line("CPU seconds per image of a step, one volume a round against two",
                    ours=max(each["ratio"] for each in found.values()), limit=LIMIT, size=asked.size,
                    repeats=asked.repeats, threads=1, **found,
                    layout={"echo_vae, batch 4": layouts("echo_vae", 32, 4, asked.repeats),
                            "echo_vae, batch 1": layouts("echo_vae", 32, 1, asked.repeats),
                            f"diff3_vae_200, batch 2, {asked.size}^3": layouts("diff3_vae_200", asked.size, 2,
                                                                              asked.repeats)},
                    up_sampled=up_sampled(asked.repeats),
                    threads_alone=waiting_threads(3, False),
                    threads_beside_one_busy_process=waiting_threads(3, True)))


if __name__ == "__main__":
    main()
