"""The report of drawn high doses of PET scans, beside what else can be made of their low doses.

Keys of its report.json, besides those of reporting.report and of its sections:
  samples.{paths, hashes, scans, slices, draws, snapshot, snapshot_hash, data, unit, seed}
  rivals.filter, rivals.early.{available, best, unit, values, errors, at_end}    how the rivals were set
  notes.[...]                                        what is to be known before the numbers are believed
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

import numpy as np

from edm3d.metrics.pet import ActivityLevels
from edm3d.reporting.html import html_facts
from edm3d.reporting.report import Frame
from edm3d.reporting.section import Context, Section
from edm3d.reporting.tables import aligned

LOW, FILTERED, EARLY, MEAN, DRAW, HIGH = METHODS = ("low", "filtered", "early", "mean", "draw", "high")
RIVALS = (LOW, FILTERED, EARLY)  # made of the low dose without a network
TITLES = {LOW: "low dose", FILTERED: "low dose, post-filtered", EARLY: "low dose, stopped early", HIGH: "high dose",
          DRAW: "one draw", MEAN: "posterior mean"}
AGAINST = {"phantom": "the phantom", "high": "the high-dose image"}


class ErrorWords(NamedTuple):
    """How a measure is written: for people, in its unit (None: that of the activities), with so many digits."""

    title: str
    unit: str | None
    digits: int


ERRORS = {"relative_l2": ErrorWords("relative L2 error", "", 3), "rmse": ErrorWords("RMSE", None, 3),
          "psnr": ErrorWords("PSNR", "dB", 2), "ssim": ErrorWords("SSIM", "", 3), "nmae": ErrorWords("NMAE", "", 3)}


class ScanScores(NamedTuple):
    """What was measured of N scans, NaN where there is nothing to measure.

    errors: by what images are held against [N,methods,ERRORS]; noise [N,methods]; count, uniform and truth [N,L] and
    image [N,methods,L]: sums over pixels of each level, of `uniform` those in uniform regions; histograms:
    ranks of the high dose by region [N,K+1]; crps: by region [N]; spread: of bins of the draws' standard deviation how
    many pixels, sums of variance and of squared error [B,3].
    """

    errors: dict[str, np.ndarray]
    noise: np.ndarray
    count: np.ndarray
    uniform: np.ndarray
    truth: np.ndarray
    image: np.ndarray
    histograms: dict[str, np.ndarray]
    crps: dict[str, np.ndarray]
    spread: np.ndarray


class Curve(NamedTuple):
    """What a rival was tried at: name of the setting and its unit, values [V], mean errors [V], the best value."""

    title: str
    unit: str
    values: Sequence[float]
    errors: Sequence[float]
    best: float


@dataclass(frozen=True, kw_only=True)
class EnhancementContext(Context):
    """What was measured: names and groups of the scans, methods that there are, levels, curves by rival, and images.

    against: what the methods are chosen and ordered by; images: those of a scan by its number, [*S] by method, and
    "phantom" and "std" where they are known; uncalibrated: why draws are not held against the high dose, "" where they
    are.
    """

    names: Sequence[str]
    groups: Sequence[str]
    methods: Sequence[str]
    draws: int
    against: str
    references: Sequence[str]
    levels: ActivityLevels
    curves: Mapping[str, Curve]
    images: Callable[[int], dict[str, np.ndarray]]
    uncalibrated: str = ""
    seed: int = 0
    notes: Sequence[str] = ()

    @property
    def unit(self) -> str:
        """Of the activities."""
        return self.layout.unit

    def title(self, method: str) -> str:
        """A method for people, with its setting."""
        if method in self.curves:
            curve = self.curves[method]
            return f"{TITLES[method]} ({curve.title} {curve.best:g}{' ' * bool(curve.unit)}{curve.unit})"
        if method == MEAN:
            return f"{TITLES[method]} of {self.draws} draw{'s' * (self.draws > 1)}"
        return TITLES[method]


def keys(context: EnhancementContext, name: str, ids: Sequence[str]) -> dict[str, Sequence[str]]:
    """Method, name and slice of every scan."""
    return {"method": [name] * len(ids), "scan": ids, "slice": context.groups}


def head(report: dict, facts: list[tuple[str, str]]) -> str:
    """Top of the page."""
    samples, notes = report["samples"], "".join(f"<p class=missing>{escape(line)}</p>" for line in report["notes"])
    draws = f"{samples['draws']} draw{'s' * (samples['draws'] > 1)}"
    number = (str(samples["scans"]), f"scans of {samples['slices']} slices, {draws} of each")
    return (f"<h1>PET dose enhancement</h1>\n<p class=\"lead\">{escape(report['title'])}, {escape(report['date'])}. "
            f"Activities in {escape(unit_words(samples['unit']))}.</p>\n"
            f"{html_facts([*facts, number])}{notes}")


def unit_words(unit: str) -> str:
    """A unit of activities for people."""
    return "units of the phantoms" if unit in ("", "activity") else unit


def origin(report: dict) -> list[list[str]]:
    """What was evaluated."""
    samples = report["samples"]
    return [*([f"samples {i}" if i else "samples", f"{path} ({hash_[:16]})"]
              for i, (path, hash_) in enumerate(zip(samples["paths"], samples["hashes"], strict=True))),
            ["snapshot", f"{samples['snapshot']} ({samples['snapshot_hash'][:16]})"], ["data", samples["data"]]]


def text(sections: Sequence[Section], report: dict) -> str:
    """The table of methods, and what all sections say, for the terminal."""
    table = aligned([row for section in sections for row in section.rows(report)])
    return "\n".join([table, "", *(line for section in sections for line in section.lines(report)), *report["notes"]])


def frame_of(methods: Sequence[str]) -> Frame:
    """What stands around the sections."""
    return Frame(methods, keys, head, origin)
