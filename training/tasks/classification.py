"""The classification task: the class of an image."""

from collections.abc import Callable

import torch

from edm3d.inference.snapshot import Snapshot
from edm3d.training.chain import patches_of
from edm3d.training.phases import Best, Numbers, Sum
from edm3d.training.targets import ClassTarget
from edm3d.training.tasks.base import Data
from edm3d.training.tasks.downstream import DownstreamTask
from edm3d.training.tasks.downstream_previews import build_classified


class ClassificationTask(DownstreamTask):
    """Training a classifier of whole images."""

    target, best, preview = ClassTarget, Best("accuracy", higher=True), staticmethod(build_classified)

    def trained_size(self, augment: Callable | None, data: Data) -> tuple[int, ...]:
        """That of the images; ValueError for patches, of which nobody knows the class."""
        if (found := patches_of(augment)) is not None:
            raise ValueError(f"{found[0]}.size={list(found[1].size)}: a classifier sees whole images, a patch need not "
                             f"show their class; choose augment=rand or augment=mild, or {found[0]}.size=null for "
                             "flips and changes of intensity alone")
        return tuple(data.shape[1:])

    def measured(self, net: torch.nn.Module, loss: Callable, images: torch.Tensor, target: torch.Tensor,
                 snapshot: Snapshot) -> Numbers:
        """The loss, and the share of images whose class is found, over the images that have a target.

        `accuracy_CLASS`: the same over the images of a class.
        """
        logits, known = net(images).float(), target >= 0
        terms = loss(logits, target)
        right = (logits.argmax(1) == target) & known
        of_class = {f"accuracy_{name}": Sum(right[target == k].sum(), (target == k).sum())
                    for k, name in enumerate(snapshot.predicts.names)}
        return {"loss": Sum(sum(term.sum() for term in terms.values()), known.sum()),
                "accuracy": Sum(right.sum(), known.sum()), **of_class}
