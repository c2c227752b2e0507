"""volumes.h5: images, label maps, attributes and geometry of a cohort, split into training and held-out parts.

Layout, per split: images [N,C,*S] float32 (or uint8, for intensities 0 to 255), ids; if present labels and maps [N,*S]
uint8 (two kinds of label map with classes of their own: what is to be learned, and what is to be drawn from),
attributes [N,A] float32 (NaN = missing), classes [N] int64 (-1 = missing), groups, affines [N,4,4], boxes [N,2,3],
intensity_ranges [N,C,2], and further columns [N,...] that others have added. All but images, labels and maps are read
once and held against their hashes; an image or map is whenever it is read.
"""

import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from edm3d.formats import h5
from edm3d.formats.intensity import Intensity
from edm3d.formats.items import check_ids, check_names, check_tables
from edm3d.utils.checks import listed
from edm3d.utils.plain import from_plain, shown

SPLITS = ("train", "val", "test")  # in this order; a file may have others too
HELD_OUT = ("test", "val")  # splits that networks have seen least of
ROLES = ("target", "condition")
DTYPES = {"images": "float32", "labels": "uint8", "maps": "uint8", "attributes": "float32", "classes": "int64",
          "affines": "float64", "boxes": "int64", "intensity_ranges": "float32"}
ARRAYS = ("images", "labels", "maps")  # big: read row by row; the others are kept in memory
NAMES = ("channels", "label_classes", "map_classes", "class_names", "attribute_names")  # lists of names that differ
LATER = ("map_classes",)  # of the meta data, those that files from before do not have


@dataclass(frozen=True)
class VolumesMeta:
    """What all volumes of a file have in common."""

    spatial_dims: int
    channels: tuple[str, ...]  # names of the image channels
    channel_roles: tuple[str, ...]  # 'target' or 'condition', one per channel
    label_classes: tuple[str, ...]  # () = no labels; the index is the label value, 0 = background
    attribute_names: tuple[str, ...]
    attribute_units: tuple[str, ...]
    class_names: tuple[str, ...]  # () = no classes
    intensity: Intensity
    map_classes: tuple[str, ...] = ()  # () = no maps; as label_classes

    def __post_init__(self) -> None:
        if self.spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims={self.spatial_dims}; volumes have 2 or 3")
        if not self.channels or len(self.channels) != len(self.channel_roles):
            raise ValueError(f"channels {self.channels} need one role each, got {self.channel_roles}")
        if unknown := set(self.channel_roles) - set(ROLES):
            raise ValueError(f"channel roles {sorted(unknown)} unknown; use {ROLES}")
        if "target" not in self.channel_roles:
            raise ValueError(f"channels {self.channels} are all conditions; wanted one or more with the role 'target'")
        if len(self.attribute_names) != len(self.attribute_units):
            raise ValueError(f"attributes {self.attribute_names} need one unit each, got {self.attribute_units}")
        check_names({key: getattr(self, key) for key in NAMES})
        for classes, what in ((self.label_classes, "label"), (self.map_classes, "map")):
            if len(classes) > 256:
                raise ValueError(f"{len(classes)} {what} classes; {what}s are uint8, so at most 256")

    def numbers(self, role: str) -> list[int]:
        """Numbers of the channels of a role."""
        return [i for i, found in enumerate(self.channel_roles) if found == role]


class Item(NamedTuple):
    """One volume."""

    image: np.ndarray  # [C,*S] float32
    label: np.ndarray | None  # [*S] uint8
    attributes: np.ndarray | None  # [A] float32, NaN = missing
    class_index: int | None
    id: str  # unique, fit for a file name
    group: str  # the patient: splits never share one
    affine: np.ndarray  # [4,4] float64, voxel index -> mm, RAS+
    box: np.ndarray  # [2,3] int64: first and past-last index of the valid region; 2D: the third axis is 0..1
    map: np.ndarray | None = None  # [*S] uint8

    @property
    def semantic(self) -> np.ndarray | None:
        """The map, in files without maps the label map."""
        return self.label if self.map is None else self.map


def in_order(splits: Iterable[str]) -> list[str]:
    """Names of splits as they are shown everywhere: train, val, test, then others by name."""
    return sorted(splits, key=lambda name: (SPLITS.index(name) if name in SPLITS else len(SPLITS), name))


def held_out_first(splits: Iterable[str]) -> list[str]:
    """Names of splits, those that networks have seen least of before all others: test, val, then as they come."""
    return sorted(splits, key=lambda name: HELD_OUT.index(name) if name in HELD_OUT else len(HELD_OUT))


def full_box(spatial_shape: Sequence[int]) -> np.ndarray:
    """Return the [2,3] box of a volume without padding."""
    return np.array([(0, 0, 0), (*spatial_shape, 1)[:3]], dtype=np.int64)


# ---- writing ----


class VolumesWriter:
    """Context manager that writes a volumes file item by item; nothing is left behind if the block fails."""

    def __init__(self, path: str | Path, meta: VolumesMeta, provenance: dict[str, Any], *, needed_bytes: int = 0,
                 image_dtype: str = "float32"):
        """image_dtype uint8: rounded to whole numbers and compressed; ValueError for a contract other than 0 to 255."""
        bounds = (meta.intensity.lo, meta.intensity.hi, meta.intensity.clip)
        if image_dtype != "float32" and (image_dtype != "uint8" or bounds != (0, 255, True)):
            raise ValueError(f"images as {image_dtype} of {meta.intensity}: wanted float32, or uint8 of 0 to 255")
        self._meta, self._image_dtype = meta, image_dtype
        self._provenance = provenance
        self._context = h5.atomic_h5(path, needed_bytes)
        self._stack = ExitStack()
        self._path = path
        self._rows: dict[str, dict[str, list]] = {}  # by split, all but images and labels, until the file is complete
        self._split_of_group: dict[str, str] = {}
        self._ids: set[str] = set()
        self._shape: tuple[int, ...] | None = None

    def __enter__(self) -> "VolumesWriter":
        self._file = self._stack.enter_context(self._context)
        self._stack.push(self._write_rest)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def add(self, split: str, item: Item, intensity_range: np.ndarray | None = None) -> None:
        """Append one volume; intensity_range [C,2] is its original lo and hi if it was scaled on its own."""
        self._check(split, item, intensity_range)
        if split not in self._rows:
            self._start_split(split, item)
        group = self._file[split]
        h5.append_row(group["images"], item.image if self._image_dtype == "float32" else np.rint(item.image))
        for name, values in (("labels", item.label), ("maps", item.map)):
            if values is not None:
                h5.append_row(group[name], values)
        class_index = -1 if item.class_index is None else item.class_index
        row = {"ids": item.id, "groups": item.group, "attributes": item.attributes,
               "classes": class_index if self._meta.class_names else None, "affines": item.affine, "boxes": item.box,
               "intensity_ranges": intensity_range}
        for name, value in row.items():
            if value is not None:
                self._rows[split].setdefault(name, []).append(value)
        self._ids.add(item.id)
        self._split_of_group[item.group] = split
        self._shape = item.image.shape

    def _start_split(self, split: str, item: Item) -> None:
        group = self._file.create_group(split)
        compress = self._image_dtype == "uint8"
        h5.create(group, "images", (0, *item.image.shape), self._image_dtype, hash_rows=True, compress=compress)
        for name, values in (("labels", item.label), ("maps", item.map)):
            if values is not None:
                h5.create(group, name, (0, *values.shape), DTYPES[name], hash_rows=True, compress=compress)
        self._rows[split] = {}

    def _check(self, split: str, item: Item, intensity_range: np.ndarray | None) -> None:
        if not item.id or "/" in item.id or item.id in self._ids:
            raise ValueError(f"id '{item.id}': ids must be unique, not empty, and without '/'")
        if not split or "/" in split:
            raise ValueError(f"{item.id}: '{split}' is not a name for a split")
        other = self._split_of_group.get(item.group, split)
        if other != split:
            one, two = in_order((other, split))
            raise ValueError(f"group '{item.group}' would be in splits '{one}' and '{two}'; splits never share one")
        _check_image(item, self._meta, self._shape)
        _check_label(item, item.label, self._meta.label_classes, "label")
        _check_label(item, item.map, self._meta.map_classes, "map")
        _check_conditions(item, self._meta)
        rows = {"affines": item.affine, "boxes": item.box, "attributes": item.attributes}
        check_tables({name: row[None] for name, row in rows.items() if row is not None}, [item.id], str(self._path),
                     classes=self._meta.class_names, spatial_shape=item.image.shape[1:])
        if split in self._rows and ("intensity_ranges" in self._rows[split]) != (intensity_range is not None):
            raise ValueError(f"{item.id}: intensity_range is given for some volumes of '{split}' only")

    def _write_rest(self, error: type | None, *_: Any) -> None:
        if error is not None:
            return
        if not self._rows:
            raise ValueError(f"{self._path}: no volumes to write")
        for split, rows in self._rows.items():
            for name, values in rows.items():
                if name in ("ids", "groups"):
                    h5.write_strings(self._file[split], name, values)
                else:
                    h5.write_array(self._file[split], name, np.asarray(values, DTYPES[name]))
        h5.set_format(self._file, "volumes", self._provenance)
        for name, value in asdict(self._meta).items():
            h5.put_json(self._file, name, value)


def _check_image(item: Item, meta: VolumesMeta, shape: tuple[int, ...] | None) -> None:
    if item.image.ndim != meta.spatial_dims + 1 or item.image.shape[0] != len(meta.channels):
        raise ValueError(
            f"{item.id}: image shape {item.image.shape}, wanted {len(meta.channels)} channel(s) "
            f"and {meta.spatial_dims} axes"
        )
    if shape is not None and item.image.shape != shape:
        raise ValueError(f"{item.id}: shape {item.image.shape} differs from that of the volumes before, {shape}")
    if not np.isfinite(item.image).all():
        raise ValueError(f"{item.id}: image has values that are not finite")
    lo, hi = float(item.image.min()), float(item.image.max())
    if meta.intensity.is_left_by(lo, hi):
        raise ValueError(f"{item.id}: values {lo:g}..{hi:g} leave the intensity contract {meta.intensity}")
    if item.affine.shape != (4, 4) or item.box.shape != (2, 3):
        raise ValueError(f"{item.id}: affine {item.affine.shape} and box {item.box.shape} must be (4, 4) and (2, 3)")


def _check_label(item: Item, label: np.ndarray | None, classes: Sequence[str], what: str) -> None:
    """what: label or map."""
    if (label is None) == bool(classes):
        raise ValueError(f"{item.id}: {f'no {what}' if classes else f'a {what}, but no {what} classes'}")
    if label is None:
        return
    if label.dtype != np.uint8 or label.shape != item.image.shape[1:]:
        raise ValueError(f"{item.id}: {what} {label.dtype} {label.shape}, wanted uint8 {item.image.shape[1:]}")
    if label.max() >= len(classes):
        raise ValueError(f"{item.id}: {what} value {label.max()} is outside the {len(classes)} classes "
                         f"{listed(classes)}")


def _check_conditions(item: Item, meta: VolumesMeta) -> None:
    got = 0 if item.attributes is None else len(item.attributes)
    if got != len(meta.attribute_names):
        raise ValueError(f"{item.id}: {got} attributes, wanted {len(meta.attribute_names)}: "
                         f"{listed(meta.attribute_names)}")
    if item.class_index is not None and not 0 <= item.class_index < len(meta.class_names):
        raise ValueError(f"{item.id}: class index {item.class_index} is outside the classes {listed(meta.class_names)}")


# ---- reading ----


class _Split(NamedTuple):
    """What is kept in memory of a split: its small data sets, and hashes of the rows of the big ones."""

    shape: tuple[int, ...]  # [N,C,*S] of the images
    ids: list[str]
    groups: list[str]
    tables: dict[str, np.ndarray]
    row_hashes: dict[str, np.ndarray | None]


class VolumesFile(h5.LazyFile):
    """A volumes file for reading."""

    def __init__(self, path: str | Path):
        super().__init__(path, "volumes")
        file = self._open()
        self.meta = _read_meta(file)
        self.provenance: dict[str, Any] = h5.get_json(file, "provenance", dict)
        self.content_hash = h5.get_text(file, "content_hash")
        self.splits = in_order(file)
        if not self.splits:
            raise ValueError(f"{self.path}: holds no split")
        self._splits = {split: _read_split(h5.need(file, split, h5py.Group), self.meta) for split in self.splits}
        check_ids([id_ for split in self.splits for id_ in self.ids(split)], f"{self.path}")

    def _split(self, split: str) -> _Split:
        if split not in self._splits:
            raise ValueError(f"{self.path}: no split '{split}'; it has {listed(self.splits)}")
        return self._splits[split]

    def length(self, split: str) -> int:
        """Return the number of volumes of a split."""
        return self._split(split).shape[0]

    def spatial_shape(self, split: str) -> tuple[int, ...]:
        """Return the grid [*S] of the volumes."""
        return self._split(split).shape[2:]

    def ids(self, split: str) -> list[str]:
        """Return the ids of a split, in file order."""
        return list(self._split(split).ids)

    def groups(self, split: str) -> list[str]:
        """Return the group (patient) of each volume; a file without groups has one per volume."""
        return list(self._split(split).groups)

    def affines(self, split: str) -> np.ndarray:
        """Return [N,4,4] float64."""
        affines = self.table(split, "affines")
        return np.tile(np.eye(4), (self.length(split), 1, 1)) if affines is None else affines

    def table(self, split: str, name: str) -> np.ndarray | None:
        """Return the rows [N,...] of a small data set, or None if the split has none of that name."""
        return self.tables(split).get(name)

    def tables(self, split: str) -> dict[str, np.ndarray]:
        """Return the rows [N,...] of all small data sets by name."""
        return {name: table.copy() for name, table in self._split(split).tables.items()}

    def read(self, split: str, index: int) -> Item:
        """Read one volume; ValueError when the file is damaged there, or holds values that no volume has."""
        item = self.stored(split, index)
        if problems := value_problems(item, self.meta):
            raise ValueError(f"{self.path}: /{split} {shown(item.id)}: {', '.join(problems)}")
        return item

    def grid(self, split: str, name: str, index: int) -> np.ndarray:
        """The image [C,*S], label map or map [*S] of one volume alone, as stored; ValueError when it is damaged."""
        known = self._split(split)
        if not 0 <= index < known.shape[0]:
            raise IndexError(f"{self.path}: index {index} outside 0..{known.shape[0] - 1} of split '{split}'")
        return h5.read_row(self._open()[split][name], index, known.row_hashes[name])

    def stored(self, split: str, index: int) -> Item:
        """The same whatever its values are."""
        known = self._split(split)
        arrays = {name: self.grid(split, name, index) for name in known.row_hashes}
        table = {name: rows[index].copy() for name, rows in known.tables.items()}
        class_index = int(table.get("classes", -1))
        return Item(
            image=arrays["images"].astype(np.float32, copy=False),
            label=arrays.get("labels"),
            attributes=table.get("attributes"),
            class_index=class_index if self.meta.class_names and class_index >= 0 else None,
            id=known.ids[index],
            group=known.groups[index],
            affine=table.get("affines", np.eye(4)),
            box=table.get("boxes", full_box(known.shape[2:])),
            map=arrays.get("maps"),
        )


def value_problems(item: Item, meta: VolumesMeta) -> list[str]:
    """What no volume has: values that are not finite or leave the intensity contract, and labels of no class."""
    image, found = item.image, []
    if not np.isfinite(image).all():
        found.append("values that are not finite")
    for what, label, classes in (("label", item.label, meta.label_classes), ("map", item.map, meta.map_classes)):
        if label is not None and label.max() >= max(1, len(classes)):
            found.append(f"{what} value {label.max()} outside the {len(classes)} classes")
    if meta.intensity.is_left_by(lo := image.min(), hi := image.max()):
        found.append(f"values {lo:g}..{hi:g} outside {meta.intensity.lo:g}..{meta.intensity.hi:g}")
    return found


def is_made_by(path: Path, provenance: dict[str, Any]) -> bool:
    """Whether a file is there that was made just so."""
    return provenance_of(path) == json.loads(json.dumps(provenance))  # tuples are lists there


def provenance_of(path: Path) -> dict[str, Any]:
    """What a file was made of, {} where there is no volumes file."""
    try:
        return dict(VolumesFile(path).provenance)
    except (ValueError, TypeError):
        return {}


def is_volumes(path: Path) -> None:
    """ValueError for a file that is no volumes file."""
    h5.check_holds(path, "volumes")


def _read_split(group: h5py.Group, meta: VolumesMeta) -> _Split:
    """All of a split but images and labels; ValueError when something is missing or not as it should be."""
    _check_split(group, meta)
    where, shape = f"{group.file.filename}: {group.name}", tuple(map(int, group["images"].shape))
    ids = h5.read_strings(group["ids"])
    tables = {name: h5.read(group[name]) for name in group if name not in (*ARRAYS, "ids", "groups")}
    check_tables(tables, ids, where, classes=meta.class_names, spatial_shape=shape[2:])
    return _Split(shape, ids, h5.read_strings(group["groups"]) if "groups" in group else ids, tables,
                  {name: h5.row_hashes(group[name]) for name in ARRAYS if name in group})


def _check_split(group: h5py.Group, meta: VolumesMeta) -> None:
    """Raise ValueError unless all data sets of a split are there, of the right types and shapes."""
    N, *row = h5.shape_of(group, "images")
    if len(row) != meta.spatial_dims + 1 or row[0] != len(meta.channels) or 0 in (N, *row):
        raise ValueError(f"{group.file.filename}: {group.name}/images is {(N, *row)}, wanted one volume or more of "
                         f"{len(meta.channels)} channel(s) and {meta.spatial_dims} axes")
    shapes = {"images": row, "labels": row[1:], "maps": row[1:], "attributes": [len(meta.attribute_names)],
              "classes": [], "affines": [4, 4], "boxes": [2, 3], "intensity_ranges": [row[0], 2]}
    columns = {"ids": ("strings", ()), "groups": ("strings", ())}
    columns |= {name: (DTYPES[name], tuple(shape)) for name, shape in shapes.items()}
    if group["images"].dtype == "uint8":
        columns["images"] = ("uint8", tuple(row))
    promised = {"labels": meta.label_classes, "maps": meta.map_classes, "attributes": meta.attribute_names,
                "classes": meta.class_names}
    h5.check_columns(group, N, columns, ["ids", *(name for name, names in promised.items() if names)])


def _read_meta(file: h5py.File) -> VolumesMeta:
    values = {field.name: h5.get_json(file, field.name) for field in fields(VolumesMeta)
              if field.name in file.attrs or field.name not in LATER}
    return from_plain(VolumesMeta, values, file.filename)
