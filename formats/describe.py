"""What a file holds (info) and whether it is well (check), as lines of text."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import nibabel
import numpy as np

from edm3d.formats import h5
from edm3d.formats.folders import passed_over, walk
from edm3d.formats.latents import LatentsFile
from edm3d.formats.nifti import Volume, npz_names, read_volume, spacing_of, suffix_of
from edm3d.formats.samples import SamplesFile
from edm3d.formats.volumes import Item, VolumesFile, VolumesMeta, in_order, value_problems
from edm3d.formats.wanted import ANY, check_is_file
from edm3d.utils.files import read_npz
from edm3d.utils.log import progress
from edm3d.utils.plain import shown

_ENTRIES = 16  # per level of a tree
_WIDTH = 100  # characters of a value
_HDF5 = (".h5", ".hdf5")
_MAX_LABELS = 64  # whole numbers of at most so many different values are taken for a label map


# ---- info ----


def describe(path: Path) -> Iterator[str]:
    """Yield what an H5, npz, npy, NIfTI or .pt file holds; ValueError if it cannot be read."""
    check_is_file(path, likely=ANY)
    if path.suffix in _HDF5:
        yield from _describe_h5(path)
    elif path.suffix == ".pt":
        yield from _tree(path.name, _load_torch(path), 0)
    elif path.suffix == ".npz":
        yield from _tree(path.name, read_npz(path), 0)
    elif suffix_of(path):
        yield _volume_line(path, read_volume(path, role=_role(path)))
    else:
        raise ValueError(f"{path}: wanted an .h5, .npz, .npy, .nii, .nii.gz or .pt file")


def _describe_h5(path: Path) -> Iterator[str]:
    with h5.open_h5(path) as file, h5.damage_named(path):
        yield from _h5_tree(path.name, file, 0)


def _h5_tree(name: str, node: h5py.Group | h5py.Dataset, depth: int) -> Iterator[str]:
    indent = "  " * depth
    if isinstance(node, h5py.Dataset):
        kind = "utf-8" if h5py.check_string_dtype(node.dtype) else node.dtype
        yield f"{indent}{name}: {_shape(node.shape)} {kind}"
        return
    yield f"{indent}{name}/" if depth else name
    for key, value in node.attrs.items():
        yield f"{indent}  @{key}: {_short(value.decode() if isinstance(value, bytes) else value)}"
    for key in islice(in_order(node), _ENTRIES):
        yield from _h5_tree(key, node[key], depth + 1)
    if len(node) > _ENTRIES:
        yield f"{indent}  ... {len(node) - _ENTRIES} more"


def _load_torch(path: Path) -> Any:
    import pickle

    import torch  # takes seconds, and most commands do without

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (EOFError, RuntimeError, OSError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: damaged, or not plain tensors and data ({str(error).splitlines()[0]})") from error


def _tree(name: str, value: Any, depth: int) -> Iterator[str]:
    indent = "  " * depth
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        content = f" {_short(value.item())}" if value.shape == () else ""
        yield f"{indent}{name}: {_shape(value.shape)} {str(value.dtype).removeprefix('torch.')}{content}"
    elif isinstance(value, dict):
        tensors = [leaf for leaf in value.values() if hasattr(leaf, "shape")]
        total = f" ({len(tensors)} arrays, {sum(int(np.prod(t.shape)) for t in tensors):,} values)" if tensors else ""
        yield f"{indent}{name}{total}"
        for key, child in islice(value.items(), _ENTRIES):
            yield from _tree(str(key), child, depth + 1)
        if len(value) > _ENTRIES:
            yield f"{indent}  ... {len(value) - _ENTRIES} more"
    elif isinstance(value, list | tuple) and any(hasattr(v, "shape") or isinstance(v, dict) for v in value):
        yield from _tree(name, {f"[{i}]": v for i, v in enumerate(value)}, depth)
    else:
        yield f"{indent}{name}: {_short(value)}"


def _shape(shape: Iterable[int]) -> str:
    return "x".join(str(int(n)) for n in shape) or "scalar"


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 4]} ..."


# ---- check ----


class Report(NamedTuple):
    """Lines about what was found, and one line for each thing that is wrong."""

    lines: list[str]
    problems: list[str]


def check(path: Path) -> Report:
    """Read a file, or all files below a folder, and say what is in them and what is wrong; nothing is raised for that.

    ValueError if there is nothing to check.
    """
    if path.is_file():
        return _check_file(path)
    if not path.is_dir():
        raise ValueError(f"{path}: no such file or folder")
    found = walk(path, lambda file: file.suffix in _HDF5 or suffix_of(file))
    files, left = found.files, passed_over(found)
    if not files:
        raise ValueError("; ".join([f"{path}: holds no .h5, .nii, .nii.gz, .npy or .npz files", *left]))
    reports = [_check_file(file) for file in progress(files, desc="check", unit="file")]
    lines = [line for report in reports for line in report.lines]
    bad = sum(bool(report.problems) for report in reports)
    lines += [*left, f"{len(files)} files, {bad} bad"]
    return Report(lines, [problem for report in reports for problem in report.problems])


def _check_file(path: Path) -> Report:
    try:
        if path.suffix in _HDF5:
            return _check_h5(path)
        if path.suffix == ".npz" and "seeds" in npz_names(path):
            return _check_samples_npz(path)
        volume = read_volume(path, role=_role(path))
        return Report([_volume_line(path, volume)], _volume_problems(path, volume.data))
    except ValueError as error:
        return Report([], [str(error)])


def _check_h5(path: Path) -> Report:
    problems = h5.verify(path)
    if problems:
        return Report([], problems)
    with h5.open_h5(path) as file:
        kind = h5.format_of(file)
        lines = [f"{path}: {kind}, hashes agree", *list(_h5_tree(path.name, file, 0))[1:]]
    if kind != "volumes":
        return Report(lines, _problems(path, kind))
    volumes = VolumesFile(path)
    lines, problems = [f"{path}: volumes, hashes agree; {_contract(volumes.meta)}"], _shared_groups(volumes)
    for split in volumes.splits:
        line, bad = _check_split(volumes, split)
        lines.append(line)
        problems += bad
    return Report(lines, problems)


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


def _contract(meta: VolumesMeta) -> str:
    i = meta.intensity
    classes = (
        f"; labels {', '.join(f'{k} {c}' for k, c in enumerate(meta.label_classes))}" if meta.label_classes else ""
    )
    return f"channels {', '.join(meta.channels)}; intensity {i.lo:g}..{i.hi:g} {i.unit}{classes}"


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
    span, labels, problems = [np.inf, -np.inf], set(), []
    for index in progress(range(file.length(split)), desc=f"check {split}", unit="volume"):
        item = file.stored(split, index)
        problems += [f"{file.path}: /{split} {item.id}: {what}" for what in _item_problems(item, file.meta)]
        span = [min(span[0], float(item.image.min())), max(span[1], float(item.image.max()))]
        labels |= set() if item.label is None else {int(v) for v in np.unique(item.label)}
    spacing = np.unique(np.round([spacing_of(a)[: file.meta.spatial_dims] for a in file.affines(split)], 4), axis=0)
    text = (
        f"{_join(spacing.min(0))} mm" if len(spacing) == 1 else f"{_join(spacing.min(0))} to {_join(spacing.max(0))} mm"
    )
    line = (
        f"  {split}: {file.length(split)} volumes of {len(set(file.groups(split)))} groups, "
        f"shape {_shape((len(file.meta.channels), *file.spatial_shape(split)))}, spacing {text}, "
        f"values {span[0]:g}..{span[1]:g}" + (f", labels {sorted(labels)}" if file.meta.label_classes else "")
    )
    return line, problems


def _item_problems(item: Item, meta: VolumesMeta) -> list[str]:
    image, found = item.image, value_problems(item, meta)
    return found + [f"channel {name} is constant" for name, values in zip(meta.channels, image, strict=True)
                    if values.min() == values.max()]


def _check_samples_npz(path: Path) -> Report:
    problems = _problems(path, "samples")
    return Report([] if problems else list(_tree(str(path), read_npz(path), 0)), problems)


def _volume_line(path: Path, volume: Volume) -> str:
    data, affine = volume
    shape = data.shape if data.shape[0] > 1 else data.shape[1:]
    spacing = (
        f", spacing {_join(spacing_of(affine))} mm {''.join(nibabel.aff2axcodes(affine))}" if affine is not None else ""
    )
    values = f"values {np.nanmin(data):g}..{np.nanmax(data):g}" if np.isfinite(data).any() else "no finite values"
    if _is_label_map(data):
        values = f"labels {[int(v) for v in np.unique(data)]}"
    return f"{path}: {_shape(shape)} {data.dtype}{spacing}, {values}"


def _volume_problems(path: Path, data: np.ndarray) -> list[str]:
    if not np.isfinite(data).all():
        return [f"{path}: {np.count_nonzero(~np.isfinite(data))} values are NaN or infinite"]
    if not _is_label_map(data) and data.min() == data.max():
        return [f"{path}: constant, every voxel is {data.flat[0]:g}"]
    return []


def _role(path: Path) -> str:
    return "label" if path.suffix == ".npz" and not {"image", "images"} & set(npz_names(path)) else "image"


def _is_label_map(data: np.ndarray) -> bool:
    return data.dtype.kind in "biu" and data.min() >= 0 and len(np.unique(data)) <= _MAX_LABELS


def _join(values: Iterable[float]) -> str:
    return " ".join(f"{v:.4g}" for v in values)
