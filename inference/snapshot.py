"""Snapshots: the averaged weights of a task's network with all that is needed to use them anywhere."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from edm3d.formats.facts import Facts, LatentScaling
from edm3d.formats.latents import FirstStageRecord
from edm3d.formats.published import read_published
from edm3d.inference.first_stage import FirstStage
from edm3d.networks.layers import per_axis
from edm3d.utils import checkpoint
from edm3d.utils.checks import listed_apart
from edm3d.utils.config import build_from_file

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class CarriedStage:
    """What a diffusion snapshot carries of the first stage of its latents.

    network None, without weights and hash: it is not known. round_trip: what held-out items lose in it, where measured.
    """

    scaling: LatentScaling
    network: dict | None = None
    weights: Weights = field(default_factory=dict)
    hash: str | None = None
    round_trip: dict | None = None

    @classmethod
    def from_record(cls, record: FirstStageRecord | None, scaling: LatentScaling, round_trip: dict | None = None
                    ) -> "CarriedStage":
        """The first stage as files of latents carry it, None where it is not known."""
        if record is None:
            return cls(scaling, round_trip=round_trip)
        weights = {name: torch.from_numpy(w) for name, w in record.weights.items()}
        return cls(scaling, record.network, weights, record.hash, round_trip)

    @classmethod
    def from_plain(cls, found: Mapping[str, Any]) -> "CarriedStage":
        """From what `plain` gave."""
        scaling = LatentScaling(**{name: found[name] for name in LatentScaling._fields if name in found})
        return cls(scaling, *(found[name] for name in ("network", "weights", "hash")), found.get("round_trip"))

    def plain(self) -> dict[str, Any]:
        """As a snapshot file holds it."""
        return {"network": self.network, "weights": self.weights, "hash": self.hash, **self.scaling._asdict(),
                "round_trip": self.round_trip}

    def with_network(self, snapshot: "Snapshot") -> "CarriedStage":
        """The same with the network of an autoencoder's snapshot."""
        return replace(self, network=snapshot.network, weights=snapshot.weights, hash=snapshot.network_hash)

    def build(self, source: str, trust: bool = False) -> torch.nn.Module:
        """Its network; ValueError when it is not there or is not that of its hash."""
        if self.network is None:
            raise ValueError(f"{source}: the first stage of its latents is not in it, as their file did not hold it; "
                             "name it by sampling.autoencoder (--autoencoder), or leave the latents by "
                             "sampling.decode=false")
        if network_hash(self.network, self.weights) != self.hash:
            raise ValueError(f"{source}: the first stage does not match its own hash")
        return build_network(self.network, self.weights, source, trust)


@dataclass(frozen=True, repr=False)
class Snapshot:
    """A task's network, what is known of its data, and the shape [C,*S] of what it sees.

    weights: the averaged ones, {} while they are still being trained. hash: the file's own checksum, "" without a file.
    """

    task: str
    network: dict
    facts: Facts
    shape: tuple[int, ...]
    first_stage: CarriedStage | None = None
    weights: Weights = field(default_factory=dict)
    config: dict = field(default_factory=dict)
    nimg: int = 0
    path: Path = Path()
    hash: str = ""

    def __repr__(self) -> str:
        where = f" from {self.path}" if self.hash else ""
        return f"Snapshot({self.task}, {self.network.get('_target_')}, {self.nimg / 1000:g} kimg{where})"

    @classmethod
    def read(cls, path: Path, task: str | None = None) -> "Snapshot":
        """From a file or a published folder; ValueError when it is damaged, lacks something or is of another task."""
        found, checksum = read_published(Path(path)) if Path(path).is_dir() else checkpoint.load(path, "snapshot")
        try:
            stage = found.get("first_stage")
            for name in ("network", "config"):
                if not isinstance(found[name], dict):
                    raise TypeError(f"{name} is a {type(found[name]).__name__}")
            snapshot = cls(found["task"], found["network"], Facts.from_plain(found["data"], path),
                           tuple(found["shape"]), None if stage is None else CarriedStage.from_plain(stage),
                           found["ema"], found["config"], found["nimg"], Path(path), checksum)
        except (AttributeError, KeyError, TypeError) as e:
            raise ValueError(f"{path}: not what a snapshot holds: {e!r}") from e
        if task is not None and snapshot.task != task:
            raise ValueError(f"{path}: wanted a snapshot of task {task}, this is one of {snapshot.task}")
        return snapshot

    def plain(self) -> dict[str, Any]:
        """As a file holds it."""
        return {"task": self.task, "network": self.network, "data": self.facts.plain(), "shape": list(self.shape),
                "first_stage": self.first_stage and self.first_stage.plain(), "config": self.config, "nimg": self.nimg,
                "ema": self.weights}

    def save(self, path: Path, **more: Any) -> None:
        """Write a file, with further plain data that says how it came about."""
        checkpoint.save(path, "snapshot", self.plain() | more)

    def build(self, trust: bool = False) -> torch.nn.Module:
        """Its network in eval mode with the averaged weights."""
        return build_network(self.network, self.weights, str(self.path), trust)

    def open_first_stage(self, trust: bool = False, precision: str = "fp32") -> FirstStage:
        """The first stage that it carries; ValueError when its network is not there."""
        stage = self.first_stage
        return FirstStage(stage.build(str(self.path), trust), self.facts, stage.scaling, precision)

    @property
    def network_hash(self) -> str:
        """Hash of the network: by which an autoencoder is known again."""
        return network_hash(self.network, self.weights)

    @property
    def record(self) -> FirstStageRecord:
        """The network as files of latents carry a first stage."""
        return FirstStageRecord(self.network, {k: v.numpy() for k, v in self.weights.items()}, self.network_hash)

    @property
    def target(self) -> str:
        """The class of the network."""
        return self.network["_target_"]

    @property
    def training(self) -> dict[str, Any]:
        """The training half of the configuration that it was trained by."""
        return self.config["training"]

    @property
    def fits_to(self) -> tuple[int, ...] | None:
        """The size [*S] that its data set pads or crops volumes to, None: none."""
        size = self.config.get("training", {}).get("dataset", {}).get("size")
        return per_axis(size, len(self.shape) - 1, "training.dataset.size") if size else None

    @property
    def inflated(self) -> bool:
        """Whether it was imported and made 3D on the way, and never trained since."""
        return bool(self.config.get("imported", {}).get("inflate_mode"))

    @property
    def space(self) -> str:
        """What the network works on."""
        return f"latents of first stage {self.first_stage.hash or '?':.12}" if self.first_stage else "voxels"

    def with_autoencoder(self, other: "Snapshot") -> "Snapshot":
        """The same carrying the network of an autoencoder's snapshot, and what that knows of its volumes."""
        return replace(self, first_stage=self.first_stage.with_network(other),
                       facts=self.facts.with_volumes_of(other.facts))


def build_network(node: dict, weights: Weights, source: str, trust: bool = False) -> torch.nn.Module:
    """A network from its config and weights, both out of a file; eval mode, no gradients."""
    net = build_from_file(node, source, trust)
    try:
        net.load_state_dict(weights)
    except RuntimeError as e:
        raise ValueError(f"{source}: weights do not fit the network it names: {checkpoint.first_line(e)}") from e
    return net.eval().requires_grad_(False)


def network_hash(network: dict, weights: Weights) -> str:
    """Hash of a network: its config and weights."""
    return checkpoint.checksum({"network": network, "weights": weights})


def check_contract(found: Facts, trained: Facts, source: str | Path, path: Path) -> None:
    """ValueError unless volumes are like those that an autoencoder was trained on."""
    for key in ("channels", "label_classes", "intensity"):
        got, wanted = found.plain()[key], trained.plain()[key]
        if got != wanted:
            got, wanted = listed_apart(got, wanted) if isinstance(got, list) else (got, wanted)
            raise ValueError(f"{source}: {key} are {got}, the autoencoder {path} was trained with {wanted}")
