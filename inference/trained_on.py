"""What runs of downstream networks were trained on, as their snapshots say: the rows of train on X, test on real."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from edm3d.formats import h5
from edm3d.formats.samples import SamplesFile, rows_of_split
from edm3d.formats.volumes import VolumesFile
from edm3d.inference.snapshot import Snapshot
from edm3d.reporting.downstream import TrainedRun, TrainingRow
from edm3d.utils.checks import is_whole, listed
from edm3d.utils.files import plain_hash
from edm3d.utils.names import one_line

ALL, TRAIN = "all", "train"
# options by which runs do not differ in what they learn
OF_MACHINE = ("seed", "num_threads", "num_workers", "device", "run_root", "desc", "resume", "dry_run", "debug", "wandb",
              "trust", "timeout_s", "batch_gpu", "keep_snapshots", "keep_states", "snapshot_ticks", "state_ticks")


class TrainingSource(NamedTuple):
    """A file of training items. items: how many, None: not known; hash: of its content, None: it is not there."""

    path: str
    items: int | None
    hash: str | None
    split: str


def sources_of(snapshot: Snapshot) -> list[TrainingSource]:
    """The files that a run was trained on, in their order, without those whose share is 0."""
    said = (snapshot.config.get("training") or {}).get("dataset") or {}
    facts, split = snapshot.facts, said.get("split") if isinstance(said.get("split"), str) else TRAIN
    path = said.get("path")
    paths = [path] if isinstance(path, str) else path if is_list_of(path, str) else [facts.source]
    counts, shares = (per_file(said.get(key), len(paths)) for key in ("num", "shares"))
    found = []
    for each, count, share in zip(paths, counts, shares, strict=True):
        if share == 0:
            continue
        items, content = opened(Path(each), split)
        if len(paths) == 1 and all(c is None for c in counts):  # the facts are of this file
            items = items if content == facts.content_hash else None
            content, known = facts.content_hash, facts.attribute_statistics
            items = known.items if items is None and known else items
        if is_whole(count) and count > 0 and split in (TRAIN, ALL):
            items = count
        found.append(TrainingSource(each, items, content, split))
    return found


def is_list_of(value: Any, kind: type) -> bool:
    """Whether something out of a file is a list, not empty, of values of a kind."""
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(each, kind) for each in value)


def per_file(value: Any, count: int) -> Sequence[Any]:
    """A setting of every file, given once for all or one each; None where it says something else."""
    listed_ = isinstance(value, list | tuple)
    return value if listed_ and len(value) == count else [None if listed_ else value] * count


def opened(path: Path, split: str) -> tuple[int | None, str | None]:
    """How many items a file of volumes or samples has in a split, and the hash of its content, as far as it is there.
    """
    if not path.is_file():  # a path out of a file: what is no file could keep one waiting
        return None, None
    with suppress(ValueError, OSError):
        if path.suffix != ".npz" and h5.read_format(path) == "volumes":
            file = VolumesFile(path)
            counts = [file.length(name) for name in file.splits if split in (ALL, name)]
            return sum(counts) or None, file.content_hash
        samples = SamplesFile(path)
        return len(rows_of_split(len(samples), split)) or None, samples.content_hash
    return None, None


def recipe_of(snapshot: Snapshot) -> str:
    """Hash of all that decides on what a run learns but its data and its seed."""
    training = dict(snapshot.config.get("training") or {})
    options = training.get("options") or {}
    training["options"] = {key: value for key, value in options.items() if key not in OF_MACHINE}
    training.pop("dataset", None)
    return plain_hash(plainly(training))


def plainly(value: Any) -> Any:
    """Anything that a file may hold in a configuration as JSON may hold it."""
    if isinstance(value, dict):
        return {str(key): plainly(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plainly(each) for each in value]
    return value if isinstance(value, str | int | float | None) else repr(value)


def data_of(snapshot: Snapshot) -> str:
    """Hash of the data that a run was trained on, the seed by which some of them were chosen aside."""
    said = (snapshot.config.get("training") or {}).get("dataset") or {}
    same = {key: value for key, value in said.items() if key not in ("seed", "cache")}
    one_file = not is_list_of(said.get("path"), str) and said.get("num") is None
    return plain_hash([plainly(same), snapshot.facts.content_hash if one_file else ""])


def rows_of_runs(names: Sequence[str], snapshots: Sequence[Snapshot], real_hash: str
                 ) -> tuple[list[TrainingRow], list[TrainedRun]]:
    """Rows of runs that differ by their seed alone, in the order of their first run, and the runs."""
    places: dict[tuple[str, str], int] = {}
    rows: list[TrainingRow] = []
    runs: list[TrainedRun] = []
    for name, snapshot in zip(names, snapshots, strict=True):
        key = recipe_of(snapshot), data_of(snapshot)
        if key not in places:
            places[key] = len(rows)
            rows.append(row_of(name, snapshot, real_hash))
        seed = ((snapshot.config.get("training") or {}).get("options") or {}).get("seed")
        runs.append(TrainedRun(name, str(snapshot.path), snapshot.hash, snapshot.nimg / 1000,
                               int(seed) if is_whole(seed) else None, places[key]))
    return named_apart(rows, runs), runs


def row_of(name: str, snapshot: Snapshot, real_hash: str) -> TrainingRow:
    """The row of a run, named by its files and how many items of each there were."""
    sources = sources_of(snapshot)
    items = [source.items for source in sources]
    of_real = [source.items for source in sources if source.hash == real_hash]
    return TrainingRow(" + ".join(map(named, sources)) or one_line(name),
                       tuple(one_line(source.path) for source in sources), total(items), total(of_real),
                       bool(sources) and len(of_real) == len(sources), recipe_of(snapshot))


def named(source: TrainingSource) -> str:
    """A file by its name, with its split where that is not the usual one."""
    return one_line(Path(source.path).name + (f" ({source.split})" if source.split != TRAIN else ""))


def total(counts: Sequence[int | None]) -> int | None:
    """The sum, None where one is not known."""
    return None if None in counts else sum(counts)


def named_apart(rows: Sequence[TrainingRow], runs: Sequence[TrainedRun]) -> list[TrainingRow]:
    """The rows with names that differ: by their numbers of items, by their paths, at last by their first run."""
    first = {run.row: run.name for run in reversed(runs)}
    ways = (lambda row, i: row.name, lambda row, i: f"{row.items or '?'} of {row.name}",
            lambda row, i: " + ".join(row.sources), lambda row, i: f"{row.name}, {one_line(Path(first[i]).name)}",
            lambda row, i: f"{row.name}, {one_line(first[i])}")
    names: list[str] = []
    for way in ways:
        names = [way(row, i) for i, row in enumerate(rows)]
        if len(set(names)) == len(names):
            break
    return [replace(row, name=name) for row, name in zip(rows, names, strict=True)]


# ---- what is to be known before numbers are believed ----


def notes_on(names: Sequence[str], snapshots: Sequence[Snapshot], file: VolumesFile, split: str) -> list[str]:
    """Runs that were trained on test cases, and those of which it is not known."""
    found = []
    tested = set(file.splits if split == ALL else [split])
    for name, snapshot in zip(names, snapshots, strict=True):
        for source in sources_of(snapshot):
            seen = set(file.splits) if source.split == ALL else {source.split}
            if source.hash == file.content_hash and seen & tested:
                found.append(f"Warning: {one_line(name)} was trained on test cases: on split {source.split!r} of "
                             f"{one_line(source.path)}, which is the file of --real, and split {split!r} is tested")
        if gone := [source.path for source in sources_of(snapshot) if source.hash is None]:
            found.append(f"Note: {one_line(name)} was trained on {listed(gone)}, not to be read from here; whether "
                         "that is the real file, and holds test cases, is not known, and it counts as another")
    return found
