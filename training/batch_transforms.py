"""From a raw batch to what diffusion sees, (x, Condition), on the device, with one generator per image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from formats.latents import FirstStageRecord, Moments
from formats.volumes import Intensity
from inference.batch import Batch, Sample
from inference.snapshot import check_contract, first_stage_record, load_network
from metrics.image import psnr
from networks.conditioning import Condition
from networks.latent_codec import shift_and_gain, whiten
from networks.posteriors import GammaPosterior, PointPosterior, Posterior, posterior_class
from samplers.noise import ImageGenerators
from utils import distributed
from utils.checks import check_count
from utils.runs import find_file

ROUND_TRIP = 16  # items that are decoded again
AnyPosterior = Posterior | PointPosterior | GammaPosterior


class Identity:
    """Voxel space: the images themselves."""

    def __call__(self, batch: Batch, generators: ImageGenerators) -> tuple[torch.Tensor, Condition]:
        return batch.images, batch.condition


class DrawLatents:
    """Draw latents from their posterior, or take its mean, and scale them (networks.latent_codec.shift_and_gain).

    Batches hold mean and std side by side, images [N,2C,*s]. All but scaling (None: standardize), sigma_data and draw
    comes from latents.h5, and the scaling too where it is not given.
    """

    def __init__(self, channel_mean: Sequence[float], channel_std: Sequence[float],
                 limits: Sequence[float] | None = None, scaling: str | None = None, posterior: str = "gaussian",
                 sigma_data: float = 0.5, draw: bool = True):
        self.figures = {"channel_mean": list(channel_mean), "channel_std": list(channel_std), "limits": limits,
                        "scaling": scaling or "standardize", "sigma_data": sigma_data}
        self.shift, self.gain = map(torch.tensor, shift_and_gain(**self.figures))
        self.posterior, self.draw = posterior_class(posterior), draw

    def __call__(self, batch: Batch, generators: ImageGenerators) -> tuple[torch.Tensor, Condition]:
        mean, std = batch.images.chunk(2, dim=1)
        return latents(self.posterior.from_moments(mean, std), self, generators), batch.condition


class EncodeImages:
    """Encode images by a frozen first stage, draw latents from the posteriors and scale them, all while training.

    trust: let the autoencoder's snapshot build classes that are not on the list of known ones.
    autoencoder: a name, run folder or snapshot. The figures of the scaling are those of `num` items of the training
    data, measured once at the start of a run; so is what the first stage loses. draw: or take the posteriors' means.
    """

    def __init__(self, autoencoder: str, num: int = 64, scaling: str = "standardize", sigma_data: float = 0.5,
                 run_root: str = "results", trust: bool = False, draw: bool = True):
        check_count(1, {"num": num})
        self.path = distributed.from_rank_0(lambda: find_file(autoencoder, "network-snapshot", Path(run_root),
                                                              "training.batch_transform.autoencoder"))
        self.net, self.snapshot = load_network(self.path, "autoencoder", trust)
        self.num, self.scaling, self.sigma_data, self.draw = num, scaling, sigma_data, draw

    def open(self, dataset: Sequence[Sample], held: Sequence[Sample], split: str, device: torch.device) -> None:
        """Measure figures on the data that is to be trained on, and what the first stage loses on `held`, of a split.

        ValueError when it is not the first stage's data.
        """
        check_contract(dataset.data, self.snapshot["data"], dataset.data["source"], self.path)
        self.shape = self.net.latent_shape(dataset.shape[1:])
        self.net.to(device)
        figures = distributed.from_rank_0(lambda: self.measure(dataset, device))
        self.figures = {**figures, "scaling": self.scaling, "sigma_data": self.sigma_data}
        self.shift, self.gain = map(torch.tensor, shift_and_gain(**self.figures))
        psnr = distributed.from_rank_0(lambda: self.psnr(held, Intensity(**dataset.data["intensity"]), device))
        self.round_trip = {"psnr_db": psnr, "num": min(len(held), ROUND_TRIP), "split": split}

    @torch.no_grad()
    def psnr(self, held: Sequence[Sample], intensity: Intensity, device: torch.device) -> float:
        """Mean PSNR in dB of what comes back of the first held-out items, in stored units."""
        found = []
        for i in range(min(len(held), ROUND_TRIP)):
            back = self.net.decode(self.encoded(held[i], device).mean)[0][0].cpu().numpy()
            found.append(psnr(*map(intensity.from_network, (back, held[i].image)), intensity.hi - intensity.lo))
        return float(np.mean(found))

    def encoded(self, sample: Sample, device: torch.device) -> AnyPosterior:
        """Posterior of one item."""
        image, label = (None if part is None else torch.from_numpy(part)[None].to(device) for part in sample[:2])
        return self.net.encode(image, label)

    @torch.no_grad()
    def measure(self, dataset: Sequence[Sample], device: torch.device) -> dict:
        """Figures of the latents of items from all over the data."""
        moments = Moments()
        for i in torch.linspace(0, len(dataset) - 1, min(self.num, len(dataset))).long().tolist():
            posterior = self.encoded(dataset[i], device)
            moments.add(posterior.mean[0].cpu().numpy(), posterior.std[0].cpu().numpy())
        return moments.figures()._asdict()

    def first_stage(self) -> FirstStageRecord:
        """The autoencoder, for the snapshots."""
        return first_stage_record(self.snapshot)

    @torch.no_grad()
    def __call__(self, batch: Batch, generators: ImageGenerators) -> tuple[torch.Tensor, Condition]:
        if batch.images.is_meta:  # a check of shapes
            return batch.images.new_empty(len(batch.images), *self.shape), batch.condition
        posterior = self.net.to(batch.images.device).encode(batch.images, batch.labels)
        return latents(posterior, self, generators), batch.condition


def latents(posterior: AnyPosterior, transform: DrawLatents | EncodeImages, generators: ImageGenerators
            ) -> torch.Tensor:
    """Scaled latents [N,C,*s]: drawn from a posterior by the generators of the images, or its mean."""
    drawn = transform.draw and not posterior.mean.is_meta
    z = posterior.sample(generators.for_purpose("posterior")) if drawn else posterior.mean
    return whiten(z, transform.shift.to(z.device), transform.gain.to(z.device))
