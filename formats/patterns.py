"""Patterns of names, `{id}_t1`: what stands for id, class and channel in a file's name, and which would fit."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from itertools import product, takewhile
from pathlib import Path
from typing import NamedTuple

from edm3d.formats.folders import stem_of
from edm3d.formats.nifti import suffix_of
from edm3d.utils.checks import listed

IMAGES, LABELS, MAPS = "--image-pattern", "--label-pattern", "--map-pattern"
NOUNS = {IMAGES: "image", LABELS: "label map", MAPS: "map"}  # what each stands for
ANY, NUMBERED = "{id}", "{id}_{channel}"
FIELDS = ("{id}", "{class}", "{rest}")  # of all patterns; of images also:
CHANNEL = "{channel}"
SEPARATORS = "_-."
LABEL_WORDS = ("seg", "label", "mask", "gt")  # in the last word of a label map's name, as most people call it


class Name(NamedTuple):
    """What a pattern reads in a name: the id of the volume, its channel and class, '' without one, and its patient.
    """

    id: str
    channel: str
    class_name: str
    patient: str


class Pattern:
    """A pattern of names without suffix: `{id}` once, the rest as it stands; in those of images also `{channel}`.

    With `{class}`, or `{rest}` for anything, a volume goes by all that stands from the first of them and `{id}` to the
    last, without the channel, and `{id}` is the patient. The id is as long as it can be. `/` parts folders from names.
    channels, classes: the only ones there are, () for any; digits: only numbers of four digits as channels. ValueError
    naming the option for a pattern that is none.
    """

    def __init__(self, option: str, text: str, channels: Sequence[str] = (), classes: Sequence[str] = (), *,
                 digits: bool = False):
        text = unicodedata.normalize("NFC", text)  # as the names are
        self.option, self.text = option, text
        fields = (*FIELDS, CHANNEL) if option == IMAGES else FIELDS
        parts = [part for part in re.split(r"(\{[^{}]*\})", text) if part]
        self._check(parts, fields)
        self.has_channel, self.has_class = CHANNEL in parts, "{class}" in parts
        self.names_patients = self.has_class or "{rest}" in parts
        self.literal = sum(len(part) for part in parts if part not in fields)
        any_ = "[^/]+"
        inner = {"{id}": any_, "{rest}": any_, "{class}": _one_of(classes),
                 CHANNEL: r"\d{4}" if digits else _one_of(channels)}
        self.regex = re.compile("".join(f"(?P<{part[1:-1]}>{inner[part]})" if part in fields else re.escape(part)
                                        for part in parts), re.DOTALL)
        self.of_id = _between(parts)

    def _check(self, parts: Sequence[str], fields: Sequence[str]) -> None:
        """ValueError for what means nothing, for fields that are there too often, and for a suffix."""
        where = f"{self.option} {self.text}"
        for part in parts:
            if ("{" in part or "}" in part) and part not in fields:
                raise ValueError(f"{where}: {part!r} means nothing in it; wanted {', '.join(fields)}, and "
                                 "all else as it stands in the names")
        if (count := parts.count("{id}")) != 1:
            raise ValueError(f"{where}: {{id}} stands in it {count} times, wanted once, as in '{{id}}_t1'")
        if double := [field for field in fields if parts.count(field) > 1]:
            raise ValueError(f"{where}: {double[0]} stands in it more than once, wanted once, as in '{{id}}_t1'")
        if not all(part.strip(".") for part in self.text.split("/")):
            raise ValueError(f"{where}: wanted names of folders and files between '/', as in '{{class}}/{{id}}'")
        if suffix := suffix_of(Path(self.text)):
            raise ValueError(f"{where}: names go without their suffix; wanted '{self.text[:-len(suffix)]}'")

    def read(self, stem: str, below: Path | None = None) -> Name | None:
        """What a name says; None where it does not fit. below: the path of the file below its folder, for patterns with
        '/', which are held against its last parts.
        """
        depth = self.text.count("/")
        if depth:
            folders = below.parts[:-1] if below else ()
            if len(folders) < depth:
                return None
            stem = "/".join((*(unicodedata.normalize("NFC", name) for name in folders[-depth:]), stem_of(below)))
        match = self.regex.fullmatch(stem)
        if match is None:
            return None
        found = match.groupdict()
        id_ = "".join(found[part[1:-1]] if part.startswith("{") else part for part in self.of_id).replace("/", "_")
        return Name(id_, found.get("channel", ""), found.get("class", ""), found["id"])

    def __str__(self) -> str:
        return f"{self.option} '{self.text}'"

    def by_id(self, stems: Iterable[str]) -> dict[str, set[str]]:
        """The channels of each id, of the names that fit."""
        found: dict[str, set[str]] = defaultdict(set)
        for name in filter(None, map(self.read, stems)):
            found[name.id].add(name.channel)
        return found


def _one_of(names: Sequence[str]) -> str:
    """A regular expression of these names, the longest first; of any where there are none."""
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "[^/]+?"


def _between(parts: Sequence[str]) -> list[str]:
    """The parts that an id is made of: from the first field to the last, channels aside, with what parts them."""
    kept: list[str] = []
    for i, part in enumerate(parts):
        if part in FIELDS:
            kept += [parts[i - 1]] * (bool(kept) and not parts[i - 1].startswith("{")) + [part]
    return kept


# ---- which would fit ----


def proposal(images: Collection[str], others: Collection[str], unpaired: int, option: str | None = LABELS) -> str:
    """What to give so that fewer images and others are unpaired; '' for no idea.

    option: of the pattern of the others, LABELS or MAPS; None: they are rows of a table.
    """
    best = ANY, ANY
    texts = _candidates(images, IMAGES), _candidates(others, option) if option else [ANY]
    ids = [{text: Pattern(IMAGES, text).by_id(stems).keys() for text in each}
           for each, stems in zip(texts, (images, others))]
    for pair in sorted(product(*texts), key=lambda pair: (NUMBERED in pair, sum(map(len, pair)))):
        one, other = (found[text] for found, text in zip(ids, pair))
        if one & other and len(one ^ other if option else one - other) < unpaired:
            best, unpaired = pair, len(one ^ other if option else one - other)
    sides = zip((IMAGES, option), best, (images, others))
    said = [f"{NOUNS[each]}s {_ends(text, stems)}" for each, text, stems in sides if text != ANY]
    given = [f"{each} '{text}'" for each, text in zip((IMAGES, option), best) if text != ANY]
    return f"; {', '.join(said)}: give {' '.join(given)}" if said else ""


def _candidates(stems: Collection[str], option: str) -> list[str]:
    """Patterns that all of these names fit: a common end or beginning, and of images channels that all ids have."""
    stems = sorted(stems)
    head, tail = _beginning(stems), _beginning([stem[::-1] for stem in stems])[::-1]
    found = [ANY, *(ANY + tail[i:] for i, letter in enumerate(tail) if letter in SEPARATORS),
             *(head[:i + 1] + ANY for i, letter in enumerate(head) if letter in SEPARATORS)]
    if option == IMAGES and all("_" in stem for stem in stems):
        channels = list(Pattern(IMAGES, NUMBERED).by_id(stems).values())
        found += [NUMBERED] if channels and all(each == channels[0] for each in channels) else []
    return [text for text in found if not set("{}") & set(text.replace(ANY, "").replace("{channel}", ""))]


def _beginning(stems: Sequence[str]) -> str:
    """What names have in common from the first letter on."""
    return "".join(letters[0] for letters in takewhile(lambda letters: len(set(letters)) == 1, zip(*stems)))


def _ends(text: str, stems: Collection[str]) -> str:
    """How names begin or end that fit a pattern."""
    if text == NUMBERED:
        return f"end in {listed(sorted({'_' + stem.rpartition('_')[2] for stem in stems}))}"
    return f"end in {text.removeprefix(ANY)}" if text.startswith(ANY) else f"begin with {text.removesuffix(ANY)}"


def told_apart(stems: Collection[str]) -> str:
    """What to give for a folder that by its names holds label maps beside images, '' where it does not look so."""
    labels = [stem for stem in stems if any(word in stem.rpartition("_")[2].lower() for word in LABEL_WORDS)]
    images = set(stems) - set(labels)
    return proposal(images, labels, len(stems)) if images and labels else ""


def is_of_label_maps(folder: str) -> bool:
    """Whether a folder by its name holds label maps: labels, labelsTr, masks, segmentations, gt, sector_annotations."""
    words = r"(?i:labels?|masks?|segs?|segmentations?|gts?|(ground[_-]?)?truths?|annotations?|contours?|rois?)"
    return re.search("(?:^|[_-])" + words + "(?![a-z])", folder) is not None


def several_of_one(stems: Collection[str]) -> str:
    """The channels that names end in where all of several ids have the same ones, as words; '' otherwise."""
    if NUMBERED not in _candidates(stems, IMAGES):
        return ""
    found = Pattern(IMAGES, NUMBERED).by_id(stems)
    channels = sorted(next(iter(found.values())))
    alike = len(found) > 1 and len(channels) > 1 and not any(channel.isdecimal() for channel in channels)
    return listed(f"_{channel}" for channel in channels) if alike else ""
