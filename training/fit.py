"""The widest network, the largest batch or the largest volumes that a card takes, found by plan after plan."""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from math import gcd
from typing import NamedTuple

from edm3d.training.chain import patches_of
from edm3d.training.plan import plan_step
from edm3d.training.plan_fit import apply_override, gib, on_card, room_of
from edm3d.training.tasks import TASKS
from edm3d.training.tasks.base import PlannedData, build_augment

WIDTHS = ("model_channels", "channels", "filters", "init_features")  # keys of networks that say how wide they are
STEP = 8  # widths are multiples of it, as far as they were before
MOST = 16  # times as wide as the experiment, and as large along every axis: no more is tried
MOST_IMAGES = 1024


class Candidate(NamedTuple):
    """Keys with the values to plan for, the shape [C,*S] of an item, and how all of that is typed."""

    sets: Mapping[str, object]
    shape: tuple[int, ...]
    typed: str


class Found(NamedTuple):
    """A candidate as it is typed, and the bytes of its peak."""

    typed: str
    peak: int


class Fit(NamedTuple):
    """Of what: the largest candidate that fits a card, and the least that does not, None where none was tried."""

    what: str
    largest: Found
    too_much: Found | None


def fit(config: dict, source: PlannedData, what: str, card: float, ranks: int = 1) -> Fit:
    """The largest `what` (a key of KINDS) of which a step fits a card of `card` GiB; ValueError where none does."""
    config = on_card(config, card, ranks)

    def peak(candidate: Candidate) -> int:
        tried = deepcopy(config)
        for key, value in candidate.sets.items():
            apply_override(tried, key, value)
        return plan_step(tried["training"], source.resized(candidate.shape)).peak

    candidates = list(KINDS[what](config["training"], source, ranks))
    largest, too_much = search(candidates, peak, room_of(card))
    if largest is None:
        raise ValueError(f"--fit {what}: not even {too_much.typed} fits --card {card:g}: a step takes "
                         f"{gib(too_much.peak)} and a tenth stays free; plan without --fit says what makes it smaller")
    return Fit(what, largest, too_much)


def search(candidates: list[Candidate], peak: Callable[[Candidate], int], room: float
           ) -> tuple[Found | None, Found | None]:
    """The last of rising candidates whose peak is within the room, and the first after it, by steps that double.

    Those that `peak` refuses are left out; ValueError, its own, where that are all.
    """
    candidates, low, stride = list(candidates), -1, 1
    high, error, best, over = len(candidates), None, None, None
    while high - low > 1:
        middle = min(low + stride, (low + high) // 2)
        try:
            found = Found(candidates[middle].typed, peak(candidates[middle]))
        except ValueError as e:
            error = e
            del candidates[middle]
            high -= 1
            continue
        if found.peak <= room:
            low, best, stride = middle, found, stride * 2
        else:
            high, over = middle, found
    if best is None and over is None:
        raise error or ValueError("there is nothing to try")
    return best, over


# ---- what is tried ----


def widths(training: dict, source: PlannedData, ranks: int) -> Iterator[Candidate]:
    """The network at other widths, all levels by one factor, from a narrow one to MOST times its own."""
    key, value = width_of(training["network"], "training.network")
    now = value if isinstance(value, list) else [value]
    unit = gcd(*now)
    step = gcd(unit, STEP)
    for width in range(step, MOST * unit + 1, step):
        scaled = [n // unit * width for n in now]
        scaled = scaled if isinstance(value, list) else scaled[0]
        yield Candidate({key: scaled}, source.shape, typed(key, scaled))


def width_of(node: dict, path: str) -> tuple[str, int | list[int]]:
    """Key and value of a network's width, its own or that of a network within; ValueError where there is none."""
    for name in WIDTHS:
        if name in node:
            return f"{path}.{name}", node[name]
    for name, inner in node.items():
        if isinstance(inner, dict):
            return width_of(inner, f"{path}.{name}")
    raise ValueError(f"--fit width: {path} has none of {', '.join(WIDTHS)}, by which its width would be changed")


def batches(training: dict, source: PlannedData, ranks: int) -> Iterator[Candidate]:
    """Images at a time: what divides the rank's share of the batch, it whole, and larger batches."""
    share = training["options"]["batch_size"]
    for count in range(1, share):
        if share % count == 0 and not training["options"]["graphs"]:
            key = "training.options.batch_gpu"
            yield Candidate({key: count}, source.shape, typed(key, count))
    for count in range(share, max(share, MOST_IMAGES) + 1):
        whole = typed("training.options.batch_size", count * ranks)
        yield Candidate({"training.options.batch_size": count, "training.options.batch_gpu": None}, source.shape,
                        f"{whole} training.options.batch_gpu=null")


def sizes(training: dict, source: PlannedData, ranks: int) -> Iterator[Candidate]:
    """Items of the same proportions, as near as the network's strides allow; patches where it trains on patches."""
    augment = build_augment(training, source)
    cut = patches_of(augment)
    on_patches = cut is not None
    now, key = (cut[1].size, f"{cut[0]}.size") if cut else (source.shape[1:], "training.dataset.size")
    factor = TASKS[training["task"]].factor(training, source)
    longest = max(range(len(now)), key=lambda axis: now[axis])
    largest = source.shape[1:] if on_patches else [MOST * n for n in now]
    for count in range(1, largest[longest] // factor[longest] + 1):
        scale = count * factor[longest] / now[longest]
        size = [max(round(n * scale / f), 1) * f for n, f in zip(now, factor, strict=True)]
        if on_patches and any(s > most for s, most in zip(size, largest, strict=True)):
            return
        shape = source.shape if on_patches else (source.shape[0], *size)
        if on_patches or "size" in training["dataset"]:
            yield Candidate({key: size}, shape, typed(key, size))
        else:  # of latents, which are as large as their volumes make them
            yield Candidate({}, shape, f"--shape {' '.join(map(str, shape))}")


def typed(key: str, value: object) -> str:
    """An override as the command line takes it."""
    return f"{key}={str(value).replace(' ', '')}"


KINDS = {"width": widths, "batch": batches, "size": sizes}


# ---- in words ----


def plain(found: Fit, experiment: str, source: PlannedData, card: float) -> dict:
    """What was found, as plain data; peaks in bytes."""
    largest, too_much = (None if part is None else {"overrides": part.typed, "peak": part.peak} for part in found[1:])
    return {"experiment": experiment, "shape": list(source.shape), "fit": found.what, "card_gib": card,
            "largest": largest, "too_much": too_much}


def lines(found: Fit, experiment: str, source: PlannedData, card: float) -> Iterator[str]:
    """What was found, for people."""
    names = {"width": "Widest network", "batch": "Largest batch per card", "size": "Largest items"}
    yield f"{experiment} on items of {' x '.join(map(str, source.shape))}"
    yield f"{names[found.what]} of which a step fits {card:g} GiB, of which a tenth stays free:"
    yield f"    {gib(found.largest.peak)} fits     {found.largest.typed}"
    if found.too_much is None:
        yield "    more was not tried"
    else:
        yield f"    {gib(found.too_much.peak)} too much {found.too_much.typed}"
