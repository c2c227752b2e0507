"""Texture: power by spatial frequency, speckle contrast, and how far neighbouring voxels resemble each other.

(MONAI has none of these; scipy.signal has spectra of one axis.)
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

BANDS = 8    # between frequency 0 and Nyquist
WIDTH = 2.0  # voxels, standard deviation of the Gaussian that makes the local mean
LAGS = 12    # voxels, the farthest that is looked at
BLOCK = 8    # voxels, side of the blocks in which uniform ones are looked for
UNIFORM = 0.1  # share of the blocks that count as uniform
EMPTY = 0.02  # of the intensity range: what lies below holds no texture


def band_edges(bands: int = BANDS) -> np.ndarray:
    """Edges [bands + 1] of bands of equal width, from 0 to Nyquist, in cycles per voxel."""
    return np.linspace(0, 0.5, bands + 1)


def band_power(image: np.ndarray, bands: int = BANDS) -> np.ndarray:
    """Mean power [bands + 1] of an image [*S] by radial frequency |f|, in squared units of intensity.

    White noise of variance v has power v at all frequencies. f is in cycles per voxel, each axis by its own voxels:
    where they differ in mm, a limit in cycles per mm would be that of the coarsest axis and hide the fine texture of
    the others. Band k holds `band_edges`[k] < |f| <= `band_edges`[k + 1]; the last entry is the corners beyond
    Nyquist, nearly half of all frequencies in 3D (none in 1D), where patterns of 2 voxels along several axes show. NaN
    for bands without any frequency, as in small images. The mean is taken off and a Hann window applied (Welch 1967),
    so that what differs between opposite faces does not leak into other frequencies; with the mean some of the power of
    the first 2 cycles per side goes.
    """
    values, energy = np.asarray(image, dtype=np.float64), 1.0
    shapes = [[-1 if i == axis else 1 for i in range(values.ndim)] for axis in range(values.ndim)]
    windows = [np.hanning(size + 2)[1:-1].reshape(shape) for size, shape in zip(values.shape, shapes)]
    mean = values
    for axis, window in enumerate(windows):
        mean = (mean * window).sum(axis=axis, keepdims=True) / window.sum()
        energy *= np.square(window).sum()
    values = values - mean
    for window in windows:
        values = values * window
    power = np.abs(np.fft.fftn(values)) ** 2 / energy
    radius = np.sqrt(sum(np.fft.fftfreq(size).reshape(shape) ** 2 for size, shape in zip(values.shape, shapes)))
    band = np.searchsorted(band_edges(bands) + 1e-9, radius.ravel())  # 0: the mean; rounding keeps edges below
    total, count = (np.bincount(band, weights, bands + 2)[1:] for weights in (power.ravel(), None))
    return np.divide(total, count, out=np.full(bands + 1, np.nan), where=count > 0)


def decibels(power: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Mean power of a set of images [N,B] above that of another [M,B], by band [B] in dB.

    Powers are averaged, not their logarithms: what a set has in all. 0 over 0 is 0 dB.
    """
    mean, wanted = (np.mean(values, axis=0) for values in (power, reference))
    least = np.finfo(np.float64).tiny
    return 10 * (np.log10(np.maximum(mean, least)) - np.log10(np.maximum(wanted, least)))


def texture_parts(image: np.ndarray, label: np.ndarray | None, least: float) -> np.ndarray:
    """The label map [*S] with -1 for what holds no texture: voxels of class 0 in the empty, and near it.

    Empty is where the mean of 3 voxels along each axis is at most `least`, unless something closes around it; 2 voxels
    next to it are left out as well, so that a blurred rim of the body or of the sector does not pass for texture.
    Without a map all is of class 0.
    """
    values = np.asarray(image, dtype=np.float32)
    filled = ndimage.binary_fill_holes(ndimage.uniform_filter(values, 3) > least)
    kept = ndimage.binary_erosion(filled, np.ones([3] * values.ndim), iterations=2, border_value=1)
    labels = np.zeros(values.shape, dtype=np.int16) if label is None else label.astype(np.int16)
    return np.where(kept | (labels > 0), labels, -1)


def speckle_contrast(image: np.ndarray, parts: np.ndarray, num_classes: int) -> np.ndarray:
    """Standard deviation over mean [num_classes] of an intensity within each class of a map [*S], -1: left out.

    0.5227 for fully developed speckle of the amplitude (Rayleigh), 1 for that of its square (Goodman 1976); the
    intensity is not log-compressed. What else varies within a class, as attenuation with depth, counts too. NaN for a
    class of less than two voxels, or whose mean is not positive.
    """
    labels, values = parts[parts >= 0], np.asarray(image, dtype=np.float64)[parts >= 0]
    found = np.full(num_classes, np.nan)
    for value in range(num_classes):
        inside = values[labels == value]
        if inside.size > 1 and inside.mean() > 0:
            found[value] = inside.std() / inside.mean()
    return found


def uniform_std(image: np.ndarray, least: float) -> float:
    """Standard deviation of an intensity [*S] where it is most uniform, found without labels.

    The image in blocks of BLOCK voxels per axis, half of it where a side holds less than two, what is left over at the
    ends aside. Of those whose mean is above `least`, and no voxel at or below 0, the tenth with the smallest slope of
    the plane that fits best counts: the root of the mean square of what is left of them without that plane. Noise, and
    texture finer than a block; NaN where no block holds anything.
    """
    values = np.asarray(image, dtype=np.float64)
    side = BLOCK if min(values.shape) >= 2 * BLOCK else BLOCK // 2
    counts = [size // side for size in values.shape]
    if not min(counts):
        return float("nan")
    cut = values[tuple(slice(count * side) for count in counts)].reshape([n for c in counts for n in (c, side)])
    order = [*range(0, 2 * values.ndim, 2), *range(1, 2 * values.ndim, 2)]
    blocks = cut.transpose(order).reshape(-1, *[side] * values.ndim)
    axes = tuple(range(1, blocks.ndim))
    blocks = blocks[(blocks.mean(axis=axes) > least) & (blocks.min(axis=axes) > 0)]
    if not len(blocks):
        return float("nan")
    places = np.indices([side] * values.ndim) - (side - 1) / 2
    slopes = np.stack([(blocks * place).sum(axis=axes) / np.square(place).sum() for place in places], axis=1)
    chosen = np.argsort(np.linalg.norm(slopes, axis=1), kind="stable")[:max(1, round(UNIFORM * len(blocks)))]
    planes = np.tensordot(slopes[chosen], places, 1)
    flat = blocks[chosen] - blocks[chosen].mean(axis=axes, keepdims=True) - planes
    return float(np.sqrt(np.mean(flat**2) * side**values.ndim / (side**values.ndim - values.ndim - 1)))


def local_residual(image: np.ndarray, parts: np.ndarray, width: float = WIDTH) -> np.ndarray:
    """An image [*S] less its local mean: over a Gaussian of standard deviation `width` voxels, and the same class only.

    What is left is texture: anatomy, attenuation and edges between classes of the map [*S] go; 0 where the map is -1.
    (Normalised convolution, Knutsson and Westin 1993. It takes off about 1 / (2 sqrt(pi) width)^axes of the power of
    white noise: 14 % in 1D, 2 % in 2D.)
    """
    values = np.asarray(image, dtype=np.float32)
    residual = np.zeros_like(values)
    for value, box in enumerate(ndimage.find_objects(parts + 1)):
        if box is None:
            continue
        mask = parts[box] == value
        share, total = (ndimage.gaussian_filter(part, width, mode="constant", truncate=3)
                        for part in (mask.astype(np.float32), values[box] * mask))
        residual[box][mask] = values[box][mask] - total[mask] / share[mask]
    return residual


def autocorrelation(residual: np.ndarray, parts: np.ndarray | None = None, lags: int = LAGS) -> np.ndarray:
    """Correlation [axes, lags + 1] of a residual [*S] of mean 0 with itself, moved by 0 .. lags voxels along each axis.

    Over the pairs of voxels of one class of the map [*S], -1: left out; by default all pairs. NaN where there are none
    or nothing varies.
    """
    values = np.asarray(residual, dtype=np.float64)
    labels = np.zeros(values.shape, dtype=np.int8) if parts is None else parts
    squares, kept, dims = values**2, labels >= 0, list(range(values.ndim))
    found = np.full([values.ndim, lags + 1], np.nan)
    for axis in range(values.ndim):
        for lag in range(min(lags + 1, values.shape[axis])):
            first = (slice(None),) * axis + (slice(values.shape[axis] - lag),)
            second = (slice(None),) * axis + (slice(lag, None),)
            pairs = ((labels[first] == labels[second]) & kept[first]).astype(np.float64)
            scale = np.prod([np.einsum(squares[side], dims, pairs, dims, []) for side in (first, second)])
            if scale > 0:
                product = np.einsum(values[first], dims, values[second], dims, pairs, dims, [])
                found[axis, lag] = product / np.sqrt(scale)
    return found


def correlation_length(correlation: np.ndarray, spacing: Sequence[float] | None = None) -> np.ndarray:
    """Lag [axes] at which a correlation [axes, lags + 1] first falls to 1/e, between lags on a straight line.

    In mm for voxels of `spacing` mm, else in voxels. White noise has 0.63 voxels: below that nothing can be told. NaN
    where it does not fall so far within the lags.
    """
    level, lengths = np.exp(-1), np.full(len(correlation), np.nan)
    for axis, curve in enumerate(correlation):
        below = np.flatnonzero(curve <= level)
        if below.size and np.isfinite(curve[:below[0]]).all() and below[0] > 0:
            before, after = curve[below[0] - 1], curve[below[0]]
            lengths[axis] = below[0] - 1 + (before - level) / (before - after)
    return lengths if spacing is None else lengths * np.asarray(spacing)
