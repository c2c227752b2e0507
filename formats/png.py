"""PNG files of arrays, pixel by pixel."""

import struct
import zlib
from pathlib import Path

import numpy as np

from edm3d.utils.files import atomic_path

COLOURS = ("red", "green", "blue")  # names of channels that are shown together


def write_png(path: str | Path, pixels: np.ndarray) -> None:
    """Write grey [H,W] or red, green and blue [H,W,3], uint8, as a PNG of H rows of W pixels, whole or not at all.

    The first axis runs down and the second to the right.
    """
    assert pixels.dtype == np.uint8 and (pixels.ndim == 2 or pixels.shape[2:] == (3,)), (pixels.dtype, pixels.shape)
    height, width = pixels.shape[:2]
    head = struct.pack(">IIBBBBB", width, height, 8, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    rows = np.pad(pixels.reshape(height, -1), ((0, 0), (1, 0)))  # a row begins with its filter: 0, none
    parts = {b"IHDR": head, b"IDAT": zlib.compress(rows.tobytes()), b"IEND": b""}
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in parts.items()))
