"""Claim: by counters, the noise of a batch takes a handful of kernels on CUDA, where generators take one per image.

Five draws of a step, each of another purpose, of 16 x [4,20,20,16]: operators of torch that did work, of which each is
a kernel or a copy, and the time, both schemes in turns.

Run from the top of the checkout: python -m benchmarks.noise [--device cuda]
"""

from typing import Any

import click
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common import clock_of, in_turns, json_line
from edm3d.samplers.noise import SCHEMES, ImageGenerators
from edm3d.samplers.philox import has_kernels

BATCH, SHAPE, REPEATS = 16, (4, 20, 20, 16), 15
PURPOSES = "posterior", "sigma", "noise", "self_condition", "codes"


class WorkCounter(TorchDispatchMode):
    """Counts the operators that are called, but for views and allocations."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.count += not (func.is_view or "empty" in func.name())
        return func(*args, **kwargs or {})


def draws(scheme: str, device: torch.device) -> None:
    """The noise of a step, waited for."""
    noise = ImageGenerators(range(BATCH), device=device, scheme=scheme)
    for purpose in PURPOSES:
        noise.for_purpose(purpose).randn(SHAPE)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def kernels(scheme: str, device: torch.device) -> int:
    """How many operators did work."""
    with WorkCounter() as counted:
        draws(scheme, device)
    return counted.count


@click.command()
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
def main(device: str) -> None:
    """Print one JSON line."""
    torch.set_num_threads(1)
    on = torch.device(device)
    took = in_turns({scheme: lambda scheme=scheme: draws(scheme, on) for scheme in SCHEMES}, REPEATS, clock_of(device))
    print(json_line(f"noise of {BATCH} x {list(SHAPE)} for {len(PURPOSES)} purposes, median milliseconds",
                    device=torch.cuda.get_device_name(on) if device == "cuda" else "cpu",
                    kernels_of_torch=device == "cuda" and has_kernels(on),
                    **{f"{scheme}_kernels": kernels(scheme, on) for scheme in SCHEMES},
                    **{f"{scheme}_ms": round(1000 * took[scheme], 2) for scheme in SCHEMES},
                    ratio=round(took["counters"] / took["generators"], 2)))


if __name__ == "__main__":
    main()
