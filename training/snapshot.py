"""From a snapshot file to working networks: the denoiser, and the first stage that it carries."""

from pathlib import Path
from typing import NamedTuple

import torch

from networks.latent_codec import LatentCodec
from utils import checkpoint
from utils.config import build_from_file
from utils.latents import FirstStageRecord
from utils.volumes import Intensity


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


def first_stage_part(record: FirstStageRecord, channel_mean: list[float], channel_std: list[float],
                     sigma_data: float) -> dict:
    """What a diffusion snapshot carries of the first stage of its latents."""
    weights = {k: torch.from_numpy(v) for k, v in record.weights.items()}
    return {"network": record.network, "weights": weights, "hash": record.hash, "channel_mean": channel_mean,
            "channel_std": channel_std, "sigma_data": sigma_data}


def build_codec(part: dict, source: str, trust: bool = False) -> LatentCodec:
    """The first stage that a snapshot carries; ValueError when its weights are not those of its hash."""
    if first_stage_hash(part["network"], part["weights"]) != part["hash"]:
        raise ValueError(f"{source}: the first stage does not match its own hash")
    autoencoder = build_network(part["network"], part["weights"], source, trust)
    return LatentCodec(autoencoder, part["channel_mean"], part["channel_std"], part["sigma_data"]).eval()


class FirstStage:
    """The first stage of a diffusion snapshot in the units of the volumes file it was trained on."""

    def __init__(self, codec: LatentCodec, data: dict, latent_shape: tuple[int, ...]):
        self.codec, self.latent_shape, self.intensity = codec, latent_shape, Intensity(**data["intensity"])

    def encode(self, image: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """Whitened latents [N,z,*s] of images [N,C,*S] in stored units and label maps [N,*S]."""
        return self.codec.encode(self.intensity.to_network(image), label)

    def decode(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images [N,C,*S] in stored units and label maps [N,*S] uint8 (or None) of whitened latents."""
        image, label = self.codec.decode(latents)
        return self.intensity.from_network(image), label


def load_first_stage(path: Path, trust: bool = False) -> FirstStage | None:
    """The first stage carried by a diffusion snapshot; None when the network draws voxels."""
    snapshot = checkpoint.load(path, "snapshot")
    part = snapshot.get("first_stage")
    if part is None:
        return None
    return FirstStage(build_codec(part, str(path), trust), snapshot["data"], tuple(snapshot["shape"]))
