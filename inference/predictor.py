"""A trained downstream network at work: the class of every voxel of an image, or of the image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike

from edm3d.formats.facts import Facts
from edm3d.inference.snapshot import Snapshot
from edm3d.networks.windows import windowed
from edm3d.utils.checks import listed_apart
from edm3d.utils.names import one_line
from edm3d.utils.precision import autocast
from edm3d.utils.runs import find_file

KEY = "--network"


class Predictor:
    """A segmenter or classifier with its averaged weights, in eval mode, in `precision`.

    predicts: of what it gives the class.
    """

    def __init__(self, snapshot: Snapshot, net: torch.nn.Module, precision: str = "fp32"):
        self.snapshot, self.net, self.precision = snapshot, net.eval(), precision
        self.predicts, self.facts = snapshot.predicts, snapshot.facts

    def __repr__(self) -> str:
        return f"Predictor({self.predicts}; {self.snapshot!r})"

    @property
    def of_voxels(self) -> bool:
        """Whether it gives the class of every voxel, and not that of an image."""
        return self.predicts.of_voxels

    def check(self, facts: Facts, source: object, key: str = KEY) -> list[str]:
        """What to say of data that it is run on, such as an intensity contract that differs: each is seen as -1 to 1.

        ValueError for other channels, or images of other dimensions.
        """
        path, wanted = self.snapshot.path, self.facts
        if facts.channels != wanted.channels:
            got, had = listed_apart(facts.channels, wanted.channels)
            raise ValueError(f"{key}: {path} was trained on channels {had}, {source} has {got}")
        if len(facts.spatial_shape) != len(self.snapshot.shape) - 1:
            raise ValueError(f"{key}: {path} was trained on images of {len(self.snapshot.shape) - 1} dimensions, those "
                             f"of {source} have {len(facts.spatial_shape)}")
        if facts.intensity == wanted.intensity:
            return []
        return [f"Note: {source} has intensities {facts.intensity}, {path} was trained on {wanted.intensity}; both are "
                "scaled to what networks see"]

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next((p.device for p in self.net.parameters()), torch.device("cpu"))

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Probabilities [N,K,*S] of the voxels, or [N,K], of images [N,C,*S] as networks see them.

        Voxels of images of another size than it was trained on are seen in windows of that size.
        """
        return self._logits(images).softmax(1)

    @torch.no_grad()
    def logits(self, images: torch.Tensor, names: Sequence[str] = ()) -> torch.Tensor:
        """Logits like probabilities; ValueError, by the name of the image, where they are not finite."""
        found = self._logits(images)
        finite = found.isfinite().flatten(1).all(1)
        if not finite.all():
            of = f" of {one_line(names[int(finite.int().argmin())])}" if names else ""
            raise ValueError(f"{self.snapshot.path}: gives values that are not finite{of}; it has diverged, train it "
                             "again with a lower training.optimizer.lr")
        return found

    def log_odds(self, images: torch.Tensor, names: Sequence[str] = ()) -> torch.Tensor:
        """Of each class of images [N,K] float64 the logarithm of its probability by that of all others together.

        It tells apart what is 0 or 1 as a probability in single precision. ValueError as of `logits`.
        """
        logits = self.logits(images, names).double()
        others = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
        return logits - logits[:, None].masked_fill(others, -torch.inf).logsumexp(2)

    def classes(self, images: torch.Tensor, names: Sequence[str] = ()) -> torch.Tensor:
        """The most likely class of every voxel [N,*S] uint8, or of the image [N], of images as networks see them.

        ValueError as of `logits`.
        """
        return self.logits(images, names).argmax(1).to(torch.uint8)

    def each(self, images: Sequence[np.ndarray], names: Sequence[str] = ()) -> list[np.ndarray]:
        """The label map [*S] uint8, or the log-odds [K], of each of images [C,*S] as networks see them.

        Those of one size are seen together. ValueError as of `logits`.
        """
        give, found = self.classes if self.of_voxels else self.log_odds, []
        alike = len({image.shape for image in images}) == 1
        for some in [slice(None)] if alike else [slice(i, i + 1) for i in range(len(images))]:
            seen = torch.from_numpy(np.stack(images[some])).to(self.device)
            found += list(give(seen, names[some]).cpu().numpy())
        return found

    def predict(self, images: ArrayLike) -> np.ndarray:
        """Label maps [N,*S] uint8, or the numbers of classes [N], of images [N,C,*S] in the unit of `facts.intensity`.

        Axes as in training: what turns them is `dataset_tool.py segment`. ValueError for other channels or dimensions,
        and values that are not finite.
        """
        images, wanted = np.asarray(images, np.float32), self.snapshot.shape
        if images.ndim != len(wanted) + 1 or images.shape[1] != wanted[0] or 0 in images.shape:
            raise ValueError(f"images are {list(images.shape)}, wanted [N, {wanted[0]}, "
                             f"{', '.join('XYZ'[:len(wanted) - 1])}], as {self.snapshot.path} was trained")
        if not np.isfinite(images).all():
            raise ValueError("images have values that are not finite")
        seen = torch.from_numpy(self.facts.intensity.to_network(images)).to(self.device)
        return self.classes(seen).cpu().numpy()

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        with autocast(self.precision, images.device):
            return (windowed(self.net, images, self.snapshot.shape[1:]) if self.of_voxels else self.net(images)).float()


def open_predictor(name: str, run_root: Path, device: torch.device, *, precision: str = "fp32", trust: bool = False,
                   key: str = KEY) -> Predictor:
    """A downstream network by its experiment, run folder or snapshot, on a device; ValueError for any other."""
    path = find_file(name, "network-snapshot", run_root, key)
    snapshot = Snapshot.read(path)
    if snapshot.predicts is None:
        raise ValueError(f"{key}={name}: {path} is of task {snapshot.task}; wanted a network trained with "
                         "training.task=segmentation or classification")
    return Predictor(snapshot, snapshot.build(trust).to(device), precision)
