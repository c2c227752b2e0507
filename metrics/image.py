"""Likeness of images."""

import numpy as np
import torch

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
    from monai.metrics import MultiScaleSSIMMetric  # here, since importing MONAI takes seconds

    N, C, *S = volumes.shape
    if N < 2:
        raise ValueError(f"MS-SSIM among {N} items: wanted at least 2")
    least = window * 2 ** (scales - 1)
    if min(S) < least:
        raise ValueError(f"MS-SSIM of size {tuple(S)}: wanted sides of at least {least} for scales={scales}, "
                         f"window={window}; lower one of them")
    first, second = np.triu_indices(N, k=1)
    chosen = np.random.default_rng(seed).permutation(len(first))[:num_pairs]
    weights = tuple(weight / sum(SCALE_WEIGHTS[:scales]) for weight in SCALE_WEIGHTS[:scales])
    metric = MultiScaleSSIMMetric(len(S), data_range=data_range, kernel_size=window, weights=weights)
    tensors = torch.from_numpy(np.ascontiguousarray(volumes, dtype=np.float32))
    values = [metric(tensors[i:i + 1], tensors[j:j + 1]) for i, j in zip(first[chosen], second[chosen])]
    return torch.cat(values).reshape(-1).double().numpy()
