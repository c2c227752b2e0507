"""The segmentation task: the class of every voxel."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from edm3d.inference.snapshot import Snapshot
from edm3d.metrics.overlap import dice
from edm3d.networks.windows import windowed
from edm3d.training.phases import Best, Numbers, Sum
from edm3d.training.targets import VoxelTarget
from edm3d.training.tasks.base import Lever, PlannedData, patch_levers
from edm3d.training.tasks.downstream import DownstreamTask
from edm3d.training.tasks.downstream_previews import build_segmented


class SegmentationTask(DownstreamTask):
    """Training a segmenter, on whole volumes or on patches; held-out volumes are seen whole, in windows."""

    target, best, preview = VoxelTarget, Best("dice", higher=True), staticmethod(build_segmented)

    def measured(self, net: torch.nn.Module, loss: Callable, images: torch.Tensor, target: torch.Tensor,
                 snapshot: Snapshot) -> Numbers:
        """The loss, and Dice of every class but the first, over the images that have it; `dice`: the mean over all."""
        logits = windowed(net, images, snapshot.shape[1:]).float()
        terms = loss(logits, target)
        found = torch.tensor(np.stack([dice(a, b, logits.shape[1])[1:] for a, b in zip(
            logits.argmax(1).cpu().numpy(), target.cpu().numpy())]))
        there = torch.stack([(target == k).flatten(1).any(1).cpu() for k in range(1, logits.shape[1])], dim=1)
        of_class = {f"dice_{name}": Sum(found[:, k][there[:, k]].sum(), there[:, k].sum())
                    for k, name in enumerate(snapshot.predicts.names[1:])}
        return {"loss": Sum(sum(term.sum() for term in terms.values()), len(images)),
                "dice": Sum(found[there].sum(), there.sum()), **of_class}

    def levers(self, training: dict, data: PlannedData) -> Iterator[Lever]:
        """Patches, each half of the one before along its longest axis, that the network can divide."""
        yield from patch_levers(training, data, self.factor(training, data))
