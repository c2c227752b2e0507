"""Figures that a network needs of its data, taken from the public snapshot that a private run starts from."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Subset

from edm3d.formats.facts import Facts
from edm3d.formats.intensity import Intensity
from edm3d.inference.batch import Sample
from edm3d.inference.snapshot import Snapshot
from edm3d.training.validation import Held
from edm3d.utils import distributed
from edm3d.utils.config import find_target
from edm3d.utils.runs import find_file
from edm3d.utils.schema import Options

ATTRIBUTES = ("attribute_dim", "attribute_mean", "attribute_std")  # of a network node


class OnPublicRange:
    """A data set whose images networks see by another intensity range than that of its file, clipped where that is."""

    def __init__(self, dataset: Any, intensity: Intensity):
        self.dataset, self.own = dataset, dataset.facts.intensity
        self.facts = replace(dataset.facts, intensity=intensity)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self.dataset[index]
        told = sample.condition
        if "images" in told:
            told = told.replace(images=self.seen(told["images"]))
        return sample._replace(image=self.seen(sample.image), condition=told)

    def seen(self, images: np.ndarray) -> np.ndarray:
        """Images as networks see them by the other range."""
        stored = (images + 1) * ((self.own.hi - self.own.lo) / 2) + self.own.lo
        seen = self.facts.intensity.to_network(stored).astype(np.float32)
        return seen.clip(-1, 1) if self.facts.intensity.clip else seen


def public_start(options: Options) -> Snapshot | None:
    """The snapshot of training.options.init_from, which a private run takes as public; None for none."""
    if not options.init_from:
        return None
    return Snapshot.read(distributed.from_rank_0(lambda: find_file(
        options.init_from, "network-snapshot", Path(options.run_root), "training.options.init_from")))


def by_public_figures(training: dict, dataset: Any, held: Held | None, public: Snapshot
                      ) -> tuple[dict, Any, Held | None]:
    """A training half, its data and what is held out, with the figures of a public snapshot in place of their own.

    The mean and standard deviation of attributes and of latents, unless the configuration gives them, and the range of
    intensities. What the snapshot does not have, or has of something else, stays that of the data.
    """
    training = {**training, "network": with_attributes(training["network"], dataset.facts.attribute_names, public)}
    if training.get("batch_transform"):
        training["batch_transform"] = with_scaling(
            training["batch_transform"], dataset.shape[0] if dataset.facts.latents else None, public)
    own, known = dataset.facts.intensity, public.facts.intensity
    if dataset.facts.latents or own == known or own.percentiles or known.percentiles or own.unit != known.unit:
        return training, dataset, held
    if held is not None:
        items = held.dataset
        held = replace(held, dataset=Subset(OnPublicRange(items.dataset, known), items.indices))
    return training, OnPublicRange(dataset, known), held


def check_is_public(node: Mapping[str, Any], facts: Facts, public: Snapshot) -> None:
    """ValueError for a snapshot that learnt without privacy from the split of the data that is to be protected."""
    split = ((public.config.get("training") or {}).get("dataset") or {}).get("split")
    if public.privacy is None and facts.content_hash and (facts.content_hash, node.get("split")) == (
            public.facts.content_hash, split):
        raise ValueError(f"training.options.init_from: {public.path} was trained on split {split!r} of "
                         f"{facts.source} without privacy, so that nothing could hide any more who is in it; start "
                         "from weights of public data")


def with_attributes(node: dict, names: Sequence[str] | None, public: Snapshot) -> dict:
    """A network node whose mean and standard deviation of attributes are those of a snapshot of the same attributes."""
    found = figures(public.network, ATTRIBUTES[1:])
    if not names or tuple(names) != public.facts.attribute_names or None in found:
        return node
    node = {key: with_attributes(value, names, public) if isinstance(value, dict) else value
            for key, value in node.items()}
    if node.get(ATTRIBUTES[0]) and node.get(ATTRIBUTES[1]) is None and node.get(ATTRIBUTES[2]) is None:
        node |= dict(zip(ATTRIBUTES[1:], found, strict=True))
    return node


def figures(node: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    """What a network node, or one in it, says by these names; None where it says nothing."""
    if any(node.get(name) for name in names):
        return [node.get(name) for name in names]
    inner = (figures(value, names) for value in node.values() if isinstance(value, Mapping))
    return next((found for found in inner if None not in found), [None] * len(names))


def with_scaling(node: dict, channels: int | None, public: Snapshot) -> dict:
    """A batch transform whose scaling of latents is that of a snapshot, where both have one, of the same kind.

    channels: of the latents, where the data are some.
    """
    takes = signature(find_target(node["_target_"], "training.batch_transform")).parameters
    known = public.first_stage and public.first_stage.scaling
    if known is None or "channel_mean" not in takes or node.get("channel_mean") is not None:
        return node
    if (channels is not None and len(known.channel_mean) != channels) or \
            node.get("scaling") not in (None, known.scaling):  # snapshots may have no figures of other kinds
        return node
    return {**node, "channel_mean": known.channel_mean, "channel_std": known.channel_std, "limits": known.limits,
            "scaling": known.scaling}
