"""Activity phantoms that PET scans are simulated of: slices, or stacks of slices, of one subject or several."""

from collections.abc import Iterator

import numpy as np

from edm3d.formats.facts import AttributeStatistics, Facts
from edm3d.formats.intensity import Intensity
from edm3d.formats.phantom_files import read_phantoms
from edm3d.inference.batch import Sample
from edm3d.networks.conditioning import Condition
from edm3d.networks.parts import PARTS
from edm3d.training.datasets.brainweb import split_slices
from edm3d.utils.checks import check_count
from edm3d.utils.files import arrays_hash

HEIGHT = ("slice_height", "share")


class PhantomDataset:
    """Activities [1,H,W], or stacks of `stack` neighbouring slices [1,D,H,W], in [-1,1] by the file's largest.

    path: an .npz with `phantoms`, or a folder of slices (formats.phantom_files.read_phantoms, also for order and
    subjects). split: of several subjects val are the last `held_out_subjects`, train all others; of one, val are two
    inner blocks of `held_out` slices, and train stays `gap` slices away from them; all is everything. A network may be
    told how high in its subject a slice lies, from 0 to 1, as attribute, or as one of `heights` classes. Slices without
    any activity are left out. `ids` names the slices, of stacks the first.
    """

    def __init__(self, path: str, split: str = "train", order: str = "file", subjects: int | None = None,
                 stack: int | None = None, heights: int | None = None, held_out: int = 35, gap: int = 4,
                 held_out_subjects: int = 1):
        check_count(1, {f"training.dataset.{key}": value for key, value in
                        (("stack", stack), ("heights", heights), ("held_out_subjects", held_out_subjects))
                        if value is not None})
        found = read_phantoms(path, order, subjects)
        rows = chosen_rows(found.subjects, split, held_out, gap, held_out_subjects)
        rows = [part[found.slices[part].any(axis=(1, 2))] for part in rows]
        depth = 1 if stack is None else stack
        starts = [part[i:i + depth] for part in rows for i in range(0, len(part) - depth + 1, depth)]
        if not starts:
            raise ValueError(f"{path}: split {split!r} has no {'slice' if stack is None else f'{stack} slices'} with "
                             "anything in it; change training.dataset.split, stack or the file")
        self.rows, self.slices, self.stack = np.stack(starts), found.slices, stack
        self.ids = [found.ids[first] for first in self.rows[:, 0]]
        self.heights = found.heights()[self.rows].mean(axis=1)[:, None].astype(np.float32)
        self.classes = None if heights is None else np.minimum(self.heights[:, 0] * heights, heights - 1).astype(int)
        size = found.slices.shape[1:]
        self.shape = (1, *(() if stack is None else (stack,)), *size)
        names = () if heights is None else tuple(f"height{k}" for k in range(heights))
        self.facts = Facts(str(path), found.content_hash, ("activity",), class_names=names,
                           intensity=Intensity(0.0, float(found.slices.max()), False, found.unit),
                           spatial_shape=self.shape[1:], attribute_names=HEIGHT[:1], attribute_units=HEIGHT[1:],
                           attribute_statistics=AttributeStatistics.of(self.heights))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def hash(self) -> str:
        """Of all images in their order, whatever the file that they are of."""
        return arrays_hash({"images": self.slices[self.rows]})

    def __getitem__(self, index: int) -> Sample:
        image = self.slices[self.rows[index]].reshape(self.shape)
        told = {"attributes": PARTS["attributes"].row(self.heights[index], 1)}
        if self.classes is not None:
            told["class_labels"] = PARTS["class_labels"].row(self.classes[index], len(self.facts.class_names))
        return Sample(self.facts.intensity.to_network(image).astype(np.float32), None, Condition(told))


def chosen_rows(subjects: np.ndarray, split: str, held_out: int, gap: int, held_out_subjects: int
                ) -> list[np.ndarray]:
    """Numbers of the rows of a split, each array of neighbours."""
    names = np.unique(subjects)
    if split not in ("train", "val", "all"):
        raise ValueError(f"training.dataset.split={split!r}: wanted train, val or all")
    if len(names) == 1:
        return list(runs_of(split_slices(len(subjects), split, held_out, gap)))
    if held_out_subjects >= len(names):
        raise ValueError(f"training.dataset.held_out_subjects={held_out_subjects}: there are {len(names)}; wanted "
                         "fewer")
    kept = {"train": names[:-held_out_subjects], "val": names[-held_out_subjects:], "all": names}[split]
    return [np.flatnonzero(subjects == name) for name in kept]


def runs_of(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Rising numbers cut where one is left out."""
    yield from np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
