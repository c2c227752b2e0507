"""What a network can be told besides the noisy image, and how each part is left out."""

from typing import NamedTuple

import torch


class Condition(NamedTuple):
    """Conditions of a batch; parts that are absent are None.

    class_labels [N,K] one-hot, attributes [N,A] float, semantic [N,*S] integer class map, images [N,Cc,*S].
    """

    class_labels: torch.Tensor | None = None
    attributes: torch.Tensor | None = None
    semantic: torch.Tensor | None = None
    images: torch.Tensor | None = None

    def drop(self, part: str, mask: torch.Tensor, num_semantic: int | None = None) -> "Condition":
        """Put a part's null where mask [N] is true: zero label, NaN attributes, map class num_semantic, zero image."""
        value = getattr(self, part)
        if value is None:
            raise ValueError(f"condition has no part {part!r} to drop")
        if part == "semantic" and num_semantic is None:
            raise ValueError("dropping the semantic map needs num_semantic, the index of its null class")
        null = {"attributes": float("nan"), "semantic": num_semantic}.get(part, 0)
        mask = mask.reshape(-1, *[1] * (value.ndim - 1))
        return self._replace(**{part: torch.where(mask, torch.as_tensor(null, dtype=value.dtype), value)})

    def parts(self) -> list[str]:
        """Names of the parts that are there."""
        return [name for name, value in zip(self._fields, self, strict=True) if value is not None]
