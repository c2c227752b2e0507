"""A trained refiner: it draws what a first stage cannot keep of images, told what that gives back."""

from collections.abc import Container, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from edm3d.formats.facts import Facts
from edm3d.formats.refinement import RESIDUAL
from edm3d.inference.first_stage import FirstStage
from edm3d.inference.guidance import dropout_option
from edm3d.inference.snapshot import Snapshot
from edm3d.networks.conditioning import Condition, takes_of
from edm3d.networks.decorrelation import correlated
from edm3d.networks.layers import check_divides
from edm3d.networks.local_scaling import LocalScaling
from edm3d.networks.parts import PARTS
from edm3d.networks.tiles import Tiles
from edm3d.samplers import ImageGenerators
from edm3d.samplers.denoiser import Denoiser
from edm3d.samplers.tiled import Tiled
from edm3d.utils.config import build, check_from_file, check_targets
from edm3d.utils.precision import autocast
from edm3d.utils.runs import find_file
from edm3d.utils.trusted import SAMPLERS

KEY = "sampling.refiner"


class Refiner:
    """A network that refines images of the first stage that it was trained on, by a sampler, in `precision`.

    tiles: of whose size each of the network's calls is; None: whole images.
    """

    def __init__(self, snapshot: Snapshot, net: torch.nn.Module, sampler: Mapping[str, Any], precision: str = "fp32",
                 tiles: Tiles | None = None):
        self.snapshot, self.net, self.settings, self.precision = snapshot, net, dict(sampler), precision
        self.takes, self.facts, self.refines = takes_of(net), snapshot.facts, snapshot.refines
        self.sampler = build({**sampler, "_partial_": True})
        self.denoiser: Denoiser = net if tiles is None else Tiled(net, tiles.size)
        self.scaling = LocalScaling(self.refines.values, self.refines.mean, self.refines.gain)

    def __repr__(self) -> str:
        return f"Refiner({self.snapshot!r})"

    @property
    def record(self) -> dict[str, Any]:
        """What a sample depends on by it."""
        return {"hash": self.snapshot.hash, "sampler": self.settings}

    def check(self, stage: FirstStage, hash_: str | None, facts: Facts, told: Container[str], source: object,
              key: str = KEY) -> None:
        """ValueError unless it refines what a first stage, by its hash, gives back, and knows the same conditions.

        facts: what is known of the images; told: names of the parts of a condition of which anything is known of them.
        """
        path, wanted = self.snapshot.path, self.refines.first_stage
        if hash_ != wanted:
            raise ValueError(f"{key}: {path} refines images of first stage {wanted:.12}, those of {source} are of "
                             f"{hash_ or 'one that it does not name'!s:.40}; train a refiner of that one "
                             "(train.py -cn=echo_refine training.batch_transform.autoencoder=...)")
        decoded = {"images", *(["semantic"] if stage.net.num_classes else [])}
        for name, part in self.takes.items():
            if name in decoded:
                continue
            kind = PARTS[name]
            had, found = (getattr(known, kind.names) if kind.names else None for known in (self.facts, facts))
            if found and had and tuple(found) != tuple(had):
                raise ValueError(f"{key}: {path} is told {kind.many} {list(had)}, {source} has {list(found)}")
            if name not in told and not (part.dropout or part.gaps):
                raise ValueError(f"{key}: {path} was never trained without {kind.many}, and of the images of {source} "
                                 f"none are known; draw with some asked for, train it with {dropout_option(name)}=0.1, "
                                 "or choose another refiner")

    def check_size(self, size: Sequence[int], key: str = KEY) -> None:
        """ValueError for volumes of a size [*S] that the network, or its tiles, cannot divide."""
        try:
            if isinstance(self.denoiser, Tiled):
                self.denoiser.pieces(size)
            elif (factor := getattr(self.net, "factor", None)) is not None:
                check_divides(size, factor, type(self.net).__name__)
        except ValueError as e:
            raise ValueError(f"{key}: {self.snapshot.path}: {e}") from e

    @torch.no_grad()
    def __call__(self, image: torch.Tensor, label: torch.Tensor | None, keys: Sequence[Hashable],
                 told: Condition | None = None) -> torch.Tensor:
        """Images [N,C,*S] in stored units, refined; label maps [N,*S] uint8 decoded with them.

        Row i's noise follows from keys[i] alone. told: what else is known of them. ValueError for what is not finite.
        """
        intensity, generators = self.facts.intensity, ImageGenerators(keys, purpose="refine")
        decoded = intensity.to_network(image)
        noise = generators.randn(decoded.shape[1:]).to(decoded.device)
        condition = self.condition(decoded, label, told)
        with autocast(self.precision, decoded.device):
            x = self.sampler(self.denoiser, noise, condition=condition, randn_like=generators.randn_like).float()
        if not x.isfinite().all():
            raise ValueError(f"{self.snapshot.path}: what it draws on top of {list(image.shape)} is not finite: it has "
                             "diverged or is damaged")
        return intensity.from_network(self.restored(x, decoded, label))

    def condition(self, decoded: torch.Tensor, label: torch.Tensor | None, told: Condition | None) -> Condition:
        """What the network is told: the decoded image, the decoded label map, and what else is known, as it takes them.
        """
        found = Condition() if told is None else told
        if label is not None:
            found = found.replace(semantic=label.to(torch.int16))
        return found.replace(images=decoded).only(self.takes)

    def restored(self, x: torch.Tensor, decoded: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        """Images [N,C,*S] as networks see them, of what the network draws on top of decoded images and label maps."""
        target = self.scaling.restored(correlated(x, self.refines.correlation), decoded, label)
        return decoded + target if self.refines.target == RESIDUAL else target


def check_draws_alone(snapshot: Snapshot) -> None:
    """ValueError for a network that only refines."""
    if snapshot.refines is not None:
        raise ValueError(f"{snapshot.path}: refines images of first stage {snapshot.refines.first_stage:.12} and draws "
                         "nothing by itself; name it by sampling.refiner, and what draws latents of that first stage "
                         "by sampling.network")


def open_refiner(name: str, run_root: Path, device: torch.device, *, sampler: Mapping[str, Any] | None = None,
                 precision: str = "fp32", tiles: Tiles | None = None, trust: bool = False, key: str = KEY) -> Refiner:
    """A refiner by its experiment, run folder or snapshot, on a device; ValueError for a network that is none.

    sampler: arguments over those that its own configuration has for it (sampling.refiner_sampler).
    """
    path = find_file(name, "network-snapshot", run_root, key)
    snapshot = Snapshot.read(path, "diffusion")
    if snapshot.refines is None:
        raise ValueError(f"{key}={name}: {path} draws by itself ({snapshot.space}) and refines nothing; wanted a "
                         "network trained with batch_transform=refine")
    node = sampler_of(snapshot, sampler or {}, trust)
    net = snapshot.build(trust).to(device)
    try:
        return Refiner(snapshot, net, node, precision, tiles)
    except ValueError as e:
        raise ValueError(f"{key}={name}: {e}") from e


def sampler_of(snapshot: Snapshot, changed: Mapping[str, Any], trust: bool) -> dict[str, Any]:
    """The sampler of a refiner, as its configuration has it but for what is changed; ValueError for one that is none.
    """
    own = snapshot.config.get("sampling", {}).get("refiner_sampler")
    if changed.get("_target_") in (None, (own or {}).get("_target_")):
        if not own:
            raise ValueError(f"{snapshot.path}: its configuration has no sampling.refiner_sampler; say one, as by "
                             "sampling.refiner_sampler._target_=samplers.edm_sampler")
        check_from_file(own, str(snapshot.path), trust, SAMPLERS)
        changed = {**own, **changed}
    check_targets(changed, "sampling.refiner_sampler", filled=("net", "latents"))
    return dict(changed)
