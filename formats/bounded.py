"""Arrays out of streams: never more is allocated or unpacked than a header says that is there, and could be there."""

from io import BufferedIOBase
from math import prod

import numpy as np
import psutil

from edm3d.utils.files import amount

DEFLATE = 1032  # bytes that one compressed byte can become at most
_SLACK = 1 << 16  # bytes, so that the bound does not hinge on headers
_CHUNK = 1 << 20


def check_claim(shape: tuple[int, ...], dtype: np.dtype, file_bytes: int, is_packed: bool) -> int:
    """Bytes of an array as its header says; ValueError where a file of that size cannot hold them, nor the memory.

    is_packed: whether they are deflated in the file.
    """
    if any(n < 0 for n in shape):
        raise ValueError(f"its header claims the shape {shape}")
    if 0 in shape:
        raise ValueError(f"its shape is {shape}: it holds no values")
    claimed = prod(shape) * dtype.itemsize
    most = DEFLATE * file_bytes + _SLACK if is_packed else file_bytes
    what = f"its header claims {'x'.join(map(str, shape)) or 'one'} values of {dtype}, {_size(claimed)}"
    if claimed > most:
        raise ValueError(f"{what}, and the {_size(file_bytes)} of the file cannot hold them: it is cut off, or its "
                         "header is damaged")
    free = psutil.virtual_memory().available
    if claimed > free:
        raise ValueError(f"{what}, and {amount(free)} of memory are free")
    return claimed


def _size(count: int) -> str:
    return amount(count) if count >= 1 << 20 else f"{count:,} bytes"


def fill(stream: BufferedIOBase, count: int) -> np.ndarray:
    """The next `count` bytes of a stream; ValueError where there are fewer."""
    content, done = np.empty(count, np.uint8), 0  # takes no memory before it is written to
    view = memoryview(content)
    while done < count:
        got = stream.readinto(view[done:done + _CHUNK])
        if not got:
            raise ValueError(f"it ends after {done} of {count} bytes of values: it is cut off, or its header is "
                             "damaged")
        done += got
    return content


def skip(stream: BufferedIOBase, count: int) -> int:
    """Read over the next `count` bytes of a stream, and say how many there were."""
    done = 0
    while done < count and (got := len(stream.read(min(_CHUNK, count - done)))):
        done += got
    return done
