"""What samples are asked for by a file, row by row: a table, prompts, a folder of maps, volumes, latents or samples.

Maps and images are read when they are asked for. Whether a network was trained on what is there is for others to see.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np

from edm3d.formats import h5
from edm3d.formats.facts import Facts
from edm3d.formats.folders import check_names, passed_over, relative, walk
from edm3d.formats.intensity import Intensity
from edm3d.formats.latents import LatentsFile
from edm3d.formats.nifti import SUFFIXES, npz_names, read_volume, suffix_of
from edm3d.formats.npz import HASH
from edm3d.formats.samples import SamplesFile
from edm3d.formats.tables import read_rows
from edm3d.formats.volumes import VolumesFile, held_out_first
from edm3d.utils.checks import listed
from edm3d.utils.config import yaml_content
from edm3d.utils.files import can_be
from edm3d.utils.names import one_line
from edm3d.utils.plain import shown

OF_TABLES = ("id", "class", "map", "image")  # columns that are no attributes
BESIDE = {"map": "maps", "image": "images"}  # folders beside a table whose files it may name by their ids alone
PROMPTS = (".yaml", ".yml")
WANTED = ("wanted a table (.csv), a list of prompts (.yaml), a folder of maps (.nii, .nii.gz, .npy, .npz, .png), one "
          "map, or volumes, latents or samples (.h5, samples also .npz)")


class AskedGrids(Sequence):
    """Arrays that are read one by one; names: what messages call each.

    first: hashes, by number, of those that must stay what they were when they were first read.
    """

    def __init__(self, names: Sequence[str], read: Callable[[int], np.ndarray], first: dict[int, bytes] | None = None):
        self.names, self.read, self.first = names, read, {} if first is None else first

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.read(index)

    def then(self, made: Callable[[np.ndarray, str], np.ndarray]) -> "AskedGrids":
        """The same rows as a function makes them of each and its name.

        Each must stay what it was when it was first read, so that what is drawn from is what was recorded: else reading
        raises a ValueError.
        """
        first: dict[int, bytes] = {}

        def read(index: int) -> np.ndarray:
            array = made(self[index], self.names[index])
            digest = hashlib.sha256(np.ascontiguousarray(array)).digest()
            if first.setdefault(index, digest) != digest:
                raise ValueError(f"{self.names[index]}: was changed while samples were drawn by it; draw them anew")
            return array

        return AskedGrids(self.names, read, first)


class AskedColumn(NamedTuple):
    """An attribute of all rows; unit None: the file says it in the name, or not at all."""

    name: str
    values: Sequence[Any]
    unit: str | None = None


class AskedFile(NamedTuple):
    """What a file asks for, a value of each kind for each of its ids; None where it has none of a kind.

    classes: names or numbers, "" for none. maps [*S] whose values map_classes names, where the file says; images
    [C,*S] in stored units, by `intensity` where it says so. is_list: whether somebody wrote it to ask for just this, so
    that a network must be told all of it; volumes hold much besides.
    """

    source: str
    ids: list[str]
    classes: Sequence[str] | None = None
    attributes: Sequence[AskedColumn] = ()
    maps: AskedGrids | None = None
    images: AskedGrids | None = None
    map_classes: tuple[str, ...] = ()
    intensity: Intensity | None = None
    is_list: bool = False
    notes: Sequence[str] = ()


def open_asked(source: str, facts: Facts, dims: int, split: str | None = None) -> AskedFile:
    """Open a file of any kind for a network of volumes of so many axes; ValueError naming it where it is none.

    facts: of the network's data, by which two kinds of map and the channels of images are told apart. split: of volumes
    and latents, None for held-out ones first.
    """
    if not source.strip():
        raise ValueError(f"sampling.conditions={source!r}: {WANTED}")
    path = Path(source)
    suffix = path.suffix.lower()
    if not can_be(path):
        raise ValueError(f"sampling.conditions={shown(source)}: {WANTED}")
    if path.is_dir():
        found = of_folder(path, facts, dims)
    elif not path.exists():
        raise ValueError(f"{path}: no such file; {WANTED}")
    elif suffix == ".h5":
        kinds = {"volumes": of_volumes, "latents": of_latents, "samples": of_samples}
        if (kind := h5.read_format(path)) not in kinds:
            raise ValueError(f"{path}: format is {kind!r}; {WANTED}")
        if kind != "samples":
            return kinds[kind](path, facts, split)._replace(source=source)
        found = of_samples(path, facts)
    elif suffix in (".csv", ".tsv"):
        found = of_table(path, facts, dims)
    elif suffix in PROMPTS:
        found = of_prompts(path, facts, dims)
    elif suffix == ".npz" and HASH in npz_names(path):
        found = of_samples(path, facts)
    elif suffix_of(path):
        found = of_maps(path, {stem(path): path}, facts, dims)
    else:
        raise ValueError(f"{path}: cannot be asked by; {WANTED}")
    if split is not None:
        raise ValueError(f"sampling.conditions_split={split}: {path} has no splits, only volumes and latents do")
    return found._replace(source=source)


# ---- tables and folders ----


def of_table(path: Path, facts: Facts, dims: int) -> AskedFile:
    """A CSV: id, class, map and image (files, by their paths from the table on), and attributes, `lv_volume [ml]`."""
    table = read_rows(path, "id")
    return of_columns(path, {name: [row[name] for row in table.rows] for name in table.header}, facts, dims)


def of_prompts(path: Path, facts: Facts, dims: int) -> AskedFile:
    """A YAML list with a mapping for each row, of what columns of a table are called; null, or nothing, is missing.

    A row without an id is called by its number.
    """
    found = yaml_content(path)
    if not isinstance(found, list) or not found or not all(isinstance(row, dict) and row for row in found):
        raise ValueError(f"{path}: is no list of prompts; wanted a mapping for each, as in "
                         "'- {id: a, lv_volume: 120}'")
    names = list(dict.fromkeys(str(name) for row in found for name in row))
    rows = [{"id": f"prompt{i}"} | {str(name): value for name, value in row.items()} for i, row in enumerate(found)]
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(["id", *names])}
    for name in OF_TABLES:
        columns |= {name: ["" if value is None else str(value) for value in columns[name]]} if name in columns else {}
    if odd := [id_ or "(empty)" for id_, count in Counter(columns["id"]).items() if count > 1 or not id_]:
        raise ValueError(f"{path}: ids empty or doubled: {listed(odd)}")
    return of_columns(path, columns, facts, dims)


def of_columns(path: Path, columns: Mapping[str, Sequence[Any]], facts: Facts, dims: int) -> AskedFile:
    """What the columns of a table ask for, those of OF_TABLES as text."""
    near = [*OF_TABLES, *(f"{name}s" for name in OF_TABLES), "classes"]
    for name in columns:
        if name not in OF_TABLES and name.casefold() in near:
            raise ValueError(f"{path}: column {one_line(name)!r}: wanted one of {', '.join(OF_TABLES)}, or the name of "
                             "an attribute")
    ids = columns["id"]
    grids = {name: [file_of(path, name, id_, cell) for id_, cell in zip(ids, columns[name])]
             for name in ("map", "image") if any(columns.get(name, ()))}
    return AskedFile(str(path), ids, columns.get("class"),
                     [AskedColumn(name, cells) for name, cells in columns.items() if name not in OF_TABLES],
                     read_maps(grids["map"], facts, dims) if "map" in grids else None,
                     read_images(grids["image"], facts, dims) if "image" in grids else None, is_list=True)


def file_of(table: Path, column: str, id_: str, cell: str) -> Path:
    """The file that a cell names, from the table on, or by its id alone in the folder beside it."""
    where = f"{table}: {column} of {one_line(id_)}"
    if not cell:
        raise ValueError(f"{where}: no file; wanted one for every id, or for none")
    folder, path = table.parent / BESIDE[column], table.parent / cell
    if not can_be(path):
        raise ValueError(f"{where}: {shown(cell)} can be no file")
    if path.is_file():
        return path
    beside = [folder / f"{cell}{suffix}" for suffix in SUFFIXES]
    if found := next((path for path in beside if path.is_file()), None):
        return found
    raise ValueError(f"{where}: there is no file {one_line(str(path))}, and none of that name in {folder}")


def of_folder(path: Path, facts: Facts, dims: int) -> AskedFile:
    """A folder of maps, sorted by name; ids are the names without suffix."""
    found = walk(path)
    check_names(found)
    if not found.files:
        raise ValueError("; ".join([f"{path}: holds no maps (.nii, .nii.gz, .npy, .npz, .png)", *passed_over(found)]))
    counts = Counter(map(stem, found.files))
    if double := [file for file in found.files if counts[stem(file)] > 1]:
        raise ValueError(f"{path}: files of the same name: {listed(relative(double, path))}; keep one of each")
    asked = of_maps(path, {stem(file): file for file in sorted(found.files, key=stem)}, facts, dims)
    return asked._replace(notes=passed_over(found))


def of_maps(path: Path, files: dict[str, Path], facts: Facts, dims: int) -> AskedFile:
    """Maps by their ids."""
    return AskedFile(str(path), list(files), maps=read_maps(list(files.values()), facts, dims), is_list=True)


def stem(path: Path) -> str:
    """The name of a file without its suffix."""
    return path.name[:-len(suffix_of(path))]


def read_maps(files: Sequence[Path], facts: Facts, dims: int) -> AskedGrids:
    """Maps [*S] of files."""
    return AskedGrids([one_line(str(file)) for file in files],
                lambda index: read_grid(files[index], facts, dims, "label")[0])


def read_images(files: Sequence[Path], facts: Facts, dims: int) -> AskedGrids:
    """Images [C,*S] of files, in their units."""
    return AskedGrids([one_line(str(file)) for file in files],
                lambda index: read_grid(files[index], facts, dims, "image").astype(np.float32))


def read_grid(path: Path, facts: Facts, dims: int, role: str) -> np.ndarray:
    """An array [C,*S] of a file, C = 1 of a label; ValueError where it has other axes, or they point elsewhere."""
    array, affine = read_volume(path, dims if suffix_of(path) in (".npy", ".npz") else None, role)
    while array.ndim > 1 + dims and array.shape[-1] == 1:  # a 2D image has Z = 1
        array = array[..., 0]
    if array.ndim != 1 + dims or (role == "label" and len(array) > 1):
        raise ValueError(f"{path}: is {'x'.join(map(str, array.shape))} (channels first), wanted a map or image with "
                         f"{dims} axes" + (", of one channel" if role == "label" else ""))
    if affine is not None and not any(np.array_equal(each, np.eye(4)) for each in (affine, facts.affine)):
        got, wanted = ("".join(nibabel.aff2axcodes(np.asarray(each))[:dims]) for each in (affine, facts.affine))
        if got != wanted:
            raise ValueError(f"{path}: its axes point to {got}, those of the volumes that the network draws to "
                             f"{wanted}; turn it first")
    return array


# ---- files of ours ----


def chosen_split(path: Path, lengths: Mapping[str, int], split: str | None) -> str:
    """The split that is asked for, else one with items, held-out ones first; ValueError where there is none such.

    lengths: how many items each split has.
    """
    if split is not None and split not in lengths:
        raise ValueError(f"sampling.conditions_split={split}: {path} has {listed(lengths)}")
    if not any(lengths.values() if split is None else [lengths[split]]):
        raise ValueError(f"{path}: its splits {listed(lengths)} are empty" if split is None else
                         f"sampling.conditions_split={split}: {path} has no items in it")
    return split or next(name for name in held_out_first(lengths) if lengths[name])


def told_classes(names: Sequence[str], indices: np.ndarray | None) -> list[str] | None:
    """Names of classes, their numbers where they have no names, "" for none."""
    if indices is None:
        return None
    return ["" if i < 0 else names[i] if names else str(i) for i in indices.tolist()]


def told_attributes(facts: Facts, table: np.ndarray | None) -> list[AskedColumn]:
    """Attributes by the names and units that are known of them."""
    if table is None or not facts.attribute_names:
        return []
    units = facts.attribute_units or [None] * len(facts.attribute_names)
    return [AskedColumn(name, column, unit)
            for name, column, unit in zip(facts.attribute_names, table.T.tolist(), units, strict=True)]


def told_maps(had: dict[str, Sequence[str]], facts: Facts) -> str | None:
    """Which of maps and labels a network is to be told, by the names of their classes: its own, else the first."""
    return next((name for name, classes in had.items() if tuple(classes) == facts.semantic_classes),
                next(iter(had), None))


def told_channels(had: Sequence[str], facts: Facts) -> list[int] | None:
    """Numbers of the channels that a network is shown; None where there is one that the file lacks."""
    wanted = facts.condition_channels or ()
    return [list(had).index(name) for name in wanted] if wanted and set(wanted) <= set(had) else None


def of_volumes(path: Path, facts: Facts, split: str | None) -> AskedFile:
    """A split of a volumes file."""
    file = VolumesFile(path)
    split, meta = chosen_split(path, {name: file.length(name) for name in file.splits}, split), file.meta
    ids, tables = file.ids(split), file.tables(split)
    had = {name: names for name, names in (("maps", meta.map_classes), ("labels", meta.label_classes)) if names}
    kind, channels = told_maps(had, facts), told_channels(meta.channels, facts)
    known = Facts(str(path), "", attribute_names=meta.attribute_names, attribute_units=meta.attribute_units)
    names = [f"{path}: /{split} {one_line(id_)}" for id_ in ids]
    classes = told_classes(meta.class_names, tables.get("classes")) if meta.class_names else None
    return AskedFile(str(path), ids, classes, told_attributes(known, tables.get("attributes")),
                     AskedGrids(names, partial(file.grid, split, kind)) if kind else None,
                     AskedGrids(names, lambda i: file.grid(split, "images", i)[channels].astype(np.float32))
                     if channels else None, tuple(had.get(kind, ())), meta.intensity)


def of_latents(path: Path, facts: Facts, split: str | None) -> AskedFile:
    """A split of a latents file, which has the maps and images of its volumes at full size."""
    file = LatentsFile(path)
    split, had = chosen_split(path, dict.fromkeys(file.splits, 1), split), file.facts  # none is empty
    found = file.read(split)
    classes = {name: names for name, names in (("maps", had.map_classes), ("labels", had.label_classes))
               if name in found.grids}
    kind, channels = told_maps(classes, facts), told_channels(had.condition_channels or (), facts)
    names = [f"{path}: /{split} {one_line(id_)}" for id_ in found.ids]
    images = found.grids.get("cond_images") if channels else None
    return AskedFile(str(path), found.ids, told_classes(had.class_names, found.tables.get("classes")),
                     told_attributes(had, found.tables.get("attributes")),
                     AskedGrids(names, found.grids[kind].__getitem__) if kind else None,
                     None if images is None else AskedGrids(names, lambda i: images[i][channels]),
                     tuple(classes.get(kind) or ()), had.intensity)


def of_samples(path: Path, facts: Facts) -> AskedFile:
    """What the rows of a samples file were asked for; where that is no map, the label maps that were drawn."""
    file = SamplesFile(path)
    had = file.meta.facts
    classes = {name: names for name, names in (("maps", had.semantic_classes), ("labels", had.label_classes))
               if name in file.names}
    kind = "maps" if "maps" in classes else told_maps(classes, facts)
    channels = told_channels(had.condition_channels or (), facts) if "cond_images" in file.names else None
    ids = [f"seed{seed:06d}" for seed in file.seeds]
    names = [f"{path}: {id_}" for id_ in ids]
    return AskedFile(str(path), ids, told_classes(had.class_names, file.array("classes")),
                     told_attributes(had, file.array("attributes")),
                     AskedGrids(names, partial(file.row, kind)) if kind else None,
                     AskedGrids(names, lambda i: file.row("cond_images", i)[channels]) if channels else None,
                     tuple(classes.get(kind, ())), had.intensity)
