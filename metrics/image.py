"""Likeness of images."""

import numpy as np
import torch
from scipy import ndimage

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, MS-SSIM, finest scale first


def psnr(a: np.ndarray, b: np.ndarray, data_range: float) -> float:
    """Peak signal-to-noise ratio in dB of two arrays of one shape; inf for equal ones."""
    if a.shape != b.shape or a.size == 0:
        raise ValueError(f"psnr of arrays of shapes {a.shape} and {b.shape}: wanted one shape and at least one value")
    error = np.mean((np.asarray(a, dtype=np.float64) - b) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(data_range**2 / error))


def ssim(a: np.ndarray, b: np.ndarray, data_range: float, window: int = 7) -> float:
    """Structural similarity (Wang et al. 2004) of two images [*S], 2D or 3D, over Gaussian windows; 1 for equal ones.

    ValueError for sides that are shorter than the window.
    """
    from monai.metrics import SSIMMetric  # here, since importing MONAI takes seconds

    if min(a.shape) < window:
        raise ValueError(f"SSIM of size {a.shape}: wanted sides of at least {window}, the window")
    first, second = (torch.from_numpy(np.array(x, dtype=np.float32))[None, None] for x in (a, b))
    return float(SSIMMetric(a.ndim, data_range=data_range, win_size=window)(first, second))


def gradient_energy(image: np.ndarray) -> float:
    """Mean over the voxels of an image [*S] of the squared differences to the next one, summed over the axes."""
    values = np.asarray(image, dtype=np.float64)
    return float(sum(np.square(np.diff(values, axis=axis)).sum() for axis in range(values.ndim)) / values.size)


def ms_ssim_pairs(volumes: np.ndarray, *, num_pairs: int, data_range: float, seed: int = 0, scales: int = 3,
                  window: int = 7) -> np.ndarray:
    """MS-SSIM [P] of random pairs of different items of volumes [N, C, *S] (2D or 3D); the more diverse, the lower.

    P = num_pairs, or all N(N-1)/2 pairs if that is fewer; no pair comes twice. The weights are those of the paper for
    the finest scales, scaled to sum 1. Raises ValueError for fewer than two items and for sides that are too short:
    at the coarsest of the scales a side must still hold the window.
    """
    N, C, *S = volumes.shape
    if N < 2:
        raise ValueError(f"MS-SSIM among {N} items: wanted at least 2")
    least = window * 2 ** (scales - 1)
    if min(S) < least:
        raise ValueError(f"MS-SSIM of size {tuple(S)}: wanted sides of at least {least} for scales={scales}, "
                         f"window={window}; lower one of them")
    first, second = np.triu_indices(N, k=1)
    chosen = np.random.default_rng(seed).permutation(len(first))[:num_pairs]
    images = np.ascontiguousarray(volumes, dtype=np.float32)
    return np.array([ms_ssim(images[i], images[j], data_range, scales, window)
                     for i, j in zip(first[chosen], second[chosen])])


def ms_ssim(a: np.ndarray, b: np.ndarray, data_range: float, scales: int = 3, window: int = 7) -> float:
    """Multi-scale structural similarity (Wang et al. 2003) of two images [C,*S], float32; 1 for equal ones.

    That of MONAI, whose windows are convolutions by all their voxels: here axis by axis, 6 times as fast in 3D.
    """
    weights, found = np.array(SCALE_WEIGHTS[:scales]), []
    light, dark = (0.01 * data_range)**2, (0.03 * data_range)**2  # k1 and k2 of the paper
    for scale in range(scales):
        if scale:
            a, b = _halved(a), _halved(b)
        mean_a, mean_b, product = _windowed(a, window), _windowed(b, window), _windowed(a * b, window)
        squares, both = mean_a**2 + mean_b**2, mean_a * mean_b
        alike = (2 * (product - both) + dark) / (_windowed(a * a + b * b, window) - squares + dark)
        if scale == scales - 1:
            alike = alike * (2 * both + light) / (squares + light)
        found.append(max(float(alike.mean(dtype=np.float64)), 0.0))
    return float(np.prod(np.power(found, weights / weights.sum())))


def _windowed(image: np.ndarray, window: int, sigma: float = 1.5) -> np.ndarray:
    """Gaussian means of an image [C,*S] over the windows that lie inside it."""
    taps = np.exp(-np.square((np.arange(window) - (window - 1) / 2) / sigma) / 2)
    for axis in range(1, image.ndim):
        whole = ndimage.correlate1d(image, taps / taps.sum(), axis)
        image = whole[(slice(None),) * axis + (slice(window // 2, whole.shape[axis] - (window - 1) // 2),)]
    return image


def _halved(image: np.ndarray) -> np.ndarray:
    """Means over 2 voxels along each axis of an image [C,*S]; what is left over at an odd end is dropped."""
    for axis in range(1, image.ndim):
        even = image[(slice(None),) * axis + (slice(image.shape[axis] // 2 * 2),)]
        image = (np.take(even, range(0, even.shape[axis], 2), axis) + np.take(even, range(1, even.shape[axis], 2), axis)
                 ) / 2
    return image
