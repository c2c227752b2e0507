"""What is measured: volumes, what they share, and a first stage's version of them."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Case(NamedTuple):
    """One volume: image [C, *S] in stored intensity, label [*S] integer or None; class_name None: it is of none.

    semantic: the map [*S] that networks may be told, the label map where there is none of its own, and of a generated
    volume the map that it was asked for by; attributes [A], as the layout names them, NaN where not known or not asked
    for. affine [4,4]: how it lay in its file, before it was cropped or padded; None: as the layout says. group: whose
    it is, those of one patient share it. held: first and past-last slice along the first axis that count where images
    are measured, None: all.
    """

    id: str
    image: np.ndarray
    label: np.ndarray | None
    class_name: str | None = None
    semantic: np.ndarray | None = None
    attributes: np.ndarray | None = None
    affine: np.ndarray | None = None
    group: str | None = None
    held: tuple[int, int] | None = None

    @property
    def inside(self) -> "Case":
        """The same of the slices that count."""
        if self.held is None:
            return self
        part = slice(*self.held)
        label, semantic = (None if each is None else each[part] for each in (self.label, self.semantic))
        return self._replace(image=self.image[:, part], label=label, semantic=semantic, held=None)


class DecodedCase(NamedTuple):
    """A volume before and after a first stage; where asked for its latents, posterior mean and std [z,*s], and codes.
    """

    real: Case
    decoded: Case
    mean: np.ndarray | None = None
    std: np.ndarray | None = None
    codes: np.ndarray | None = None

    @property
    def id(self) -> str:
        return self.real.id

    @property
    def inside(self) -> "DecodedCase":
        """Both volumes of the slices that count by the real one."""
        return self._replace(real=self.real.inside, decoded=self.decoded._replace(held=self.real.held).inside)


@dataclass(frozen=True)
class Layout:
    """What all volumes of a comparison share: channels, classes (index = label value), voxel size [mm], intensities.

    affine [4,4]: by which planes are named, that of the first volume where they differ; None: not known. class_names:
    of the classes that volumes are of, () where they are of none; attributes: name and unit of each, of samples by what
    was asked for.
    """

    channels: tuple[str, ...]
    label_classes: tuple[str, ...]
    spacing: tuple[float, ...]
    lo: float
    hi: float
    unit: str
    affine: tuple[tuple[float, ...], ...] | None = None
    class_names: tuple[str, ...] = ()
    attributes: tuple[tuple[str, str], ...] = ()

    @property
    def data_range(self) -> float:
        """Span of the stored intensities."""
        return self.hi - self.lo
