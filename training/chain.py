"""Augmentations one after another, such as moves of the whole image and then crops."""

from collections.abc import Callable, Iterator, Mapping

import torch

from edm3d.inference.batch import Batch
from edm3d.samplers.noise import ImageGenerators
from edm3d.training.patches import KEY, PatchAugment


class AugmentChain:
    """Augmentations by name, in their order, each on what the one before gives; null leaves one out.

    The network is told by the labels of all, one after another. ValueError for none, and for two of one class, which
    would draw the same random numbers.
    """

    def __init__(self, steps: Mapping[str, Callable | None]):
        self.steps = {name: step for name, step in steps.items() if step is not None}
        if not self.steps or not all(map(callable, self.steps.values())):
            raise ValueError(f"steps={list(steps)}: wanted augmentations by name, each with its _target_")
        kinds = [type(step).__name__ for step in self.steps.values()]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"steps={list(self.steps)}: are of {', '.join(kinds)}; wanted one of each, since two of "
                             "one class draw the same numbers")

    @property
    def label_dim(self) -> int:
        """Width of all labels together: the network's augment_dim."""
        return sum(step.label_dim for step in self.steps.values())

    @torch.no_grad()
    def __call__(self, batch: Batch, generators: ImageGenerators) -> tuple[Batch, torch.Tensor]:
        """The batch after all of them, and their labels [N,label_dim]."""
        told = []
        for step in self.steps.values():
            batch, labels = step(batch, generators)
            told.append(labels)
        return batch, torch.cat(told, dim=1)


def parts_of(augment: Callable | None, key: str = KEY) -> Iterator[tuple[str, Callable]]:
    """What an augmentation consists of, each part with its key."""
    if isinstance(augment, AugmentChain):
        for name, step in augment.steps.items():
            yield from parts_of(step, f"{key}.steps.{name}")
    elif augment is not None:
        yield key, augment


def patches_of(augment: Callable | None) -> tuple[str, PatchAugment] | None:
    """What of an augmentation cuts patches, with its key; None where nothing does."""
    found = (each for each in parts_of(augment) if isinstance(each[1], PatchAugment) and each[1].size is not None)
    return next(found, None)
