"""Snapshots: the averaged weights of a task's network with all that is needed to use them anywhere."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch

from edm3d.formats.dose import DoseRecord
from edm3d.formats.facts import Facts, LatentScaling
from edm3d.formats.latents import FirstStageRecord, checked_round_trip
from edm3d.formats.prediction import Prediction
from edm3d.formats.privacy import PrivacyStatement
from edm3d.formats.published import read_published
from edm3d.formats.refinement import Refinement
from edm3d.formats.tuned_grid import TunedGrid
from edm3d.inference.first_stage import FirstStage
from edm3d.inference.network_files import Trial, Weights, build_network, network_hash, verify_network
from edm3d.networks.autoencoder import Autoencoder
from edm3d.networks.conditioning import Part, blank, takes_of
from edm3d.networks.label_coding import LabelCoding
from edm3d.networks.latent_codec import shift_and_gain
from edm3d.networks.layers import per_axis
from edm3d.networks.parts import PARTS
from edm3d.samplers.noise import GENERATORS, SCHEMES
from edm3d.utils import checkpoint
from edm3d.utils.checks import check_choice, is_whole, listed_apart
from edm3d.utils.plain import from_plain, shown

# places of a configuration, where it has them, that hold names with values
DICTS = ("training.dataset", "training.options", "training.validation", "sampling", "imported")
MOST_VALUES = 2 ** 31  # of an item that a network sees


class StageContent(NamedTuple):
    """What a snapshot file holds of a first stage but the scaling; the default is what files of before leave out."""

    network: dict[str, Any] | None
    weights: Weights
    hash: str | None
    round_trip: dict[str, Any] | None = None
    privacy: dict[str, Any] | None = None


class Content(NamedTuple):
    """What a snapshot file holds; the defaults are what files leave out."""

    task: str
    network: dict[str, Any]
    data: dict[str, Any]
    shape: tuple[int, ...]
    first_stage: dict[str, Any] | None
    config: dict[str, Any]
    nimg: int
    ema: Weights
    refines: dict[str, Any] | None = None
    label_coding: LabelCoding | None = None
    predicts: dict[str, Any] | None = None
    dose: dict[str, Any] | None = None
    privacy: dict[str, Any] | None = None
    grids: list[dict[str, Any]] | None = None
    noise: str = GENERATORS


@dataclass(frozen=True)
class CarriedStage:
    """What a diffusion snapshot carries of the first stage of its latents.

    network None, without weights and hash: it is not known. round_trip: what held-out items lose in it, where measured.
    privacy: what was spent on its weights, None where its training was not private, or is not known.
    """

    scaling: LatentScaling
    network: dict | None = None
    weights: Weights = field(default_factory=dict)
    hash: str | None = None
    round_trip: dict | None = None
    privacy: PrivacyStatement | None = None

    @classmethod
    def from_record(cls, record: FirstStageRecord | None, scaling: LatentScaling, round_trip: dict | None = None
                    ) -> "CarriedStage":
        """The first stage as files of latents carry it, None where it is not known."""
        if record is None:
            return cls(scaling, round_trip=round_trip)
        weights = {name: torch.from_numpy(w) for name, w in record.weights.items()}
        return cls(scaling, record.network, weights, record.hash, round_trip, record.privacy)

    @classmethod
    def from_plain(cls, found: Mapping[str, Any], source: object, channels: int) -> "CarriedStage":
        """From what `plain` gave, of latents of so many channels; ValueError naming the file (source) and the key."""
        key, names = "first_stage", LatentScaling._fields
        held = from_plain(StageContent, {n: value for n, value in found.items() if n not in names}, source, key)
        scaling = LatentScaling.from_plain({n: value for n, value in found.items() if n in names}, source, key)
        if held.round_trip is not None:
            checked_round_trip(held.round_trip, source, f"{key}.round_trip")
        for name in ("channel_mean", "channel_std"):
            if len(getattr(scaling, name)) != channels:
                raise ValueError(f"{source}: {key}.{name} has {len(getattr(scaling, name))} values, wanted one for "
                                 f"each of {channels} channels")
        try:
            shift_and_gain(*scaling)
        except ValueError as e:
            raise ValueError(f"{source}: {key}: {e}") from e
        if (held.network is None) == bool(held.weights) or (held.network is not None and held.hash is None):
            raise ValueError(f"{source}: {key} needs network, weights and hash together, or none of them")
        checkpoint.check_finite(held.weights, source, f"{key}.weights")
        return cls(scaling, held.network, held.weights, held.hash, held.round_trip,
                   None if held.privacy is None else PrivacyStatement.from_plain(held.privacy, source, f"{key}.privacy")
                   )

    def plain(self) -> dict[str, Any]:
        """As a snapshot file holds it."""
        return {"network": self.network, "weights": self.weights, "hash": self.hash, **self.scaling._asdict(),
                "round_trip": self.round_trip, **({"privacy": self.privacy.plain()} if self.privacy else {})}

    def with_network(self, snapshot: "Snapshot") -> "CarriedStage":
        """The same with the network of an autoencoder's snapshot."""
        return replace(self, network=snapshot.network, weights=snapshot.weights, hash=snapshot.network_hash,
                       privacy=snapshot.privacy)

    def build(self, source: str, trust: bool = False, trial: Trial | None = None) -> torch.nn.Module:
        """Its network; ValueError when it is not there or is not that of its hash. trial: see build_network."""
        return build_network(*self.own_network(source), source, trust, key="first_stage.weights", trial=trial)

    def verify(self, source: str, trust: bool = False, trial: Trial | None = None) -> None:
        """Hold its weights against the network that it names, without memory; ValueError where they do not fit."""
        verify_network(*self.own_network(source), source, trust, key="first_stage.weights", trial=trial)

    def own_network(self, source: str) -> tuple[dict, Weights]:
        """Config and weights of its network; ValueError when they are not there or not those of its hash."""
        if self.network is None:
            raise ValueError(f"{source}: the first stage of its latents is not in it, as their file did not hold it; "
                             "name it by sampling.autoencoder (--autoencoder), or leave the latents by "
                             "sampling.decode=false")
        if network_hash(self.network, self.weights) != self.hash:
            raise ValueError(f"{source}: the first stage does not match its own hash")
        return self.network, self.weights


@dataclass(frozen=True, repr=False)
class Snapshot:
    """A task's network, what is known of its data, and the shape [C,*S] of what it sees.

    label_coding: how label maps stand in the last channels of the voxels that it draws; None where it draws none there.
    weights: the averaged ones, {} while they are still being trained. hash: the file's own checksum, "" without a file.
    refines: what it draws on top of which first stage, None for a network that draws by itself. predicts: what a
    downstream network gives, None for all others. dose: of which doses a network draws and is told, None for others.
    privacy: what was spent on these weights, None where training was not private. grids: noise levels that were tuned
    on it (dataset_tool.py tune-grid). noise: the scheme by which the noise of its training was drawn.
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
    refines: Refinement | None = None
    label_coding: LabelCoding | None = None
    predicts: Prediction | None = None
    dose: DoseRecord | None = None
    privacy: PrivacyStatement | None = None
    grids: tuple[TunedGrid, ...] = ()
    noise: str = GENERATORS

    @property
    def hides_its_data(self) -> bool:
        """Whether it was trained privately, and so does not say on which file."""
        return self.privacy is not None and not self.facts.content_hash

    def __repr__(self) -> str:
        where = f" from {self.path}" if self.hash else ""
        return f"Snapshot({self.task}, {self.network.get('_target_')}, {self.nimg / 1000:g} kimg{where})"

    @classmethod
    def read(cls, path: Path, task: str | None = None) -> "Snapshot":
        """From a file or a published folder; ValueError when it is damaged, lacks something or is of another task."""
        found, checksum = read_content(Path(path))
        held = from_plain(Content, {name: found[name] for name in Content._fields if name in found}, path)
        check_content(held, path)
        stage = None if held.first_stage is None else CarriedStage.from_plain(held.first_stage, path, held.shape[0])
        snapshot = cls(held.task, held.network, Facts.from_plain(held.data, path), held.shape, stage, held.ema,
                       held.config, held.nimg, Path(path), checksum,
                       None if held.refines is None else Refinement.from_plain(held.refines, path, held.shape),
                       held.label_coding,
                       None if held.predicts is None else Prediction.from_plain(held.predicts, path),
                       None if held.dose is None else DoseRecord.from_plain(held.dose, path),
                       None if held.privacy is None else PrivacyStatement.from_plain(held.privacy, path),
                       tuple(TunedGrid.from_plain(g, path, f"grids[{i}]") for i, g in enumerate(held.grids or ())),
                       held.noise)
        if held.label_coding is not None:
            check_coding(held.label_coding, snapshot, path)
        sizes, axes = snapshot.facts.spatial_shape, len(held.shape) - 1
        if len(sizes) not in (0, axes) or not all(is_whole(size) and size > 0 for size in sizes):
            raise ValueError(f"{path}: data.spatial_shape is {list(sizes)}, wanted {axes} sizes, as shape has")
        if prod(sizes) > MOST_VALUES:
            raise ValueError(f"{path}: data.spatial_shape is {list(sizes)}, more voxels than any volume has")
        if stage is None and snapshot.facts.latents:
            raise ValueError(f"{path}: first_stage is missing, though it was trained on latents")
        if task is not None and snapshot.task != task:
            raise ValueError(f"{path}: wanted a snapshot of task {task}, this is one of {snapshot.task}")
        return snapshot

    def plain(self) -> dict[str, Any]:
        """As a file holds it."""
        return {"task": self.task, "network": self.network, "data": self.facts.plain(), "shape": list(self.shape),
                "first_stage": self.first_stage and self.first_stage.plain(), "config": self.config, "nimg": self.nimg,
                "ema": self.weights, **({"refines": self.refines._asdict()} if self.refines else {}),
                **({"label_coding": asdict(self.label_coding)} if self.label_coding else {}),
                **({"predicts": self.predicts.plain()} if self.predicts else {}),
                **({"dose": self.dose._asdict()} if self.dose else {}),
                **({"privacy": self.privacy.plain()} if self.privacy else {}),
                **({"grids": [grid._asdict() for grid in self.grids]} if self.grids else {}),
                **({"noise": self.noise} if self.noise != GENERATORS else {})}

    def save(self, path: Path, **more: Any) -> None:
        """Write a file, with further plain data that says how it came about."""
        checkpoint.save(path, "snapshot", self.plain() | more)

    def build(self, trust: bool = False) -> torch.nn.Module:
        """Its network in eval mode with the averaged weights."""
        return build_network(self.network, self.weights, str(self.path), trust, trial=self.try_network)

    def verify(self, trust: bool = False) -> None:
        """Hold its weights, and those of the first stage in it, against the networks that it names, without memory."""
        verify_network(self.network, self.weights, str(self.path), trust, trial=self.try_network)
        if (stage := self.first_stage) and stage.network is not None:
            stage.verify(str(self.path), trust, self.try_first_stage)

    def try_network(self, net: torch.nn.Module) -> None:
        """Run its network on an item of its shape, shapes only (meta device); ValueError where one does not fit."""
        x = torch.empty(1, *self.shape)
        if isinstance(net, Autoencoder):
            label = torch.zeros(1, *self.shape[1:], dtype=torch.long) if net.num_classes else None
            self.check_decoded(self.shape[0], *net.decode(net.encode(x, label).mean))
        elif self.predicts is not None:
            sizes = self.shape[1:] if self.predicts.of_voxels else ()
            if (made := net(x).shape) != (wanted := (1, len(self.predicts.names), *sizes)):
                raise ValueError(f"the network makes {list(made)} of {list(x.shape)}, wanted {list(wanted)}")
        elif hasattr(net, "sigma_min"):
            self.check_told(takes_of(net))
            told = blank(takes_of(net), self.volume_shape)
            if (made := net(x, torch.ones(1), condition=told)).shape != x.shape:
                raise ValueError(f"the network makes {list(made.shape)} of {list(x.shape)}")

    def check_told(self, takes: Mapping[str, Part]) -> None:
        """ValueError where parts that a network takes are not as wide as the data have names of them.

        Samples of it would be drawn, and could not be kept.
        """
        for name, part in takes.items():
            kind = PARTS[name]
            names = getattr(self.facts, kind.names) if kind.names else None
            if names is not None and len(names) != part.width and (names or name in ("attributes", "images")):
                raise ValueError(f"data names {len(names)} {kind.many}, and the network takes {part.width} "
                                 f"({kind.width_key})")

    @property
    def volume_shape(self) -> tuple[int, ...]:
        """Size [*S] of the volumes that it draws or encodes."""
        return self.facts.spatial_shape if self.first_stage and self.facts.spatial_shape else self.shape[1:]

    def try_first_stage(self, net: torch.nn.Module) -> None:
        """Run the network of its first stage in the same way, on latents of its shape."""
        self.check_decoded(len(self.facts.channels) or None, *net.decode(torch.empty(1, *self.shape)))

    def check_decoded(self, channels: int | None, image: torch.Tensor, logits: torch.Tensor | None) -> None:
        """ValueError unless what an autoencoder gives has so many channels (None: any), and the classes of its volumes.
        """
        if channels is not None and image.shape[1] != channels:
            raise ValueError(f"the first stage gives {image.shape[1]} channels, wanted {channels}")
        classes = len(self.facts.label_classes)
        if logits is not None and classes and logits.shape[1] != classes:
            raise ValueError(f"the first stage gives {logits.shape[1]} label classes, its volumes have {classes}")

    def open_first_stage(self, trust: bool = False, precision: str = "fp32") -> FirstStage:
        """The first stage that it carries; ValueError when its network is not there."""
        stage = self.first_stage
        net = stage.build(str(self.path), trust, self.try_first_stage)
        return FirstStage(net, self.facts, stage.scaling, precision)

    @property
    def network_hash(self) -> str:
        """Hash of the network: by which an autoencoder is known again."""
        return network_hash(self.network, self.weights)

    @property
    def record(self) -> FirstStageRecord:
        """The network as files of latents carry a first stage."""
        return FirstStageRecord(self.network, {k: v.numpy() for k, v in self.weights.items()}, self.network_hash,
                                self.privacy)

    @property
    def target(self) -> str:
        """The class of the network."""
        return str(self.network.get("_target_", ""))

    def setting(self, *place: str) -> Any:
        """What the configuration that it was trained by says at a place; ValueError where it does not say that."""
        node: Any = self.config
        for name in place:
            if not isinstance(node, dict) or node.get(name) is None:
                raise ValueError(f"{self.path}: its configuration has no {'.'.join(place)}")
            node = node[name]
        return node

    @property
    def fits_to(self) -> tuple[int, ...] | None:
        """The size [*S] that its data set pads or crops volumes to, None: none."""
        size = ((self.config.get("training") or {}).get("dataset") or {}).get("size")
        return per_axis(size, len(self.shape) - 1, "training.dataset.size") if size else None

    @property
    def inflated(self) -> bool:
        """Whether it was imported and made 3D on the way, and never trained since."""
        return bool(self.config.get("imported", {}).get("inflate_mode"))

    @property
    def space(self) -> str:
        """What the network works on."""
        if self.refines:
            return f"voxels, on top of first stage {self.refines.first_stage:.12}"
        if self.first_stage:
            return f"latents of first stage {self.first_stage.hash or '?':.12}"
        return f"voxels{with_labels(self.label_coding)}"

    def with_autoencoder(self, other: "Snapshot") -> "Snapshot":
        """The same carrying the network of an autoencoder's snapshot, and what that knows of its volumes."""
        return replace(self, first_stage=self.first_stage.with_network(other),
                       facts=self.facts.with_volumes_of(other.facts))


def read_content(path: Path) -> tuple[dict[str, Any], str]:
    """What a snapshot file or a published folder holds, and its hash; ValueError when it is damaged."""
    return read_published(path) if path.is_dir() else checkpoint.load(path, "snapshot")


def check_content(held: Content, source: object) -> None:
    """ValueError naming file and key for values that no snapshot has; what weights belong to is for building to see."""
    if not 2 <= len(held.shape) <= 4 or min(held.shape) < 1 or prod(held.shape) > MOST_VALUES:
        raise ValueError(f"{source}: shape is {list(held.shape)}, wanted channels and one to three sizes")
    if held.nimg < 0:
        raise ValueError(f"{source}: nimg is {held.nimg}, wanted 0 or more")
    check_choice(f"{source}: noise", held.noise, SCHEMES)
    checkpoint.check_finite(held.ema, source, "ema")
    for place in DICTS:
        node: Any = held.config
        for name in place.split("."):
            node = node.get(name) or {}
            if not isinstance(node, dict):
                raise ValueError(f"{source}: config.{place} is {shown(node)}, wanted names with values")
    size, sizes = ((held.config.get("training") or {}).get("dataset") or {}).get("size"), len(held.shape) - 1
    whole = [size] * sizes if is_whole(size) else size
    if size is not None and not (isinstance(whole, list) and len(whole) == sizes and all(
            is_whole(n) and n > 0 for n in whole)):
        raise ValueError(f"{source}: config.training.dataset.size is {shown(size)}, wanted {sizes} whole numbers")


def check_coding(coding: LabelCoding, snapshot: Snapshot, source: object) -> None:
    """ValueError naming the file for a coding of label maps that is not of its classes, or leaves no other channels."""
    facts, images = snapshot.facts, snapshot.shape[0] - coding.channels
    if snapshot.first_stage is not None:
        raise ValueError(f"{source}: label_coding is there beside first_stage; label channels are drawn with voxels")
    if coding.classes != len(facts.label_classes):
        raise ValueError(f"{source}: label_coding is of {coding.classes} classes, data names "
                         f"{len(facts.label_classes)} label_classes")
    if images < 1 or len(facts.channels) not in (0, images):
        wanted = f"{len(facts.channels)} of images" if facts.channels else "some of images"
        raise ValueError(f"{source}: shape has {snapshot.shape[0]} channels, and label_coding ({coding.kind} of "
                         f"{coding.classes} classes) takes {coding.channels}; wanted {wanted} before these")


def with_labels(coding: LabelCoding | None) -> str:
    """Label channels after the word for what they go with; '' for none."""
    return "" if coding is None else f" with label maps as {coding.kind} ({coding.channels} channels)"


def check_contract(found: Facts, trained: Facts, source: str | Path, path: Path) -> None:
    """ValueError unless volumes are like those that an autoencoder was trained on."""
    for key in ("channels", "label_classes", "intensity"):
        got, wanted = found.plain()[key], trained.plain()[key]
        if got != wanted:
            got, wanted = listed_apart(got, wanted) if isinstance(got, list) else (got, wanted)
            raise ValueError(f"{source}: {key} are {got}, the autoencoder {path} was trained with {wanted}")
