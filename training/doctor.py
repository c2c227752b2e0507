"""What a bug report needs: versions, devices, disk, and whether training, resuming and drawing work here at all.

Each check imports what it needs, so that a library which is missing or broken hides none of the others.
"""

import io
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("torch", "hydra-core", "omegaconf", "numpy", "scipy", "h5py", "click", "psutil", "monai", "einops",
            "opacus", "nibabel", "matplotlib", "safetensors", "tensorboard", "tqdm")
IMPORTED_AS = {"hydra-core": "hydra"}
OLDEST_TORCH = (2, 11)
MAX_CONVOLUTION_ERROR = 1e-5  # of float32 against float64, relative; on CUDA with TF32 it is 1e-3
LEAST_DISK = 2**30
MOST_TOLD = 1000  # characters of an error
TOY = ("dataset=arrays", "training.network.model.model_channels=8",
       "training.network.model.channel_mult=[1,1]", "training.network.model.attention_levels=[]",
       "training.options.batch_size=4", "training.options.kimg_per_tick=0.008", "training.options.total_kimg=0.016",
       "training.options.lr_schedule=constant", "training.options.precision=fp32", "training.validation.max_items=0",
       "training.validation.preview_ticks=null")


class Finding(NamedTuple):
    """What a check found: its name, whether it passed, and a line."""

    name: str
    passed: bool
    text: str


def examine(run_root: Path, device_type: str = "auto") -> Iterator[Finding]:
    """Run all checks one by one; an exception in one is its failure, whichever it is."""
    checks: dict[str, Callable[[], str]] = {
        "packages": packages, "device": lambda: devices(device_type), "memory": memory, "disk": lambda: disk(run_root),
        "convolution": lambda: convolution(device_type), "bf16": lambda: bf16(device_type),
        "toy road": lambda: toy_road(device_type)}
    for name, check in checks.items():
        try:
            yield Finding(name, True, check())
        except (Exception, SystemExit) as e:  # what the report is for
            yield Finding(name, False, told(e))


def told(error: BaseException) -> str:
    """An error in one line, not a long one."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= MOST_TOLD else text[:MOST_TOLD] + '...'}"


def packages() -> str:
    """Versions of what can be imported; ValueError, with these, where something cannot, or torch is too old."""
    found, wrong = [f"Python {platform.python_version()}"], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
            import_module(IMPORTED_AS.get(name, name))
        except PackageNotFoundError:
            wrong.append(f"{name} is not installed")
        except Exception as e:  # libraries fail in many ways when they are imported
            wrong.append(f"{name} cannot be imported ({told(e)})")
    if "torch is not installed" not in wrong:
        numbers = tuple(int(part) for part in version("torch").split("+")[0].split(".")[:2])
        if numbers < OLDEST_TORCH:
            wrong.append(f"torch is too old, wanted {'.'.join(map(str, OLDEST_TORCH))} or newer")
    if wrong:
        raise ValueError(f"{'; '.join(wrong)}; found {', '.join(found)}")
    return ", ".join(found)


def devices(device_type: str) -> str:
    """The device that would be used, and what it has; ValueError where it is not there."""
    import torch

    from edm3d.utils import distributed

    device = distributed.choose_device(device_type)
    machine = f"{platform.machine()}, {platform.system()}"
    threads = f"{torch.get_num_threads()} CPU threads of {os.cpu_count()} cores ({machine})"
    if device.type == "cpu":
        return f"cpu, {threads}, CUDA {torch.version.cuda or 'not in this build of torch'}"
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    names = ", ".join(f"{card.name} {card.total_memory / 2**30:.0f} GiB" for card in cards)
    return (f"{len(cards)} x cuda ({names}), CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, "
            f"{threads}")


def memory() -> str:
    """Of the machine."""
    import psutil

    from edm3d.utils.files import amount

    found = psutil.virtual_memory()
    return f"{amount(found.available)} free of {amount(found.total)}"


def disk(run_root: Path) -> str:
    """Where runs go: room, write access, locks; ValueError or OSError where something fails."""
    import psutil

    from edm3d.utils.files import amount, what_exists
    from edm3d.utils.runs import locked

    there = what_exists(run_root)
    with tempfile.TemporaryDirectory(dir=there) as folder, locked(Path(folder)) as works:
        (Path(folder) / "file").write_bytes(bytes(2**20))
        locks = "locks work" if works else "the file system knows no locks: nothing keeps two runs off one folder"
    free = psutil.disk_usage(str(there)).free
    if free < LEAST_DISK:
        raise ValueError(f"{there}: {amount(free)} free, a run takes more than {amount(LEAST_DISK)}")
    return f"{run_root}: {amount(free)} free, files can be written, {locks}"


def convolution(device_type: str) -> str:
    """A 3D convolution in float32 against float64, forwards and backwards."""
    import torch

    from edm3d.training.selftest import CONVOLUTIONS
    from edm3d.utils import distributed

    device = distributed.choose_device(device_type)
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator) for shape in ((2, 8, 12, 12, 12), (8, 8, 3, 3, 3)))
    results = []
    for kind, place in ((torch.float64, torch.device("cpu")), (torch.float32, device)):
        inputs = [part.to(place, kind).requires_grad_() for part in (x, weight)]
        y = CONVOLUTIONS[3](*inputs, padding=1)
        y.square().sum().backward()
        results.append([part.detach().cpu().double() for part in (y, *(each.grad for each in inputs))])
    errors = [float((a - b).norm() / a.norm()) for a, b in zip(*results, strict=True)]
    limit = MAX_CONVOLUTION_ERROR if device.type == "cpu" or not torch.backends.cudnn.allow_tf32 else 5e-3
    if not max(errors) <= limit:
        raise ValueError(f"a 3D float32 convolution on {device.type} is off by {max(errors):.1e}")
    return f"3D float32 on {device.type} within {max(errors):.0e} of float64, gradients included"


def bf16(device_type: str) -> str:
    """2D and 3D bf16 convolutions against float32; ValueError for what is wrong with them."""
    from edm3d.training.selftest import bf16_warnings
    from edm3d.utils import distributed

    device = distributed.choose_device(device_type)
    if wrong := [line for dims in (2, 3) for line in bf16_warnings(dims, device)]:
        raise ValueError("; ".join(line.removeprefix("Warning: ") for line in wrong))
    return f"2D and 3D convolutions on {device.type} agree with float32"


def toy_road(device_type: str) -> str:
    """Train a tiny network, once through and once stopped half-way and resumed, and draw from both."""
    import numpy as np
    import torch

    from edm3d.inference.model import Model
    from edm3d.training.run import train
    from edm3d.utils.compose import compose, shipped_configs

    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        data = Path(folder) / "toy.npy"
        np.save(data, np.random.default_rng(0).random((8, 1, 8, 8, 8), np.float32))
        once, twice = (Path(folder) / name for name in ("once", "twice"))
        for root, more in ((once, ()), (twice, ("training.options.total_kimg=0.008",)),
                           (twice, ("training.options.resume=latest",))):
            overrides = [*TOY, f"training.dataset.path={data}", f"training.options.run_root={root}",
                         f"training.options.device={device_type}", *more]
            train("voxels_edm", compose("voxels_edm", overrides, shipped_configs()))
        models = [Model.load("voxels_edm", run_root=str(root), device=device_type) for root in (once, twice)]
        drawn = [model.sample(range(2), num_steps=3).images for model in models]
    weights = [model.snapshot.weights for model in models]
    if not all(torch.equal(w, weights[1][name]) for name, w in weights[0].items()) or (drawn[0] != drawn[1]).any():
        raise ValueError("a run that was resumed half-way does not end with the weights of one that was not")
    return (f"trained 4 steps, again in two halves with the same weights to the last bit, drew 2 volumes, in "
            f"{time.monotonic() - start:.0f} s")
