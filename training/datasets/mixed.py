"""Items of one or several files, volumes and samples, each with its share in the stream that training sees."""

from collections.abc import Container, Sequence
from dataclasses import replace
from os.path import realpath
from pathlib import Path

import numpy as np

from edm3d.formats import h5
from edm3d.formats.describe import HDF5
from edm3d.formats.facts import AttributeStatistics, mixture_hash
from edm3d.formats.samples import SamplesFile
from edm3d.formats.volumes import VolumesFile
from edm3d.formats.wanted import check_is_file
from edm3d.inference.batch import Sample
from edm3d.networks.conditioning import Condition
from edm3d.networks.parts import PARTS
from edm3d.training.datasets.samples import SamplesDataset
from edm3d.training.datasets.together import OF_LABELS, together
from edm3d.training.datasets.volumes import NoItems, VolumesDataset
from edm3d.utils.checks import check_count, is_whole, listed
from edm3d.utils.commands import command

Source = VolumesDataset | SamplesDataset
DATASETS = {"volumes": VolumesDataset, "samples": SamplesDataset}  # by the format of the file
FILES = {"volumes": VolumesFile, "samples": SamplesFile}
TRAINED_ON = ("train", "all")  # splits that num and repetitions are for: what is measured is seen once, and whole
LEAST_SHARE, MOST_SHARE = 1e-9, 1e9
MOST = 10 ** 7  # entries of the stream, which is kept in memory


class MixedDataset:
    """The items of a split of one file, or of several together: volumes.h5, samples.h5, samples.npz.

    shares: how often the items of each file come, to each other, one number a file; 0 leaves it out, null: every item
    once. The items of files that are scarcer than their share are repeated, so that every item comes once or more.
    num: how many items of each file, one number for all or one each (null: all), in training: the first of an order
    drawn by `seed` and the number of items alone, so that fewer are a part of more. Other splits than train and all
    are there whole, every item once, in turn by the shares. Files that have nothing in a split are left out of it.

    Files that differ in channels, size, classes or attributes are refused, naming them; what some of them lack is left
    aside (`facts.lacking`). notes: lines for the log.
    """

    def __init__(self, path: str | Sequence[str], shares: Sequence[float] | None = None,
                 num: int | Sequence[int | None] | None = None, split: str = "train", cache: bool = True,
                 size: Sequence[int] | None = None, seed: int = 0):
        paths = checked_paths(path)
        shares, counts = checked_shares(shares, paths), checked_counts(num, paths)
        check_count(0, {"seed": seed})
        found = [open_split(each, split, cache, size) if share is None or share else None
                 for each, share in zip(paths, shares)]
        there = [i for i, source in enumerate(found) if isinstance(source, Source)]
        if not there:
            raise NoItems("; ".join(str(source[0]) for source in found if isinstance(source, tuple)))
        hashes = [each if each is None else each[1] if isinstance(each, tuple) else each.file.content_hash
                  for each in found]
        check_contents(paths, hashes)
        self.sources = [found[i] for i in there]
        common = together([source.facts for source in self.sources], [source.shape[0] for source in self.sources])
        self.parts, self.semantic, self.shape = common.parts, common.semantic, self.sources[0].shape
        trains = split in TRAINED_ON
        check_enough(paths, [len(each) if isinstance(each, Source) else 0 for each in found], counts, split, trains)
        rows = [chosen(len(found[i]), counts[i] if trains else None, seed, shares[i] is not None and trains)
                for i in there]
        self.entries = stream([len(each) for each in rows], [shares[i] for i in there], trains)
        self.rows = rows
        self.conditions = MixedConditions(self)
        self.facts = replace(common.facts, content_hash=mixture_hash(hashes, shares, counts, seed),
                             attribute_statistics=self.statistics() if common.facts.attribute_names else None)
        self.notes = [*self.composition(), *(f"Note: {source[0]}; it is left out" for source in found
                                             if isinstance(source, tuple)), *common.notes]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        source, number = self.entries[index]
        sample = self.sources[source][int(self.rows[source][number])]
        condition = sample.condition.only(self.parts)
        if self.semantic == OF_LABELS and "semantic" in self.parts and self.conditions.is_told("semantic"):
            classes = len(self.facts.semantic_classes)
            condition = condition.replace(semantic=PARTS["semantic"].row(sample.label, classes, self.shape[1:]))
        return Sample(sample.image, sample.label if self.facts.label_classes else None, condition)

    @property
    def records(self) -> list[tuple[int, int]]:
        """Which record each item is, by its file and its number there: one that is repeated is several items."""
        return [(file, int(self.rows[file][number])) for file, number in self.entries.tolist()]

    @property
    def groups(self) -> list[str] | None:
        """The patient that each item is of, None where a file does not say that of its items, as samples do not."""
        if not all(isinstance(source, VolumesDataset) for source in self.sources):
            return None
        return [self.sources[file].groups[row] for file, row in self.records]

    def statistics(self) -> AttributeStatistics:
        """Of the attributes of the items that are taken, each counted once."""
        tables = [source.conditions.columns["attributes"][0][rows] for source, rows in zip(self.sources, self.rows)]
        return AttributeStatistics.of(np.concatenate(tables))

    def composition(self) -> list[str]:
        """Of each of several files how many items it gives, and how often they come in one round of the stream."""
        often = np.bincount(self.entries[:, 0], minlength=len(self.sources))
        if len(self.sources) == 1 and often[0] == len(self.sources[0]):
            return []
        return [f"Data from   {source.facts.source}: {len(rows)} of {len(source)} items, {100 * times / len(self):.4g} "
                f"% of the stream" + (f", each {times / len(rows):.4g} times a round" if times > len(rows) else "")
                for source, rows, times in zip(self.sources, self.rows, often)]


class MixedConditions:
    """The conditions of a mixture's items, but for what lies on their grid, without reading the images.

    told: names of the parts that its sources are to read, None for all; what they kept before is forgotten.
    """

    def __init__(self, mixture: MixedDataset):
        self.mixture = mixture

    @property
    def told(self) -> Container[str] | None:
        return self.mixture.sources[0].conditions.told

    @told.setter
    def told(self, parts: Container[str] | None) -> None:
        for source in self.mixture.sources:
            source.conditions.told = parts
            if source.cache is not None:
                source.cache.clear()

    def is_told(self, name: str) -> bool:
        """Whether a part is wanted."""
        return self.told is None or name in self.told

    def __call__(self, index: int) -> Condition:
        """Of an item."""
        source, number = self.mixture.entries[index]
        row = int(self.mixture.rows[source][number])
        off_grid = {name for name in self.mixture.parts if not PARTS[name].grid}
        return self.mixture.sources[source].conditions(row).only(off_grid)


# ---- what is asked ----


def checked_paths(path: str | Sequence[str]) -> list[str]:
    """The files; ValueError for none, and for one that is there twice."""
    paths = [str(path)] if isinstance(path, str | Path) else [str(each) for each in path]
    if not paths:
        raise ValueError("path=[]: wanted a volumes or samples file, or a list of several")
    for i, one in enumerate(paths):
        for other in paths[:i]:
            if realpath(one) == realpath(other):
                raise ValueError(f"path: {one} is there twice{'' if one == other else f', also as {other}'}; name "
                                 "every file once, and say by shares how often its items come")
    return paths


def checked_shares(shares: Sequence[float] | None, paths: Sequence[str]) -> list[float | None]:
    """The share of each file, None where none are given."""
    if shares is None:
        return [None] * len(paths)
    if len(shares) != len(paths):
        raise ValueError(f"shares={list(shares)}: {len(shares)} for {len(paths)} file(s), {listed(paths)}; wanted one "
                         "each")
    if not all(share == 0 or LEAST_SHARE <= share <= MOST_SHARE for share in shares) or not any(shares):
        raise ValueError(f"shares={list(shares)}: wanted numbers from {LEAST_SHARE:g} to {MOST_SHARE:g}, or 0 to leave "
                         "a file out, and not all of them 0")
    return [float(share) for share in shares]


def checked_counts(num: int | Sequence[int | None] | None, paths: Sequence[str]) -> list[int | None]:
    """How many items of each file, None for all."""
    counts = list(num) if isinstance(num, list | tuple) else [num] * len(paths)
    if len(counts) != len(paths):
        raise ValueError(f"num={counts}: {len(counts)} for {len(paths)} file(s), {listed(paths)}; wanted one number "
                         "for all, or one each (null: all items)")
    if not all(count is None or (is_whole(count) and count >= 1) for count in counts):
        raise ValueError(f"num={num}: wanted whole numbers of 1 or more, null for all; a share of 0 leaves a file out")
    return counts


def check_enough(paths: Sequence[str], lengths: Sequence[int], counts: Sequence[int | None], split: str, trains: bool
                 ) -> None:
    """ValueError naming a file with fewer items than are wanted for training."""
    for path, length, count in zip(paths, lengths, counts):
        if trains and count is not None and count > length:
            raise ValueError(f"num={count}: {path} has {length} items in split {split!r}; wanted as many or more, or "
                             "null for all")


# ---- files ----


def open_split(path: str, split: str, cache: bool, size: Sequence[int] | None) -> Source | tuple[NoItems, str]:
    """The items of a file; where it has none in the split, that, and the hash of what it holds."""
    kind = kind_of(path)
    try:
        return DATASETS[kind](path, split, cache, size)
    except NoItems as e:
        if split == "all":  # of volumes, which only have the splits that they were written by
            raise ValueError(f"split=all: is of samples alone, and {path} holds volumes; wanted one of its splits, "
                             f"{listed(VolumesFile(path).splits)}") from e
        return e, FILES[kind](path).content_hash


def kind_of(path: str) -> str:
    """The format of a file, volumes or samples; ValueError for others."""
    check_is_file(Path(path))
    suffix, wanted = Path(path).suffix, "a volumes file (.h5) or a samples file (.h5, .npz)"
    if suffix == ".npz":
        return "samples"
    if suffix not in HDF5:
        raise ValueError(f"path={path}: wanted {wanted}")
    found = h5.read_format(path)
    if found == "latents":
        raise ValueError(f"{path}: holds latents; wanted the volumes that they are of, or "
                         f"{command('data', 'decode', '--latents', path, '--dest', 'FILE.h5')}")
    if found not in DATASETS:
        raise ValueError(f"{path}: format is {found!r}, wanted {wanted}")
    return found


def check_contents(paths: Sequence[str], hashes: Sequence[str | None]) -> None:
    """ValueError naming two files that hold the same."""
    seen: dict[str, str] = {}
    for path, content in zip(paths, hashes):
        if content is not None and (first := seen.setdefault(content, path)) != path:
            raise ValueError(f"path: {first} and {path} hold the same; name one of them, and say by shares how often "
                             "its items come")


# ---- which items come how often ----


def chosen(length: int, count: int | None, seed: int, drawn: bool) -> np.ndarray:
    """Positions of the items of a file that are taken: the first `count` of a drawn order.

    drawn: in that order also where all are; those in front are repeated first.
    """
    if count is None and not drawn:
        return np.arange(length)
    return np.random.default_rng(seed).permutation(length)[:count]


def stream(lengths: Sequence[int], shares: Sequence[float | None], repeats: bool) -> np.ndarray:
    """Entries [L,2] of the index list: file, and which of its items; files take turns as often as their shares say.

    repeats: the files that are scarcer for their shares come more than once, all of them to one item by their shares.
    """
    weights = [float(length) if share is None else share for length, share in zip(lengths, shares)]
    rounds = max(length / weight for length, weight in zip(lengths, weights)) if repeats else 0
    counts = [max(length, round(rounds * weight)) for length, weight in zip(lengths, weights)]
    if sum(counts) > MOST:
        raise ValueError(f"shares={list(shares)} of {list(lengths)} items make a round of {sum(counts):,}, in which "
                         f"every item comes once or more; wanted {MOST:,} or fewer, by shares that are less apart")
    files = np.repeat(np.arange(len(counts)), counts)
    numbers = np.concatenate([np.arange(count) % length for count, length in zip(counts, lengths)])
    turns = np.concatenate([(np.arange(count) + 0.5) / weight for count, weight in zip(counts, weights)])
    order = np.lexsort((files, turns))
    return np.stack([files, numbers], axis=1)[order]
