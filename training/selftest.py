"""What is looked at before the first step: the device's bf16 convolution, the spread of the data, and the disk."""

import inspect
import tempfile
from math import inf
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from edm3d.formats.facts import Facts
from edm3d.inference.batch import Sample, collate
from edm3d.samplers.noise import ImageGenerators, mix_seed
from edm3d.training.ema import halflives
from edm3d.training.phases import Task
from edm3d.utils import distributed
from edm3d.utils.checkpoint import tensor_bytes
from edm3d.utils.config import find_target
from edm3d.utils.files import check_free_disk, what_exists
from edm3d.utils.schema import Options

CONVOLUTIONS = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}
MAX_ERROR = 0.03    # of a bf16 convolution, relative; rounding alone gives 0.003
MAX_STD_OFF = 0.1   # of the data's standard deviation from sigma_data, relative
LOOKED_AT = 16      # items
FAR = 2.0           # |value| of an image from which on it is no longer taken for one in [-1, 1]
FAR_UNCLIPPED = 10.0  # the same where the contract says that values may lie beyond


class Dataset(Protocol):
    """Items, and what is known of them."""

    facts: Facts

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample: ...


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


class Glance(NamedTuple):
    """Of a few items: lowest and highest value of the images, and the standard deviation of what the network is to
    learn (None: of nothing that has one).
    """

    lowest: float
    highest: float
    std: float | None


def data_lines(task: Task, dataset: Dataset, training: dict, device: torch.device) -> list[str]:
    """What a few items look like: images far outside [-1, 1], and their spread beside the network's sigma_data."""
    items = torch.linspace(0, len(dataset) - 1, min(LOOKED_AT, len(dataset))).long().tolist()
    seen = look(task, dataset, items, training["options"]["seed"], device)
    spread = spread_lines(seen.std, len(items), task.net, training)
    if task.snapshot.refines:  # scaled where there is anything to draw; the rest lowers the whole
        spread = spread[:1]
    return [*range_lines(seen, dataset.facts, len(items)), *spread]


def range_lines(seen: Glance, facts: Facts, count: int) -> list[str]:
    """A warning where images lie far outside [-1, 1]; none of latents, which have no range."""
    if facts.latents or max(-seen.lowest, seen.highest) <= (FAR if facts.intensity.clip else FAR_UNCLIPPED):
        return []
    return [f"Warning: images must be in [-1, 1], those of {count} items go from {seen.lowest:.4g} to "
            f"{seen.highest:.4g}; have the data set scale them, as Intensity.to_network does (docs/own_code.md)"]


def spread_lines(std: float | None, count: int, net: torch.nn.Module, training: dict) -> list[str]:
    """The standard deviation of the data beside the network's sigma_data, and what to set where they differ much."""
    if std is None:
        return []
    sigma_data = getattr(net, "sigma_data", None)
    beside = "" if sigma_data is None else f", sigma_data {sigma_data:g}"
    lines = [f"Data std    {std:.3g} over {count} items{beside}"]
    if sigma_data is not None and not abs(std / sigma_data - 1) <= MAX_STD_OFF:
        keys = "".join(f" {key}={std:.3g}" for part in ("network", "loss") for key in key_of(part, training))
        lines.append(f"Warning: the data's standard deviation is {std / sigma_data:.2f} times sigma_data; "
                     + (f"give{keys}, or scale the data" if keys else "scale the data"))
    return lines


def key_of(part: str, training: dict) -> list[str]:
    """How the command line sets sigma_data of a part of the training half, [] where that takes none."""
    node, path = training[part], f"training.{part}"
    takes = "sigma_data" in inspect.signature(find_target(node["_target_"], path)).parameters
    return [f"{'' if 'sigma_data' in node else '+'}{path}.sigma_data"] if takes else []


@torch.no_grad()
def look(task: Task, dataset: Dataset, items: list[int], seed: int, device: torch.device) -> Glance:
    """What some items look like, and all their values as the network will see them."""
    lowest, highest, count, total, squares = inf, -inf, 0, 0.0, 0.0
    for i in items:
        batch = collate([dataset[i]])
        lowest, highest = min(lowest, float(batch.images.min())), max(highest, float(batch.images.max()))
        if task.seen is not None:
            generators = ImageGenerators([i], seed=mix_seed("spread", seed), device=device)
            x = task.seen(batch.to(device), generators)[0].double()
            count, total, squares = count + x.numel(), total + float(x.sum()), squares + float(x.square().sum())
    return Glance(lowest, highest, max(0.0, squares / count - (total / count) ** 2) ** 0.5 if count else None)


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
