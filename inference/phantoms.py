"""Make a volumes file of analytic echo phantoms, with exact labels and attributes."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edm3d.formats.cohort import assign_splits, parse_fractions
from edm3d.formats.intensity import Intensity
from edm3d.formats.volumes import Item, VolumesMeta, VolumesWriter, full_box, is_made_by, is_volumes
from edm3d.physics.phantoms import ATTRIBUTES, LABEL_CLASSES, PHASES, echo_phantom, phantom_affine
from edm3d.utils import locks
from edm3d.utils.files import check_dest, check_free_disk, check_replaced
from edm3d.utils.log import progress


class PhantomOptions(NamedTuple):
    """Which phantoms to draw.

    size: voxels per axis; seed: of the phantoms and the split; pairs: both phases of each patient, as classes; split:
    fractions of train, val and test.
    """

    num: int
    size: int
    seed: int
    spatial_dims: int
    pairs: bool
    split: tuple[float, ...]


def draw_phantoms(dest: Path, options: PhantomOptions, overwrite: bool = False) -> bool:
    """Write a volumes file; False where the same phantoms are there already and nothing was done.

    overwrite: draw anew, over whatever is there.
    """
    num, size, seed, dims, pairs, split = options
    fractions = parse_fractions(split)
    echo_phantom(0, seed=seed, size=size, spatial_dims=dims, pairs=pairs)  # refuses bad numbers before work
    provenance = {"kind": "phantom", **options._asdict(), "split": list(split)}
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
    num, size, seed, dims, pairs, _ = options
    needed = num * 5 * size**dims
    check_free_disk(dest.parent, needed)
    split_of = assign_splits([_patient(i // 2 if pairs else i) for i in range(num)], fractions, seed)
    with VolumesWriter(dest, _meta(options), provenance, needed_bytes=needed) as writer:
        for index in progress(range(num), desc="phantom", unit="volume"):
            item = _item(index, options)
            writer.add(split_of[item.group], item)


def _patient(group: int) -> str:
    return f"patient-{group:06d}"


def _meta(options: PhantomOptions) -> VolumesMeta:
    names, units = zip(*ATTRIBUTES)
    return VolumesMeta(
        options.spatial_dims, ("echo",), ("target",), LABEL_CLASSES, names, units, PHASES if options.pairs else (),
        Intensity(0.0, 1.0, True, "a.u."),
    )  # fmt: skip


def _item(index: int, options: PhantomOptions) -> Item:
    size, dims, pairs = options.size, options.spatial_dims, options.pairs
    drawn = echo_phantom(index, seed=options.seed, size=size, spatial_dims=dims, pairs=pairs)
    return Item(
        image=drawn.image[None],
        label=drawn.label,
        attributes=drawn.attributes.astype(np.float32),
        class_index=PHASES.index(drawn.phase) if pairs else None,
        id=f"phantom-{index:06d}",
        group=_patient(drawn.group),
        affine=phantom_affine(size, dims),
        box=full_box(drawn.image.shape),
    )
