"""A trained downstream network at work: the class of every voxel of an image, or of the image."""

from pathlib import Path

import torch

from edm3d.formats.facts import Facts
from edm3d.inference.snapshot import Snapshot
from edm3d.networks.windows import windowed
from edm3d.utils.checks import listed_apart
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

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Probabilities [N,K,*S] of the voxels, or [N,K], of images [N,C,*S] as networks see them.

        Voxels of images of another size than it was trained on are seen in windows of that size.
        """
        with autocast(self.precision, images.device):
            logits = windowed(self.net, images, self.snapshot.shape[1:]) if self.of_voxels else self.net(images)
        return logits.float().softmax(1)


def open_predictor(name: str, run_root: Path, device: torch.device, *, precision: str = "fp32", trust: bool = False,
                   key: str = KEY) -> Predictor:
    """A downstream network by its experiment, run folder or snapshot, on a device; ValueError for any other."""
    path = find_file(name, "network-snapshot", run_root, key)
    snapshot = Snapshot.read(path)
    if snapshot.predicts is None:
        raise ValueError(f"{key}={name}: {path} is of task {snapshot.task}; wanted a network trained with "
                         "training.task=segmentation or classification")
    return Predictor(snapshot, snapshot.build(trust).to(device), precision)
