"""What the small tables of items may hold, those of volumes, latents and samples: checked when a file is opened."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from edm3d.utils.plain import shown

LAST_ROW = (0, 0, 0, 1)


def affine_problem(affine: np.ndarray, flat: float = 1e-9) -> str:
    """What keeps a matrix from taking voxel indices to mm and back, "" where it does.

    flat: volume of a voxel by that of the box of its sides, from which on down the axes are no three.
    """
    matrix = np.asarray(affine, np.float64)
    if matrix.shape != (4, 4):
        return f"is {matrix.shape}, wanted (4, 4)"
    if not np.isfinite(matrix).all():
        return "has values that are not finite"
    if not np.allclose(matrix[3], LAST_ROW, rtol=0, atol=1e-6):
        return f"has the last row {matrix[3].tolist()}, wanted {list(LAST_ROW)}"
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(matrix[:3, :3], axis=0)
        volume = abs(np.linalg.det(matrix[:3, :3] / lengths)) if lengths.all() and np.isfinite(lengths).all() else 0
    return "" if volume > flat else "cannot be inverted: axes have no length, or lie in one plane"


def box_problem(box: np.ndarray, spatial_shape: Sequence[int]) -> str:
    """What keeps [2,3] from being first and past-last index of a region of a volume [*S] (() for one not known)."""
    first, last = box
    if (first < 0).any() or (first > last).any():  # one that a crop left nothing of is empty
        return f"runs from {first.tolist()} to {last.tolist()}, wanted 0 or more and rising"
    limit = (*spatial_shape, 1)[:3] if len(spatial_shape) > 1 else ()
    return f"ends at {last.tolist()}, beyond the volume of {list(limit)}" if (last[:len(limit)] > limit).any() else ""


def check_ids(ids: Sequence[str], where: str) -> None:
    """ValueError unless every id is there, and there once."""
    if "" in ids:
        raise ValueError(f"{where}: item {list(ids).index('')} has an empty id")
    if len(set(ids)) < len(ids):
        twice, count = Counter(ids).most_common(1)[0]
        raise ValueError(f"{where}: id {shown(twice)} is there {count} times, wanted once")


def check_names(named: Mapping[str, Sequence[str] | None]) -> None:
    """ValueError naming the first list that has a name twice: what is asked for by name must be one."""
    for key, names in named.items():
        if len(set(names or ())) < len(names or ()):
            twice, count = Counter(names).most_common(1)[0]
            raise ValueError(f"{key}: {shown(twice)} is there {count} times, wanted names that differ")


def check_tables(tables: Mapping[str, np.ndarray], ids: Sequence[str], where: str, *, classes: Sequence[str],
                 spatial_shape: Sequence[int] = ()) -> None:
    """ValueError naming table and item for values that cannot be: of affines, boxes, classes, attributes and ranges.

    classes: names of all there are; spatial_shape [*S]: of the volumes, () where it is not known.
    """
    problems: dict[str, Callable[[np.ndarray], str]] = {
        "affines": affine_problem, "boxes": partial(box_problem, spatial_shape=spatial_shape),
        "classes": partial(class_problem, classes=classes), "intensity_ranges": _range_problem,
        "attributes": lambda row: f"are {row.tolist()}, wanted finite numbers, or NaN" if np.isinf(row).any() else ""}
    for name, problem in problems.items():
        for id_, row in zip(ids, tables.get(name, ())):
            if found := problem(row):
                raise ValueError(f"{where}/{name}: that of {shown(id_)} {found}")


def class_problem(index: int, classes: Sequence[str], least: int = -1) -> str:
    """What keeps a number from being the index of a class, or -1 for none; classes without names are not counted."""
    if not classes:
        return "" if index >= least else f"is {index}, wanted {least} or more"
    return "" if least <= index < len(classes) else f"is {index}, and there are {len(classes)} classes"


def _range_problem(row: np.ndarray) -> str:
    """row [C,2]: lowest and highest."""
    is_one = np.isfinite(row).all() and (row[:, 0] <= row[:, 1]).all()
    return "" if is_one else f"is {row.tolist()}, wanted lowest and highest of each channel, finite"
