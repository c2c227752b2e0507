"""From a raw batch to what diffusion sees, (x, Condition), on the device, with one generator per image."""

from collections.abc import Sequence
from pathlib import Path

import torch

from networks.conditioning import Condition
from networks.latent_codec import shift_and_gain, whiten
from networks.posteriors import posterior_class
from samplers.noise import ImageGenerators
from training.batch import Batch, Sample
from training.snapshot import check_contract, first_stage_record, load_network
from utils import distributed
from utils.checks import check_count
from utils.latents import FirstStageRecord, Moments
from utils.runs import find_file


class Identity:
    """Voxel space: the images themselves."""

    def __call__(self, batch: Batch, generators: ImageGenerators) -> tuple[torch.Tensor, Condition]:
        return batch.images, batch.condition


class DrawLatents:
    """Draw latents from their posterior and scale them (networks.latent_codec.shift_and_gain).

    Batches hold mean and std side by side, images [N,2C,*s]. All but scaling (None: standardize) and sigma_data comes
    from latents.h5, and the scaling too where it is not given.
    """

    def __init__(self, channel_mean: Sequence[float], channel_std: Sequence[float],
                 limits: Sequence[float] | None = None, scaling: str | None = None, posterior: str = "gaussian",
                 sigma_data: float = 0.5):
        self.figures = {"channel_mean": list(channel_mean), "channel_std": list(channel_std), "limits": limits,
                        "scaling": scaling or "standardize", "sigma_data": sigma_data}
        self.shift, self.gain = map(torch.tensor, shift_and_gain(**self.figures))
        self.posterior = posterior_class(posterior)

    def __call__(self, batch: Batch, generators: ImageGenerators) -> tuple[torch.Tensor, Condition]:
        mean, std = batch.images.chunk(2, dim=1)
        return draw(self.posterior.from_moments(mean, std), self.shift, self.gain, generators), batch.condition


class EncodeImages:
    """Encode images by a frozen first stage, draw latents from the posteriors and scale them, all while training.

    trust: let the autoencoder's snapshot build classes that are not on the list of known ones.
    autoencoder: a name, run folder or snapshot. The figures of the scaling are those of `num` items of the training
    data, measured once at the start of a run.
    """

    def __init__(self, autoencoder: str, num: int = 64, scaling: str = "standardize", sigma_data: float = 0.5,
                 run_root: str = "results", trust: bool = False):
        check_count(1, {"num": num})
        self.path = distributed.from_rank_0(lambda: find_file(autoencoder, "network-snapshot", Path(run_root),
                                                              "training.batch_transform.autoencoder"))
        self.net, self.snapshot = load_network(self.path, "autoencoder", trust)
        self.num, self.scaling, self.sigma_data = num, scaling, sigma_data

    def open(self, dataset: Sequence[Sample], device: torch.device) -> None:
        """Measure the figures on the data that is to be trained on; ValueError when it is not the first stage's."""
        check_contract(dataset.data, self.snapshot["data"], dataset.data["source"], self.path)
        self.shape = self.net.latent_shape(dataset.shape[1:])
        self.net.to(device)
        figures = distributed.from_rank_0(lambda: self.measure(dataset, device))
        self.figures = {**figures, "scaling": self.scaling, "sigma_data": self.sigma_data}
        self.shift, self.gain = map(torch.tensor, shift_and_gain(**self.figures))

    @torch.no_grad()
    def measure(self, dataset: Sequence[Sample], device: torch.device) -> dict:
        """Figures of the latents of items from all over the data."""
        moments = Moments()
        for i in torch.linspace(0, len(dataset) - 1, min(self.num, len(dataset))).long().tolist():
            image, label, _ = dataset[i]
            posterior = self.net.encode(torch.from_numpy(image)[None].to(device),
                                        None if label is None else torch.from_numpy(label)[None].to(device))
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
        return draw(posterior, self.shift, self.gain, generators), batch.condition


def draw(posterior, shift: torch.Tensor, gain: torch.Tensor, generators: ImageGenerators) -> torch.Tensor:
    """A scaled draw [N,C,*s] from a posterior by the generators of the images."""
    z = posterior.mean if posterior.mean.is_meta else posterior.sample(generators.for_purpose("posterior"))
    return whiten(z, shift.to(z.device), gain.to(z.device))
