"""PNG as data: read right whatever its bits, palette and order, refused by name where it is no grey and no map."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edm3d.formats.png import GREY, GREY_ALPHA, PALETTE, RGB, RGB_ALPHA, read_png, read_png_map, write_png
from edm3d.utils import checks

CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def packed(values: np.ndarray, depth: int) -> bytes:
    """Rows of [H,W,C] in bits, each behind filter 0."""
    rows = values.reshape(len(values), -1)
    if depth == 16:
        return b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    bits = (rows[..., None] >> np.arange(depth)[::-1] & 1).reshape(len(rows), -1)
    return b"".join(b"\0" + np.packbits(row).tobytes() for row in bits.astype(np.uint8))


def png(path: Path, values, depth: int = 8, colour: int = GREY, interlaced: bool = False, size=None, **chunks) -> Path:
    """A PNG by the specification: values [H,W] or [H,W,C], further chunks by name; size: what the header claims."""
    values = np.asarray(values)
    values = values.reshape(*values.shape[:2], CHANNELS[colour])
    passes = [values[y::dy, x::dx] for y, x, dy, dx in ADAM7] if interlaced else [values]
    data = zlib.compress(b"".join(packed(each, depth) for each in passes if each.size))
    height, width = size or values.shape[:2]
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))]
    parts += [(name.encode(), bytes(content)) for name, content in chunks.items()] + [(b"IDAT", data), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts))
    return path


def random(top: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, top, shape or (9, 11))


# ---- one file ----


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_of_every_depth(tmp_path, depth, interlaced):
    values = random(2 ** depth)
    path = png(tmp_path / "a.png", values, depth, interlaced=interlaced)
    factor = {1: 255, 2: 85, 4: 17}.get(depth, 1)  # as the specification spreads them
    image, label = read_png(path), read_png_map(path)
    np.testing.assert_array_equal(image, values * factor)
    np.testing.assert_array_equal(label, values)
    assert image.dtype == label.dtype == (np.uint16 if depth == 16 else np.uint8)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palette_of_greys_is_looked_up_and_a_map_is_its_index(tmp_path, depth):
    values, greys = random(min(2 ** depth, 7)), np.array([200, 10, 30, 50, 0, 255, 8])
    path = png(tmp_path / "a.png", values, depth, PALETTE, PLTE=np.repeat(greys[:2 ** depth], 3).astype(np.uint8))
    np.testing.assert_array_equal(read_png(path), greys[values])
    np.testing.assert_array_equal(read_png_map(path), values)


def test_a_map_may_have_any_colours_and_transparency_in_its_palette(tmp_path):
    values = random(3)
    path = png(tmp_path / "a.png", values, 8, PALETTE, PLTE=bytes([255, 0, 0, 0, 255, 0, 0, 0, 255]), tRNS=bytes([0]))
    np.testing.assert_array_equal(read_png_map(path), values)
    with pytest.raises(ValueError, match="a.png: has transparent pixels"):
        read_png(path)


@pytest.mark.parametrize("colour", [RGB, GREY_ALPHA, RGB_ALPHA])
def test_channels_that_are_alike_and_opaque_are_grey(tmp_path, colour):
    values = np.repeat(random(256)[..., None], CHANNELS[colour], axis=2)
    values[..., 3 if colour == RGB_ALPHA else 1:] = 255 if colour != RGB else values[..., 1:]
    path = png(tmp_path / "a.png", values, 8, colour)
    np.testing.assert_array_equal(read_png(path), values[..., 0])
    np.testing.assert_array_equal(read_png_map(path), values[..., 0])


ODD = np.stack([random(256)] * 3 + [np.full((9, 11), 255)], axis=-1)
TINTED, CLEAR = ODD.copy(), ODD.copy()
TINTED[4, 5, 2] ^= 1
CLEAR[0, 0, 3] = 254
REFUSED = [
    (TINTED[..., :3], 8, RGB, {}, "is in colour, 1 of 99 pixels; "),
    (TINTED, 8, RGB_ALPHA, {}, "is in colour, 1 of 99 pixels; "),
    (CLEAR, 8, RGB_ALPHA, {}, "has transparent pixels; save it without an alpha channel"),
    (CLEAR[..., 2:], 8, GREY_ALPHA, {}, "has transparent pixels; save it without an alpha channel"),
    (ODD[..., :3], 16, RGB, {}, "has 16 bits and colour or alpha channels; save it as 16-bit grey, without alpha"),
    (random(256), 8, GREY, {"acTL": bytes([0, 0, 0, 1, 0, 0, 0, 0])}, r"holds several pictures \(APNG\)"),
]


@pytest.mark.parametrize("values, depth, colour, chunks, message", REFUSED)
def test_neither_grey_nor_map_is_refused_by_name(tmp_path, values, depth, colour, chunks, message):
    path = png(tmp_path / "a.png", values, depth, colour, **chunks)
    for read in (read_png, read_png_map):
        with pytest.raises(ValueError, match=f"{path}: {message}"):
            read(path)


@pytest.mark.parametrize("colour, chunks, message", [
    (PALETTE, {"PLTE": bytes([0, 0, 0, 1, 1, 2])}, "has colours in its palette; save it as grey"),
    (PALETTE, {"PLTE": bytes(3)}, "has colours in its palette"),  # which lacks an index
    (GREY, {"tRNS": bytes([0, 1])}, "has transparent pixels"),
])
def test_no_grey_of_an_image_is_guessed(tmp_path, colour, chunks, message):
    path = png(tmp_path / "a.png", random(2), 8, colour, **chunks)
    with pytest.raises(ValueError, match=f"{path}: {message}"):
        read_png(path)
    assert read_png_map(path).max() == 1
    unused = {"tRNS": bytes([0, 7])} if colour == GREY else {"PLTE": bytes([9, 9, 9, 8, 8, 8, 1, 2, 3])}
    read_png(png(path, random(2), 8, colour, **unused))  # a colour that no pixel has is none


def test_what_write_png_writes_is_read_back(tmp_path):
    values = random(256).astype(np.uint8)
    write_png(tmp_path / "a.png", values)
    np.testing.assert_array_equal(read_png(tmp_path / "a.png"), values)
    Image.fromarray(values.astype(np.uint16) * 257).save(tmp_path / "b.png")  # by somebody else
    np.testing.assert_array_equal(read_png(tmp_path / "b.png"), values.astype(np.uint16) * 257)


def test_damage_and_false_claims_are_named(tmp_path, monkeypatch):
    path = png(tmp_path / "a.png", random(256, 40, 40))
    whole = path.read_bytes()
    for content, message in [
            (whole[:-12], "cut off"), (whole[:200], "cut off"), (whole[:30], "cut off"), (whole[:8], "cut off"),
            (whole[:300] + bytes([whole[300] ^ 1]) + whole[301:], "the checksum of its chunk IDAT at byte 33 differs"),
            (b"\xff\xd8\xff\xe0" + whole, "it looks like a JPEG picture"), (b"", "it is empty")]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path}: not readable as PNG \\(.*{message}"):
            read_png(path)
    with pytest.raises(ValueError, match="header claims 100000x100000 pixels of 8 bits, 9.31 GiB"):
        read_png(png(path, random(256), size=(100_000, 100_000)))
    with pytest.raises(ValueError, match="not readable as PNG"):  # fewer rows than claimed, within what could be
        read_png(png(path, random(256), size=(20, 11)))
    monkeypatch.setattr(checks.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 900}))
    with pytest.raises(ValueError, match="a picture of 40x40 pixels of 8 bits takes 6,400 bytes of memory"):
        read_png(png(path, np.zeros((40, 40), int)))
    with pytest.raises(ValueError, match="no such file"):
        read_png(tmp_path / "b.png")
