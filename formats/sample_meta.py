"""What all samples of a file share: their data, what drew them and how, and what they were asked for by."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from edm3d.formats.facts import Facts, LatentScaling
from edm3d.formats.privacy import PrivacyStatement
from edm3d.formats.sample_settings import (
    AskedRows,
    Labelling,
    PairedClasses,
    QualityCheck,
    Settings,
    SweptAttribute,
    compared,
    noise_key,
)
from edm3d.utils.names import file_names
from edm3d.utils.plain import from_plain, shown, taken

META = ("data", "snapshot", "snapshot_hash", "sampling")  # of a file
BESIDE_FACTS = ("first_stage", "privacy")  # in `data`
MOST_DRAWS = 2 ** 63 - 1  # of a seed, whose numbers files have in 64 bits
MOST_ATTEMPTS = 1000  # at a sample
SEEDED = re.compile(r"_seed\d+$")  # of an id, which would be the name of another
MOST_BYTES = 100  # of an id in a file's name, and of a channel: with seed and kind they fit into 255


class SampleStage(NamedTuple):
    """What decoding latents takes: the hash of the first stage that they are of, where it is known, and their scaling.
    """

    hash: str | None
    scaling: LatentScaling


class SampleMeta(NamedTuple):
    """What all rows of a samples file share.

    sampling: settings that a sample depends on besides the seed and the snapshot; stage None: drawn as voxels, or the
    file is from before it was written down. privacy: of the training of the snapshot, None where that was not private.
    """

    facts: Facts
    snapshot: str
    snapshot_hash: str
    sampling: dict
    stage: SampleStage | None = None
    privacy: PrivacyStatement | None = None

    @property
    def made_of(self) -> dict[str, Any]:
        """What samples depend on besides their seeds, by which those of one kind are known."""
        return {"snapshot_hash": self.snapshot_hash, "sampling": compared(self.sampling, self.facts.class_names)}

    @property
    def precision(self) -> str:
        """What the first stage decoded in, as `sampling.precision` has it."""
        return self.sampling.get("precision", Settings().precision)

    @property
    def noise(self) -> str:
        """How the noise was drawn, as `sampling.noise` has it."""
        return self.sampling.get("noise", Settings().noise)

    @property
    def sweep(self) -> SweptAttribute | None:
        """The attribute that goes through values for every seed, None where none does."""
        found = self.sampling.get("sweep")
        return SweptAttribute(**found) if found else None

    @property
    def pairs(self) -> PairedClasses | None:
        """The classes of which every seed makes a sample each, None where each is drawn by itself."""
        found = self.sampling.get("pairs")
        return PairedClasses(**found) if found else None

    def paired_class(self, number: int) -> str | None:
        """The class of a sample, by its number, where every seed makes one of each."""
        return self.pairs.classes[number % len(self.pairs.classes)] if self.pairs else None

    @property
    def draws(self) -> int:
        """Samples that were drawn of each seed, by noise of their own."""
        return self.sampling.get("samples_per_condition", Settings().samples_per_condition)

    def noise_of(self, number: int) -> int:
        """The seed of a sample: its own number, but in a sweep, and where there are several draws or classes of each.
        """
        return number // (len(self.sweep.values) if self.sweep else len(self.pairs.classes) if self.pairs else
                          self.draws)

    def draw_of(self, number: int) -> int:
        """Which draw of its seed a sample is, from 0 on."""
        return number % self.draws

    def key_of(self, number: int, attempt: int = 0) -> int | str:
        """What the noise of a sample follows from; attempt: the one that it is of."""
        return noise_key(self.noise_of(number), self.draw_of(number), attempt)

    @property
    def asked_rows(self) -> AskedRows | None:
        """The file that samples were asked for by, row by row, None where none did."""
        found = self.sampling.get("conditions")
        return AskedRows(**found) if found else None

    @property
    def labelling(self) -> Labelling | None:
        """The segmenter that the label maps are of, None where they were drawn, or there are none."""
        found = self.sampling.get("labels")
        return Labelling(**found) if found else None

    @property
    def quality(self) -> QualityCheck | None:
        """By what samples were drawn again, None where all were kept as they came."""
        found = self.sampling.get("quality")
        return QualityCheck(**found) if found else None

    @property
    def ids(self) -> list[str]:
        """Of the rows of the file that samples were asked for by, which seeds go through in turn; [] for none."""
        return self.asked_rows.ids if self.asked_rows else []

    def id_of(self, number: int) -> str | None:
        """Id of the row that a sample, by its number, was asked for by, None where no file asked."""
        return self.ids[self.row_of(number)] if self.ids else None

    def row_of(self, number: int) -> int:
        """Number of the row that a sample was asked for by, of those that `ids` names."""
        return self.noise_of(number) % len(self.ids)

    def file_names(self, seeds: Iterable[int]) -> list[str]:
        """What files of samples are called, without what they hold: seed000012, after the id where there is one.

        Those of pairs end in their class; the first of an id goes by that alone, id_ED.
        """
        names = self.row_names
        if self.pairs:
            return [f"{name}_{each}" for name, each in zip(*self._paired_names(list(seeds), names), strict=True)]
        return [(f"{names[self.row_of(seed)]}_" if names else "") + f"seed{seed:06d}" for seed in seeds]

    def _paired_names(self, numbers: list[int], rows: list[str]) -> tuple[list[str], list[str]]:
        """Names of the pairs that samples are of, and of their classes, as those of files have them."""
        classes = file_names(self.pairs.classes, MOST_BYTES)
        whole = {f"{row}_{each}".casefold() for row in rows for each in classes}
        ids_do = len(whole) == len(rows) * len(classes) and not any(SEEDED.search(row) for row in rows)
        found = []
        for seed in map(self.noise_of, numbers):
            row = [rows[seed % len(rows)]] if rows else []
            found.append("_".join(row if row and ids_do and seed < len(rows) else [*row, f"seed{seed:06d}"]))
        return found, [classes[number % len(classes)] for number in numbers]

    @property
    def row_names(self) -> list[str]:
        """The ids of rows, as names of files have them."""
        return file_names(self.ids, MOST_BYTES)

    def class_name(self, index: int | None) -> str | None:
        """Name of the class of a row, None where it is of none."""
        return None if index is None or index < 0 else self.facts.class_name(index)

    def plain(self) -> dict[str, Any]:
        """As plain data, for a file."""
        stage = {"first_stage": {"hash": self.stage.hash, **self.stage.scaling._asdict()}} if self.stage else {}
        private = {"privacy": self.privacy.plain()} if self.privacy else {}
        return {"data": self.facts.plain() | stage | private, "snapshot": self.snapshot,
                "snapshot_hash": self.snapshot_hash, "sampling": self.sampling}

    @classmethod
    def from_plain(cls, found: dict[str, Any], source: object) -> "SampleMeta":
        """From what `plain` gave; ValueError naming the file (source) for anything else."""
        found = taken(found, Mapping[str, Any], source, "what all samples share")
        if missing := [name for name in META if name not in found]:
            raise ValueError(f"{source}: not a samples file: {', '.join(missing)} missing")
        data = taken(found["data"], Mapping[str, Any], source, "data")
        sampling = taken(found["sampling"], dict[str, Any], source, "sampling")
        settings = {name: value for name, value in sampling.items() if name in Settings._fields}
        if len(settings.keys() & {"tile", "tile_overlap", "tile_mode"}) not in (0, 3):
            raise ValueError(f"{source}: sampling has {', '.join(settings)}, wanted all or none that is said of tiles")
        checked = from_plain(Settings, settings, source, "sampling")
        if checked.conditions and not checked.conditions.ids:
            raise ValueError(f"{source}: sampling.conditions.ids is empty, wanted those of the rows of "
                             f"{shown(checked.conditions.source)}")
        snapshot = taken(found["snapshot"], str, source, "snapshot")
        for key, path in (("snapshot", snapshot),
                          ("sampling.labels.network", checked.labels.network if checked.labels else "")):
            if len(path) > 4096 or "\0" in path:
                raise ValueError(f"{source}: {key} is {shown(path)}, wanted a path")
        facts = Facts.from_plain({name: value for name, value in data.items() if name not in BESIDE_FACTS}, source)
        draws = checked.samples_per_condition
        if not 1 <= draws <= (1 if checked.sweep or checked.pairs else MOST_DRAWS):
            raise ValueError(f"{source}: sampling.samples_per_condition is {shown(draws)}, wanted 1 to {MOST_DRAWS}, "
                             "and 1 in a sweep")
        if checked.pairs:
            check_pairs(checked.pairs, checked.sweep is not None, facts, source)
        if checked.sweep:
            check_sweep(checked.sweep, facts, source)
        if checked.quality:
            check_quality(checked.quality, source)
        return cls(facts, snapshot, taken(found["snapshot_hash"], str, source, "snapshot_hash"), sampling,
                   _stage(data.get("first_stage"), source),
                   PrivacyStatement.from_plain(data["privacy"], source) if "privacy" in data else None)


def check_sweep(sweep: SweptAttribute, facts: Facts, source: object) -> None:
    """ValueError, naming the file (source) and the key, for a sweep that is of none of the attributes, or of no values.
    """
    key, names = f"{source}: sampling.sweep", facts.attribute_names or ()
    if not sweep.values:
        raise ValueError(f"{key}.values is empty, wanted those of {shown(sweep.name)}")
    if not 0 <= sweep.column < len(names):
        raise ValueError(f"{key}.column is {sweep.column}, and data names {len(names)} attributes")
    for what, wanted in (("name", names), ("unit", facts.attribute_units or ("",) * len(names))):
        if (got := getattr(sweep, what)) != wanted[sweep.column]:
            raise ValueError(f"{key}.{what} is {shown(got)}, data says {shown(wanted[sweep.column])} of attribute "
                             f"{sweep.column}")


def check_pairs(pairs: PairedClasses, is_swept: bool, facts: Facts, source: object) -> None:
    """ValueError, naming the file (source) and the key, for pairs of classes that there are not, or in a sweep."""
    key, count, names = f"{source}: sampling.pairs", len(pairs.classes), facts.attribute_names or ()
    if is_swept:
        raise ValueError(f"{key} is there beside sampling.sweep, wanted one of them")
    if count < 2 or len({*pairs.classes}) < count or len(pairs.numbers) != count:
        raise ValueError(f"{key} is of classes {shown(pairs.classes)} of numbers {shown(pairs.numbers)}, wanted two or "
                         "more that differ, and a number of each")
    if facts.class_names and [*pairs.classes] != [facts.class_names[number] if 0 <= number < len(facts.class_names) else
                                                  "" for number in pairs.numbers]:
        raise ValueError(f"{key}.classes are {shown(pairs.classes)}, data names {shown(list(facts.class_names))}")
    if (pairs.column is None) != (pairs.values is None) or len(pairs.values or pairs.classes) != count:
        raise ValueError(f"{key}.values are {shown(pairs.values)} of column {shown(pairs.column)}, wanted one of each "
                         "class, or neither")
    if pairs.column is not None and not 0 <= pairs.column < len(names):
        raise ValueError(f"{key}.column is {pairs.column}, and data names {len(names)} attributes")


def check_quality(quality: QualityCheck, source: object) -> None:
    """ValueError, naming the file (source) and the key, for a check of samples that cannot have been made."""
    key = f"{source}: sampling.quality"
    if not 1 <= quality.attempts <= MOST_ATTEMPTS:
        raise ValueError(f"{key}.attempts is {shown(quality.attempts)}, wanted 1 to {MOST_ATTEMPTS}")
    if odd := [name for name, span in quality.ranges.items() if len(span) != 2 or span[0] > span[1]]:
        raise ValueError(f"{key}.ranges: {shown(odd[0])} is not [lowest, highest]")


def _stage(found: object, source: object) -> SampleStage | None:
    """What a file says of the first stage of its latents; older ones say nothing."""
    if not found:
        return None
    known = dict(taken(found, Mapping[str, Any], source, "data.first_stage"))
    hash_ = taken(known.pop("hash", 0), str | None, source, "data.first_stage.hash")
    return SampleStage(hash_, LatentScaling.from_plain(known, source, "data.first_stage"))
