"""What downstream networks are trained by: cross-entropy and soft Dice of voxels, cross-entropy of images."""

from collections.abc import Sequence
from math import isfinite

import torch
from torch.nn.functional import cross_entropy

from edm3d.training.autoencoder_loss import mean, soft_dice
from edm3d.utils.checks import check_least
from edm3d.utils.tensors import tensor_on

BALANCED = "balanced"


class ClassWeights:
    """Weights of classes: asked for as numbers, as `balanced`, or not at all (None), which is 1 for each.

    balanced: n / (K n_k) for a class of n_k among n targets of K classes, so that the mean over these is 1. ValueError
    for anything else.
    """

    def __init__(self, asked: Sequence[float] | str | None):
        self.asked, self.values = asked, None if asked is None or asked == BALANCED else asked
        if self.values is None:
            return
        if isinstance(asked, str) or not all(isfinite(w) and w >= 0 for w in asked) or not any(asked):
            said = asked if isinstance(asked, str) else list(asked)
            raise ValueError(f"class_weights={said}: wanted a number of 0 or more for each class, one of them above 0, "
                             f"or {BALANCED}, or null")

    @property
    def by_data(self) -> bool:
        """Whether they hang on how many targets of each class there are, and `settle` must be told."""
        return self.asked == BALANCED

    def settle(self, names: Sequence[str], counts: Sequence[int] | None = None) -> None:
        """Hold them against the classes, and make balanced ones of the number of targets of each class.

        ValueError for another number of classes, and a class without a target.
        """
        if self.by_data and counts is not None:
            if empty := [name for name, count in zip(names, counts, strict=True) if not count]:
                raise ValueError(f"training.loss.class_weights={BALANCED}: no target is {', '.join(empty)}, whose "
                                 "weight would be infinite; write numbers, one for each class")
            self.values = [sum(counts) / (len(counts) * count) for count in counts]
        if self.values is not None and len(self.values) != len(names):
            raise ValueError(f"training.loss.class_weights={list(self.values)}: {len(self.values)} numbers, wanted "
                             f"{len(names)}, one for each of {', '.join(names)}")

    def on(self, logits: torch.Tensor) -> torch.Tensor | None:
        """As a tensor beside logits."""
        return None if self.values is None else tensor_on(logits.device, self.values, logits.dtype)


class SegmentationLoss:
    """Weighted sum of cross-entropy, the mean over voxels, and 1 - soft Dice, the mean over classes but the first.

    class_weights: of the cross-entropy of voxels of each class, as `ClassWeights`.
    """

    def __init__(self, ce_weight: float = 1, dice_weight: float = 1,
                 class_weights: Sequence[float] | str | None = None):
        check_least(0, {"ce_weight": ce_weight, "dice_weight": dice_weight})
        if not ce_weight and not dice_weight:
            raise ValueError("ce_weight=0: and dice_weight is 0, so that nothing is learnt; wanted one above 0")
        self.ce_weight, self.dice_weight = ce_weight, dice_weight
        self.class_weights = ClassWeights(class_weights)

    def __call__(self, logits: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Weighted terms [N] by name, of logits [N,K,*S] and classes [N,*S] int64; those of weight 0 are left out.

        logits [N,H,K,*S] are those of a network with deep supervision: the h-th weighs 2^-h, all together 1.
        """
        if logits.ndim == target.ndim + 2:
            shares = [2.0 ** -h for h in range(logits.shape[1])]
            each = [self(head, target) for head in logits.unbind(1)]
            return {name: sum(share * terms[name] for share, terms in zip(shares, each, strict=True)) / sum(shares)
                    for name in each[0]}
        terms = {}
        if self.ce_weight:
            weights = self.class_weights.on(logits)
            terms["ce"] = self.ce_weight * mean(cross_entropy(logits, target, weights, reduction="none"))
        if self.dice_weight:
            terms["dice_loss"] = self.dice_weight * soft_dice(logits, target)
        return terms


class ClassificationLoss:
    """Cross-entropy. class_weights: of images of each class, as `ClassWeights`; label_smoothing: a share of all."""

    def __init__(self, class_weights: Sequence[float] | str | None = None, label_smoothing: float = 0.0):
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing}: wanted a share, 0 or more and less than 1")
        self.class_weights, self.label_smoothing = ClassWeights(class_weights), label_smoothing

    def __call__(self, logits: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Weighted terms [N] by name, of logits [N,K] and classes [N] int64, -1: not known, for which they are 0."""
        return {"ce": cross_entropy(logits, target, self.class_weights.on(logits), ignore_index=-1, reduction="none",
                                    label_smoothing=self.label_smoothing)}
