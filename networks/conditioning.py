"""What a network can be told besides the noisy image, which of it a network takes, and how each part is left out."""

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from edm3d.networks.parts import PARTS
from edm3d.networks.parts.base import Part


def check_parts(names: Mapping[str, Any], whose: str) -> None:
    """ValueError for a name that is no part."""
    for name in names:
        if name not in PARTS:
            raise ValueError(f"{whose}: {name!r} is no part of a condition, wanted some of {', '.join(PARTS)}")


class Condition(Mapping):
    """Conditions of a batch by the names of networks.parts, as attributes, None where absent; a mapping of the others.

    Tensors, with a row for each image of a batch; of a single item, as data sets yield it, the row alone, as an array.
    It is not changed, but replaced. ValueError for a name that is no part.
    """

    def __init__(self, parts: Mapping[str, Any] | None = None, /, **named: Any):
        if not isinstance(parts, Mapping | None):
            raise ValueError(f"Condition: got a {type(parts).__name__}, wanted parts by name, as in "
                             "Condition(class_labels=...)")
        named = {**(parts or {}), **named}
        check_parts(named, "Condition")
        for name in PARTS:
            object.__setattr__(self, name, named.get(name))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"Condition.{name}: a condition is not changed; make another by replace")

    def __getitem__(self, name: str) -> Any:
        if name not in PARTS or getattr(self, name) is None:
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter([name for name in PARTS if getattr(self, name) is not None])

    def __len__(self) -> int:
        return sum(getattr(self, name) is not None for name in PARTS)

    def __repr__(self) -> str:
        return f"Condition({', '.join(f'{name}={value!r}' for name, value in self.items())})"

    def replace(self, **parts: Any) -> "Condition":
        """The same with other parts in place of some, None to leave one away."""
        return Condition(self, **parts)

    def only(self, names: Container[str]) -> "Condition":
        """The parts of these names that are there."""
        return Condition({name: value for name, value in self.items() if name in names})

    def drop(self, name: str, mask: torch.Tensor, width: int | None = None) -> "Condition":
        """Put a part's null where mask [N], or [N,A] for single values of [N,A], is true; that of a semantic map is its
        width.
        """
        value = self._there(name)
        mask = mask.reshape(*mask.shape, *[1] * (value.ndim - mask.ndim))
        return self.replace(**{name: value.masked_fill(mask, PARTS[name].null(width))})

    def null(self, name: str, width: int | None = None) -> "Condition":
        """Put a part's null for all images."""
        value = self._there(name)
        return self.replace(**{name: torch.full_like(value, PARTS[name].null(width))})

    def to(self, device: torch.device) -> "Condition":
        """The same on a device."""
        return Condition({name: value.to(device, non_blocking=True) for name, value in self.items()})

    def _there(self, name: str) -> torch.Tensor:
        if name not in self:
            raise ValueError(f"condition has no part {name!r} to drop, it has {', '.join(self) or 'none'}")
        return self[name]


NOTHING = Condition()


def stack(items: Sequence[Condition]) -> Condition:
    """The condition of a batch from those of its items; ValueError unless they have the same parts."""
    for item in items:
        if item.keys() != items[0].keys():
            raise ValueError(f"items of one batch have conditions {', '.join(items[0]) or 'none'} and "
                             f"{', '.join(item) or 'none'}: wanted the same of all, a null where a part is missing")
    return Condition({name: torch.from_numpy(np.stack([item[name] for item in items])) for name in items[0]})


def blank(takes: Mapping[str, Part], size: Sequence[int], images: int = 1) -> Condition:
    """Zeros for every part that a network takes, of so many images of volumes of a size [*S]: for trials of shapes."""
    return Condition({name: torch.zeros(images, *PARTS[name].shape(part.width, size),
                                        dtype=getattr(torch, np.dtype(PARTS[name].dtype).name))
                      for name, part in takes.items()})


def takes_of(net: object) -> dict[str, Part]:
    """What a network or denoiser takes of a condition: its `takes`, and nothing where it has none."""
    takes = getattr(net, "takes", {})
    check_parts(takes, f"{type(net).__name__}.takes")
    return takes


def with_dropout(takes: Mapping[str, Part], **shares: float) -> dict[str, Part]:
    """What a network takes, with the share of images that it is trained without a part for, by part; else its own.

    ValueError for shares that are none, or of what it does not take.
    """
    shares = {name: part.dropout for name, part in takes.items()} | shares
    for name, share in shares.items():
        kind = PARTS[name]
        if not 0 <= share < 1:
            raise ValueError(f"{kind.dropout_key}={share}: wanted a probability, 0..1 without 1: a network that "
                             f"never sees a {kind.one} learns none")
        if share and name not in takes:
            raise ValueError(f"{kind.dropout_key}={share}: there is no {kind.one} to drop, {kind.width_key} of the "
                             "model is 0")
    return {name: part._replace(dropout=shares[name]) for name, part in takes.items()}
