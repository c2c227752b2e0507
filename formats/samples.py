"""Samples: seed lists, and files of generated volumes (.h5 or .npz) whose rows are in seed order.

Contents: seeds [N]; latents [N,C,*s] and/or images [N,C,*S] float32; labels [N,*S] uint8; classes [N] int64; trajectory
[N,steps,C,*s] float32, the denoised image of every step in the network's units; affine [4,4]; and as metadata `data`
(names, intensity contract, geometry), `snapshot` (path), `snapshot_hash` and `sampling` (settings).
"""

import itertools
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from formats import h5
from formats.facts import Facts, LatentScaling
from utils.files import arrays_hash, atomic_path, read_npz

FORMATS = ("h5", "npz")
MOST_SEEDS = 1_000_000
META = ("data", "snapshot", "snapshot_hash", "sampling")  # of a file
ARRAYS = {"latents": "float32", "images": "float32", "labels": "uint8", "classes": "int64", "trajectory": "float32"}


def parse_seeds(text: str) -> list[int]:
    """Numbers of a list like `1,2,5-10`, in order; ValueError for anything else. `5-3` is empty, `-3` minus three."""
    seeds: list[int] = []
    for part in text.split(","):
        first, last = _span(part, text)
        if len(seeds) + last - first >= MOST_SEEDS:
            raise ValueError(f"seeds={shorten(text)}: more than {MOST_SEEDS:,} seeds")
        seeds.extend(range(first, last + 1))
    return seeds


def _span(part: str, text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,18})-(\d{1,18})|\s*([+-]?\d{1,18})\s*", part, re.ASCII)
    if match is None:
        long = " of at most 18 digits" if re.search(r"\d{19}", part) else ""
        raise ValueError(f"seeds={shorten(text)}: {shorten(part)} is neither a number nor a range like 5-10{long}")
    return (int(match[3]), int(match[3])) if match[3] else (int(match[1]), int(match[2]))


def shorten(text: str) -> str:
    """The text as a message may quote it."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def requested_seeds(text: object) -> list[int]:
    """Sorted seeds to generate; ValueError when the list is empty, negative, doubled or no list of numbers."""
    bare = re.sub(r" *([,-]) *", r"\1", re.sub(r"^\[(.*)\]$", r"\1", str(text).strip()))
    try:
        seeds = parse_seeds(bare)
    except ValueError as e:
        raise ValueError(f"sampling.{e}") from e
    given = f"sampling.seeds={shorten(str(text))}"
    if not seeds:
        raise ValueError(f"{given}: the list is empty; write ranges upward, as in 2-5")
    seeds.sort()
    if seeds[0] < 0:
        raise ValueError(f"{given}: seed {seeds[0]} is negative; wanted 0 or more")
    for seed, following in itertools.pairwise(seeds):
        if seed == following:
            raise ValueError(f"{given}: seed {seed} is there twice")
    return seeds


class SampleStage(NamedTuple):
    """What decoding latents takes: the hash of the first stage that they are of, where it is known, and their scaling.
    """

    hash: str | None
    scaling: LatentScaling


class SampleMeta(NamedTuple):
    """What all rows of a samples file share.

    sampling: settings that a sample depends on besides the seed and the snapshot; stage None: drawn as voxels, or the
    file is from before it was written down.
    """

    facts: Facts
    snapshot: str
    snapshot_hash: str
    sampling: dict
    stage: SampleStage | None = None

    def plain(self) -> dict[str, Any]:
        """As plain data, for a file."""
        stage = {"first_stage": {"hash": self.stage.hash, **self.stage.scaling._asdict()}} if self.stage else {}
        return {"data": self.facts.plain() | stage, "snapshot": self.snapshot, "snapshot_hash": self.snapshot_hash,
                "sampling": self.sampling}

    @classmethod
    def from_plain(cls, found: dict[str, Any], source: object) -> "SampleMeta":
        """From what `plain` gave; ValueError naming the file (source) for anything else."""
        try:
            data, *rest = (found[name] for name in META)
            stage = dict(data.get("first_stage") or {})
            facts = Facts.from_plain({name: value for name, value in data.items() if name != "first_stage"}, source)
            return cls(facts, *rest, SampleStage(stage.pop("hash"), LatentScaling(**stage)) if stage else None)
        except (AttributeError, KeyError, TypeError) as e:
            raise ValueError(f"{source}: not a samples file: {e!r}") from e


class SamplesFile:
    """A samples file for reading, .h5 or .npz."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.suffix == ".npz":
            self._read_npz()
        else:
            self._read_h5()
        _check_arrays(self.path, self.seeds, self.affine, self.arrays)
        self.rows = {int(s): i for i, s in enumerate(self.seeds)}

    def _read_h5(self) -> None:
        with h5.open_h5(self.path, "samples") as file:
            self.seeds = h5.read(h5.need(file, "seeds"))
            self.affine = h5.read(h5.need(file, "affine"))
            self.arrays = {name: h5.read(h5.need(file, name)) for name in ARRAYS if name in file}
            found = {name: h5.get_json(file, name) for name in META}
            self.meta = SampleMeta.from_plain(found, self.path)

    def _read_npz(self) -> None:
        archive = read_npz(self.path)
        if "content_hash" not in archive:
            raise ValueError(f"{self.path}: not a samples file: there is no content_hash in it")
        if str(archive.pop("content_hash")) != arrays_hash(archive):
            raise ValueError(f"{self.path}: damaged, its arrays differ from the stored content hash")
        self.arrays = {name: archive[name] for name in ARRAYS if name in archive}
        try:
            self.seeds, self.affine = archive["seeds"], archive["affine"]
            self.meta = SampleMeta.from_plain(json.loads(str(archive["meta"])), self.path)
        except (ValueError, KeyError, TypeError) as e:
            raise ValueError(f"{self.path}: not a samples file: {e}") from e

    def __len__(self) -> int:
        return len(self.seeds)

    def images(self, index: int) -> np.ndarray | None:
        """Image [C,*S] float32 of a row, in the units of the intensity contract."""
        return self._row("images", index)

    def labels(self, index: int) -> np.ndarray | None:
        """Label map [*S] uint8 of a row."""
        return self._row("labels", index)

    def latents(self, index: int) -> np.ndarray | None:
        """Whitened latents [C,*s] float32 of a row."""
        return self._row("latents", index)

    def _row(self, name: str, index: int) -> np.ndarray | None:
        return self.arrays[name][index] if name in self.arrays else None


def _check_arrays(path: Path, seeds: np.ndarray, affine: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
    """Raise ValueError unless seeds rise, and all arrays have a row for each and the types of ARRAYS."""
    if seeds.dtype != np.int64 or seeds.ndim != 1 or (np.diff(seeds) <= 0).any():
        raise ValueError(f"{path}: seeds are {seeds.dtype} {seeds.shape}, wanted int64 [N] that rise from row to row")
    if affine.dtype != np.float64 or affine.shape != (4, 4):
        raise ValueError(f"{path}: affine is {affine.dtype} {affine.shape}, wanted float64 (4, 4)")
    for name, array in arrays.items():
        if array.dtype != ARRAYS[name] or array.shape[:1] != seeds.shape:
            raise ValueError(f"{path}: {name} are {array.dtype} {array.shape}, wanted {ARRAYS[name]} with "
                             f"{len(seeds)} rows")


def write_samples(path: str | Path, seeds: Sequence[int], arrays: dict[str, np.ndarray], affine: np.ndarray,
                  meta: SampleMeta) -> None:
    """Write a samples file by its suffix (.h5, .npz), whole or not at all."""
    path, seeds, affine = Path(path), np.asarray(seeds, np.int64), np.asarray(affine, np.float64)
    assert set(arrays) <= set(ARRAYS) and (np.diff(seeds) > 0).all()
    needed = sum(a.nbytes for a in arrays.values()) + 2 ** 20
    if path.suffix == ".npz":
        everything = {"seeds": seeds, "affine": affine, "meta": np.array(json.dumps(meta.plain())), **arrays}
        with atomic_path(path, needed) as temporary:
            np.savez_compressed(temporary, content_hash=arrays_hash(everything), **everything)
        return
    with h5.atomic_h5(path, needed) as file:
        h5.set_format(file, "samples", {"kind": "generate", "snapshot": meta.snapshot})
        for name, value in meta.plain().items():
            h5.put_json(file, name, value)
        h5.write_array(file, "seeds", seeds)
        h5.write_array(file, "affine", affine)
        for name, array in arrays.items():
            h5.write_array(file, name, array)


class Parts:
    """Finished samples of a run that is still under way: one small file per seed, so that a stop loses nothing."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, seed: int) -> Path:
        """File of a seed."""
        return self.folder / f"{seed:010d}.npz"

    def write(self, seed: int, arrays: dict[str, np.ndarray]) -> None:
        """Store the arrays of one seed."""
        with atomic_path(self.path(seed), sum(a.nbytes for a in arrays.values())) as temporary:
            np.savez(temporary, **arrays)

    def read(self, seed: int) -> dict[str, np.ndarray]:
        """Arrays of one seed; ValueError when its file is damaged."""
        return read_npz(self.path(seed))

    def remove(self) -> None:
        """Delete all parts."""
        for path in self.folder.glob("*.npz"):
            path.unlink()
        self.folder.rmdir()
        with suppress(OSError):  # parts of other settings may still be there
            self.folder.parent.rmdir()
