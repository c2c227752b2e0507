"""The classification task: the class of an image."""

import torch

from edm3d.inference.snapshot import Snapshot
from edm3d.training.phases import Best, Numbers, Sum
from edm3d.training.targets import ClassTarget
from edm3d.training.tasks.downstream import DownstreamTask


class ClassificationTask(DownstreamTask):
    """Training a classifier of whole images."""

    target, best = ClassTarget, Best("accuracy", higher=True)

    def measured(self, net: torch.nn.Module, loss: object, images: torch.Tensor, target: torch.Tensor,
                 snapshot: Snapshot) -> Numbers:
        """The loss, and the share of images whose class is found, over the images that have a target."""
        logits, known = net(images).float(), target >= 0
        terms = loss(logits, target)
        right = (logits.argmax(1) == target) & known
        return {"loss": Sum(sum(term.sum() for term in terms.values()), known.sum()),
                "accuracy": Sum(right.sum(), known.sum())}
