"""What a file or folder holds (info), as lines of text."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np

from edm3d.formats import h5
from edm3d.formats.asked_words import said_of_samples
from edm3d.formats.facts import AttributeStatistics
from edm3d.formats.index_data import index_line
from edm3d.formats.latents import LatentsFile
from edm3d.formats.nifti import PICTURE, Volume, npz_names, read_volume, spacing_of, suffix_of
from edm3d.formats.npz import HASH
from edm3d.formats.padding import padding_lines
from edm3d.formats.png import open_png
from edm3d.formats.privacy import NAME, PrivacyStatement
from edm3d.formats.volumes import ROLES, VolumesFile, VolumesMeta, in_order
from edm3d.formats.wanted import ANY, check_is_file
from edm3d.utils.checks import listed
from edm3d.utils.config import read_yaml
from edm3d.utils.files import read_npz
from edm3d.utils.names import one_line, titled
from edm3d.utils.plain import read_json
from edm3d.utils.runs import is_published, list_files

ENTRIES = 16  # per level of a tree
WIDTH = 100  # characters of a value
LEVELS = 20  # of a tree
HDF5, YAML = (".h5", ".hdf5"), (".yaml", ".yml")
MAX_LABELS = 64  # whole numbers of at most so many different values are taken for a label map
KINDS = ".h5, .npz, .npy, .nii, .nii.gz, .png, .pt, .pkl (of an EDM network), .json, .jsonl or .yaml file, the " \
    "folder of a run or of a published network"


def describe(path: Path) -> Iterator[str]:
    """Yield what a file or folder of any kind holds; ValueError naming it if it cannot be read."""
    if path.is_dir() and (is_published(path) or (path / "status.json").is_file()):
        yield from _describe_folder(path)
        return
    check_is_file(path, likely=ANY)
    if path.suffix in HDF5:
        with h5.open_h5(path) as file, h5.damage_named(path):
            yield from h5_tree(path.name, file, 0)
            form = h5.format_of(file)
        with suppress(ValueError):  # what is wrong is for check to say
            if form == "volumes":
                volumes = VolumesFile(path)
                yield from [f"  {contract(volumes.meta)}", *padding_of(volumes), *attribute_lines(volumes)]
            elif form == "samples":
                yield from said_of_samples(path)
            elif form == "latents" and (said := LatentsFile(path).first_stage_privacy):
                yield from ("  Of the first stage:", *(f"  {line}" for line in said.lines()))
    elif path.suffix == ".jsonl":
        lines = path.read_bytes().splitlines()
        yield f"{path.name}: {len(lines)} lines, the last: {short(lines[-1].decode(errors='replace') if lines else '')}"
    elif suffix_of(path) == PICTURE:
        yield f"{path.name}: {picture(path)}"
    elif path.suffix == ".npz":
        yield from tree(path.name, read_npz(path), 0)
        if {"seeds", HASH} <= set(npz_names(path)):
            with suppress(ValueError):
                yield from said_of_samples(path)
    elif line := index_line(path):
        yield line
    elif suffix_of(path):
        yield volume_line(path, read_volume(path, role=role_of(path)))
    else:
        content = _content(path)
        yield from tree(path.name, content, 0)
        yield from privacy_lines(content, path)


def privacy_lines(content: Any, path: Path) -> Iterator[str]:
    """What a snapshot, or the privacy.json of a run, says of privacy; none where it says nothing."""
    found = content.get("content", content) if isinstance(content, dict) else None
    found = found.get("privacy", found if path.name == NAME else None) if isinstance(found, dict) else None
    if found is not None:
        with suppress(ValueError):
            yield from (f"  {line}" for line in PrivacyStatement.from_plain(found, path).lines())


def _content(path: Path) -> Any:
    """What a file holds that is a tree of names and values; ValueError for other kinds."""
    if path.suffix in YAML:
        return read_yaml(path)
    if path.suffix == ".json":
        return read_json(path)
    if path.suffix == ".safetensors":
        from edm3d.formats.published import read_tensors  # torch takes seconds, and most commands do without
        return read_tensors(path)
    if path.suffix == ".pt":
        from edm3d.utils.checkpoint import read_plain
        return read_plain(path)
    if path.suffix == ".pkl":
        from edm3d.formats.edm_pickle import read_edm_pickle
        return read_edm_pickle(path)._asdict()
    raise ValueError(f"{path}: wanted an {KINDS}")


def _describe_folder(path: Path) -> Iterator[str]:
    """The files of a run or of a published network by which such a folder is known."""
    names = [name for name in ("status.json", "stats.jsonl", "config.json") if (path / name).is_file()]
    for file in [*(path / name for name in names), *sorted(path.glob("*.safetensors"))]:
        yield from describe(file)
    for kind in ("training-state", "network-snapshot"):
        if found := list_files(path, kind):
            yield f"{len(found)} of {kind}-*.pt, the last: {found[-1].name}"
    if (path / NAME).is_file():
        yield from privacy_lines(read_json(path / NAME), path / NAME)


def picture(path: Path) -> str:
    """Size of a PNG, which is read to its end; ValueError naming it when it is damaged."""
    image = open_png(path).image
    return f"{image.width}x{image.height} {image.mode}"


def contract(meta: VolumesMeta) -> str:
    """What all volumes of a file have in common, in a line."""
    i = meta.intensity
    names = {role: listed(meta.channels[c] for c in meta.numbers(role)) for role in ROLES}
    shown = f" (conditions: {names['condition']})" if names["condition"] else ""
    numbered = {"labels": meta.label_classes, "maps": meta.map_classes, "classes": meta.class_names}
    classes = "".join(f"; {what} {', '.join(f'{k} {one_line(c)}' for k, c in enumerate(named))}"
                      for what, named in numbered.items() if named)
    return f"channels {names['target']}{shown}; intensity {i.lo:g}..{i.hi:g} {one_line(i.unit)}{classes}"


def padding_of(file: VolumesFile) -> list[str]:
    """How many stacks of all splits have slices of padding, where any has."""
    found = [boxes for split in file.splits if (boxes := file.table(split, "boxes")) is not None]
    if file.meta.spatial_dims != 3 or not found:
        return []
    return [f"  {line}" for line in padding_lines(np.concatenate(found), file.spatial_shape(file.splits[0])[0])]


def attribute_lines(file: VolumesFile) -> list[str]:
    """Range of each attribute over all splits, and how many volumes have none."""
    if not file.meta.attribute_names:
        return []
    values = np.concatenate([file.table(split, "attributes") for split in file.splits])
    known = AttributeStatistics.of(values)
    lines = []
    for name, unit, lo, hi, missing in zip(file.meta.attribute_names, file.meta.attribute_units, known.lo, known.hi,
                                           known.missing, strict=True):
        span = f"{lo:g}..{hi:g}" if missing < len(values) else "none"
        lines.append(one_line(f"  attribute {titled(name, unit)}: {span}"
                              + (f", missing in {missing} of {len(values)}" if missing else "")))
    return lines


def h5_tree(name: str, node: h5py.Group | h5py.Dataset, depth: int) -> Iterator[str]:
    """Groups, data sets and attributes below one another."""
    indent = "  " * depth
    if isinstance(node, h5py.Dataset):
        kind = "utf-8" if h5py.check_string_dtype(node.dtype) else node.dtype
        yield f"{indent}{short(name)}: {shape_of(node.shape or ())} {kind}"
        return
    yield f"{indent}{short(name)}/" if depth else name
    for key, value in node.attrs.items():
        yield f"{indent}  @{short(key)}: {short(value.decode(errors='replace') if isinstance(value, bytes) else value)}"
    for key in islice(in_order(node), ENTRIES):
        yield from h5_tree(key, node[key], depth + 1)
    if len(node) > ENTRIES:
        yield f"{indent}  ... {len(node) - ENTRIES} more"


def tree(name: str, value: Any, depth: int) -> Iterator[str]:
    """Names and values below one another; what lies deeper than LEVELS is left out."""
    indent, name = "  " * depth, short(name)
    if depth > LEVELS:
        yield f"{indent}..."
    elif hasattr(value, "shape") and hasattr(value, "dtype"):
        content = f" {short(value.item())}" if value.shape == () else ""
        yield f"{indent}{name}: {shape_of(value.shape)} {str(value.dtype).removeprefix('torch.')}{content}"
    elif isinstance(value, dict):
        tensors = [leaf for leaf in value.values() if hasattr(leaf, "shape")]
        total = f" ({len(tensors)} arrays, {sum(int(np.prod(t.shape)) for t in tensors):,} values)" if tensors else ""
        yield f"{indent}{name}{total}"
        for key, child in islice(value.items(), ENTRIES):
            yield from tree(str(key), child, depth + 1)
        if len(value) > ENTRIES:
            yield f"{indent}  ... {len(value) - ENTRIES} more"
    elif isinstance(value, list | tuple) and any(hasattr(v, "shape") or isinstance(v, dict) for v in value):
        yield from tree(name, {f"[{i}]": v for i, v in enumerate(value)}, depth)
    else:
        yield f"{indent}{name}: {short(value)}"


def shape_of(shape: Iterable[int]) -> str:
    """Sizes as in 1x16x16."""
    return "x".join(str(int(n)) for n in shape) or "scalar"


def short(value: Any) -> str:
    """A value in a line."""
    text = " ".join(str(value).split())
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 4]} ..."


def volume_line(path: Path, volume: Volume) -> str:
    """Shape, type, geometry and values of a volume."""
    data, affine = volume
    shape = data.shape if data.shape[0] > 1 else data.shape[1:]
    spacing = (
        f", spacing {join(spacing_of(affine))} mm {''.join(nibabel.aff2axcodes(affine))}" if affine is not None else ""
    )
    values = f"values {np.nanmin(data):g}..{np.nanmax(data):g}" if np.isfinite(data).any() else "no finite values"
    if is_label_map(data):
        values = f"labels {[int(v) for v in np.unique(data)]}"
    return f"{path}: {shape_of(shape)} {data.dtype}{spacing}, {values}"


def role_of(path: Path) -> str:
    """What `read_volume` is to read of a file: image, or label where an npz file has no image."""
    return "label" if path.suffix == ".npz" and not {"image", "images"} & set(npz_names(path)) else "image"


def is_label_map(data: np.ndarray) -> bool:
    """Whether an array may be a map of label classes."""
    return data.dtype.kind in "biu" and data.size > 0 and data.min() >= 0 and len(np.unique(data)) <= MAX_LABELS


def join(values: Iterable[float]) -> str:
    """Numbers in short."""
    return " ".join(f"{v:.4g}" for v in values)
