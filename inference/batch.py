"""What datasets yield: samples, and batches of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from edm3d.networks.conditioning import NOTHING, Condition
from edm3d.networks.conditioning import stack as stack_conditions


class Sample(NamedTuple):
    """One item of a dataset: image [C,*S] float32, label [*S] uint8 where there is one, and what is known of it."""

    image: np.ndarray
    label: np.ndarray | None = None
    condition: Condition = NOTHING


class Batch(NamedTuple):
    """images [N,C,*S], labels [N,*S] or None, conditions."""

    images: torch.Tensor
    labels: torch.Tensor | None
    condition: Condition

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        move = lambda t: None if t is None else t.to(device, non_blocking=True)  # noqa: E731
        return Batch(move(self.images), move(self.labels), self.condition.to(device))


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples; parts that are None stay None."""
    def stack(parts: list[np.ndarray | None]) -> torch.Tensor | None:
        return None if parts[0] is None else torch.from_numpy(np.stack(parts))

    images, labels, conditions = map(list, zip(*samples, strict=True))
    return Batch(stack(images), stack(labels), stack_conditions(conditions))
