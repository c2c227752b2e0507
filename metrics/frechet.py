"""Frechet distance between two sets of features, as of normal distributions of their means and covariances."""

import numpy as np

JITTER = 1e-10  # of the mean variance, so that a covariance of channels without any has a Cholesky factor


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
    x, y = centred(a), centred(b)
    roots = np.linalg.svd(smaller(x) @ smaller(y).T, compute_uv=False)
    return float(shift @ shift + np.square(x).sum() + np.square(y).sum() - 2 * roots.sum())


def resampled_frechet(a: np.ndarray, b: np.ndarray) -> float:
    """The same of float64 features that are known to be sound, within 1e-4 of their variance and several times as fast.

    Where items outnumber channels, through covariances: the sum of the roots of the eigenvalues of L^T C_b L, C_a =
    L L^T. For many resamples of one set.
    """
    if min(len(a), len(b)) <= a.shape[1]:
        return frechet_distance(a, b)
    shift = a.mean(0) - b.mean(0)
    first, second = (x.T @ x for x in (centred(a), centred(b)))
    total = np.trace(first) + np.trace(second)
    if np.trace(first) == 0:
        return float(shift @ shift + total)
    factor = np.linalg.cholesky(first + JITTER * np.trace(first) / len(first) * np.eye(len(first)))
    squares = np.linalg.eigvalsh(factor.T @ second @ factor)
    return float(shift @ shift + total - 2 * np.sqrt(squares.clip(0)).sum())


def centred(x: np.ndarray) -> np.ndarray:
    """Features [N,d] without their mean, scaled so that x^T x is their covariance."""
    return (x - x.mean(0)) / np.sqrt(len(x) - 1)


def smaller(x: np.ndarray) -> np.ndarray:
    """A matrix [min(N,d),d] of the same x^T x as x [N,d]."""
    return np.linalg.qr(x, mode="r") if len(x) > x.shape[1] else x
