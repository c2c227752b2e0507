"""Items of one plain array with 1, 2 or 3 spatial axes, .npy or .npz: signals, images, volumes without geometry."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edm3d.formats.facts import Facts
from edm3d.formats.intensity import Intensity
from edm3d.formats.npy import map_npy
from edm3d.inference.batch import Sample
from edm3d.utils.checks import listed
from edm3d.utils.files import NPZ_DAMAGE, first_line, read_npz

BLOCK = 2 ** 24  # bytes that are looked at in one go


class ArraysDataset:
    """Images [C,*S] in [-1,1] of an array [N,C,*S], floats or whole numbers; .npy is mapped, .npz read into memory.

    key: of the array in an .npz that holds several. `split` goes by position: val is the last share `held_out` of the
    items, at least one, train is what is before it, all is everything. [lo, hi] becomes [-1, 1], by default the range
    of the train part; values beyond are clipped to it. The whole array is looked at once, at the start.
    """

    def __init__(self, path: str, split: str = "train", key: str | None = None, held_out: float = 0.1,
                 lo: float | None = None, hi: float | None = None):
        array = open_array(Path(path), key)
        check_axes(array, path)
        train = train_length(len(array), held_out, path)
        content_hash, low, high = survey(array, train, path)
        self.intensity = contract(low if lo is None else lo, high if hi is None else hi, path)
        self.items = array[chosen(split, train)]
        self.shape = array.shape[1:]
        self.facts = Facts(str(path), content_hash, tuple(f"channel{c}" for c in range(self.shape[0])),
                           intensity=self.intensity, spatial_shape=self.shape[1:])

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        values = self.items[index].astype(np.float64).clip(self.intensity.lo, self.intensity.hi)
        return Sample(self.intensity.to_network(values).astype(np.float32))


def open_array(path: Path, key: str | None) -> np.ndarray:
    """The array of a file; ValueError for one that is not there, damaged or of another kind, and for a wrong key."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; set training.dataset.path to a .npy or .npz with an array [N,C,*S]")
    if path.suffix == ".npy":
        if key is not None:
            raise ValueError(f"training.dataset.key={key}: {path} is a .npy, which has no keys; leave it away")
        try:
            return map_npy(path)
        except NPZ_DAMAGE as e:
            raise ValueError(f"{path}: not a .npy file, or damaged ({first_line(e)})") from e
    if path.suffix != ".npz":
        raise ValueError(f"training.dataset.path={path}: wanted a .npy or .npz")
    archive = read_npz(path)
    if key is None and len(archive) == 1:
        return next(iter(archive.values()))
    if key not in archive:
        what = f"no array {key!r}" if key is not None else "several arrays"
        raise ValueError(f"{path}: {what}, it has {listed(archive) or 'none'}; set training.dataset.key to one")
    return archive[key]


def check_axes(array: np.ndarray, path: str) -> None:
    """ValueError unless an array is [N,C,*S] with 1 to 3 spatial axes, holds something, and numbers."""
    if not 3 <= array.ndim <= 5 or 0 in array.shape:
        raise ValueError(f"{path}: array {list(array.shape)}, wanted [N,C,*S] with 1 to 3 spatial axes, none empty; "
                         "a single channel is an axis too, array[:, None]")
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{path}: array of {array.dtype}, wanted floats or whole numbers")


def train_length(items: int, held_out: float, path: str) -> int:
    """How many items come before the held-out ones; ValueError when there are none."""
    if not 0 < held_out < 1:
        raise ValueError(f"training.dataset.held_out={held_out}: wanted a share of the items, more than 0 and less "
                         "than 1")
    train = items - max(1, round(items * held_out))
    if train < 1:
        raise ValueError(f"{path}: {items} item{'s' * (items > 1)}, and training.dataset.held_out={held_out} leaves "
                         "none to train on; wanted two items or more, and a smaller share")
    return train


def chosen(split: str, train: int) -> slice:
    """Positions of a split."""
    parts = {"train": slice(train), "val": slice(train, None), "all": slice(None)}
    if split not in parts:
        raise ValueError(f"training.dataset.split={split!r}: wanted {', '.join(parts)}")
    return parts[split]


def survey(array: np.ndarray, train: int, path: str) -> tuple[str, float, float]:
    """Hash of an array, and the range of its first `train` items; ValueError naming an item that is not finite."""
    digest, low, high = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode()), np.inf, -np.inf
    for first, items in blocks(array):
        digest.update(items.tobytes())
        bad = ~np.isfinite(items).reshape(len(items), -1).all(1)
        if bad.any():
            raise ValueError(f"{path}: item {first + int(bad.argmax())} has values that are not finite; mend it or "
                             "leave it out")
        of_train = items[:max(0, train - first)]
        if len(of_train):
            low, high = min(low, float(of_train.min())), max(high, float(of_train.max()))
    return digest.hexdigest(), low, high


def blocks(array: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The items of an array in blocks of some size in memory, each with the position of its first."""
    step = max(1, BLOCK // array[0].nbytes)
    for first in range(0, len(array), step):
        yield first, np.asarray(array[first:first + step])


def contract(lo: float, hi: float, path: str) -> Intensity:
    """The intensity contract; ValueError for a range that is none."""
    try:
        return Intensity(float(lo), float(hi), clip=True, unit="")
    except ValueError as e:
        raise ValueError(f"{path}: {e}; set training.dataset.lo and training.dataset.hi, or leave both away for the "
                         "range of the train part, where that varies") from e
