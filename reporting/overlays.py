"""Label maps over pictures: tinted classes and their outlines."""

from colorsys import hls_to_rgb

import numpy as np
from scipy import ndimage

# Class 1 first; apart in lightness and hue, so that people who do not see red from green can tell them too.
LABEL_COLOURS = ("#ff5d73", "#ffc857", "#4cc9f0", "#7ae582", "#c77dff", "#ff9f1c", "#a0c4ff", "#f1f1f1")
GOLDEN = 0.618034  # of a circle


def colour_of(value: int) -> str:
    """Of a class by its number, 1 first: those after LABEL_COLOURS by hues a golden angle apart, in three lightnesses.
    """
    later = int(value) - 1 - len(LABEL_COLOURS)
    if later < 0:
        return LABEL_COLOURS[value - 1]
    rgb = hls_to_rgb((GOLDEN * later) % 1, (0.7, 0.5, 0.85)[later % 3], 0.75)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


def in_rgb(pixels: np.ndarray) -> np.ndarray:
    """Grey [h,w] or colours [h,w,3] as a copy in colours."""
    return np.repeat(pixels[..., None], 3, axis=-1) if pixels.ndim == 2 else pixels.copy()


def with_classes(rgb: np.ndarray, classes: np.ndarray, fill: float, outline: float) -> np.ndarray:
    """Colours [h,w,3] in [0,1] with the classes [h,w] above 0 tinted, and their outermost pixels, by these opacities.
    """
    out, rims = rgb.copy(), edges(classes)
    for value in np.unique(classes[classes > 0]):
        colour = np.array([int(colour_of(value)[i:i + 2], 16) / 255 for i in (1, 3, 5)])
        inside = classes == value
        for where, alpha in ((inside & ~rims, fill), (inside & rims, outline)):
            out[where] = (1 - alpha) * out[where] + alpha * colour
    return out


def edges(classes: np.ndarray) -> np.ndarray:
    """Which pixels of a map [h,w] have a neighbour of another class."""
    return (ndimage.grey_dilation(classes, size=3) != classes) | (ndimage.grey_erosion(classes, size=3) != classes)
