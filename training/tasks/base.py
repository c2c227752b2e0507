"""What the program asks of a task, and what tasks are assembled from."""

import inspect
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import ceil
from typing import Any, NamedTuple, Protocol

import torch

from edm3d.formats.facts import Facts
from edm3d.inference.snapshot import Snapshot
from edm3d.networks.layers import per_axis, size_error_of
from edm3d.networks.parts import PARTS
from edm3d.networks.parts.base import PartKind
from edm3d.training.chain import patches_of
from edm3d.training.live_memory import imagine
from edm3d.training.phases import Task
from edm3d.training.preview import Show
from edm3d.training.sampling import SampleMeasures
from edm3d.training.validation import Held
from edm3d.utils.config import build, fill, find_target

SIZE, PATCHES = "training.augment.size", "training.patches.PatchAugment"


class Data(Protocol):
    """What is known of data before an item is read: its shape [C,*S], and where it comes from."""

    shape: tuple[int, ...]
    facts: Facts


class PlannedData(NamedTuple):
    """What a plan must know of the data: shape [C,*S] of an item as networks see it, and what is known of it.

    first_stage: the config of the autoencoder of latents, {} where there is none or it is not known.
    """

    shape: tuple[int, ...]
    facts: Facts
    first_stage: dict

    def resized(self, shape: tuple[int, ...]) -> "PlannedData":
        """The same of another shape [C,*s], latents with volumes of as many voxels more or less."""
        full = self.facts.spatial_shape if self.facts.latents else ()
        volumes = tuple(n * new // old for n, new, old in zip(full, shape[1:], self.shape[1:]))
        return self._replace(shape=shape, facts=replace(self.facts, spatial_shape=volumes) if volumes else self.facts)


class Lever(NamedTuple):
    """A key and a value of it that make a training step smaller.

    group: a choice that it asks for, as the command line says it, and the keys that this sets.
    """

    key: str
    value: object
    group: str = ""
    sets: Mapping[str, object] = {}


class Decoding(NamedTuple):
    """What a plan decodes: `batch` volumes at a time by the network that `make` gives.

    size: of a volume [*S], None: the one that latents of the data's shape stand for.
    """

    make: Callable[[], torch.nn.Module]
    batch: int
    size: tuple[int, ...] | None = None


class TaskType:
    """A task by its config: one subclass in a file here and one line in TASKS. `assemble` is all that it must give."""

    needs: tuple[str, ...] = ("dataset", "network", "loss", "optimizer")  # parts of `training` that must be chosen
    has_adversary = False  # whether training.discriminator means anything to it
    draws = False  # whether generate.py can draw by its networks

    def assemble(self, training: dict, data: Data, held: Held | None = None, imagined: bool = False) -> Task:
        """The task of a training half on a data set; ValueError where its parts do not fit each other or the data.

        imagined: for a plan, on `PlannedData` among fake tensors; no item is read and no file.
        """
        raise NotImplementedError

    def check(self, training: dict, loss: Any, net: torch.nn.Module | None = None) -> None:
        """ValueError for what can be told without data of a loss and, where it could be built, a network on meta."""

    def preview(self, config: dict, task: Task, held: Held | None, count: int, device: torch.device) -> Show:
        """What shows `count` pictures of an averaged network; ValueError where nothing can be shown."""
        raise ValueError(f"training.task={config['training']['task']} shows none")

    def sampled(self, config: dict, task: Task, held: Held | None, count: int, device: torch.device) -> SampleMeasures:
        """What draws so many samples of an averaged network and measures them; ValueError where none can be drawn."""
        raise ValueError(f"training.task={config['training']['task']} draws none")

    def decoding(self, config: dict, data: PlannedData) -> Decoding | None:
        """What a plan is to decode, None for nothing."""
        return None

    def factor(self, training: dict, data: PlannedData) -> Sequence[int]:
        """What the sizes [*S] of a network must divide by, 1 where it does not say."""
        with torch.device("meta"):
            net = build(fill_network(training, data), path="training.network")
        return getattr(getattr(net, "model", net), "factor", (1,) * (len(data.shape) - 1))

    def levers(self, training: dict, data: PlannedData) -> Iterator[Lever]:
        """What makes a step smaller besides what helps all tasks, the cheapest first."""
        return iter(())


def build_parts(training: dict, data: Data, augment: Callable | None = None, shape: Sequence[int] | None = None,
                imagined: bool = False, outputs: int | None = None
                ) -> tuple[torch.nn.Module, Any, torch.optim.Optimizer, Snapshot]:
    """What every task has: a network with its loss and optimiser, and what snapshots will say of it.

    shape: [C,*S] of what the network sees, where that is not what the data set holds. outputs: classes that it tells
    apart, None for a network that gives images.
    """
    node = fill_network(training, data, getattr(augment, "label_dim", 0), shape, outputs)
    make = partial(build, node, path="training.network")
    net = imagine(make) if imagined else make()
    optimizer = build(training["optimizer"], net.parameters(), path="training.optimizer")
    loss = build(training["loss"], path="training.loss")
    return net, loss, optimizer, Snapshot(training["task"], node, data.facts, tuple(shape or data.shape))


def fill_network(training: dict, data: Data, augment_dim: int = 0, shape: Sequence[int] | None = None,
                 outputs: int | None = None) -> dict:
    """The network node with what the data and the augmentation say where the YAML says nothing.

    shape, outputs: as of `build_parts`.
    """
    channels, *size = shape or data.shape
    node = fill_told(training["network"], "training.network", data, size)
    if outputs is not None:  # classes that it tells apart; MONAI's image sizes are one number
        return fill(node, in_channels=channels, out_channels=outputs, num_classes=outputs, spatial_dims=len(size),
                    image_size=max(size))
    return fill(node, in_channels=channels, out_channels=channels, spatial_dims=len(size), image_size=list(size),
                num_classes=len(data.facts.label_classes), augment_dim=augment_dim)


def fill_told(node: dict, path: str, data: Data, size: Sequence[int]) -> dict:
    """A network node with what the data say of the parts of a condition that it takes, where the YAML says nothing.

    Widths that are "auto", the statistics of attributes, and how many voxels a cell of the network's grid [*s] has.
    """
    facts = data.facts
    node = {key: fill_told(value, f"{path}.{key}", data, size) if isinstance(value, dict) else value
            for key, value in node.items()}
    node |= {kind.width_key: known_width(kind, f"{path}.{kind.width_key}", facts) for kind in PARTS.values()
             if node.get(kind.width_key) == "auto"}
    found = {}
    if node.get(PARTS["attributes"].width_key) and facts.attribute_statistics:
        found |= {"attribute_mean": facts.attribute_statistics.mean, "attribute_std": facts.attribute_statistics.std}
    if any(node.get(kind.width_key) for kind in PARTS.values() if kind.grid) and node.get("grid_factor") is None:
        found["grid_factor"] = known_factor(f"{path}.grid_factor", data, size)
    return fill(node, **found) if found else node


def known_width(kind: PartKind, key: str, facts: Facts) -> int:
    """How wide a part of a condition is by what is known of the data; ValueError where they have none of it."""
    names = getattr(facts, kind.names) if kind.names else None
    if not names:
        wanted = f"choose data with {kind.many}" if facts.file else "say how many classes maps have by --classes"
        raise ValueError(f"{key}=auto: {facts.file or 'what the plan is for'} names no {kind.many}; {wanted}, or write "
                         "their number, 0 for a network that is told none")
    return len(names)


def known_factor(key: str, data: Data, size: Sequence[int]) -> list[int]:
    """Voxels per axis of a volume for each cell of a grid [*s]; ValueError where they do not divide."""
    full = data.facts.spatial_shape if data.facts.latents else data.shape[1:]
    if len(full) != len(size) or any(n % s for n, s in zip(full, size)):
        found = f"has volumes of {list(full)}" if full else "does not say how large its volumes are"
        raise ValueError(f"{key}: {data.facts.file} {found}, the network sees {list(size)}; maps and condition images "
                         "need volumes of a whole number of voxels for each of its cells")
    return [n // s for n, s in zip(full, size)]


@contextmanager
def key_of_size_named(training: dict, data: Data) -> Iterator[None]:
    """Say in an error about a size that the network cannot divide what the user would change to mend that."""
    try:
        yield
    except ValueError as e:
        if (found := size_error_of(e)) is None:
            raise
        raise ValueError(f"{e}; {mended(training, data, found.size, found.larger)}") from e


def mended(training: dict, data: Data, size: Sequence[int], larger: Sequence[int]) -> str:
    """By which key what a network sees becomes `larger` instead of `size` [*s], be it voxels or latents of volumes."""
    facts, patch = data.facts, training["batch_transform"].get("patch")
    if patch and per_axis(patch, len(size), "patch") == tuple(size):
        return f"training.batch_transform.patch={str(list(larger)).replace(' ', '')} trains on patches that fit"
    cut = None if facts.latents else patches_of(build_augment(training, data))
    if cut and cut[1].size == tuple(size):
        return f"{cut[0]}.size={str(list(larger)).replace(' ', '')} cuts patches that fit"
    if not facts.source:  # of a plan
        return (f"the first number of --shape is the channels; write --shape {data.shape[0]} "
                f"{' '.join(map(str, larger))}")
    voxels = facts.spatial_shape if facts.latents else data.shape[1:]
    if len(voxels) != len(size) or any(v % s for v, s in zip(voxels, size)):
        return "change the size of the volumes"
    wanted = [n * v // s for n, v, s in zip(larger, voxels, size)]
    if facts.latents:
        return f"encode the volumes anew with --size {' '.join(map(str, wanted))}"
    target = find_target(training["dataset"]["_target_"], "training.dataset")
    if "size" not in inspect.signature(target).parameters:
        return "pad the images"
    return f"training.dataset.size={str(wanted).replace(' ', '')} pads the volumes"


def build_augment(training: dict, data: Data) -> Callable | None:
    """The augmentation, where there is one; ValueError for latents."""
    node = training["augment"]
    if node and data.facts.latents:
        raise ValueError(f"training.augment._target_={node['_target_']}: an augmentation moves images, and latents do "
                         "not turn with their image; choose augment=none")
    known = {"spatial_dims": len(data.shape) - 1, "semantic_dim": len(data.facts.semantic_classes)}
    return build(fill(node, **known), path="training.augment") if node else None


def trained_size(augment: Callable | None, data: Data) -> tuple[int, ...]:
    """Size [*S] of what a network sees in training: patches where the augmentation cuts them, else whole images.

    ValueError for patches that are larger than the images.
    """
    size = tuple(data.shape[1:])
    if (found := patches_of(augment)) is None:
        return size
    key, patches = found
    patches.check(size, key)
    return patches.size


def patch_levers(training: dict, data: PlannedData, factor: Sequence[int]) -> Iterator[Lever]:
    """Patches, each half of the one before along its longest axis, that the factors [*S] divide."""
    found = patches_of(build_augment(training, data))
    key, size = (f"{found[0]}.size", found[1].size) if found else (SIZE, data.shape[1:])
    for smaller in halved(size, factor):
        yield Lever(key, smaller) if found else Lever(key, smaller, "augment=patches",
                                                      {"training.augment": {"_target_": PATCHES}})


def tell_only(parts: Container[str], *datasets: object) -> None:
    """Have data sets read no more than some parts of their conditions; what they kept before is forgotten."""
    for dataset in datasets:
        if (conditions := getattr(dataset, "conditions", None)) is not None:
            conditions.told = parts
            if isinstance(kept := getattr(dataset, "cache", None), dict):
                kept.clear()


def halved(size: Sequence[int], factor: Sequence[int]) -> Iterator[list[int]]:
    """Sizes [*S] that the factors [*S] divide, each half of the one before along its longest axis, to four of these."""
    size = list(size)
    while max(s / f for s, f in zip(size, factor)) > 4:
        axis = max(range(len(size)), key=lambda i: size[i] / factor[i])
        size[axis] = ceil(size[axis] / 2 / factor[axis]) * factor[axis]
        yield list(size)
