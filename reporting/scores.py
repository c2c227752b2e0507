"""What runs of downstream networks reach on test cases: scores of every case, and measures over them.

Weights [R,N] say how often each of N cases counts, in R resamples; None: each once, R = 1.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from edm3d.metrics.bootstrap import weighted_means
from edm3d.metrics.classification import class_aurocs

Measured = dict[str, np.ndarray]  # by measure, [R,1+K]: over all classes, then of each


class MeasureWords(NamedTuple):
    """How a measure is written: for people, in its unit, with so many digits, and which way is better."""

    title: str
    unit: str
    digits: int
    higher: bool


MEASURES = {"dice": MeasureWords("Dice", "", 3, True), "hd95": MeasureWords("Hausdorff 95 %", "mm", 2, False),
            "hd": MeasureWords("Hausdorff", "mm", 2, False), "accuracy": MeasureWords("accuracy", "", 3, True),
            "auroc": MeasureWords("AUROC", "", 3, True)}


class VoxelScores(NamedTuple):
    """Of a run, by case and class but the first [N,K]: distances in mm, and whether truth and prediction have it.

    dice is 0 for a class in one of the two alone.
    """

    dice: np.ndarray
    hd95: np.ndarray
    hd: np.ndarray
    in_truth: np.ndarray
    in_found: np.ndarray

    def measured(self, weights: np.ndarray | None = None) -> Measured:
        """Means over cases: of Dice over those that have the class, of distances over those where both maps have it.

        The mean of distances over classes is NaN where one of them is `never_found`.
        """
        known, undefined = np.where(self.in_truth, self.dice, np.nan), self.never_found().any()
        found = {name: with_mean(values, weights)
                 for name, values in (("dice", known), ("hd95", self.hd95), ("hd", self.hd))}
        for name in ("hd95", "hd"):
            found[name][:, 0] = np.nan if undefined else found[name][:, 0]
        return found

    def never_found(self) -> np.ndarray:
        """Which classes [K] truth has and no prediction of a case that has it, so that they have no distance."""
        return self.in_truth.any(0) & ~(self.in_truth & self.in_found).any(0)

    def empty(self) -> dict[str, np.ndarray]:
        """How many cases [K] have a class in truth alone, in the prediction alone, and in neither."""
        truth, found = self.in_truth, self.in_found
        return {"missed": (truth & ~found).sum(0), "invented": (~truth & found).sum(0),
                "absent": (~truth & ~found).sum(0)}

    def of_cases(self) -> np.ndarray:
        """How well each case [N] is done: the mean Dice of the classes that it has, NaN where it has none."""
        return weighted_means(np.where(self.in_truth, self.dice, np.nan).T)[0]


class ImageScores(NamedTuple):
    """Of a run, by case: true classes [N] and log-odds [N,K], each class against all others.

    Cases are ranked by log-odds: probabilities of sure networks are 0 and 1, and tie.
    """

    truth: np.ndarray
    log_odds: np.ndarray

    @property
    def scores(self) -> np.ndarray:
        """Probabilities [N,K]."""
        return special.expit(self.log_odds)

    @property
    def found(self) -> np.ndarray:
        """The class [N] of the highest score."""
        return self.log_odds.argmax(1)

    def measured(self, weights: np.ndarray | None = None) -> Measured:
        """Accuracy, of a class the share of its cases that are found; and AUROC, of a class against all others."""
        right = (self.found == self.truth).astype(np.float64)[:, None]
        own = np.where(self.truth[:, None] == np.arange(self.log_odds.shape[1]), right, np.nan)
        return {"accuracy": weighted_means(np.concatenate([right, own], axis=1), weights),
                "auroc": mean_first(class_aurocs(self.log_odds, self.truth, weights),
                                    class_aurocs(self.log_odds, self.truth))}

    def of_cases(self) -> np.ndarray:
        """How well each case [N] is done: the score of its true class."""
        return np.take_along_axis(self.scores, self.truth[:, None], axis=1)[:, 0]


Scores = VoxelScores | ImageScores


def with_mean(values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Mean over classes, and means of each [R,1+K], of values [N,K] of cases."""
    return mean_first(weighted_means(values, weights), weighted_means(values))


def mean_first(by_class: np.ndarray, of_all: np.ndarray) -> np.ndarray:
    """Values [R,K] behind their mean over the classes that have one over all cases [1,K]; NaN where one of these has
    none in a resample.
    """
    known = np.isfinite(of_all[0])
    mean = by_class[:, known].mean(1, keepdims=True) if known.any() else np.full((len(by_class), 1), np.nan)
    return np.concatenate([mean, by_class], axis=1)


def flat(measured: Mapping[str, np.ndarray]) -> np.ndarray:
    """All measures side by side [R,S]."""
    return np.concatenate(list(measured.values()), axis=1)


def unflat(values: np.ndarray, like: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of values [S] those [1+K] of every measure, as in `like`."""
    ends = np.cumsum([columns.shape[1] for columns in like.values()])
    return dict(zip(like, np.split(values, ends[:-1]), strict=True))


def letter(place: int) -> str:
    """By what a row is named where there is no room for more: A, B, ..., Z, A1, ..."""
    return chr(ord("A") + place % 26) + str(place // 26 or "")


def chosen(values: Sequence[float], most: int = 3) -> dict[str, list[int]]:
    """Numbers of the worst, median and best cases by a value that is better the higher, NaN aside; none comes twice."""
    order = [int(i) for i in np.argsort(values, kind="stable") if np.isfinite(values[i])]
    count = min(most, max(1, len(order) // 3))
    middle = (len(order) - count) // 2
    places = {"worst": order[:count], "best": order[::-1][:count], "median": order[middle:middle + count]}
    seen: set[int] = set()
    kept = {}
    for name, cases in places.items():
        kept[name] = [i for i in cases if i not in seen]
        seen.update(kept[name])
    return {name: kept[name] for name in ("worst", "median", "best") if kept[name]}
