"""Frechet distance between two sets of features, as of normal distributions of their means and covariances."""

import numpy as np


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of features [N,d] and [M,d], covariances over N - 1 and M - 1.

    Of any N and M from 2 on: the trace of the root is the sum of the singular values of X_a X_b^T / ((N-1)(M-1))^(1/2),
    X without their means, so no covariance is rooted, and equal sets are 0 apart however few they are. Heusel et al.
    2017; biased upwards by the smaller the set, so only distances of sets of equal sizes compare. ValueError for fewer
    than two items, other widths, or numbers that are not finite.
    """
    a, b = (np.asarray(x, dtype=np.float64) for x in (a, b))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"Frechet distance of features {list(a.shape)} and {list(b.shape)}: wanted two sets of at "
                         "least 2 items, of one width")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("Frechet distance of features that are not finite")
    shift = a.mean(0) - b.mean(0)
    x, y = ((part - part.mean(0)) / np.sqrt(len(part) - 1) for part in (a, b))
    roots = np.linalg.svd(smaller(x) @ smaller(y).T, compute_uv=False)
    return float(shift @ shift + np.square(x).sum() + np.square(y).sum() - 2 * roots.sum())


def smaller(x: np.ndarray) -> np.ndarray:
    """A matrix [min(N,d),d] of the same x^T x as x [N,d]."""
    return np.linalg.qr(x, mode="r") if len(x) > x.shape[1] else x
