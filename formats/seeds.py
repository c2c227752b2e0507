"""Lists of seeds, as they are typed."""

import itertools
import re

MOST_SEEDS = 1_000_000


def parse_seeds(text: str) -> list[int]:
    """Numbers of a list like `1,2,5-10`, in order; ValueError for anything else. `5-3` is empty, `-3` minus three."""
    seeds: list[int] = []
    for part in text.split(","):
        first, last = _span(part, text)
        if len(seeds) + last - first >= MOST_SEEDS:
            raise ValueError(f"seeds={shorten(text)}: more than {MOST_SEEDS:,} seeds")
        seeds.extend(range(first, last + 1))
    return seeds


def _span(part: str, text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,18})-(\d{1,18})|\s*([+-]?\d{1,18})\s*", part, re.ASCII)
    if match is None:
        long = " of at most 18 digits" if re.search(r"\d{19}", part) else ""
        raise ValueError(f"seeds={shorten(text)}: {shorten(part)} is neither a number nor a range like 5-10{long}")
    return (int(match[3]), int(match[3])) if match[3] else (int(match[1]), int(match[2]))


def shorten(text: str) -> str:
    """The text as a message may quote it."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def requested_seeds(text: object) -> list[int]:
    """Sorted seeds to generate; ValueError when the list is empty, negative, doubled or no list of numbers."""
    bare = re.sub(r" *([,-]) *", r"\1", re.sub(r"^\[(.*)\]$", r"\1", str(text).strip()))
    try:
        seeds = parse_seeds(bare)
    except ValueError as e:
        raise ValueError(f"sampling.{e}") from e
    given = f"sampling.seeds={shorten(str(text))}"
    if not seeds:
        raise ValueError(f"{given}: the list is empty; write ranges upward, as in 2-5")
    seeds.sort()
    if seeds[0] < 0:
        raise ValueError(f"{given}: seed {seeds[0]} is negative; wanted 0 or more")
    for seed, following in itertools.pairwise(seeds):
        if seed == following:
            raise ValueError(f"{given}: seed {seed} is there twice")
    return seeds
