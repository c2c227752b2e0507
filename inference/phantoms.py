"""Make a volumes file of analytic phantoms of a kind, with exact labels and attributes."""

from dataclasses import asdict, fields
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edm3d.formats.cohort import assign_splits, parse_fractions
from edm3d.formats.intensity import Intensity
from edm3d.formats.volumes import Item, VolumesMeta, VolumesWriter, full_box, is_made_by, is_volumes
from edm3d.physics.phantom_kinds import PHANTOM_KINDS, PhantomSource
from edm3d.utils import locks
from edm3d.utils.checks import check_choice, listed
from edm3d.utils.files import check_dest, check_free_disk, check_replaced
from edm3d.utils.log import progress

HIDDEN = 3  # purpose of the random stream that hides attributes, beside those of the phantoms


class PhantomOptions(NamedTuple):
    """Which phantoms to draw.

    seed: of the phantoms, the split and what is hidden; split: fractions of train, val and test; missing: share of the
    values of attributes that are hidden (NaN), those aside that a kind never hides.
    """

    num: int
    seed: int
    split: tuple[float, ...]
    kind: str
    source: PhantomSource
    missing: float = 0.0

    def provenance(self) -> dict[str, Any]:
        """What a file says of how it was made: echo phantoms say nothing of their kind."""
        fields_ = asdict(self.source)
        said = {"kind": "phantom", "num": self.num, "size": fields_.pop("size"), "seed": self.seed, **fields_,
                "split": list(self.split)}
        said |= {} if self.kind == "echo" else {"phantom": self.kind}
        return said | ({"missing": self.missing} if self.missing else {})


def source_of(kind: str, size: tuple[int, ...] | None, **given: Any) -> PhantomSource:
    """How phantoms of a kind are drawn; size: one number or one per axis, None, as for other options, where not given.

    ValueError for options that this kind does not have.
    """
    check_choice("--kind", kind, PHANTOM_KINDS)
    asked = {name: value for name, value in given.items() if value}
    if size:
        asked["size"] = size[0] if len(size) == 1 and kind == "echo" else size
    known = [each.name for each in fields(PHANTOM_KINDS[kind])]
    if strange := [name for name in asked if name not in known]:
        raise ValueError(f"--{strange[0].replace('_', '-')}: {kind} phantoms have no such option; they have "
                         f"{listed(known)}")
    return PHANTOM_KINDS[kind](**asked)


def draw_phantoms(dest: Path, options: PhantomOptions, overwrite: bool = False) -> bool:
    """Write a volumes file; False where the same phantoms are there already and nothing was done.

    overwrite: draw anew, over whatever is there.
    """
    fractions = parse_fractions(options.split)
    if not 0 <= options.missing < 1:
        raise ValueError(f"--missing {options.missing:g}: wanted a share from 0 to less than 1")
    options.source.draw(0, options.seed)  # refuses bad numbers before work
    provenance = options.provenance()
    check_dest(dest, ".h5", {})
    with locks.output(dest):
        if not overwrite and is_made_by(dest, provenance):
            return False
        check_replaced(dest, overwrite, is_volumes)
        write_phantoms(dest, options, fractions, provenance)
    return True


def write_phantoms(dest: Path, options: PhantomOptions, fractions: dict[str, float], provenance: dict[str, Any]
                   ) -> None:
    """Draw all phantoms into a file."""
    num, source = options.num, options.source
    needed = num * 5 * prod(source.shape)
    check_free_disk(dest.parent, needed)
    split_of = assign_splits([_patient(source.group(i)) for i in range(num)], fractions, options.seed)
    with VolumesWriter(dest, _meta(source), provenance, needed_bytes=needed) as writer:
        for index in progress(range(num), desc="phantom", unit="volume"):
            item = _item(index, options)
            writer.add(split_of[item.group], item)


def _patient(group: int) -> str:
    return f"patient-{group:06d}"


def _meta(source: PhantomSource) -> VolumesMeta:
    names, units = zip(*source.attributes)
    return VolumesMeta(
        len(source.shape), source.channels, ("target",), source.label_classes, names, units, source.class_names,
        Intensity(0.0, 1.0, True, "a.u."),
    )  # fmt: skip


def _item(index: int, options: PhantomOptions) -> Item:
    source = options.source
    drawn = source.draw(index, options.seed)
    box = full_box(drawn.image.shape)
    if drawn.held:
        box[:, 0] = drawn.held
    return Item(
        image=drawn.image[None],
        label=drawn.label,
        attributes=_with_gaps(drawn.attributes, index, options),
        class_index=source.class_names.index(drawn.phase) if source.class_names else None,
        id=f"phantom-{index:06d}",
        group=_patient(drawn.group),
        affine=source.affine(),
        box=box,
    )


def _with_gaps(attributes: np.ndarray, index: int, options: PhantomOptions) -> np.ndarray:
    """Attributes [A] float32, a share of them hidden."""
    hidden = np.random.default_rng([options.seed, index, HIDDEN]).uniform(size=len(attributes)) < options.missing
    hidden &= [name not in options.source.always for name, _ in options.source.attributes]
    return np.where(hidden, np.nan, attributes).astype(np.float32)
