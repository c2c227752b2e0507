"""What is looked at before the first step: the device's bf16 convolution, the spread of the data, and the disk."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from edm3d.inference.batch import Sample, collate
from edm3d.samplers.noise import ImageGenerators, mix_seed
from edm3d.training.ema import halflives
from edm3d.training.phases import Task
from edm3d.utils import distributed
from edm3d.utils.checkpoint import tensor_bytes
from edm3d.utils.files import check_free_disk, what_exists
from edm3d.utils.schema import Options

CONVOLUTIONS = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}
MAX_ERROR = 0.03    # of a bf16 convolution, relative; rounding alone gives 0.003
MAX_STD_OFF = 0.1   # of the data's standard deviation from sigma_data, relative
STD_ITEMS = 16


class Trial(NamedTuple):
    """Output and gradients of a convolution, and the most CUDA memory it took, inputs included (0 on the CPU)."""

    tensors: list[torch.Tensor]
    peak_bytes: int


def bf16_of_all_ranks(dims: int, device: torch.device) -> list[str]:
    """What is wrong with bf16 convolutions on the devices of all ranks, by rank; they must call this together."""
    found = distributed.gather_objects(bf16_warnings(dims, device))
    names = [""] if len(found) == 1 else [f" rank {rank}:" for rank in range(len(found))]
    return [line.replace("Warning:", f"Warning:{name}", 1) for name, lines in zip(names, found, strict=True)
            for line in lines]


def bf16_warnings(dims: int, device: torch.device) -> list[str]:
    """What is wrong with a bf16 convolution forwards and backwards on this device, against one in float32."""
    exact, rough = (try_convolution(dims, device, dtype) for dtype in (torch.float32, torch.bfloat16))
    versions = f"torch {torch.__version__} with cuDNN {torch.backends.cudnn.version()} on {device.type}"
    advice = "use training.options.precision=fp32, or another pair of versions"
    error = max(float((a - b).norm() / a.norm()) for a, b in zip(exact.tensors, rough.tensors, strict=True))
    found = []
    if not error <= MAX_ERROR:
        found.append(f"Warning: a {dims}D bf16 convolution is off by {error:.0%} with {versions}; {advice}")
    if rough.peak_bytes > exact.peak_bytes:
        found.append(f"Warning: a {dims}D bf16 convolution takes {rough.peak_bytes / exact.peak_bytes:.1f} times the "
                     f"memory of float32 with {versions}; {advice}")
    return found


def try_convolution(dims: int, device: torch.device, dtype: torch.dtype) -> Trial:
    """One convolution forwards and backwards on fixed numbers."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    generator = torch.Generator().manual_seed(0)
    x, weight, grad = (torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in (
        (2, 32, *[16] * dims), (32, 32, *[3] * dims), (2, 32, *[16] * dims)))
    y = CONVOLUTIONS[dims](x, weight, padding=1)
    y.backward(grad)
    peak = torch.cuda.max_memory_allocated(device) - before if cuda else 0
    return Trial([part.detach().float().cpu() for part in (y, x.grad, weight.grad)], peak)


def spread_lines(task: Task, dataset: Sequence[Sample], seed: int, device: torch.device) -> list[str]:
    """The standard deviation of what the network is to learn, over a few items, beside its sigma_data."""
    sigma_data = getattr(task.net, "sigma_data", None)
    if task.clean is None:
        return []
    items = torch.linspace(0, len(dataset) - 1, min(STD_ITEMS, len(dataset))).long().tolist()
    std = measured_std(task, dataset, items, seed, device)
    beside = "" if sigma_data is None else f", sigma_data {sigma_data:g}"
    lines = [f"Data std    {std:.3g} over {len(items)} items{beside}"]
    if sigma_data is not None and not abs(std / sigma_data - 1) <= MAX_STD_OFF:
        lines.append(f"Warning: the data's standard deviation is {std / sigma_data:.2f} times sigma_data; set that of "
                     "training.network, training.loss and training.batch_transform to it, or scale the data")
    return lines


@torch.no_grad()
def measured_std(task: Task, dataset: Sequence[Sample], items: list[int], seed: int, device: torch.device) -> float:
    """Standard deviation of all values of some items, as the network will see them."""
    count, total, squares = 0, 0.0, 0.0
    for i in items:
        generators = ImageGenerators([i], seed=mix_seed("spread", seed), device=device)
        x = task.clean(collate([dataset[i]]).to(device), generators).double()
        count, total, squares = count + x.numel(), total + float(x.sum()), squares + float(x.square().sum())
    return max(0.0, squares / count - (total / count) ** 2) ** 0.5


def check_folder(folder: Path, task: Task, options: Options, with_best: bool) -> None:
    """ValueError unless files can be written in a run folder (or its parent to be) and those to come will fit.

    with_best: a snapshot of the best validation is kept too.
    """
    there = what_exists(folder)
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as e:
        raise ValueError(f"{there}: no files can be written there ({e.strerror}); choose another "
                         "training.options.run_root") from e
    held = sum(path.stat().st_size for path in folder.glob("*.pt"))
    largest = max(state_bytes(task, options), snapshot_bytes(task))  # one more while a file is written
    check_free_disk(folder, max(0, bytes_to_come(task, options, with_best) - held) + largest)


def bytes_to_come(task: Task, options: Options, with_best: bool) -> int:
    """Size of all snapshots and states that a run will hold at once."""
    ticks = options.total_kimg / options.kimg_per_tick
    snapshots, states = (min(keep, 1 + int(ticks / every) if every else 1) for keep, every in (
        (options.keep_snapshots, options.snapshot_ticks), (options.keep_states, options.state_ticks)))
    averages = len(halflives(options.ema_halflife_kimg))
    return (snapshots * averages + with_best) * snapshot_bytes(task) + states * state_bytes(task, options)


def snapshot_bytes(task: Task) -> int:
    """Size of a snapshot."""
    return tensor_bytes(task.net.state_dict()) + tensor_bytes(task.snapshot.plain())


def state_bytes(task: Task, options: Options) -> int:
    """Size of a training state: weights, averages, and what Adam keeps of every weight."""
    weights = sum(tensor_bytes(phase.module.state_dict()) for phase in task.phases)
    return 3 * weights + len(halflives(options.ema_halflife_kimg)) * tensor_bytes(task.net.state_dict())
