"""Pairs of images of a high and a low dose that somebody made before: stacked in an .npz, or in two folders."""

from pathlib import Path

import numpy as np

from edm3d.formats.dose import HIGH_DOSE, LOW_DOSE
from edm3d.formats.facts import Facts
from edm3d.formats.intensity import Intensity
from edm3d.formats.phantom_files import read_slices
from edm3d.inference.batch import Sample
from edm3d.networks.conditioning import Condition
from edm3d.utils.checks import listed
from edm3d.utils.files import file_hash, plain_hash, read_npz

KEY = "data"
FOLDERS = ("recon-noisy", "recon-noisy-restricted")  # of the high and of the low dose
WANTED = (f"wanted an .npz with {KEY!r} [N,1,2H,W], the high dose above the low one, in [-1,1], or a folder with "
          f"{listed(FOLDERS)}")


class PairedDataset:
    """Images [1,H,W] of the high dose with the low one as condition image, or joint [2,H,W], high dose first.

    path: an .npz with `data` [N,1,2H,W] in [-1,1], the high dose above the low one, or a folder with recon-noisy/ and
    recon-noisy-restricted/ of one .npz per slice, scaled by the largest value of both. split: val is the last share
    held_out_share of the pairs, one at least, train what is before it, all everything.
    """

    def __init__(self, path: str, split: str = "train", joint: bool = False, held_out_share: float = 0.1):
        if split not in ("train", "val", "all"):
            raise ValueError(f"training.dataset.split={split!r}: wanted train, val or all")
        if not 0 < held_out_share < 1:
            raise ValueError(f"training.dataset.held_out_share={held_out_share}: wanted a share, more than 0 and less "
                             "than 1")
        pairs, content_hash, intensity = read_pairs(Path(path))
        train = len(pairs) - max(1, round(len(pairs) * held_out_share))
        if train < 1:
            raise ValueError(f"{path}: {len(pairs)} pair, and one is held out; wanted two or more")
        part = {"train": slice(train), "val": slice(train, None), "all": slice(None)}[split]
        self.pairs, self.joint = pairs[part], joint
        self.shape = (2 if joint else 1, *pairs.shape[2:])
        told = {"channels": (HIGH_DOSE, LOW_DOSE)} if joint else {"channels": (HIGH_DOSE,),
                                                                 "condition_channels": (LOW_DOSE,)}
        self.facts = Facts(str(path), content_hash, intensity=intensity, spatial_shape=pairs.shape[2:], **told)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        pair = self.pairs[index]
        return Sample(pair) if self.joint else Sample(pair[:1], None, Condition(images=pair[1:]))


def read_pairs(path: Path) -> tuple[np.ndarray, str, Intensity]:
    """Pairs [N,2,H,W] float32 in [-1,1], high dose first, a hash of where they come from, and what they mean."""
    if path.is_dir():
        return of_folders(path)
    if not path.is_file() or path.suffix.lower() != ".npz":
        raise ValueError(f"{path}: no such file or folder; {WANTED}" if not path.exists() else f"{path}: {WANTED}")
    archive = read_npz(path)
    if KEY not in archive:
        raise ValueError(f"{path}: no array {KEY!r}, it has {listed(archive) or 'none'}; {WANTED}")
    data = archive[KEY]
    if data.ndim != 4 or data.shape[1] != 1 or data.shape[2] % 2 or 0 in data.shape or data.dtype.kind not in "iuf":
        raise ValueError(f"{path}: {KEY} is {data.dtype} {list(data.shape)}, wanted numbers [N,1,2H,W]")
    if not np.isfinite(data).all() or np.abs(data).max() > 1 + 1e-4:
        raise ValueError(f"{path}: {KEY} has values that are not finite, or leave [-1,1]; scale it")
    count, _, height, width = data.shape
    pairs = data.reshape(count, 2, height // 2, width).astype(np.float32)
    return pairs, file_hash(path), Intensity(-1.0, 1.0, False, "share of maximum")


def of_folders(path: Path) -> tuple[np.ndarray, str, Intensity]:
    """The same of two folders of slices, which must have the same names."""
    if missing := [name for name in FOLDERS if not (path / name).is_dir()]:
        raise ValueError(f"{path}: no folder {listed(missing)} in it; {WANTED}")
    high, low = (read_slices(path / name) for name in FOLDERS)
    if high.ids != low.ids:
        alone = sorted({*high.ids} ^ {*low.ids})
        raise ValueError(f"{path}: {alone[0]} lies in one of {listed(FOLDERS)} alone; wanted the same slices in both")
    if high.slices.shape != low.slices.shape:
        raise ValueError(f"{path}: {FOLDERS[0]} has {list(high.slices.shape[1:])}, {FOLDERS[1]} "
                         f"{list(low.slices.shape[1:])}; wanted one size")
    top = float(max(high.slices.max(), low.slices.max()))
    if top == 0:
        raise ValueError(f"{path}: nothing but zeros in it")
    pairs = np.stack([high.slices, low.slices], axis=1)
    intensity = Intensity(0.0, top, False, high.unit)
    return intensity.to_network(pairs).astype(np.float32), plain_hash([high.content_hash, low.content_hash]), intensity
