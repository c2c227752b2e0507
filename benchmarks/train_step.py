"""Claim: a training step of our UNet takes at most as long as one of MONAI's DiffusionModelUNet of equal FLOPs.

The widths of ours are chosen so that a forward pass takes within 5 % of the peer's FLOPs (`comparable` says whether).
A step is forward, mean squared error, backward, Adam, and for all but the tutorial's the average of the weights.
The peer takes it as MONAI's 3D tutorial does (float16 with a GradScaler on CUDA, float32 on a CPU; Adam as it comes),
and at its best (--precision, fused Adam, flash attention, with --compile torch.compile and on CUDA channels_last, with
--graphs CUDA graphs, too); ours with the same switches as the best. All take turns in one run; medians, of CPU time on
a CPU, of wall time on CUDA. `per_flop`: FLOPs that ours makes in a second, over those of the faster of MONAI's two.
`of_matrix_rate`: FLOPs of a step of ours, three times those of a forward pass, in a second, over those of a large
product of matrices in the same precision.

Run from the top of the checkout: OMP_NUM_THREADS=1 python -m benchmarks.train_step [--device cuda]
[--channels 256 256 512] [--sizes 20,20,16 40,40,32] [--batches 2 16] [--repeats 7] [--compile] [--graphs]
One JSON line for each size and batch. --width: of ours, in place of the one that matches, also where it is not
comparable, as for widths that the processor's kernels are made for.
"""

import argparse
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial

import torch
from monai.networks.nets import DiffusionModelUNet
from torch.nn.functional import mse_loss

from benchmarks.common import clock_of, flops_as_written, in_turns, json_line
from edm3d.networks.unet import ADMUNet
from edm3d.training.ema import update_ema
from edm3d.training.machine import as_called, place
from edm3d.training.profiling import matrix_rate
from edm3d.utils.precision import autocast
from edm3d.utils.schema import Options

LIMIT, PER_FLOP = 1.0, 1.1
APART = 0.05  # of FLOPs, at most
LATENTS = 4
STEP = 4  # widths are multiples of it
Network = Callable[[], torch.nn.Module]


def peer(channels: list[int], flash: bool = False) -> torch.nn.Module:
    """MONAI's network as in its 3D latent diffusion tutorial: attention below the first level, one head."""
    attends = [False, *[True] * (len(channels) - 1)]
    heads = [c if on else 0 for c, on in zip(channels, attends, strict=True)]
    return DiffusionModelUNet(3, LATENTS, LATENTS, num_res_blocks=2, channels=channels, attention_levels=attends,
                              num_head_channels=heads, use_flash_attention=flash)


def ours(width: int, levels: list[int]) -> torch.nn.Module:
    """ADM of the same levels, with attention where the peer has it."""
    return ADMUNet(LATENTS, LATENTS, 3, model_channels=width, channel_mult=levels, num_blocks=2, dropout=0,
                   attention_levels=list(range(1, len(levels))), channels_per_head=None)


def flops(make: Network, *shapes: Sequence[int]) -> int:
    """Multiplications and sums of a forward pass for inputs of some shapes, found out without computing it."""
    with torch.device("meta"), flops_as_written() as counter:
        make()(*(torch.empty(*shape) for shape in shapes))
    return counter.get_total_flops()


def matched(channels: list[int], size: list[int]) -> dict[int, float]:
    """By what share the FLOPs of ours differ from the peer's, by width."""
    levels, shapes = [c // channels[0] for c in channels], ([1, LATENTS, *size], [1])
    wanted = flops(lambda: peer(channels), *shapes)
    return {width: flops(lambda width=width: ours(width, levels), *shapes) / wanted - 1
            for width in range(channels[0] * 7 // 8 // STEP * STEP, channels[0] * 9 // 8 + 1, STEP)}


def nearest(apart: dict[int, float]) -> int:
    """What differs least."""
    return min(apart, key=lambda key: abs(apart[key]))


def stepper(net: torch.nn.Module, loss_of: Callable[[Callable], torch.Tensor], device: torch.device, *,
            scaler: torch.amp.GradScaler | None = None, best: bool = True, precision: str = "fp32",
            channels_last: bool = False, compile: bool = False, graphs: bool = False) -> Callable[[], None]:
    """A training step by the loss of what calls a network; best: fused Adam and an average, as in training."""
    options = Options(channels_last=channels_last, compile=compile, graphs=graphs)
    place(net.train(), None, options, device)
    ema = deepcopy(net).requires_grad_(False) if best else None
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True if best else None)
    call = as_called(net, options, device)

    def step() -> None:
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()
        optimizer.zero_grad(set_to_none=True)
        with autocast(precision, device):
            loss = loss_of(call)
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


def switches(asked: argparse.Namespace) -> tuple[dict, dict]:
    """What a tutorial's step takes, and one at its best, on the device that is asked for."""
    cuda = asked.device == "cuda"
    return ({"best": False, "precision": "fp16" if cuda else "fp32",
             "scaler": torch.amp.GradScaler("cuda") if cuda else None},
            {"precision": asked.precision, "compile": asked.compile or asked.graphs, "graphs": asked.graphs,
             "channels_last": (asked.compile or asked.graphs) and cuda})


def add_switches(parser: argparse.ArgumentParser) -> None:
    """Options of all that compares steps."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--precision", default="bf16", help="of both at their best")
    parser.add_argument("--compile", action="store_true", help="both at their best, in channels_last on CUDA")
    parser.add_argument("--graphs", action="store_true", help="the same, replayed as CUDA graphs")


def rate_of(device: torch.device, precision: str) -> float:
    """Multiplications and sums per second of a large product of matrices."""
    clock = clock_of(device.type)

    def mark() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock()

    return matrix_rate(device, precision, mark, lambda start, end: 1000 * (end - start))


def device_name(device: torch.device) -> str:
    """What a line says of a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_switches(parser)
    parser.add_argument("--channels", type=int, nargs="+", default=[256, 256, 512], help="of MONAI's network")
    parser.add_argument("--sizes", nargs="+", default=["20,20,16", "40,40,32"])
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 16])
    parser.add_argument("--width", type=int, help="of ours, a multiple of 4 within an eighth of the first channels")
    asked = parser.parse_args()
    device, levels = torch.device(asked.device), [c // asked.channels[0] for c in asked.channels]
    tutorial, best = switches(asked)
    rate = rate_of(device, asked.precision)
    for size in ([int(n) for n in text.split(",")] for text in asked.sizes):
        apart = matched(asked.channels, size)
        width = asked.width or nearest(apart)
        own = flops(partial(ours, width, levels), [1, LATENTS, *size], [1])
        for images in asked.batches:
            torch.manual_seed(0)
            x, t = torch.randn(images, LATENTS, *size, device=device), torch.rand(images, device=device)

            def loss(call: Callable, x: torch.Tensor = x, t: torch.Tensor = t) -> torch.Tensor:
                return mse_loss(call(x, t).float(), x)

            took = in_turns({"monai_tutorial": stepper(peer(asked.channels), loss, device, **tutorial),
                             "monai_best": stepper(peer(asked.channels, flash=True), loss, device, **best),
                             "edm3d": stepper(ours(width, levels), loss, device, **best)},
                            asked.repeats, clock_of(device.type))
            fastest = min(took["monai_tutorial"], took["monai_best"])
            print(json_line("a training step takes at most as long as MONAI's of equal FLOPs",
                            ours=round(took["edm3d"] / fastest, 3), limit=LIMIT,
                            per_flop=round((1 + apart[width]) * fastest / took["edm3d"], 3), per_flop_wanted=PER_FLOP,
                            of_matrix_rate=round(3 * images * own / took["edm3d"] / rate, 3),
                            matrix_tflops=round(rate / 1e12, 3), device=device_name(device), **best,
                            latents="x".join(map(str, [LATENTS, *size])), images=images,
                            repeats=asked.repeats, threads=torch.get_num_threads(), width=width,
                            flops_apart=round(apart[width], 4), comparable=abs(apart[width]) <= APART,
                            **{f"{key}_s": round(value, 5) for key, value in took.items()}), flush=True)


if __name__ == "__main__":
    main()
