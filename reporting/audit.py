"""What the audit for copies and membership finds: what its sections show."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from edm3d.metrics.copies import Nearest, Threshold, threshold


class Planted(NamedTuple):
    """Copies of a kind that the audit made itself: distances [P] of them, and whether each was given its own original.
    """

    distances: np.ndarray
    right: np.ndarray


class ClosePair(NamedTuple):
    """A sample and its nearest training volume, moved to where the sample is, both [C,*S]; numbers and distance."""

    sample: np.ndarray
    training: np.ndarray
    number: int
    index: int
    distance: float


class Distances(NamedTuple):
    """Of samples to their nearest training volume, by features: index [N], distance [N], and the distances of held-out
    volumes [H]. others: of training volumes to their nearest other one [U]. planted: by kind.
    """

    index: np.ndarray
    samples: np.ndarray
    held_out: np.ndarray
    others: np.ndarray = np.zeros(0)
    planted: Mapping[str, Planted] = MappingProxyType({})


def limit_of(held_out: np.ndarray, others: np.ndarray) -> Threshold | None:
    """What is near, by distances of held-out volumes to training ones and of training ones to others; None where none
    is held out.

    The latter say the same of what is usual, and are more: of few distances no 1 in 100 is known.
    """
    return threshold(np.concatenate([held_out, others])) if len(held_out) else None


class Copies(NamedTuple):
    """The nearest training volume of each sample, and what says how near is too near.

    held: numbers of the real volumes that are held out, left_out: how many others were training volumes. others:
    distances [U] of training volumes to their nearest other one. limit: None where none is held out. planted: by kind,
    not_planted: kinds that were not, and why. equal: samples that equal a training volume; twins: the nearest other
    sample of each, or None for fewer than 2; equal_twins: samples that equal one before them; floor_twins: the same
    distances among held-out volumes. latent: or why not.
    """

    train_ids: Sequence[str]
    nearest: Sequence[Nearest]
    held: Sequence[int]
    held_distances: np.ndarray
    others: np.ndarray
    left_out: int
    limit: Threshold | None
    planted: Mapping[str, Planted]
    not_planted: Mapping[str, str]
    equal: int
    twins: Sequence[Nearest] | None
    equal_twins: int
    floor_twins: np.ndarray
    latent: Distances | str
    pairs: Sequence[ClosePair]
    seconds: float


class Attack(NamedTuple):
    """An AUC of telling training from held-out volumes, and its interval."""

    auc: float
    low: float
    high: float


class Membership(NamedTuple):
    """An attack on the loss of the denoiser: by the mean of all levels, relative to how far a volume is from the mean
    of all, and by single noise levels. hidden: parts of the condition that the network was not told. by_word: whether
    the user alone says that these are the training volumes.
    """

    mean: Attack
    relative: Attack
    by_sigma: Mapping[float, Attack]
    members: int
    held_out: int
    draws: int
    hidden: Sequence[str]
    seconds: float
    by_word: bool = False


class Audit(NamedTuple):
    """Both, or why they are not there. private: training volumes are private; shown: pictures of them are all the same.
    """

    copies: Copies | str
    membership: Membership | str
    private: bool = False
    shown: bool = True
