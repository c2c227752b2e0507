"""Label maps as channels of numbers that a network draws beside images: analog bits, or a channel for each class."""

from dataclasses import dataclass
from math import isfinite

import torch

from edm3d.utils.checks import check_choice, is_whole

KINDS = ("bits", "onehot")
ROWS = 2 ** 16  # voxels whose nearest class is found at a time


@dataclass(frozen=True)
class LabelCoding:
    """Label maps of the classes 0 .. classes-1 in channels of -scale and +scale, whose root mean square is scale.

    kind: bits, a channel for each binary digit of a class's number, the least first (Chen, Zhang and Hinton 2023), or
    onehot, a channel for each class. ValueError for other kinds, a scale of 0 or less, and but 2 to 256 classes: one
    class says nothing, and label maps are uint8.
    """

    kind: str
    classes: int
    scale: float = 0.5

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        if not is_whole(self.classes) or not 2 <= self.classes <= 256:
            raise ValueError(f"label maps of {self.classes} classes: wanted 2 to 256")
        if not (self.scale > 0 and isfinite(self.scale)):
            raise ValueError(f"scale={self.scale}: wanted a number above 0")

    @property
    def channels(self) -> int:
        """How many channels a label map becomes."""
        return (self.classes - 1).bit_length() if self.kind == "bits" else self.classes

    def encode(self, labels: torch.Tensor) -> torch.Tensor:
        """Channels [N,B,*S] float32 of label maps [N,*S] of whole numbers; ValueError for a class that there is not."""
        if not labels.is_meta:
            lowest, highest = (int(value) for value in labels.aminmax())
            if lowest < 0 or highest >= self.classes:
                odd = lowest if lowest < 0 else highest
                raise ValueError(f"a label map has the value {odd}, and there are {self.classes} classes")
        index = self.per_channel(labels.ndim, labels.device)
        numbers = labels.unsqueeze(1).int()
        is_on = (numbers >> index) & 1 if self.kind == "bits" else numbers == index
        return is_on.float() * (2 * self.scale) - self.scale

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """The label maps [N,*S] uint8 whose codes are nearest to channels [N,B,*S]: always a class that there is."""
        if self.kind == "onehot":
            return x.argmax(1).to(torch.uint8)
        bits = (x > 0).int() << self.per_channel(x.ndim - 1, x.device)
        numbers = bits.sum(1)
        unknown = numbers >= self.classes  # bits that are no class, as their number is no power of two
        if unknown.any():
            numbers[unknown] = self.nearest(x.movedim(1, -1)[unknown])
        return numbers.to(torch.uint8)

    def nearest(self, values: torch.Tensor) -> torch.Tensor:
        """The classes [M] whose codes are nearest to values [M,B]: as codes are of one length, by the inner product."""
        codes = self.encode(torch.arange(self.classes, device=values.device)[:, None])[..., 0]
        return torch.cat([(rows.float() @ codes.T).argmax(1) for rows in values.split(ROWS)])

    def join(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Images [N,C,*S] with the channels of their label maps [N,*S] behind their own."""
        return torch.cat([images, self.encode(labels).to(images.dtype)], dim=1)

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images [N,C,*S], and label maps [N,*S] uint8, of what `join` gives or a network draws."""
        return x[:, :-self.channels], self.decode(x[:, -self.channels:])

    def per_channel(self, axes: int, device: torch.device) -> torch.Tensor:
        """The numbers of the channels [B,*1], beside label maps of so many axes with that of the batch."""
        return torch.arange(self.channels, dtype=torch.int32, device=device).reshape(-1, *[1] * (axes - 1))
