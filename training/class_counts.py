"""How often each class is a target in a data set, counted once by rank 0."""

from collections.abc import Callable, Sequence, Sized

import numpy as np
import torch

from edm3d.inference.batch import Batch, collate
from edm3d.networks.conditioning import stack
from edm3d.utils import distributed

MOST_MAPS = 200  # items whose voxels are counted, spread evenly over the data set

Target = Callable[[Batch], torch.Tensor]


def count_targets(dataset: Sized, target: Target, classes: int, of_voxels: bool) -> list[int]:
    """Targets of each class [classes]: of all images, or of the voxels of up to MOST_MAPS items.

    All ranks must call this together.
    """
    count = voxel_counts if of_voxels else image_counts
    return distributed.from_rank_0(lambda: count(dataset, target, classes).tolist())


def voxel_counts(dataset: Sized, target: Target, classes: int) -> np.ndarray:
    """Voxels of each class [classes] in items that are spread evenly over a data set."""
    total = np.zeros(classes, np.int64)
    for i in np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), MOST_MAPS)).round().astype(int)):
        total += counted(target(collate([dataset[int(i)]])), classes)
    return total


def image_counts(dataset: Sized, target: Target, classes: int) -> np.ndarray:
    """Images of each class [classes] in a data set; no image is read where it keeps conditions by themselves."""
    known = getattr(dataset, "conditions", None) or (lambda i: dataset[i].condition)
    total = np.zeros(classes, np.int64)
    for i in range(len(dataset)):
        total += counted(target(Batch(torch.empty(1, 0), None, stack([known(i)]))), classes)
    return total


def counted(target: torch.Tensor, classes: int) -> np.ndarray:
    """How often each class is in a target, -1 aside."""
    return torch.bincount(target[target >= 0].flatten(), minlength=classes).numpy()


def check_classes(names: Sequence[str], counts: Sequence[int], what: str, source: str, unit: str = "image"
                  ) -> list[str]:
    """A line on classes that nothing has, by counts of images, or of the voxels of some; ValueError where all are of
    one class, or none has any.
    """
    there = [f"{name} {count}" for name, count in zip(names, counts, strict=True) if count]
    if len(there) < 2:
        found = f"one class only: {there[0]}" if there else f"no {unit} with a class"
        wanted = f"{unit}s of {' and of '.join(names)}" if len(names) == 2 else f"{unit}s of two classes or more"
        raise ValueError(f"{what}: {source} has {found} of its training {unit}s; wanted {wanted}")
    gone = [name for name, count in zip(names, counts, strict=True) if not count]
    seen = "" if unit == "image" else f" of up to {MOST_MAPS} items"
    return [f"Warning: {what}: no training {unit}{seen} is {', '.join(gone)}"] if gone else []
