"""Patterns of names, `{id}_t1`: what stands for the id and for the channel in a file's name, and which would fit."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from itertools import product, takewhile
from pathlib import Path

from edm3d.formats.nifti import suffix_of
from edm3d.utils.checks import listed

IMAGES, LABELS, MAPS = "--image-pattern", "--label-pattern", "--map-pattern"
NOUNS = {IMAGES: "image", LABELS: "label map", MAPS: "map"}  # what each stands for
ANY, NUMBERED = "{id}", "{id}_{channel}"
SEPARATORS = "_-."
LABEL_WORDS = ("seg", "label", "mask", "gt")  # in the last word of a label map's name, as most people call it


class Pattern:
    """A pattern of names without suffix: `{id}` once, in those of images also `{channel}`, the rest as it stands.

    The id is as long as it can be. channels: the only ones there are, () for any; digits: only numbers of four digits.
    ValueError naming the option for a pattern that is none.
    """

    def __init__(self, option: str, text: str, channels: Sequence[str] = (), *, digits: bool = False):
        text = unicodedata.normalize("NFC", text)  # as the names are
        self.option, self.text = option, text
        fields = ("{id}", "{channel}") if option == IMAGES else ("{id}",)
        parts = re.split(r"(\{[^{}]*\})", text)
        for part in parts:
            if ("{" in part or "}" in part) and part not in fields:
                raise ValueError(f"{option} {text}: {part!r} means nothing in it; wanted {' and '.join(fields)}, and "
                                 "the rest as it stands in the names")
        if (count := parts.count("{id}")) != 1 or parts.count("{channel}") > 1:
            got = f"{{id}} stands in it {count} times" if count != 1 else "{channel} stands in it more than once"
            raise ValueError(f"{option} {text}: {got}, wanted once, as in '{{id}}_t1'")
        if suffix := suffix_of(Path(text)):
            raise ValueError(f"{option} {text}: names go without their suffix; wanted '{text[:-len(suffix)]}'")
        self.has_channel = "{channel}" in parts
        self.literal = sum(len(part) for part in parts if part not in fields)
        longest = sorted(channels, key=len, reverse=True)
        channel = r"\d{4}" if digits else "|".join(map(re.escape, longest)) or ".+?"
        groups = {"{id}": "(?P<id>.+)", "{channel}": f"(?P<channel>{channel})"}
        self.regex = re.compile("".join(groups.get(part, re.escape(part)) for part in parts), re.DOTALL)

    def read(self, stem: str) -> tuple[str, str] | None:
        """Id and channel of a name, '' without one; None where it does not fit."""
        match = self.regex.fullmatch(stem)
        return match and (match["id"], match["channel"] if self.has_channel else "")

    def __str__(self) -> str:
        return f"{self.option} '{self.text}'"

    def by_id(self, stems: Iterable[str]) -> dict[str, set[str]]:
        """The channels of each id, of the names that fit."""
        found: dict[str, set[str]] = defaultdict(set)
        for name in filter(None, map(self.read, stems)):
            found[name[0]].add(name[1])
        return found


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
