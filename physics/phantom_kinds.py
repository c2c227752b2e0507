"""Kinds of phantoms: what those of a kind have in common, and how one of them is drawn.

A kind is a class of which an object is one way to draw them; its fields are what a file of phantoms says of how they
were made. A new kind is a class here and an entry of PHANTOM_KINDS.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from edm3d.physics import cardiac_anatomy, cardiac_phantoms, phantoms
from edm3d.physics.phantoms import PHASES, Phantom
from edm3d.utils.checks import check_choice, is_whole


class PhantomSource(Protocol):
    """An endless set of phantoms for every seed: item `index` is one volume, whatever was drawn before."""

    channels: tuple[str, ...]
    label_classes: tuple[str, ...]
    attributes: tuple[tuple[str, str], ...]  # name and unit of each
    always: tuple[str, ...]  # attributes that are never hidden

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis."""

    @property
    def made_with(self) -> str:
        """What the shape follows from, for messages."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes of volumes, () for none."""

    def group(self, index: int) -> int:
        """Number of the patient of an item."""

    def draw(self, index: int, seed: int) -> Phantom:
        """Item `index` of the set that `seed` names."""

    def affine(self) -> np.ndarray:
        """Voxel index to mm [4, 4]."""


@dataclass(frozen=True)
class EchoPhantoms:
    """3D echo of the left heart in a cube of 128 mm, or its central slice."""

    size: int = 32
    spatial_dims: int = 3
    pairs: bool = False

    channels: ClassVar = ("echo",)
    label_classes: ClassVar = phantoms.LABEL_CLASSES
    attributes: ClassVar = phantoms.ATTRIBUTES
    always: ClassVar = ()

    def __post_init__(self) -> None:
        if not is_whole(self.size):
            raise ValueError(f"size={self.size}: wanted one number, the voxels along each axis")
        check_choice("spatial_dims", self.spatial_dims, (2, 3))

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size,) * self.spatial_dims

    @property
    def made_with(self) -> str:
        return f"size={self.size} and spatial_dims={self.spatial_dims}"

    @property
    def class_names(self) -> tuple[str, ...]:
        return PHASES if self.pairs else ()

    def group(self, index: int) -> int:
        return index // 2 if self.pairs else index

    def draw(self, index: int, seed: int) -> Phantom:
        return phantoms.echo_phantom(index, seed=seed, size=self.size, spatial_dims=self.spatial_dims, pairs=self.pairs)

    def affine(self) -> np.ndarray:
        return phantoms.phantom_affine(self.size, self.spatial_dims)


@dataclass(frozen=True)
class CardiacPhantoms:
    """Short-axis stacks of cine MR at ED and ES, [slices, rows, columns], in a style of STYLES."""

    size: tuple[int, int, int] = cardiac_anatomy.SIZE
    style: str = "public"

    channels: ClassVar = ("mr",)
    label_classes: ClassVar = cardiac_anatomy.LABEL_CLASSES
    attributes: ClassVar = cardiac_anatomy.ATTRIBUTES
    always: ClassVar = ("ESED",)
    class_names: ClassVar = PHASES

    def __post_init__(self) -> None:
        cardiac_anatomy.check_size(self.size)
        check_choice("style", self.style, cardiac_phantoms.STYLES)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.size

    @property
    def made_with(self) -> str:
        return f"size={' '.join(map(str, self.size))}"

    def group(self, index: int) -> int:
        return index // 2

    def draw(self, index: int, seed: int) -> Phantom:
        return cardiac_phantoms.cardiac_phantom(index, seed=seed, size=self.size, style=self.style)

    def affine(self) -> np.ndarray:
        return cardiac_phantoms.cardiac_affine(self.size)


PHANTOM_KINDS: dict[str, type[EchoPhantoms] | type[CardiacPhantoms]] = {
    "echo": EchoPhantoms,
    "cardiac": CardiacPhantoms,
}
