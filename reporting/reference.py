"""Volumes by number, and the real ones that generated ones are held against."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np

from edm3d.formats.geometry import fit_centre
from edm3d.formats.volumes import HELD_OUT, VolumesFile
from edm3d.physics.phantom_kinds import PHANTOM_KINDS, PhantomSource
from edm3d.physics.phantoms import Phantom
from edm3d.reporting.cases import Case
from edm3d.utils.plain import from_plain, shown, taken

FRESH_PHANTOMS = 512
FEWEST_HELD_OUT = 32


class Cases(NamedTuple):
    """Volumes by number, and a sentence that says where they come from; source: hash of the file's content, if any."""

    description: str
    length: int
    case: Callable[[int], Case]
    source: str = ""

    def told(self, names: Sequence[str], wanted: Sequence[str]) -> "Cases":
        """The same volumes with their attributes, of these names, in the order of those that are wanted."""
        def case(index: int) -> Case:
            whole = self.case(index)
            return whole._replace(attributes=in_order(whole.attributes, names, wanted))

        return Cases(self.description, self.length, case, self.source)

    def within(self, held: tuple[int, int] | None) -> "Cases":
        """The same volumes, of which these slices alone count where images are measured."""
        return self if held is None else Cases(self.description, self.length,
                                               lambda index: self.case(index)._replace(held=held), self.source)

    def __iter__(self) -> Iterator[Case]:
        return (self.case(i) for i in range(self.length))

    def __len__(self) -> int:
        return self.length

    def fitted(self, size: Sequence[int], lo: float) -> "Cases":
        """The same volumes padded with intensity lo, or cropped, centrally to a size [*S], as networks saw them."""
        if self.case(0).image.shape[1:] == tuple(size):
            return self

        def case(index: int) -> Case:
            whole = self.case(index)
            image = fit_centre(whole.image, np.eye(4), size, np.full(len(whole.image), lo))[0]
            label, semantic = (None if each is None else fit_centre(each[None], np.eye(4), size, np.zeros(1))[0][0]
                               for each in (whole.label, whole.semantic))
            return whole._replace(image=image, label=label, semantic=semantic)

        return Cases(f"{self.description}; cropped or padded centrally to {' x '.join(map(str, size))}",
                         self.length, case, self.source)


def in_order(attributes: np.ndarray | None, names: Sequence[str], wanted: Sequence[str]) -> np.ndarray | None:
    """Attributes [A] of these names as those that are wanted, NaN where there is none of the name."""
    if attributes is None or not wanted:
        return None
    known = dict(zip(names, attributes, strict=True))
    return np.array([known.get(name, np.nan) for name in wanted], dtype=np.float64)


class Origin(NamedTuple):
    """How the phantoms of a file were made, as its provenance says."""

    source: PhantomSource
    seed: int

    @classmethod
    def read(cls, provenance: Mapping[str, Any], shape: Sequence[int], source: object) -> "Origin":
        """Of volumes [*S] that are there; ValueError for what cannot have made them, before any is made again."""
        kind = provenance.get("phantom", "echo")
        if not isinstance(kind, str) or kind not in PHANTOM_KINDS:
            raise ValueError(f"{source}: provenance.phantom is {shown(kind)}, wanted {' or '.join(PHANTOM_KINDS)}")
        names = [each.name for each in fields(PHANTOM_KINDS[kind])]
        made = from_plain(PHANTOM_KINDS[kind], {key: provenance[key] for key in names if key in provenance}, source,
                          "provenance")
        seed = taken(provenance.get("seed"), int, source, "provenance.seed")
        if tuple(shape) != made.shape:
            raise ValueError(f"{source}: its volumes are {list(shape)}, its phantoms were made with {made.made_with}; "
                             "they were padded, cropped or are others")
        return cls(made, seed)

    def phantom(self, index: int, seed: int) -> Phantom:
        """One of another seed, or of the same."""
        return self.source.draw(index, seed)


def choose_reference(file: VolumesFile, split: str, channels: list[int]) -> Cases:
    """Fresh phantoms if the file holds phantoms, its held-out volumes otherwise.

    split: 'auto', 'all', or the name of a split of the file, which is then taken whatever the file holds;
    channels: numbers of the image channels to keep.
    """
    if split == "auto" and file.provenance.get("kind") == "phantom":
        shape = file_volumes(file, "all", channels).case(0).image.shape[1:]
        return fresh_phantoms(Origin.read(file.provenance, shape, file.path))
    if split == "auto":
        split = "test" if "test" in file.splits and file.length("test") >= FEWEST_HELD_OUT else "all"
    return file_volumes(file, split, channels)


def fresh_phantoms(origin: Origin) -> Cases:
    """Phantoms of the next seed: the true distribution, of which no training run has seen an item."""
    seed = origin.seed + 1

    def case(index: int) -> Case:
        phantom = origin.phantom(index, seed)
        return Case(f"phantom-seed{seed}-{index:06d}", phantom.image[None], phantom.label,
                    phantom.phase if origin.source.class_names else None, phantom.label,
                    phantom.attributes.astype(np.float32), group=f"patient-{phantom.group:06d}")

    return Cases(f"{FRESH_PHANTOMS} fresh phantoms of seed {seed}; the file was made with seed {seed - 1}",
                     FRESH_PHANTOMS, case)


def file_volumes(file: VolumesFile, split: str, channels: list[int], key: str = "--split") -> Cases:
    """Volumes of one split of a file, or of all; key: by which the user names the split."""
    rows = [(name, i) for name in file.splits if split in ("all", name) for i in range(file.length(name))]
    if not rows:
        raise ValueError(f"{file.path}: no volume in split {split!r}; it has {', '.join(file.splits)} (change {key})")

    def case(index: int) -> Case:
        item = file.read(*rows[index])
        name = None if item.class_index is None else file.meta.class_names[item.class_index]
        return Case(item.id, item.image[channels], item.label, name, item.semantic, item.attributes,
                    item.affine, item.group)

    counts = ", ".join(f"{name} {file.length(name)}" for name in file.splits if split in ("all", name))
    warning = "; this includes volumes the networks were trained on" if "train" in counts else ""
    return Cases(f"split {split!r} of the file ({counts}){warning}", len(rows), case,
                 file.content_hash)


def held_out_split(file: VolumesFile) -> str:
    """The split that networks have seen least of: test, else val, else the last."""
    return next((name for name in HELD_OUT if name in file.splits), file.splits[-1])


def speckle_free(case: Case, provenance: Mapping[str, Any]) -> np.ndarray:
    """The image [C, *S] of a file's phantom without speckle; ValueError if the phantom cannot be made again."""
    number = re.fullmatch(r"phantom-(\d+)", case.id)
    if number is None:
        raise ValueError(f"{case.id}: not the id of a phantom (phantom-000012)")
    origin = Origin.read(provenance, case.image.shape[1:], case.id)
    phantom = origin.phantom(int(number[1]), origin.seed)
    if not np.allclose(phantom.image[None], case.image, atol=1e-5):
        raise ValueError(f"{case.id}: the phantom made again differs from the one in the file")
    return phantom.clean[None]

