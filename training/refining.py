"""What a frozen first stage cannot keep of images, to be drawn by a network that is told what it gives back."""

from collections.abc import Sequence

import numpy as np
import torch

from edm3d.formats.facts import Facts
from edm3d.formats.refinement import RESIDUAL, TARGETS, Refinement, told_facts
from edm3d.inference.batch import Batch, Sample
from edm3d.metrics.texture import EMPTY, autocorrelation, local_residual, texture_parts
from edm3d.networks.conditioning import Condition
from edm3d.networks.decorrelation import decorrelated
from edm3d.networks.layers import per_axis
from edm3d.networks.local_scaling import LocalScaling
from edm3d.samplers.noise import ImageGenerators
from edm3d.training.batch_transforms import FrozenStage, chosen
from edm3d.training.patches import check_fits
from edm3d.utils import distributed
from edm3d.utils.checks import check_choice, check_count, check_least

KEY = "training.batch_transform"
MOST_VOXELS = 2 ** 24  # on which the scaling of the target is measured, of all items together
NEIGHBOURS = 16  # items on which the correlation of neighbours is measured
MOST_CORRELATION = 0.95


class RefineImages(FrozenStage):
    """Images less what a frozen first stage gives back of them, or the images; the network is told what it gives back.

    Latents are drawn from their posteriors (draw=false: their means), and disturbed by noise of a standard deviation
    anywhere up to `latent_noise` of their own, so that a network learns to refine what diffusion drew as well. The
    image decoded of them is the condition image, and the label map decoded with it, where the first stage has one, the
    semantic map. target: residual, or image. It gets mean 0 and standard deviation sigma_data for every value of the
    decoded image within a label class, by `num` items, whose voxels are taken in `bins` groups: what is lost of speckle
    grows with the signal. bins=1: by the class alone. What the voxel before says of each is then taken off, so that
    white noise, scaled back, has the grain of images before the network has learnt anything. patch: random crops of so
    many voxels per axis, one number or one per axis; null: whole images.
    """

    def __init__(self, autoencoder: str, target: str = RESIDUAL, latent_noise: float = 0.1,
                 bins: int = 32, patch: int | Sequence[int] | None = None, num: int = 64, sigma_data: float = 0.5,
                 run_root: str = "results", trust: bool = False, draw: bool = True):
        check_choice("target", target, TARGETS)
        check_least(0, {"latent_noise": latent_noise})
        check_count(1, {"bins": bins})
        super().__init__(autoencoder, num, "standardize", 1.0, run_root, trust, draw)
        self.target, self.latent_noise, self.bins = target, latent_noise, bins
        self.patch, self.target_std = patch, sigma_data

    def open(self, dataset: Sequence[Sample], held: Sequence[Sample], split: str, device: torch.device) -> None:
        """Measure what scales latents and target; ValueError for other data and for patches that do not fit."""
        super().open(dataset, held, split, device)
        size = dataset.shape[1:]
        self.crop = None if self.patch is None else per_axis(self.patch, len(size), f"{KEY}.patch")
        if self.crop is not None:
            check_fits(self.crop, size, f"{KEY}.patch")
        self.shape = (dataset.shape[0], *(self.crop or size))
        self.target_scaling = LocalScaling(*distributed.from_rank_0(lambda: self.spread(dataset)))
        self.correlation = distributed.from_rank_0(lambda: self.neighbours(dataset))
        self.refinement = Refinement(self.snapshot.network_hash, self.target, *self.target_scaling, self.correlation)

    def told_facts(self, facts: Facts) -> Facts:
        """What is known of the data, as the network is told of them."""
        return told_facts(facts, self.shape[0], bool(self.stage.net.num_classes))

    @torch.no_grad()
    def spread(self, dataset: Sequence[Sample]) -> LocalScaling:
        """How the target is scaled; ValueError where there is nothing to draw."""
        voxels, labels, most = [], [], MOST_VOXELS // min(self.num, len(dataset))
        for i, batch in enumerate(self.some(dataset)):
            decoded, label = self.decoded(batch, ImageGenerators([i]))
            pair = torch.stack([self.compared(batch, decoded)[0], decoded[0]]).flatten(2)
            places = some_places(pair.shape[2], most)
            voxels.append(pair[..., places].cpu())
            labels += [] if label is None else [label[0].flatten()[places].cpu()]
        targets, decoded = torch.cat(voxels, dim=2)
        try:
            return LocalScaling.measured(targets, decoded, torch.cat(labels) if labels else None,
                                         self.stage.net.num_classes, self.bins, self.target_std)
        except ValueError as e:
            raise ValueError(f"{KEY}.target={self.target}: {e} of the training data; there is nothing to draw") from e

    def neighbours(self, dataset: Sequence[Sample]) -> list[list[float]]:
        """Correlation [C,axes] of the texture of images with itself, moved by one voxel along each axis.

        Of the images, and not of the target, which has what the decoder blurs at edges as well.
        """
        found = [[lag1(channel, None if batch.labels is None else batch.labels[0]) for channel in batch.images[0]]
                 for batch in self.some(dataset, NEIGHBOURS)]
        return np.clip(np.nan_to_num(np.nanmean(found, axis=0)), -MOST_CORRELATION, MOST_CORRELATION).tolist()

    def compared(self, batch: Batch, decoded: torch.Tensor) -> torch.Tensor:
        """What is to be drawn [N,C,*S], not scaled."""
        return batch.images - decoded if self.target == RESIDUAL else batch.images

    def decoded(self, batch: Batch, generators: ImageGenerators) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the first stage gives back of a batch, as networks see images, and label maps."""
        z = self.stage.scaled(chosen(self.posterior(batch), self.draw, generators))
        if self.latent_noise:
            level = generators.for_purpose("latent_noise_level").rand((1,) * (z.ndim - 1)).to(z.device)
            z = z + self.latent_noise * level * generators.for_purpose("latent_noise").randn_like(z)
        image, label = self.stage.decode(z, batch.condition.semantic)
        return self.snapshot.facts.intensity.to_network(image), label

    @torch.no_grad()
    def __call__(self, batch: Batch, generators: ImageGenerators) -> tuple[torch.Tensor, Condition]:
        if batch.images.is_meta:  # a check of shapes
            decoded, label = torch.empty_like(batch.images), batch.images[:, 0].to(torch.uint8)
            label = label if self.stage.net.num_classes else None
        else:
            decoded, label = self.decoded(batch, generators)
        x = decorrelated(self.target_scaling.scaled(self.compared(batch, decoded), decoded, label), self.correlation)
        told = batch.condition.replace(images=decoded)
        told = told if label is None else told.replace(semantic=label.to(torch.int16))
        if self.crop is None:
            return x, told
        corners = corners_of(generators, x.shape[2:], self.crop)
        grids = {name: cropped(told[name], corners, self.crop) for name in ("images", "semantic") if name in told}
        return cropped(x, corners, self.crop), told.replace(**grids)


def lag1(image: torch.Tensor, label: torch.Tensor | None) -> np.ndarray:
    """Correlation [axes] of the texture of an image [*S], as networks see it, with itself, moved by one voxel along
    each axis, within the classes of a label map [*S]; NaN where nothing varies.
    """
    values = image.cpu().numpy() + 1
    parts = texture_parts(values, None if label is None else label.cpu().numpy(), 2 * EMPTY)
    return autocorrelation(local_residual(values, parts), parts, 1)[:, 1]


def some_places(count: int, most: int) -> torch.Tensor | slice:
    """Numbers of `most` voxels of so many, always the same at random; all where there are no more."""
    return slice(None) if count <= most else torch.randint(count, (most,), generator=torch.Generator().manual_seed(0))


def corners_of(generators: ImageGenerators, size: Sequence[int], patch: Sequence[int]) -> list[list[int]]:
    """First voxel of a random patch [*S] of each image of a size [*S]."""
    room = torch.tensor([whole - part + 1 for whole, part in zip(size, patch)])
    return (generators.for_purpose("patch").on_host().rand((len(room),)) * room).long().tolist()


def cropped(x: torch.Tensor, corners: Sequence[Sequence[int]], patch: Sequence[int]) -> torch.Tensor:
    """The patch of each image of x [N,..,*S] that begins at its corner."""
    return torch.stack([row[(..., *(slice(a, a + n) for a, n in zip(corner, patch)))]
                        for row, corner in zip(x, corners, strict=True)])
