"""What tasks show: held-out volumes and what comes back of them, or samples of seeds that stay the same."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from formats.facts import Facts
from formats.samples import SampleMeta
from inference.batch import Sample, collate
from inference.first_stage import FirstStage
from inference.generation import (
    Drawer,
    Picture,
    around,
    captions,
    check_options,
    complete,
    draw,
    make_drawer,
    real_pictures,
    sample_meta,
    spread,
)
from samplers.noise import ImageGenerators
from training.phases import Task
from training.preview import Block, DrawnSamples, Shown
from training.validation import Held
from utils.config import sampling_options
from utils.precision import resolve_precision

SHADES = (0.5, 99.5)  # percentiles of latents that are shown as black and white


class GivenBack:
    """Held-out volumes above, what a first stage makes of them below."""

    def __init__(self, samples: Sequence[Sample], facts: Facts, device: torch.device, precision: str):
        self.facts, self.device, self.precision = facts, device, precision
        self.real = [(facts.intensity.from_network(sample.image), sample.label) for sample in samples]

    def __call__(self, net: torch.nn.Module) -> Shown:
        stage = FirstStage(net, self.facts, precision=self.precision)
        back = [self.given_back(stage, *picture) for picture in self.real]
        return Shown([("Held out", self.real), ("Given back", back)], {**look_of(self.facts), "aligned": True})

    def given_back(self, stage: FirstStage, image: np.ndarray, label: np.ndarray | None) -> Picture:
        """Image in stored units and label map of one volume, as validation sees it."""
        back = stage.round_trip(*(None if part is None else torch.from_numpy(part)[None].to(self.device)
                                  for part in (image, label)))
        return back.image[0].cpu().numpy(), None if back.label is None else back.label[0].cpu().numpy()


class Drawn:
    """Real volumes above, samples of seeds 0, 1, ... below; latents that nothing decodes channel by channel.

    real_latents [N,C,*s] stand beside such latents, where there are any.
    """

    def __init__(self, drawer: Drawer, count: int, batch_size: int, meta: SampleMeta, look: dict,
                 real: list[Picture], real_latents: np.ndarray | None):
        self.drawer, self.batch_size, self.meta, self.look = drawer, batch_size, meta, look
        self.seeds, self.real, self.real_latents = list(range(count)), real, real_latents

    def __call__(self, net: torch.nn.Module) -> Shown:
        drawer = self.drawer._replace(denoiser=partial(around, net, None))
        parts = [draw(drawer, self.seeds[i:i + self.batch_size]) for i in range(0, len(self.seeds), self.batch_size)]
        samples = DrawnSamples(self.seeds, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
                          self.meta)
        look = {**self.look, "captions": captions(self.meta.facts, self.seeds, samples.arrays.get("classes"))}
        if "images" not in samples.arrays:
            return Shown(latent_blocks(samples.arrays["latents"], self.real_latents),
                         {**look, "window": shades(samples.arrays["latents"], self.real_latents)}, samples)
        labels = samples.arrays.get("labels", [None] * len(self.seeds))
        generated = list(zip(samples.arrays["images"], labels, strict=True))
        return Shown([("Real", self.real), ("Generated", generated)], look, samples)


def latent_blocks(drawn: np.ndarray, real: np.ndarray | None) -> list[Block]:
    """The latents [N,C,*s] channel by channel, real above drawn: the middle plane of three dimensions, 1D as it is."""
    if drawn.ndim == 3:
        return [(name, [(latent, None) for latent in latents])
                for name, latents in (("Real", real), ("Generated", drawn)) if latents is not None]

    def plane(latent: np.ndarray) -> Picture:
        return (latent[..., latent.shape[-1] // 2] if latent.ndim == 3 else latent), None

    return [(f"Channel {c + 1}, {name}", [plane(latent[c]) for latent in latents])
            for c in range(drawn.shape[1]) for name, latents in (("real", real), ("generated", drawn))
            if latents is not None]


def shades(drawn: np.ndarray, real: np.ndarray | None) -> tuple[float, float]:
    """The values of latents that are black and white: those of real ones where there are any."""
    low, high = np.percentile(drawn if real is None else real, SHADES)
    return float(low), float(high)


# ---- building ----


def build_given_back(config: dict, task: Task, held: Held | None, count: int, device: torch.device) -> GivenBack:
    """The preview of a first stage; ValueError where nothing is held out."""
    if held is None:
        raise ValueError("no volumes are held out; choose training.validation.split, and max_items of 1 or more")
    return GivenBack(spread(held.dataset, count), task.snapshot.facts, device,
                     resolve_precision(config["training"]["options"]["precision"], device))


def build_drawn(config: dict, task: Task, held: Held | None, count: int, device: torch.device) -> Drawn:
    """The preview of a diffusion network; ValueError where `sampling` says of nothing how to draw by it.

    The network is drawn from alone, without guidance; the first stage decodes where the run has it.
    """
    options = sampling_options(config)
    options = replace(options, trust=options.trust or config["training"]["options"]["trust"], trajectory=False)
    check_options(options)
    own = replace(task.snapshot, config=config)
    snapshot = complete(own, options, config["training"]["options"]["run_root"])
    if snapshot.first_stage is not None and snapshot.first_stage.network is None:
        options = replace(options, decode=False)
    drawer = make_drawer(task.net, snapshot, options, device)
    meta = sample_meta(own, snapshot, options, {})
    if drawer.latent and drawer.first_stage is None:
        look = {"spacing": [1] * min(len(drawer.shape) - 1, 2)}
        return Drawn(drawer, count, options.batch_size, meta, look, [], real_latents(task, held, count, device))
    real = real_pictures(snapshot, options.real, count, trust=True)  # the data set is the user's own configuration
    return Drawn(drawer, count, options.batch_size, meta, look_of(snapshot.facts), real, None)


def real_latents(task: Task, held: Held | None, count: int, device: torch.device) -> np.ndarray | None:
    """Latents [N,C,*s] of held-out items as the network is to draw them, None where nothing is held out."""
    if held is None:
        return None
    samples = spread(held.dataset, count)
    generators = ImageGenerators(range(len(samples)), device=device)
    with torch.no_grad():
        return task.clean(collate(samples).to(device), generators).cpu().numpy()


def look_of(facts: Facts) -> dict:
    """How a montage shows volumes of which this is known."""
    return {"spacing": facts.spacing, "label_classes": facts.label_classes, "channels": facts.channels}
