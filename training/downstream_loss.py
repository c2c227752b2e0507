"""What downstream networks are trained by: cross-entropy and soft Dice of voxels, cross-entropy of images."""

from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy

from edm3d.training.autoencoder_loss import mean, soft_dice
from edm3d.utils.checks import check_least


class SegmentationLoss:
    """Weighted sum of cross-entropy, the mean over voxels, and 1 - soft Dice, the mean over classes but the first.

    class_weights: of the cross-entropy of voxels of each class; null: 1.
    """

    def __init__(self, ce_weight: float = 1, dice_weight: float = 1, class_weights: Sequence[float] | None = None):
        check_least(0, {"ce_weight": ce_weight, "dice_weight": dice_weight})
        self.ce_weight, self.dice_weight, self.class_weights = ce_weight, dice_weight, class_weights

    def __call__(self, logits: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Weighted terms [N] by name, of logits [N,K,*S] and classes [N,*S] int64; those of weight 0 are left out."""
        weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        terms = {}
        if self.ce_weight:
            terms["ce"] = self.ce_weight * mean(cross_entropy(logits, target, weights, reduction="none"))
        if self.dice_weight:
            terms["dice"] = self.dice_weight * soft_dice(logits, target)
        return terms


class ClassificationLoss:
    """Cross-entropy. class_weights: of images of each class; null: 1. label_smoothing: a share of all classes."""

    def __init__(self, class_weights: Sequence[float] | None = None, label_smoothing: float = 0.0):
        self.class_weights, self.label_smoothing = class_weights, label_smoothing

    def __call__(self, logits: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Weighted terms [N] by name, of logits [N,K] and classes [N] int64, -1: not known, for which they are 0."""
        weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        return {"ce": cross_entropy(logits, target, weights, ignore_index=-1, reduction="none",
                                    label_smoothing=self.label_smoothing)}
