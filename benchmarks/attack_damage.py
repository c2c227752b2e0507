"""Ways to damage the bytes of a file, each drawn from a generator of random numbers."""

import io
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

EDGE = 2048   # bytes at the ends of a file, where headers and directories are
LONGEST = 4096
TRIES = 20     # of a way that may leave a file as it is, before a bit is flipped instead
Damage = Callable[[random.Random, bytearray, bytes], None]


def place(chance: random.Random, raw: bytearray) -> int:
    """Anywhere, or as often near one of the ends."""
    size = len(raw)
    return chance.choice([chance.randrange(size), chance.randrange(size), chance.randrange(min(EDGE, size)),
                          size - 1 - chance.randrange(min(EDGE, size))])


def flip_bit(chance: random.Random, raw: bytearray, twin: bytes) -> None:
    """One bit."""
    raw[place(chance, raw)] ^= 1 << chance.randrange(8)


def flip_bytes(chance: random.Random, raw: bytearray, twin: bytes) -> None:
    """A few bytes, each changed."""
    for _ in range(chance.randint(2, 16)):
        raw[place(chance, raw)] ^= chance.randint(1, 255)


def zero_run(chance: random.Random, raw: bytearray, twin: bytes) -> None:
    """A run of zeros, as where a disk lost a write."""
    start = place(chance, raw)
    end = min(len(raw), start + chance.randint(1, LONGEST))
    raw[start:end] = bytes(end - start)


def random_run(chance: random.Random, raw: bytearray, twin: bytes) -> None:
    """A run of random bytes."""
    start = place(chance, raw)
    end = min(len(raw), start + chance.randint(1, LONGEST))
    raw[start:end] = chance.randbytes(end - start)


def truncate(chance: random.Random, raw: bytearray, twin: bytes) -> None:
    """The end cut off."""
    del raw[place(chance, raw):]


def extend(chance: random.Random, raw: bytearray, twin: bytes) -> None:
    """Bytes behind the end: random, zeros, or those of the file once more."""
    raw += chance.choice([chance.randbytes(chance.randint(1, 3000)), bytes(chance.randint(1, 3000)), bytes(raw)])


def swap_blocks(chance: random.Random, raw: bytearray, twin: bytes) -> None:
    """Two blocks in each other's place."""
    length = chance.randint(1, max(1, min(LONGEST, len(raw) // 3)))
    a, b = sorted(chance.sample(range(max(2, len(raw) - length)), 2))
    length = min(length, b - a)
    raw[a:a + length], raw[b:b + length] = raw[b:b + length], raw[a:a + length]


def splice(chance: random.Random, raw: bytearray, twin: bytes) -> None:
    """The rest of another file of the kind behind a part of this."""
    cut = chance.randrange(1, max(2, min(len(raw), len(twin))))
    raw[cut:] = twin[cut:]


def empty(chance: random.Random, raw: bytearray, twin: bytes) -> None:
    """Nothing."""
    raw.clear()


BYTES: tuple[Damage, ...] = (flip_bit, flip_bytes, zero_run, random_run, truncate, extend, swap_blocks, splice,
                             flip_bit, empty)
OTHERS = ("other kind", "folder")
WAYS = tuple(way.__name__ for way in BYTES) + OTHERS


def is_whole_zip(raw: bytes) -> bool:
    """Whether a zip says nothing against itself: a part of one before all of its twin's members is that twin."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            return archive.testzip() is None
    except Exception:  # zipfile raises what it pleases
        return False


def find(folder: Path, path: str) -> Path:
    """The one file of a pattern."""
    found, = folder.glob(path)
    return found


def damage(chance: random.Random, way: int, path: Path, twin: Path, others: list[Path]) -> None:
    """Damage a file in one of WAYS; twin: another of the kind; others: of other kinds."""
    if WAYS[way] == "folder":
        path.unlink()
        path.mkdir()
        if chance.random() < 0.5:
            shutil.copy(twin, path / twin.name)
    elif WAYS[way] == "other kind":
        shutil.copyfile(chance.choice(others), path)
    else:
        whole, other = path.read_bytes(), twin.read_bytes()
        raw, tries = bytearray(whole), 0
        while raw in (whole, other) or (WAYS[way] == "splice" and is_whole_zip(raw)):  # another whole file is no damage
            raw[:] = whole
            BYTES[way if tries < TRIES else 0](chance, raw, other)
            tries += 1
        path.write_bytes(raw)
