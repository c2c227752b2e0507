"""PNG files of arrays, pixel by pixel: rows first, as they lie from the top down and from the left to the right.

What is read is grey, or a map of numbers: colours and transparency would have to be guessed at, and are refused.
"""

import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from edm3d.formats.looks import HEAD, check_is_plain, looks_like
from edm3d.utils.checks import MOST_GROWTH, check_memory
from edm3d.utils.files import amount, atomic_path, first_line

COLOURS = ("red", "green", "blue")  # names of channels that are shown together
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6  # colour types, in IHDR
_START = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
_SLACK = 1 << 16  # bytes, so that the bound on what is claimed does not hinge on headers
_BLOCK = 1 << 20  # bytes that are unpacked at a time
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))  # from, by
_WORKING = 4  # bytes of memory for each value, while it is unpacked and looked at


class Png(NamedTuple):
    """A PNG in memory: what its header says, its palette [K,3] and what is transparent by tRNS, and its pixels."""

    depth: int  # bits of a value
    colour: int  # GREY, RGB, ...
    palette: np.ndarray
    transparent: bytes
    is_animated: bool
    image: Image.Image  # as Pillow has it

    @property
    def pixels(self) -> np.ndarray:
        """[H,W] or [H,W,C] as stored, in uint8 or uint16: of a palette the indices; less than 8 bits stay 0, 1, ..."""
        pixels = np.asarray(self.image)
        if self.colour == GREY and self.depth in (2, 4):  # which Pillow spreads over 0 to 255
            return pixels // (255 // (2 ** self.depth - 1))
        return pixels.astype(np.uint16 if self.depth == 16 else np.uint8)


# ---- writing ----


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
        temporary.write_bytes(_START + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in parts.items()))


# ---- reading ----


def read_png(path: Path) -> np.ndarray:
    """Grey values [H,W] of a PNG, uint8, or uint16 of one with 16 bits; ValueError naming it where it is none.

    Less than 8 bits are spread over 0 to 255 and a palette of greys is looked up, as every viewer does. Colour types
    RGB and with alpha pass where they show plain grey, all channels alike and opaque; resolution and gamma are ignored.
    """
    png = open_png(path)
    grey = _checked_grey(path, png, "save it as grey")
    if _is_transparent(png, grey):
        raise ValueError(f"{path}: has transparent pixels; save it without transparency, as grey")
    if png.colour == PALETTE:
        used = np.unique(grey)
        if used[-1] >= len(png.palette) or (np.ptp(png.palette[used], axis=1) > 0).any():
            raise ValueError(f"{path}: has colours in its palette; save it as grey")
        return png.palette[:, 0][grey]
    return grey * (255 // (2 ** png.depth - 1)) if png.depth < 8 else grey


def read_png_map(path: Path) -> np.ndarray:
    """Numbers of classes [H,W] in a PNG, uint8 or uint16; ValueError naming it where it is no map.

    They are the values as stored, whatever their bits, and of one with a palette the indices, whatever their colours.
    """
    return _checked_grey(path, open_png(path), "a label map is grey, or has a palette whose index is the class")


def _checked_grey(path: Path, png: Png, advice: str) -> np.ndarray:
    """The one channel [H,W] of a PNG; ValueError for more than one picture, unlike channels, and what is not opaque."""
    if png.is_animated:
        raise ValueError(f"{path}: holds several pictures (APNG); save each as a file of its own")
    if png.colour in (GREY, PALETTE):
        return png.pixels
    if png.depth == 16:  # of which Pillow gives 8 bits
        raise ValueError(f"{path}: has 16 bits and colour or alpha channels; save it as 16-bit grey, without alpha")
    grey, *others = np.moveaxis(png.pixels, -1, 0)
    if png.colour in (GREY_ALPHA, RGB_ALPHA) and (others.pop() < 255).any():
        raise ValueError(f"{path}: has transparent pixels; save it without an alpha channel")
    if coloured := int(np.count_nonzero(np.any([other != grey for other in others], axis=0))):
        raise ValueError(f"{path}: is in colour, {coloured} of {grey.size} pixels; {advice}")
    return grey


def _is_transparent(png: Png, grey: np.ndarray) -> bool:
    """Whether a pixel is transparent by tRNS: for each index its alpha, or the one value that is seen through."""
    if png.colour == PALETTE:
        alpha = np.full(256, 255)
        alpha[:len(png.transparent)] = list(png.transparent[:256])
        return bool((alpha[np.unique(grey)] < 255).any())
    values = {*np.frombuffer(png.transparent[:len(png.transparent) // 2 * 2], ">u2").tolist()}
    return len(values) == 1 and bool((grey == values.pop()).any())


def open_png(path: Path) -> Png:
    """Read a PNG of any kind to its end; ValueError naming it when it is damaged, or claims more than it can hold."""
    check_is_plain(path)
    try:
        check_memory("the file", path.stat().st_size)
        content = path.read_bytes()
        if not content.startswith(_START):
            raise ValueError(looks_like(content[:HEAD]))
        chunks = list(_chunks(content))
        depth, colour, count = _checked_header(chunks[0], len(content))
        _check_pixels([data for kind, data in chunks if kind == b"IDAT"], count)
        found = dict(reversed(chunks))  # of several of a kind the first counts
        palette = np.frombuffer(found.get(b"PLTE", b"")[:768], np.uint8)
        with warnings.catch_warnings():  # of sizes, which were held against the file
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(BytesIO(content), formats=["PNG"]) as image:
                image.load()
        return Png(depth, colour, palette[:len(palette) // 3 * 3].reshape(-1, 3), bytes(found.get(b"tRNS", b"")),
                   b"acTL" in found, image)
    except Exception as e:  # Pillow raises what it pleases on a damaged file
        raise ValueError(f"{path}: not readable as PNG ({first_line(e)})") from e


def _chunks(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and content of each chunk up to IEND; ValueError where one is cut off, or its CRC another."""
    at, kind, view = len(_START), b"", memoryview(content)
    while kind != b"IEND":
        end = at + 12 + int.from_bytes(content[at:at + 4])
        if len(content) < max(end, at + 12):
            raise ValueError(f"it ends after {len(content)} bytes, within its chunks: it is cut off")
        kind, data = content[at + 4:at + 8], view[at + 8:end - 4]
        if zlib.crc32(data, zlib.crc32(kind)) != int.from_bytes(content[end - 4:end]):
            raise ValueError(f"the checksum of its chunk {ascii(kind)[2:-1]} at byte {at} differs: it is damaged")
        yield kind, data
        at = end


def _checked_header(chunk: tuple[bytes, memoryview], file_bytes: int) -> tuple[int, int, int]:
    """Depth, colour type and bytes of the pixels, unpacked.

    ValueError for a header that is none, and more pixels than file and memory can hold.
    """
    kind, head = chunk
    width, height, depth, colour, *_, order = struct.unpack_from(">IIBBBBB", bytes(head).ljust(13, b"\0"))
    if kind != b"IHDR" or len(head) != 13 or colour not in _CHANNELS or 0 in (width, height, depth) or order > 1:
        raise ValueError("its header is damaged")
    bits = depth * _CHANNELS[colour]
    passes = _ADAM7 if order else [(0, 0, 1, 1)]
    sizes = [(ceil((height - y) / dy), ceil((width - x) / dx)) for y, x, dy, dx in passes]
    count = sum(rows * (1 + ceil(columns * bits / 8)) for rows, columns in sizes if columns > 0)
    what = f"{width}x{height} pixels of {bits} bits"
    if count > MOST_GROWTH * file_bytes + _SLACK:
        raise ValueError(f"its header claims {what}, {amount(count)}, and the {file_bytes:,} bytes of the file "
                         "cannot hold them")
    check_memory(f"a picture of {what}", width * height * _CHANNELS[colour] * _WORKING)
    return depth, colour, count


def _check_pixels(parts: Iterable[memoryview], count: int) -> None:
    """ValueError unless the parts of a stream unpack to `count` bytes, of which Pillow would make up what lacks."""
    stream, done = zlib.decompressobj(), 0
    for part in parts:
        while part and done <= count:
            done += len(stream.decompress(part, _BLOCK))
            part = stream.unconsumed_tail
    while more := 0 if stream.eof or done > count else len(stream.decompress(b"", _BLOCK)):  # what waits in it
        done += more
    if done != count or not stream.eof:
        raise ValueError(f"it has {done:,} bytes of pixels, and its header claims {count:,}: it is damaged"
                         if done < count or stream.eof else "its pixels go on behind those that its header claims")
