"""What runs of downstream networks were trained on, as their snapshots say: the rows of train on X, test on real."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from edm3d.formats import h5
from edm3d.formats.facts import mixture_hash
from edm3d.formats.samples import SamplesFile, rows_of_split
from edm3d.formats.volumes import VolumesFile
from edm3d.inference.snapshot import Snapshot
from edm3d.reporting.downstream import TrainedRun, TrainingRow
from edm3d.utils.checks import is_whole, listed
from edm3d.utils.files import plain_hash
from edm3d.utils.names import one_line

ALL, TRAIN = "all", "train"
BEST = "network-best.pt"  # of a run, chosen on its validation split
# options by which runs do not differ in what they learn
OF_MACHINE = ("seed", "num_threads", "num_workers", "device", "run_root", "desc", "resume", "dry_run", "debug", "wandb",
              "trust", "timeout_s", "batch_gpu", "keep_snapshots", "keep_states", "snapshot_ticks", "state_ticks")


class Opened(NamedTuple):
    """Of a file as it is now: how many items it has in a split, the hash of its content, and of samples that were asked
    for by a file what that was, and the ids of its rows; None and none where it is not there.
    """

    items: int | None = None
    hash: str | None = None
    asked: str = ""
    ids: frozenset[str] = frozenset()


class TrainingSource(NamedTuple):
    """A file of training items. items: how many, None: not known; hash: of its content then, None: not known; is_here:
    whether it is, as it was then; asked and ids: as in Opened.
    """

    path: str
    items: int | None
    hash: str | None
    split: str
    is_here: bool
    asked: str = ""
    ids: frozenset[str] = frozenset()


class TrainingFiles(NamedTuple):
    """What a snapshot says of its training files: each with its share and how many of its items, None: not said."""

    paths: Sequence[str]
    shares: Sequence[float | None]
    counts: Sequence[int | None]
    split: str
    seed: int

    @classmethod
    def by(cls, snapshot: Snapshot) -> "TrainingFiles":
        """As far as it can be read."""
        said = dataset_of(snapshot)
        path, split, seed = (said.get(key) for key in ("path", "split", "seed"))
        paths = [path] if isinstance(path, str) else path if is_list_of(path, str) else [snapshot.facts.source]
        counts, shares = (per_file(said.get(key), len(paths)) for key in ("num", "shares"))
        counts = [count if is_whole(count) and count > 0 else None for count in counts]
        shares = [float(share) if isinstance(share, int | float) else None for share in shares]
        return cls(paths, shares, counts, split if isinstance(split, str) else TRAIN, seed if is_whole(seed) else 0)

    def hash_of(self, hashes: Sequence[str | None]) -> str | None:
        """The content hash that training gives files of these hashes, None where one is not there."""
        left_out = [share == 0 for share in self.shares]
        if any(each is None and not out for each, out in zip(hashes, left_out, strict=True)):
            return None
        return mixture_hash([None if out else each for each, out in zip(hashes, left_out, strict=True)], self.shares,
                            self.counts, self.seed)


def dataset_of(snapshot: Snapshot) -> dict[str, Any]:
    """What a run's configuration says of its training data."""
    found = (snapshot.config.get("training") or {}).get("dataset")
    return found if isinstance(found, dict) else {}


def sources_of(snapshot: Snapshot) -> list[TrainingSource]:
    """The files that a run was trained on, in their order, without those whose share is 0."""
    said, facts, found = TrainingFiles.by(snapshot), snapshot.facts, []
    there = [opened(Path(path), said.split) if share != 0 else Opened()
             for path, share in zip(said.paths, said.shares, strict=True)]
    is_same = said.hash_of([each.hash for each in there]) == facts.content_hash
    if not is_same:
        there = [Opened() for _ in there]
    if not is_same and is_one_file(said):  # the facts are of this file
        known = facts.attribute_statistics
        there = [Opened(known.items if known else None, facts.content_hash)]
    for path, each, share, count in zip(said.paths, there, said.shares, said.counts, strict=True):
        if share != 0:
            items = count if count is not None and said.split in (TRAIN, ALL) else each.items
            found.append(TrainingSource(path, items, each.hash, said.split, is_same, each.asked, each.ids))
    return found


def is_one_file(said: TrainingFiles) -> bool:
    """Whether a run was trained on one file, and all of it as it is."""
    return len(said.paths) == 1 and said.counts[0] is None and said.shares[0] is None


def is_list_of(value: Any, kind: type) -> bool:
    """Whether something out of a file is a list, not empty, of values of a kind."""
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(each, kind) for each in value)


def per_file(value: Any, count: int) -> Sequence[Any]:
    """A setting of every file, given once for all or one each; None where it says something else."""
    listed_ = isinstance(value, list | tuple)
    return value if listed_ and len(value) == count else [None if listed_ else value] * count


def opened(path: Path, split: str) -> Opened:
    """A file of volumes or samples, as far as it is there."""
    if not path.is_file():  # a path out of a file: what is no file could keep one waiting
        return Opened()
    with suppress(ValueError, OSError):
        if path.suffix != ".npz" and h5.read_format(path) == "volumes":
            file = VolumesFile(path)
            counts = [file.length(name) for name in file.splits if split in (ALL, name)]
            return Opened(sum(counts) or None, file.content_hash)
        samples = SamplesFile(path)
        rows, asked = rows_of_split(len(samples), split), samples.meta.asked_rows
        ids = frozenset(samples.meta.id_of(int(samples.seeds[row])) for row in rows) if asked else frozenset()
        return Opened(len(rows) or None, samples.content_hash, asked.source if asked else "", ids)
    return Opened()


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


def data_of(snapshot: Snapshot, sources: Sequence[TrainingSource]) -> str:
    """Hash of the data that a run was trained on, wherever they lie, the seed by which some of them were chosen aside
    where they are there as they were.
    """
    same = {key: value for key, value in dataset_of(snapshot).items() if key not in ("path", "seed", "cache")}
    hashes = [source.hash for source in sources]
    return plain_hash([plainly(same), [snapshot.facts.content_hash] if None in hashes else hashes])


def rows_of_runs(names: Sequence[str], snapshots: Sequence[Snapshot], real_hash: str
                 ) -> tuple[list[TrainingRow], list[TrainedRun]]:
    """Rows of runs that differ by their seed alone, in the order of their first run, and the runs."""
    places: dict[tuple[str, str], int] = {}
    rows: list[TrainingRow] = []
    runs: list[TrainedRun] = []
    for name, snapshot in zip(names, snapshots, strict=True):
        sources = sources_of(snapshot)
        key = recipe_of(snapshot), data_of(snapshot, sources)
        if key not in places:
            places[key] = len(rows)
            rows.append(row_of(name, snapshot, sources, real_hash))
        seed = ((snapshot.config.get("training") or {}).get("options") or {}).get("seed")
        runs.append(TrainedRun(name, str(snapshot.path), snapshot.hash, snapshot.nimg / 1000,
                               int(seed) if is_whole(seed) else None, places[key]))
    return named_apart(rows, runs), runs


def row_of(name: str, snapshot: Snapshot, sources: Sequence[TrainingSource], real_hash: str) -> TrainingRow:
    """The row of a run, named by its files and how many items of each there were."""
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


def notes_on(names: Sequence[str], snapshots: Sequence[Snapshot], file: VolumesFile, split: str, ids: Sequence[str]
             ) -> list[str]:
    """Runs that saw tested cases, by their ids, in training or what they were made of, and those of which it is not
    known.
    """
    found = []
    for name, snapshot in zip(names, snapshots, strict=True):
        sources, name = sources_of(snapshot), one_line(name)
        for source in sources:
            found += leaks(name, source, file, split, ids)
        if chosen_on(snapshot, sources, file, split):
            found.append(f"Warning: {name} was chosen on test cases: {BEST} is the best on split "
                         f"{one_line(validation_of(snapshot))!r}, which is tested; test on another")
        found += [f"Note: {name} was trained on {one_line(source.path)}, which is not here as it was; it is not the "
                  "real file, but whether it holds samples that were asked for by test cases is not known"
                  for source in sources if not source.is_here and source.hash not in (None, file.content_hash)]
        if gone := [source.path for source in sources if source.hash is None]:
            are = "which are not here as they were" if len(gone) > 1 else "which is not here as it was"
            found.append(f"Note: {name} was trained on {listed(gone)}, {are}; whether the real file is among that, and "
                         "with it test cases, is not known, and it counts as another")
    return found


def leaks(name: str, source: TrainingSource, file: VolumesFile, split: str, ids: Sequence[str]) -> list[str]:
    """Warnings of a training file that holds tested cases, or samples that were asked for by them."""
    seen, tested = (set(file.splits if each == ALL else [each]) for each in (source.split, split))
    path = one_line(source.path)
    if source.hash == file.content_hash and seen & tested:
        return [f"Warning: {name} was trained on test cases: on split {source.split!r} of {path}, which is the file of "
                f"--real, and split {split!r} is tested"]
    if asked := [id_ for id_ in ids if id_ in source.ids]:
        is_real = opened(Path(source.asked), ALL).hash == file.content_hash
        return [f"Warning: {name} was trained on samples that were asked for by test cases: those of {path} by rows of "
                f"{one_line(source.asked)}{', which is the file of --real,' * is_real} with the ids of {len(asked)} of "
                f"{len(ids)} tested cases: {listed(asked)}"]
    return []


def validation_of(snapshot: Snapshot) -> str | None:
    """The split that a run was validated on, None for none."""
    said = (snapshot.config.get("training") or {}).get("validation")
    split = said.get("split") if isinstance(said, dict) and said.get("max_items") else None
    return split if isinstance(split, str) and TrainingFiles.by(snapshot).split not in (ALL, split) else None


def chosen_on(snapshot: Snapshot, sources: Sequence[TrainingSource], file: VolumesFile, split: str) -> bool:
    """Whether a snapshot was chosen among those of its run by cases that are tested."""
    return snapshot.path.name == BEST and validation_of(snapshot) in (file.splits if split == ALL else [split]) and any(
        source.hash == file.content_hash for source in sources)
