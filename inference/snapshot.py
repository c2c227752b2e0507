"""From a snapshot file to working networks: the denoiser, and the first stage that it carries."""

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import NamedTuple

import torch

from formats.latents import FirstStageRecord
from formats.volumes import Intensity
from networks.latent_codec import LatentCodec
from utils import checkpoint
from utils.config import build_from_file

OF_VOLUMES = ("channels", "label_classes", "intensity", "spatial_shape", "affine")
FIGURES = ("channel_mean", "channel_std", "limits", "scaling", "sigma_data")  # see networks.latent_codec


class LoadedNetwork(NamedTuple):
    """A network in eval mode with averaged weights, and the whole content of its snapshot."""

    net: torch.nn.Module
    snapshot: dict


def load_network(path: Path, task: str, trust: bool = False) -> LoadedNetwork:
    """The network of a snapshot of a task (autoencoder, diffusion); ValueError when it is of another task."""
    snapshot = checkpoint.load(path, "snapshot")
    if snapshot["task"] != task:
        raise ValueError(f"{path}: wanted a snapshot of task {task}, this is one of {snapshot['task']}")
    return LoadedNetwork(build_network(snapshot["network"], snapshot["ema"], str(path), trust), snapshot)


def build_network(node: dict, weights: dict[str, torch.Tensor], source: str, trust: bool = False) -> torch.nn.Module:
    """A network from its config and weights, both out of a file; eval mode, no gradients."""
    net = build_from_file(node, source, trust)
    try:
        net.load_state_dict(weights)
    except RuntimeError as e:
        raise ValueError(f"{source}: weights do not fit the network it names: {checkpoint.first_line(e)}") from e
    return net.eval().requires_grad_(False)


def first_stage_hash(network: dict, weights: dict[str, torch.Tensor]) -> str:
    """Hash of an autoencoder: its config and weights."""
    return checkpoint.checksum({"network": network, "weights": weights})


def first_stage_record(snapshot: dict) -> FirstStageRecord:
    """The autoencoder of a snapshot of one, as files carry it."""
    weights = {k: v.numpy() for k, v in snapshot["ema"].items()}
    return FirstStageRecord(snapshot["network"], weights, first_stage_hash(snapshot["network"], snapshot["ema"]))


def check_contract(data: dict, trained: dict, source: str | Path, path: Path) -> None:
    """ValueError unless volumes (what is known of them) are like those that an autoencoder was trained on."""
    for key in ("channels", "label_classes", "intensity"):
        if data[key] != trained[key]:
            raise ValueError(f"{source}: {key} are {data[key]}, the autoencoder {path} was trained with {trained[key]}")


def first_stage_part(record: FirstStageRecord | None, figures: dict) -> dict:
    """What a diffusion snapshot carries of the first stage of its latents: the figures alone where it is not known."""
    figures = {name: figures[name] for name in FIGURES}
    if record is None:
        return {"network": None, "weights": {}, "hash": None, **figures}
    weights = {k: torch.from_numpy(v) for k, v in record.weights.items()}
    return {"network": record.network, "weights": weights, "hash": record.hash, **figures}


def space_of(part: dict | None) -> str:
    """What a diffusion network works on, by what its snapshot carries of a first stage."""
    return f"latents of first stage {part['hash'] or '?':.12}" if part else "voxels"


def build_codec(part: dict, source: str, trust: bool = False) -> LatentCodec:
    """The first stage that a snapshot carries; ValueError when its weights are not those of its hash, or not there."""
    if part["network"] is None:
        raise ValueError(f"{source}: the first stage of its latents is not in it, as their file did not hold it; name "
                         "it by sampling.autoencoder (--autoencoder), or leave the latents by sampling.decode=false")
    if first_stage_hash(part["network"], part["weights"]) != part["hash"]:
        raise ValueError(f"{source}: the first stage does not match its own hash")
    autoencoder = build_network(part["network"], part["weights"], source, trust)
    return LatentCodec(autoencoder, **{name: part[name] for name in FIGURES if name in part}).eval()


def with_autoencoder(snapshot: dict, path: Path) -> dict:
    """A diffusion snapshot that carries no first stage, with an autoencoder's, and what that knows of its volumes."""
    stage = checkpoint.load(path, "snapshot")
    if stage["task"] != "autoencoder":
        raise ValueError(f"{path}: wanted a snapshot of task autoencoder, this is one of {stage['task']}")
    part = {**snapshot["first_stage"], "network": stage["network"], "weights": stage["ema"],
            "hash": first_stage_hash(stage["network"], stage["ema"])}
    return {**snapshot, "first_stage": part, "data": {**snapshot["data"], **{k: stage["data"][k] for k in OF_VOLUMES}}}


class FirstStage:
    """The first stage of a diffusion snapshot in the units of the volumes file it was trained on."""

    def __init__(self, codec: LatentCodec, data: dict, latent_shape: tuple[int, ...]):
        self.codec, self.latent_shape, self.intensity = codec, latent_shape, Intensity(**data["intensity"])

    def encode(self, image: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """Whitened latents [N,z,*s] of images [N,C,*S] in stored units and label maps [N,*S]."""
        return self.codec.encode(self.intensity.to_network(image), label)

    def in_parts(self, tile: Sequence[int], overlap: float, mode: str) -> "FirstStage":
        """The same in the memory of a part (networks.tiles.by_parts)."""
        stage = copy(self)
        stage.codec = self.codec.in_parts(tile, overlap, mode)
        return stage

    def decode(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images [N,C,*S] in stored units and label maps [N,*S] uint8 (or None) of whitened latents."""
        image, label = self.codec.decode(latents)
        return self.intensity.from_network(image), label


def tile_note(whole: FirstStage, latents: torch.Tensor, image: torch.Tensor, label: torch.Tensor | None) -> str:
    """By how much image [1,C,*S] and label map [1,*S], decoded in tiles, differ from those decoded as a whole."""
    try:
        wanted, wanted_label = whole.decode(latents)
    except (torch.OutOfMemoryError, MemoryError):
        return "Tiles differ from whole: not measured, there is no memory for the whole"
    scale = whole.intensity.hi - whole.intensity.lo
    off = float((image - wanted).square().mean().sqrt()) / scale
    agree = "" if label is None else f", labels {100 * float((label == wanted_label).float().mean()):.2f} % agree"
    return f"Tiles differ from whole: image {off:.2g} (rms, share of range){agree}"


def load_first_stage(path: Path, trust: bool = False) -> FirstStage | None:
    """The first stage carried by a diffusion snapshot; None when the network draws voxels."""
    snapshot = checkpoint.load(path, "snapshot")
    part = snapshot.get("first_stage")
    if part is None:
        return None
    return FirstStage(build_codec(part, str(path), trust), snapshot["data"], tuple(snapshot["shape"]))
