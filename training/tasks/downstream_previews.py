"""What downstream tasks show: held-out images with their target, and what the network says of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from edm3d.inference.batch import Batch, collate
from edm3d.inference.predictor import Predictor
from edm3d.inference.real_pictures import spread
from edm3d.training.phases import Task
from edm3d.training.preview import Show, Shown
from edm3d.training.targets import KEY
from edm3d.training.tasks.previews import look_of
from edm3d.training.validation import Held
from edm3d.utils.config import build
from edm3d.utils.names import one_line
from edm3d.utils.precision import resolve_precision


class ShownImages(NamedTuple):
    """What is shown: one batch for each held-out image, its picture in stored units, and its target [*S], or a class.
    """

    batches: list[Batch]
    images: list[np.ndarray]
    targets: list[np.ndarray]


def held_out_of(config: dict, task: Task, held: Held | None, count: int, device: torch.device) -> ShownImages:
    """Up to `count` held-out images; ValueError where nothing is held out."""
    if held is None:
        raise ValueError("no images are held out; choose training.validation.split, and max_items of 1 or more")
    facts, target = task.snapshot.facts, build(config["training"]["batch_transform"], path=KEY)
    target.prediction(facts)  # which finds the attribute
    samples = spread(held.dataset, count)
    batches = [collate([sample]) for sample in samples]
    return ShownImages([batch.to(device) for batch in batches],
                   [facts.intensity.from_network(sample.image) for sample in samples],
                   [target(batch)[0].numpy() for batch in batches])


def probabilities(config: dict, task: Task, net: torch.nn.Module, batches: Sequence[Batch]) -> list[np.ndarray]:
    """What a network gives of the image of each batch: [K,*S], or [K]."""
    precision = resolve_precision(config["training"]["options"]["precision"], batches[0].images.device)
    predictor = Predictor(task.snapshot, net, precision)
    return [predictor(batch.images)[0].cpu().numpy() for batch in batches]


def build_segmented(config: dict, task: Task, held: Held | None, count: int, device: torch.device) -> Show:
    """The preview of a segmenter: held-out images with what they are, and with what the network takes them for."""
    shown = held_out_of(config, task, held, count, device)
    look = {**look_of(task.snapshot.facts), "label_classes": task.snapshot.predicts.names, "aligned": True}

    def show(net: torch.nn.Module) -> Shown:
        found = [p.argmax(0) for p in probabilities(config, task, net, shown.batches)]
        return Shown([("Held out", list(zip(shown.images, shown.targets, strict=True))),
                      ("Predicted", list(zip(shown.images, found, strict=True)))], look)

    return show


def build_classified(config: dict, task: Task, held: Held | None, count: int, device: torch.device) -> Show:
    """The preview of a classifier: held-out images with their class, and the class found with its probability."""
    shown = held_out_of(config, task, held, count, device)
    names = [one_line(name) for name in task.snapshot.predicts.names]
    true = [names[int(k)] if k >= 0 else "not known" for k in shown.targets]

    def show(net: torch.nn.Module) -> Shown:
        found = [f"{names[p.argmax()]} {p.max():.2f}" for p in probabilities(config, task, net, shown.batches)]
        return Shown([("Held out", [(image, None) for image in shown.images])],
                     {**look_of(task.snapshot.facts),
                      "captions": [f"{k}, found: {each}" for k, each in zip(true, found, strict=True)]})

    return show
