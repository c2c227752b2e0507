"""From a raw batch to what diffusion sees, (x, Condition), on the device, with one generator per image."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from edm3d.formats.facts import Facts, LatentScaling
from edm3d.formats.latents import FirstStageRecord, Moments, Statistics
from edm3d.inference.batch import Batch, Sample, collate
from edm3d.inference.first_stage import FirstStage
from edm3d.inference.snapshot import Snapshot, check_contract
from edm3d.metrics.image import psnr
from edm3d.networks.conditioning import Condition
from edm3d.networks.label_coding import KINDS, LabelCoding
from edm3d.networks.latent_codec import shift_and_gain, whiten
from edm3d.networks.posteriors import AnyPosterior, posterior_class
from edm3d.samplers.noise import ImageGenerators
from edm3d.utils import distributed
from edm3d.utils.checks import check_choice, check_count, check_positive
from edm3d.utils.runs import find_file

LABELS = "training.batch_transform.labels"
ROUND_TRIP = 16  # items that are decoded again


class Identity:
    """Voxel space: the images themselves, and behind their channels those of their label maps, where these are drawn.

    labels: none, or the kind of a networks.label_coding.LabelCoding; label_scale: its scale, which as the root mean
    square of the channels goes with a network's sigma_data.
    """

    def __init__(self, labels: str = "none", label_scale: float = 0.5):
        check_choice("labels", labels, ("none", *KINDS))
        check_positive({"label_scale": label_scale})
        self.labels, self.scale, self.label_coding = labels, label_scale, None

    def see(self, facts: Facts, shape: Sequence[int]) -> None:
        """Take the label classes of data of a shape [C,*S], and from then on have the `shape` that a network sees.

        ValueError where label maps are to be drawn and the data have none.
        """
        if self.labels != "none":
            if not facts.label_classes:
                wanted = "data with label maps" if facts.file else "their number of classes by --classes"
                raise ValueError(f"{LABELS}={self.labels}: {facts.file or 'what the plan is for'} has no label maps; "
                                 f"wanted none, or {wanted}")
            with named(f"{LABELS}={self.labels}"):
                self.label_coding = LabelCoding(self.labels, len(facts.label_classes), self.scale)
        more = self.label_coding.channels if self.label_coding else 0
        self.shape = (shape[0] + more, *shape[1:])

    def __call__(self, batch: Batch, generators: ImageGenerators) -> tuple[torch.Tensor, Condition]:
        if self.label_coding is None:
            return batch.images, batch.condition
        if batch.labels is None:
            raise ValueError(f"{LABELS}={self.labels}: an item of the data has no label map; wanted none, or data with "
                             "a label map of each item")
        with named(f"{LABELS}={self.labels}"):
            return self.label_coding.join(batch.images, batch.labels), batch.condition


class DrawLatents:
    """Draw latents from their posterior, or take its mean, and scale them (networks.latent_codec.shift_and_gain).

    Batches hold mean and std side by side, images [N,2C,*s]. All but scaling (None: standardize), sigma_data and draw
    comes from latents.h5, and the scaling too where it is not given.
    """

    def __init__(self, channel_mean: Sequence[float], channel_std: Sequence[float],
                 limits: Sequence[float] | None = None, scaling: str | None = None, posterior: str = "gaussian",
                 sigma_data: float = 0.5, draw: bool = True):
        self.scaling = LatentScaling(list(channel_mean), list(channel_std), limits, scaling or "standardize",
                                     sigma_data)
        self.shift, self.gain = map(torch.tensor, shift_and_gain(*self.scaling))
        self.posterior, self.draw = posterior_class(posterior), draw

    def __call__(self, batch: Batch, generators: ImageGenerators) -> tuple[torch.Tensor, Condition]:
        mean, std = batch.images.chunk(2, dim=1)
        z = chosen(self.posterior.from_moments(mean, std), self.draw, generators)
        shift, gain = (values.to(z.device, non_blocking=True) for values in (self.shift, self.gain))
        return whiten(z, shift, gain), batch.condition


class FrozenStage:
    """A frozen first stage that images go through while training, and how its latents are scaled.

    trust: let the autoencoder's snapshot build classes that are not on the list of known ones.
    autoencoder: a name, run folder or snapshot. The statistics of the scaling are those of `num` items of the training
    data, measured once at the start of a run, unless channel_mean, channel_std and limits are given. draw: draw latents
    from their posteriors, or take these' means.
    """

    def __init__(self, autoencoder: str, num: int = 64, scaling: str = "standardize", sigma_data: float = 0.5,
                 run_root: str = "results", trust: bool = False, draw: bool = True,
                 channel_mean: Sequence[float] | None = None, channel_std: Sequence[float] | None = None,
                 limits: Sequence[float] | None = None):
        check_count(1, {"num": num})
        self.given = None if channel_mean is None else Statistics(channel_mean, channel_std, limits)
        self.path = distributed.from_rank_0(lambda: find_file(autoencoder, "network-snapshot", Path(run_root),
                                                              "training.batch_transform.autoencoder"))
        self.snapshot = Snapshot.read(self.path, "autoencoder")
        self.stage = FirstStage(self.snapshot.build(trust), self.snapshot.facts)
        self.num, self.kind, self.sigma_data, self.draw = num, scaling, sigma_data, draw

    def open(self, dataset: Sequence[Sample], held: Sequence[Sample], split: str, device: torch.device) -> None:
        """Measure what scales the latents of the data that is to be trained on; held: items of a held-out split.

        ValueError when it is not the first stage's data.
        """
        check_contract(dataset.facts, self.snapshot.facts, dataset.facts.source, self.path)
        self.stage.check_maps(dataset.facts, dataset.facts.source)
        self.latent_shape = self.stage.net.latent_shape(dataset.shape[1:])
        self.stage.to(device)
        statistics = self.given or distributed.from_rank_0(lambda: self.measure(dataset).statistics())
        self.latent_scaling = LatentScaling(*statistics, self.kind, self.sigma_data)
        self.stage = FirstStage(self.stage.net, self.snapshot.facts, self.latent_scaling)

    def measure(self, dataset: Sequence[Sample]) -> Moments:
        """Moments of the latents of items from all over the data."""
        moments = Moments()
        for batch in self.some(dataset):
            posterior = self.posterior(batch)
            moments.add(posterior.mean[0].cpu().numpy(), posterior.std[0].cpu().numpy())
        return moments

    def some(self, dataset: Sequence[Sample], most: int | None = None) -> Iterator[Batch]:
        """Items from all over the data, one by one, `num` or, if that is less, `most` of them."""
        count = min(self.num, len(dataset), len(dataset) if most is None else most)
        for i in torch.linspace(0, len(dataset) - 1, count).long().tolist():
            yield collate([dataset[i]]).to(self.stage.device)

    def posterior(self, batch: Batch) -> AnyPosterior:
        """Of the latents of a batch."""
        return self.stage.to(batch.images.device).posterior(batch.images, batch.labels, batch.condition.semantic)


class EncodeImages(FrozenStage):
    """Encode images by a frozen first stage, draw latents from the posteriors and scale them, all while training.

    What the first stage loses of held-out items is measured once at the start of a run.
    """

    def open(self, dataset: Sequence[Sample], held: Sequence[Sample], split: str, device: torch.device) -> None:
        """The same, and measure what the first stage loses on `held`, of a split."""
        super().open(dataset, held, split, device)
        self.shape, self.scaling = self.latent_shape, self.latent_scaling
        found = distributed.from_rank_0(lambda: self.psnr(held))
        self.round_trip = {"psnr_db": found, "num": min(len(held), ROUND_TRIP), "split": split}

    def psnr(self, held: Sequence[Sample]) -> float:
        """Mean PSNR in dB of what comes back of the first held-out items, in stored units."""
        intensity, found = self.snapshot.facts.intensity, []
        for i in range(min(len(held), ROUND_TRIP)):
            batch = collate([held[i]]).to(self.stage.device)
            real = intensity.from_network(batch.images)
            back = self.stage.round_trip(real, batch.labels, batch.condition.semantic).image
            found.append(psnr(back[0].cpu().numpy(), real[0].cpu().numpy(), intensity.hi - intensity.lo))
        return float(np.mean(found))

    def first_stage(self) -> FirstStageRecord:
        """The autoencoder, for the snapshots."""
        return self.snapshot.record

    @torch.no_grad()
    def __call__(self, batch: Batch, generators: ImageGenerators) -> tuple[torch.Tensor, Condition]:
        if batch.images.is_meta:  # a check of shapes
            return batch.images.new_empty(len(batch.images), *self.shape), batch.condition
        return self.stage.scaled(chosen(self.posterior(batch), self.draw, generators)), batch.condition


def chosen(posterior: AnyPosterior, draw: bool, generators: ImageGenerators) -> torch.Tensor:
    """Latents [N,C,*s]: drawn from a posterior by the generators of the images, or its mean."""
    drawn = draw and not posterior.mean.is_meta
    return posterior.sample(generators.for_purpose("posterior")) if drawn else posterior.mean


@contextmanager
def named(what: str) -> Iterator[None]:
    """Begin errors of what is called by a key and its value."""
    try:
        yield
    except ValueError as e:
        raise ValueError(f"{what}: {e}") from e
