"""A trained first stage in the units of the volumes it was trained on."""

from collections.abc import Mapping, Sequence
from copy import copy
from math import prod
from typing import Any, NamedTuple

import torch

from edm3d.formats.facts import Facts, LatentScaling
from edm3d.networks.autoencoder import Codes
from edm3d.networks.latent_codec import shift_and_gain, unwhiten, whiten
from edm3d.networks.layers import SizeError
from edm3d.networks.posteriors import AnyPosterior
from edm3d.networks.tiles import Tiles, by_parts
from edm3d.utils.checks import check_memory, listed
from edm3d.utils.precision import autocast


class GoneThrough(NamedTuple):
    """What comes back: image [N,C,*S] float32 in stored units, label map [N,*S] uint8, and what lies between.

    finite: whether all of the image was finite before it was clipped.
    """

    image: torch.Tensor
    label: torch.Tensor | None
    posterior: AnyPosterior
    codes: Codes | None
    finite: bool


class FirstStage:
    """An autoencoder between volumes as files store them and scaled latents, scaling None: latents as it gives them.

    facts: of the volumes it was trained on. The network, and nothing else, runs in `precision` (fp32, bf16); within an
    autocast region fp32 is that region's. Images come and go in stored units, clipped as their contract says.
    """

    def __init__(self, net: torch.nn.Module, facts: Facts, scaling: LatentScaling | None = None,
                 precision: str = "fp32"):
        self.net, self.facts, self.scaling, self.precision, self.whole = net, facts, scaling, precision, True
        self.tiles: Tiles | None = None
        self.shift_gain = [torch.tensor(values, dtype=torch.float32) for values in shift_and_gain(*scaling)] \
            if scaling else None

    def __repr__(self) -> str:
        return f"FirstStage({type(self.net).__name__} of {', '.join(self.facts.channels)}, {self.precision})"

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.net.parameters(), torch.empty(0)).device

    def to(self, device: torch.device) -> "FirstStage":
        """Bring the network to a device."""
        self.net.to(device)
        return self

    def in_parts(self, tiles: Tiles | None) -> "FirstStage":
        """The same in the memory of a part; ValueError for tiles that the network cannot divide. None: itself."""
        if tiles is None:
            return self
        stage = copy(self)
        stage.net, stage.whole, stage.tiles = by_parts(self.net, tiles), False, tiles
        return stage

    def size_of(self, latent_size: Sequence[int]) -> tuple[int, ...]:
        """Size [*S] of what it decodes of latents [*s]."""
        return tuple(n * f for n, f in zip(latent_size, self.net.factor, strict=True))

    @property
    def masked(self) -> bool:
        """Whether semantic maps say where images have anything: encoding then needs them, decoding takes them."""
        return getattr(self.net, "masked", False)

    def check_maps(self, facts: Facts, source: object) -> None:
        """ValueError for volumes without the maps that mask them, or with maps of other classes."""
        found, wanted = facts.semantic_classes, self.facts.semantic_classes
        if self.masked and found != wanted:
            raise ValueError(f"{source}: has " + (f"maps of {listed(found)}" if found else "no maps or label maps")
                             + f", the first stage is masked by maps of {listed(wanted)}; prepare them with these")

    def told(self, semantic: torch.Tensor | None, size: Sequence[int]) -> dict[str, torch.Tensor]:
        """Maps [N,*S] of images of a size [*S] as an argument of a masked network; ValueError for another size."""
        if not self.masked or semantic is None:
            return {}
        if list(semantic.shape[1:]) != list(size):
            raise ValueError(f"semantic maps are {list(semantic.shape[1:])}, their images {list(size)}; want the same")
        return {"semantic": semantic}

    def needed(self, semantic: torch.Tensor | None, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The same of images x [N,C,*S] that are to be encoded; ValueError where a masked network gets no map."""
        if self.masked and semantic is None:
            raise ValueError("the first stage is masked (training.network.masked): encoding wants the semantic maps "
                             "of the images, too")
        return self.told(semantic, x.shape[2:])

    @torch.no_grad()
    def posterior(self, x: torch.Tensor, label: torch.Tensor | None = None, semantic: torch.Tensor | None = None
                  ) -> AnyPosterior:
        """What the network says of the latents of images [N,C,*S] as it sees them, [-1,1], and label maps [N,*S].

        semantic: maps [N,*S], which a first stage that is masked needs.
        """
        with autocast(self.precision, x.device):
            return self.net.encode(x, label, **self.needed(semantic, x))

    def scaled(self, z: torch.Tensor) -> torch.Tensor:
        """Scaled latents [N,z,*s] of latents as the network gives them."""
        return z if self.scaling is None else whiten(z, *self.shift_and_gain(z.device))

    def encode(self, image: torch.Tensor, label: torch.Tensor | None = None, semantic: torch.Tensor | None = None
               ) -> torch.Tensor:
        """Scaled posterior means [N,z,*s] of images [N,C,*S], label maps [N,*S] and, if masked, semantic maps."""
        try:
            return self.scaled(self.posterior(self.facts.intensity.to_network(image), label, semantic).mean)
        except SizeError as e:
            raise ValueError(f"{e}; pad the images") from e

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, semantic: torch.Tensor | None = None
               ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images [N,C,*S] and label maps [N,*S] uint8 (or None) of scaled latents [N,z,*s].

        semantic: maps [N,*S] that the images are to have, outside of which one that is masked leaves background.
        """
        return self.stored(*self.decoded(latents, semantic))

    def decode_soft(self, latents: torch.Tensor, semantic: torch.Tensor | None = None
                    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images [N,C,*S], not clipped, and probabilities of the label classes [N,K,*S], with gradients to the latents.

        Those through a codebook are as if nothing had been quantised. ValueError for a first stage in parts, through
        which no gradient goes.
        """
        if not self.whole:
            raise ValueError("gradients go through a first stage as a whole only; leave the tiles away")
        x, logits = self.decoded(latents, semantic)
        lo, hi = self.facts.intensity.lo, self.facts.intensity.hi
        return (x + 1) * ((hi - lo) / 2) + lo, None if logits is None else logits.softmax(1)

    @torch.no_grad()
    def round_trip(self, image: torch.Tensor, label: torch.Tensor | None = None, semantic: torch.Tensor | None = None
                   ) -> GoneThrough:
        """What comes back of images [N,C,*S], label maps and semantic maps [N,*S] by way of the posteriors' means."""
        x = self.facts.intensity.to_network(image)
        with autocast(self.precision, x.device):
            out = self.net(x, label, **self.needed(semantic, x))
        finite = bool(out.image.isfinite().all())
        return GoneThrough(*self.stored(out.image, out.logits), out.posterior, out.codes, finite)

    def noise(self, eps: torch.Tensor) -> torch.Tensor:
        """Unit normal eps [N,z,*s] with the mean and standard deviation per channel of scaled latents."""
        mean, std = (torch.tensor(values, dtype=torch.float32, device=eps.device)
                     for values in (self.scaling.channel_mean, self.scaling.channel_std))
        return self.scaled(unwhiten(eps, mean, 1 / std))

    def decoded(self, latents: torch.Tensor, semantic: torch.Tensor | None = None
                ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the network makes of scaled latents: images in [-1,1] and logits [N,K,*S], float32."""
        z = latents.float()
        z = z if self.scaling is None else unwhiten(z, *self.shift_and_gain(z.device))
        size = self.size_of(z.shape[2:]) if self.masked else ()
        with autocast(self.precision, z.device):
            x, logits = self.net.decode(z, **self.told(semantic, size))
        return x.float(), None if logits is None else logits.float()

    def shift_and_gain(self, device: torch.device) -> list[torch.Tensor]:
        """What latents are scaled by, [C] each."""
        return [values.to(device, non_blocking=True) for values in self.shift_gain]

    def stored(self, x: torch.Tensor, logits: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images in stored units, and label maps, of what the network gives."""
        return (self.facts.intensity.from_network(x.float()),
                None if logits is None else logits.argmax(1).to(torch.uint8))


def tile_note(whole: FirstStage, latents: torch.Tensor, image: torch.Tensor, label: torch.Tensor | None,
              semantic: torch.Tensor | None = None) -> str:
    """By how much image [1,C,*S] and label map [1,*S], decoded in tiles, differ from those decoded as a whole."""
    try:
        wanted, wanted_label = whole.decode(latents, semantic)
    except (torch.OutOfMemoryError, MemoryError):
        return "Tiles differ from whole: not measured, there is no memory for the whole"
    scale = whole.facts.intensity.hi - whole.facts.intensity.lo
    off = float((image - wanted).square().mean().sqrt()) / scale
    agree = "" if label is None else f", labels {100 * float((label == wanted_label).float().mean()):.2f} % agree"
    return f"Tiles differ from whole: image {off:.2g} (rms, share of range){agree}"


def check_decoding(stage: FirstStage, spatial_shape: Sequence[int], batch_size: int, source: object) -> None:
    """ValueError where the memory does not hold a batch of volumes, decoded of latents [*s]: once, and their features.
    """
    shape = list(stage.size_of(spatial_shape))
    if stage.device.type == "cpu":
        check_memory(f"{source}: decoding {batch_size} x {shape}", 8 * batch_size * prod(shape))


def tiled(stage: FirstStage, tiles: Tiles | None, compare: bool) -> tuple[FirstStage, FirstStage | None]:
    """A first stage in tiles (None: itself), and what to hold them against where they differ from the whole."""
    compared = tiles is not None and tiles.mode == "blend" and compare
    return stage.in_parts(tiles), stage.in_parts(Tiles(tiles.size, 0, "exact")) if compared else None


def tiles_of(options: Mapping[str, Any]) -> Tiles | None:
    """What options or settings say of tiles; None for whole volumes."""
    tile = options.get("tile")
    return None if tile is None else Tiles(tuple(tile), options["tile_overlap"], options["tile_mode"])
