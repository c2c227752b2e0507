"""Whether a data file, or one of a run folder, is well (check): what was found in it, and what is wrong."""

import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edm3d.formats import h5
from edm3d.formats.asked_words import said_of_samples
from edm3d.formats.describe import (
    HDF5,
    YAML,
    attribute_lines,
    contract,
    h5_tree,
    is_label_map,
    join,
    padding_of,
    picture,
    role_of,
    shape_of,
    tree,
    volume_line,
)
from edm3d.formats.index_data import index_line
from edm3d.formats.latents import LatentsFile
from edm3d.formats.nifti import PICTURE, npz_names, read_volume, spacing_of, suffix_of
from edm3d.formats.npz import HASH, is_odd
from edm3d.formats.samples import SamplesFile
from edm3d.formats.volumes import Item, VolumesFile, VolumesMeta, value_problems
from edm3d.utils.config import read_yaml
from edm3d.utils.config_hash import config_hash
from edm3d.utils.files import read_npz
from edm3d.utils.log import progress, read_status
from edm3d.utils.plain import read_json, shown
from edm3d.utils.stats import odd_ticks

# .npz of arrays that are neither volumes nor samples: what they are, by arrays that they have
PLAIN = {"activity phantoms": {"phantoms"}, "enhanced scans": {"mean", "slice_ids", "draws", "unit"},
         "the matrix of a projector": {"data", "indices", "indptr", "geometry"}}
PART = re.compile(r"\d{10}\.npz")  # of an unfinished encode, generate or decode


class Report(NamedTuple):
    """Lines about what was found, and one line for each thing that is wrong."""

    lines: list[str]
    problems: list[str]


Checker = Callable[[Path], Report]


def checker_of(path: Path) -> Checker | None:
    """What checks a file of a kind, by its name; None for kinds that are none of ours."""
    if path.name.startswith("."):
        return None
    if path.suffix in HDF5:
        return check_h5
    if PART.fullmatch(path.name):
        return check_part
    if suffix_of(path):
        return check_png if suffix_of(path) == PICTURE else check_volume
    return {"status.json": check_status, "stats.jsonl": check_stats}.get(path.name) or {
        **dict.fromkeys(YAML, check_yaml), ".json": check_json}.get(path.suffix)


# ---- data ----


def check_volume(path: Path) -> Report:
    """A NIfTI, npy or npz file of a volume, or an npz file of samples."""
    names = set(npz_names(path)) if path.suffix == ".npz" else set()
    if what := next((what for what, arrays in PLAIN.items() if arrays <= names), None):
        return check_arrays(path, what)
    if {"seeds", HASH} & names:
        return check_samples_npz(path)
    if line := index_line(path):
        return Report([line], [])
    volume = read_volume(path, role=role_of(path))
    return Report([volume_line(path, volume)], _volume_problems(path, volume.data))


def check_arrays(path: Path, what: str) -> Report:
    """Arrays that are no volume; numbers among them must be finite."""
    arrays = read_npz(path)
    odd = [f"{path}: {name} has values that are not finite" for name, array in arrays.items()
           if array.dtype.kind == "f" and not np.isfinite(array).all()]
    return Report([f"{path}: {what}", *list(tree(path.name, arrays, 0))[1:]], odd)


def check_samples_npz(path: Path) -> Report:
    """Samples, held against their content hash."""
    problems = _problems(path, "samples")
    lines = [] if problems else [*list(tree(path.name, read_npz(path), 0))[1:], *said_of_samples(path)]
    return Report([f"{path}: samples, content hash agrees", *lines] if lines else [], problems)


def check_part(path: Path) -> Report:
    """A finished item of an unfinished command."""
    arrays = read_npz(path)
    odd = [f"{path}: {name} has values that are not finite" for name, array in arrays.items() if is_odd(name, array)]
    return Report([f"{path}: a finished item, {len(arrays)} arrays"], odd)


def check_h5(path: Path) -> Report:
    """Volumes, latents or samples: hashes of all data sets, and what they say of themselves."""
    problems = h5.verify(path)
    if problems:
        return Report([], problems)
    with h5.open_h5(path) as file, h5.damage_named(path):
        kind = h5.format_of(file)
        lines = [f"{path}: {kind}, hashes agree", *list(h5_tree(path.name, file, 0))[1:]]
    if kind != "volumes":
        problems = _problems(path, kind)
        return Report([*lines, *([] if problems or kind != "samples" else said_of_samples(path))], problems)
    volumes = VolumesFile(path)
    lines, problems = [f"{path}: volumes, hashes agree; {contract(volumes.meta)}"], _shared_groups(volumes)
    for split in volumes.splits:
        line, bad = _check_split(volumes, split)
        lines.append(line)
        problems += bad
    return Report([*lines, *padding_of(volumes), *attribute_lines(volumes)], problems)


def _problems(path: Path, kind: str) -> list[str]:
    """What is wrong with latents or samples, a line for each part of them that is."""
    found: list[str] = []

    def tried(read: Callable, *arguments: Any) -> Any:
        try:
            return read(*arguments)
        except ValueError as error:
            found.append(str(error))

    if kind == "latents" and (file := tried(LatentsFile, path)):
        for split in file.splits:
            tried(file.read, split)
        tried(file.first_stage)
    elif kind == "samples" and (samples := tried(SamplesFile, path)):
        for name, index in product(samples.names, range(len(samples))):
            tried(samples.row, name, index)
    elif kind not in h5.VERSIONS:
        found.append(f"{path}: format is {shown(kind)}, wanted one of {', '.join(h5.VERSIONS)}")
    return found


def _shared_groups(file: VolumesFile) -> list[str]:
    seen: dict[str, str] = {}
    problems = []
    for split in file.splits:
        for group in sorted(set(file.groups(split))):
            if group in seen:
                problems.append(f"{file.path}: group '{group}' is in splits '{seen[group]}' and '{split}'")
            seen[group] = split
    return problems


def _check_split(file: VolumesFile, split: str) -> tuple[str, list[str]]:
    span, problems = [np.inf, -np.inf], []
    found: dict[str, set[int]] = {"labels": set(), "maps": set()}
    for index in progress(range(file.length(split)), desc=f"check {split}", unit="volume"):
        item = file.stored(split, index)
        problems += [f"{file.path}: /{split} {item.id}: {what}" for what in _item_problems(item, file.meta)]
        span = [min(span[0], float(item.image.min())), max(span[1], float(item.image.max()))]
        for name, array in (("labels", item.label), ("maps", item.map)):
            found[name] |= set() if array is None else {int(v) for v in np.unique(array)}
    spacing = np.unique(np.round([spacing_of(a)[: file.meta.spatial_dims] for a in file.affines(split)], 4), axis=0)
    text = (
        f"{join(spacing.min(0))} mm" if len(spacing) == 1 else f"{join(spacing.min(0))} to {join(spacing.max(0))} mm"
    )
    line = (
        f"  {split}: {file.length(split)} volumes of {len(set(file.groups(split)))} groups, "
        f"shape {shape_of((len(file.meta.channels), *file.spatial_shape(split)))}, spacing {text}, "
        f"values {span[0]:g}..{span[1]:g}" + "".join(f", {name} {sorted(each)}" for name, each in found.items() if each)
    )
    return line, problems


def _item_problems(item: Item, meta: VolumesMeta) -> list[str]:
    image, found = item.image, value_problems(item, meta)
    return found + [f"channel {name} is constant" for name, values in zip(meta.channels, image, strict=True)
                    if values.min() == values.max()]


def _volume_problems(path: Path, data: np.ndarray) -> list[str]:
    if not data.size:
        return [f"{path}: holds no voxels"]
    if not np.isfinite(data).all():
        return [f"{path}: {np.count_nonzero(~np.isfinite(data))} values are NaN or infinite"]
    if not is_label_map(data) and data.min() == data.max():
        return [f"{path}: constant, every voxel is {data.flat[0]:g}"]
    return []


# ---- files of a run folder ----


def check_status(path: Path) -> Report:
    """status.json: what it says, and whether config.yaml beside it is of the configuration that it names."""
    said = read_status(path.parent)
    lines = [f"{path}: status of a run, {said.get('status')}"]
    lacking = [f"{path}: {name} is missing" for name in ("experiment", "config_hash", "status") if not said.get(name)]
    config = path.with_name("config.yaml")
    training = read_yaml(config).get("training") if config.is_file() else None
    if isinstance(training, dict) and isinstance(training.get("options"), dict) and "config_hash" in said and \
            config_hash(training) != said["config_hash"]:
        lacking.append(f"{path}: config_hash is {said['config_hash']}, that of config.yaml beside it is "
                       f"{config_hash(training)}")
    return Report(lines, lacking)


def check_stats(path: Path) -> Report:
    """stats.jsonl: how many ticks, and which lines are none."""
    ticks, odd = odd_ticks(path)
    return Report([f"{path}: {ticks} ticks"], [f"{path}: {line} is no tick" for line in odd])


def check_yaml(path: Path) -> Report:
    """A YAML file: that it can be read."""
    return Report([f"{path}: YAML, {len(read_yaml(path))} keys"], [])


def check_json(path: Path) -> Report:
    """A JSON file: that it can be read."""
    found = read_json(path)
    return Report([f"{path}: JSON, {len(found) if isinstance(found, (dict, list)) else 1} values"], [])


def check_png(path: Path) -> Report:
    """A picture, to its end."""
    return Report([f"{path}: {picture(path)}"], [])
