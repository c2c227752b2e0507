"""Slices of padding: stacks that are shorter than their grid are filled up at their ends by slices without an image."""

import numpy as np

FLAT = 0.05  # of the intensity range: the largest standard deviation of a slice of padding


def held_slices(image: np.ndarray, data_range: float) -> tuple[int, int]:
    """First and past-last slice along the first axis of an image [C,D,...] that hold image.

    Padding are the slices at both ends whose standard deviation is FLAT of the intensity range at most in every
    channel; flat ones between others are none. A stack that is flat throughout is no padding, but a stack without an
    image: all of it counts.
    """
    spread = image.reshape(*image.shape[:2], -1).std(2, dtype=np.float64).max(0)
    inside = np.flatnonzero(spread > FLAT * data_range)
    return (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, image.shape[1])


def padded_slices(boxes: np.ndarray, depth: int) -> np.ndarray:
    """How many slices [N] of each volume, of so many along its first axis, its box [N,2,3] leaves out as padding."""
    return depth - (boxes[:, 1, 0] - boxes[:, 0, 0])


def padding_lines(boxes: np.ndarray, depth: int) -> list[str]:
    """A line on the padding along the first axis of volumes with these boxes [N,2,3], where there is any."""
    counts = padded_slices(boxes, depth)
    if not counts.any():
        return []
    return [f"padding: {np.count_nonzero(counts)} of {len(counts)} stacks of {depth} slices have slices of padding at "
            f"their ends, up to {counts.max()}, {counts.sum()} in all"]
