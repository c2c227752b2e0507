"""What downstream networks learn to tell of images: the classes of their voxels, or the class of each."""

from collections.abc import Sequence
from math import isfinite

import torch

from edm3d.formats.facts import Facts
from edm3d.formats.prediction import ATTRIBUTE, CLASSES, LABELS, MAPS, Prediction, class_by_threshold, names_of
from edm3d.inference.batch import Batch
from edm3d.utils.checks import check_choice, listed

KEY = "training.batch_transform"


class VoxelTarget:
    """The class of every voxel. of: labels, the label maps; or maps, in files without maps their label maps."""

    def __init__(self, of: str = LABELS):
        check_choice("of", of, (LABELS, MAPS))
        self.of = of

    def prediction(self, facts: Facts) -> Prediction:
        """What a network that learns it gives; ValueError for data without, or with one class only."""
        names = names_of(self.of, facts)
        lacking = facts.lacking.get("label_classes" if self.of == LABELS else "map_classes", ())
        if self.of == MAPS and not names:
            lacking = lacking or facts.lacking.get("label_classes", ())
        if lacking:
            raise ValueError(f"{KEY}.of={self.of}: {without(lacking, 'label maps' if self.of == LABELS else 'maps')}"
                             + told_of_other(self.of, facts))
        if not names:
            raise ValueError(f"{KEY}.of={self.of}: {facts.source} has no label maps to learn"
                             + told_of_other(self.of, facts))
        return checked(Prediction(self.of, names), facts)

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Classes [N,*S] int64 of the voxels of a batch."""
        return (batch.labels if self.of == LABELS else batch.condition.semantic).long()


class ClassTarget:
    """The class of every image. attribute: instead, whether this one is at least `threshold`, in the data's unit.

    Images without a class, or without the attribute, have no target and are left out of training and of tests.
    """

    def __init__(self, attribute: str | None = None, threshold: float | None = None):
        if (attribute is None) != (threshold is None):
            raise ValueError(f"{KEY}: attribute={attribute}, threshold={threshold}: wanted both, or none of them for "
                             "the classes of the data")
        if threshold is not None and not isfinite(threshold):
            raise ValueError(f"{KEY}.threshold={threshold}: wanted a finite number")
        self.attribute, self.threshold = attribute, threshold

    def prediction(self, facts: Facts) -> Prediction:
        """What a network that learns it gives; ValueError for data without, or with one class only."""
        field, what = ("class_names", "classes") if self.attribute is None else ("attribute_names", "attributes")
        if field in facts.lacking:
            raise ValueError(f"{KEY}: {without(facts.lacking[field], what)}")
        if self.attribute is None:
            if not facts.class_names:
                raise ValueError(f"{KEY}: {facts.source} names no classes to learn; prepare it with a table that has "
                                 "a column class, or --image-pattern with {class}, or choose "
                                 f"{KEY}.attribute and {KEY}.threshold")
            return checked(Prediction(CLASSES, facts.class_names), facts)
        names, units = facts.attribute_names or (), facts.attribute_units
        if self.attribute not in names:
            raise ValueError(f"{KEY}.attribute={self.attribute}: {facts.source} has {listed(names) or 'none'}")
        self.column = names.index(self.attribute)
        unit = units[self.column] if units else ""
        below, above = (f"{self.attribute} {sign} {self.threshold:g}" for sign in ("<", ">="))
        return Prediction(ATTRIBUTE, (below, above), self.attribute, unit, self.threshold)

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Classes [N] int64 of the images of a batch, -1 where it is not known."""
        if self.attribute is None:
            one_hot = batch.condition.class_labels
            return torch.where(one_hot.any(1), one_hot.argmax(1), -1)
        return class_by_threshold(batch.condition.attributes[:, self.column], self.threshold)


def without(files: Sequence[str], what: str) -> str:
    """That files lack what others have that are trained on with them."""
    return (f"{listed(files)} {'has' if len(files) == 1 else 'have'} no {what} to learn, and other files of "
            "training.dataset.path have; leave out the files without")


def told_of_other(of: str, facts: Facts) -> str:
    """By what else there is something to learn, '' for nothing."""
    if of == LABELS and facts.map_classes:
        return f"; its maps are targets by {KEY}.of=maps"
    return f"; label maps are targets by {KEY}.of=labels" if of == MAPS and facts.label_classes else ""


def checked(prediction: Prediction, facts: Facts) -> Prediction:
    """The same; ValueError for one class only."""
    if len(prediction.names) < 2:
        raise ValueError(f"{KEY}: {facts.source} has one class of {prediction.kind} only, {prediction.names[0]}; there "
                         "is nothing to tell apart")
    return prediction
