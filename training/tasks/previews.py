"""What tasks show: held-out volumes and what comes back of them, or samples of seeds that stay the same."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from edm3d.formats.facts import Facts
from edm3d.formats.samples import Samples
from edm3d.inference.asking import asker_of
from edm3d.inference.batch import Sample, collate
from edm3d.inference.drawing import around, complete, draw_all, make_drawer, sample_meta
from edm3d.inference.first_stage import FirstStage
from edm3d.inference.generation import Picture, captions, check_options, real_pictures, spread
from edm3d.networks.conditioning import takes_of
from edm3d.networks.parts import PARTS
from edm3d.samplers.noise import ImageGenerators
from edm3d.training.phases import Task
from edm3d.training.preview import Block, Show, Shown
from edm3d.training.validation import Held
from edm3d.utils.precision import resolve_precision
from edm3d.utils.schema import sampling_options

SHADES = (0.5, 99.5)  # percentiles of latents that are shown as black and white


def given_back(samples: Sequence[Sample], facts: Facts, device: torch.device, precision: str) -> Show:
    """Held-out volumes above, what a first stage makes of them, as validation sees it, below."""
    real = [sample._replace(image=facts.intensity.from_network(sample.image)) for sample in samples]

    def show(net: torch.nn.Module) -> Shown:
        stage, back = FirstStage(net, facts, precision=precision), []
        for sample in real:
            batch = collate([sample]).to(device)
            out = stage.round_trip(batch.images, batch.labels, batch.condition.semantic)
            back.append((out.image[0].cpu().numpy(), None if out.label is None else out.label[0].cpu().numpy()))
        held_out = [(sample.image, sample.label) for sample in real]
        return Shown([("Held out", held_out), ("Given back", back)], {**look_of(facts), "aligned": True})

    return show


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


def build_given_back(config: dict, task: Task, held: Held | None, count: int, device: torch.device) -> Show:
    """The preview of a first stage; ValueError where nothing is held out."""
    if held is None:
        raise ValueError("no volumes are held out; choose training.validation.split, and max_items of 1 or more")
    return given_back(spread(held.dataset, count), task.snapshot.facts, device,
                      resolve_precision(config["training"]["options"]["precision"], device))


def build_drawn(config: dict, task: Task, held: Held | None, count: int, device: torch.device) -> Show:
    """The preview of a diffusion network; ValueError where `sampling` says of nothing how to draw by it.

    Real volumes above, samples of seeds 0, 1, ... below, told what is asked for, else what is known of held-out items;
    latents that nothing decodes channel by channel, beside those
    of held-out items where there are any. The network is drawn from alone, without guidance; the first stage decodes
    where the run has it.
    """
    options = sampling_options(config)
    options = replace(options, trust=options.trust or config["training"]["options"]["trust"], trajectory=False)
    check_options(options)
    own = replace(task.snapshot, config=config)
    snapshot = complete(own, options, config["training"]["options"]["run_root"])
    if snapshot.first_stage is not None and snapshot.first_stage.network is None:
        options = replace(options, decode=False)
    options = replace(options, sweep={})
    conditions = asker_of(task.net, snapshot, of_held_out(task.net, held, count))(options)
    drawer = make_drawer(task.net, snapshot, options, device, conditions)
    meta, seeds = sample_meta(own, snapshot, options, {}, conditions.record), list(range(count))
    in_latents = drawer.latent and drawer.first_stage is None
    if in_latents:
        look, real = {"spacing": [1] * min(len(drawer.shape) - 1, 2)}, real_latents(task, held, count, device)
    else:
        look = look_of(snapshot.facts)
        real, _ = real_pictures(snapshot, options.real, count, trust=True)  # the data set is his own configuration

    def show(net: torch.nn.Module) -> Shown:
        alone = drawer._replace(denoiser=partial(around, net, None))
        arrays = draw_all(alone, seeds, options.batch_size)
        told = {**look, "captions": captions(meta.facts, seeds, arrays.get("classes"))}
        samples = Samples(seeds, arrays, meta)
        if in_latents:
            return Shown(latent_blocks(arrays["latents"], real),
                         {**told, "windows": shades(arrays["latents"], real)}, samples)
        generated = list(zip(arrays["images"], arrays.get("labels", [None] * count), strict=True))
        return Shown([("Real", real), ("Generated", generated)], told, samples)

    return show


def of_held_out(net: torch.nn.Module, held: Held | None, count: int) -> dict[str, list[Any]]:
    """What is known of held-out items, as it is told in previews where nothing is asked: all but classes, which are
    drawn in turn.
    """
    if held is None or not takes_of(net).keys() - {"class_labels"}:
        return {}
    items = [sample.condition for sample in spread(held.dataset, count)]
    return {name: [PARTS[name].value(item[name]) for item in items] for name in takes_of(net)
            if name != "class_labels" and all(name in item for item in items)}


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
    return {"spacing": facts.spacing, "label_classes": facts.label_classes, "channels": facts.channels,
            "affine": facts.affine}
