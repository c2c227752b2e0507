"""Axial slices of the BrainWeb phantom as the PET system of acec2127 stores them: uint8 rows of 64x64 activities."""

from pathlib import Path

import numpy as np

from edm3d.formats.facts import Facts
from edm3d.formats.intensity import Intensity
from edm3d.inference.batch import Sample
from edm3d.utils.checks import listed
from edm3d.utils.files import file_hash, read_npz

SIZE = 64


class BrainwebSlices:
    """2D images [1,64,64] in [-1,1], each slice by its own maximum (activities are drawn anew per slice).

    The file's rows are in string order of the slice number (0, 1, 10, 100, ...); here they run from neck to vertex.
    `split` train leaves out two inner blocks of `held_out` slices with gaps of `gap` on both sides, val is these
    blocks, all is everything.
    """

    def __init__(self, path: str, split: str = "train", held_out: int = 35, gap: int = 4):
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such file; set training.dataset.path to the BrainWeb phantoms (.npz with "
                             "key 'phantoms', uint8 [slices, 4096])")
        archive = read_npz(path)
        if "phantoms" not in archive:
            raise ValueError(f"{path}: no array 'phantoms', it has {listed(archive)}")
        rows = archive["phantoms"]
        if rows.ndim != 2 or rows.shape[1] != SIZE ** 2 or rows.dtype.kind not in "iuf" or not np.isfinite(rows).all():
            raise ValueError(f"{path}: phantoms {rows.dtype} {rows.shape}, wanted finite numbers "
                             f"[slices, {SIZE ** 2}]")
        volume = np.empty_like(rows)
        volume[sorted(range(len(rows)), key=str)] = rows
        chosen = volume[split_slices(len(rows), split, held_out, gap)].reshape(-1, 1, SIZE, SIZE).astype(np.float32)
        chosen = chosen[chosen.max(axis=(1, 2, 3), initial=0) > 0]
        if not len(chosen):
            raise ValueError(f"{path}: split {split!r} has no slice with anything in it; change training.dataset.split "
                             "or the file")
        self.images = chosen / chosen.max(axis=(1, 2, 3), keepdims=True) * 2 - 1
        self.shape = self.images.shape[1:]
        self.facts = Facts(str(path), file_hash(path), ("activity",), spatial_shape=(SIZE, SIZE),
                           intensity=Intensity(0.0, 1.0, True, "share of maximum"))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.images[index])


def split_slices(slices: int, split: str, held_out: int, gap: int) -> np.ndarray:
    """Indices of a split: val are blocks centred at one and two thirds, train stays `gap` slices away from them."""
    if split not in ("train", "val", "all"):
        raise ValueError(f"training.dataset.split={split!r}: wanted train, val or all")
    index = np.arange(slices)
    distance = np.min([np.abs(index - slices * k / 3) for k in (1, 2)], axis=0)
    keep = {"train": distance > held_out / 2 + gap, "val": distance <= held_out / 2, "all": index >= 0}[split]
    return index[keep]
