"""Claim: a training step of our UNet takes at most as long as one of MONAI's DiffusionModelUNet of equal FLOPs.

The widths of ours are chosen so that a forward pass takes within 5 % of the peer's FLOPs (`comparable` says whether).
A step is forward, mean squared error, backward, Adam, and for all but the tutorial's the average of the weights.
The peer takes it as MONAI's 3D tutorial does (float16 with a GradScaler on CUDA, float32 on a CPU; Adam as it comes),
and at its best (bfloat16, fused Adam, with --compile torch.compile and on CUDA channels_last); ours with the same
switches as the best. All take turns in one run; medians of wall time.

Run from the top of the checkout: python -m benchmarks.train_step [--device cuda] [--channels 256 256 512]
[--sizes 20,20,16 40,40,32] [--batches 2 16] [--repeats 7] [--compile] (one JSON line for each size and batch)
"""

import argparse
import time
from collections.abc import Callable
from copy import deepcopy

import torch
from monai.networks.nets import DiffusionModelUNet
from torch.nn.functional import mse_loss
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import in_turns, json_line
from edm3d.networks.unet import ADMUNet
from edm3d.training.ema import update_ema
from edm3d.training.machine import place
from edm3d.utils.precision import autocast
from edm3d.utils.schema import Options

LIMIT = 1.0
APART = 0.05  # of FLOPs, at most
LATENTS = 4
STEP = 4  # widths are multiples of it
Network = Callable[[], torch.nn.Module]


def peer(channels: list[int]) -> torch.nn.Module:
    """MONAI's network as in its 3D latent diffusion tutorial: attention below the first level, one head."""
    attends = [False, *[True] * (len(channels) - 1)]
    heads = [c if on else 0 for c, on in zip(channels, attends, strict=True)]
    return DiffusionModelUNet(3, LATENTS, LATENTS, num_res_blocks=2, channels=channels, attention_levels=attends,
                              num_head_channels=heads)


def ours(width: int, levels: list[int]) -> torch.nn.Module:
    """ADM of the same levels, with attention where the peer has it."""
    return ADMUNet(LATENTS, LATENTS, 3, model_channels=width, channel_mult=levels, num_blocks=2, dropout=0,
                   attention_levels=list(range(1, len(levels))), channels_per_head=None)


def flops(make: Network, size: list[int]) -> int:
    """Multiplications and sums of the forward pass of one latent, found out without computing it."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net = make()
        net(torch.empty(1, LATENTS, *size), torch.empty(1))
    return counter.get_total_flops()


def matched(channels: list[int], size: list[int]) -> tuple[int, float]:
    """Width of ours whose FLOPs come nearest to the peer's, and by what share they differ."""
    wanted, levels = flops(lambda: peer(channels), size), [c // channels[0] for c in channels]
    apart = {width: flops(lambda width=width: ours(width, levels), size) / wanted - 1
             for width in range(channels[0] * 7 // 8 // STEP * STEP, channels[0] * 9 // 8 + 1, STEP)}
    return min(apart.items(), key=lambda item: abs(item[1]))


def stepper(net: torch.nn.Module, images: int, size: list[int], device: torch.device, *, precision: str,
            scaler: torch.amp.GradScaler | None = None, best: bool = True, channels_last: bool = False,
            compiled: bool = False) -> Callable[[], None]:
    """A training step; best: fused Adam and an average, as in training."""
    place(net.train(), None, Options(channels_last=channels_last), device)
    ema = deepcopy(net).requires_grad_(False)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True if best else None)
    x, t = torch.randn(images, LATENTS, *size, device=device), torch.rand(images, device=device)
    call = torch.compile(net) if compiled else net

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(precision, device):
            loss = mse_loss(call(x, t).float(), x)
        if scaler:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        else:
            loss.backward()
            optimizer.step()
        if best:
            update_ema(ema, net, 0.999)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--channels", type=int, nargs="+", default=[256, 256, 512], help="of MONAI's network")
    parser.add_argument("--sizes", nargs="+", default=["20,20,16", "40,40,32"])
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 16])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--precision", default="bf16", help="of both at their best")
    parser.add_argument("--compile", action="store_true", help="both at their best, in channels_last on CUDA")
    asked = parser.parse_args()
    device, cuda = torch.device(asked.device), asked.device == "cuda"
    best = {"precision": asked.precision, "compiled": asked.compile, "channels_last": asked.compile and cuda}
    name = torch.cuda.get_device_name() if cuda else "cpu"
    for size in ([int(n) for n in text.split(",")] for text in asked.sizes):
        width, apart = matched(asked.channels, size)
        levels = [c // asked.channels[0] for c in asked.channels]
        for images in asked.batches:
            torch.manual_seed(0)
            took = in_turns({
                "monai_tutorial": stepper(peer(asked.channels), images, size, device, best=False,
                                          precision="fp16" if cuda else "fp32",
                                          scaler=torch.amp.GradScaler(device.type) if cuda else None),
                "monai_best": stepper(peer(asked.channels), images, size, device, **best),
                "edm3d": stepper(ours(width, levels), images, size, device, **best)}, asked.repeats, time.perf_counter)
            fastest = min(took["monai_tutorial"], took["monai_best"])
            print(json_line("a training step takes at most as long as MONAI's of equal FLOPs",
                            ours=round(took["edm3d"] / fastest, 3), limit=LIMIT, device=name, **best,
                            latents="x".join(map(str, [LATENTS, *size])), images=images, repeats=asked.repeats,
                            threads=torch.get_num_threads(), width=width, flops_apart=round(apart, 4),
                            comparable=abs(apart) <= APART,
                            **{f"{key}_s": round(value, 5) for key, value in took.items()}), flush=True)


if __name__ == "__main__":
    main()
