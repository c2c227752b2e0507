"""Which class a case belongs to by its measurements: the class whose mean is nearest."""

import numpy as np


def nearest_class(values: np.ndarray, classes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Class [M] of others [M,D] by the nearest mean of values [N,D] of classes [N] (whole numbers).

    Distances are in standard deviations within the classes, one per column; columns without spread are left out, and
    undefined values (NaN) lie at the mean of all.
    """
    known = np.unique(classes)
    centre = np.nanmean(values, axis=0)
    filled, asked = (np.where(np.isfinite(part), part, centre) for part in (values, others))
    means = np.stack([filled[classes == c].mean(axis=0) for c in known])
    spread = np.sqrt(np.mean((filled - means[np.searchsorted(known, classes)]) ** 2, axis=0))
    used = spread > 0
    distance = (((asked[:, None, used] - means[None][..., used]) / spread[used]) ** 2).sum(axis=2)
    return known[distance.argmin(axis=1)]


def nearest_class_left_out(values: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Class [N] of each of values [N,D] by the means of all others; each class has two cases or more."""
    rows = np.arange(len(values))
    return np.concatenate([nearest_class(values[rows != i], classes[rows != i], values[i:i + 1]) for i in rows])
