"""What tasks show: held-out volumes and what comes back of them, or samples of seeds that stay the same."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from edm3d.formats.asked_words import captions
from edm3d.formats.facts import Facts
from edm3d.formats.sample_meta import SampleMeta
from edm3d.formats.samples import Samples
from edm3d.inference.asking import asker_of
from edm3d.inference.asking_scans import in_units, scans_of_items
from edm3d.inference.batch import Sample, collate
from edm3d.inference.drawing import Drawer, around, arrays_of, complete, draw_all, make_drawer, sample_meta
from edm3d.inference.enhanced import scan_blocks, window_of_scans
from edm3d.inference.first_stage import FirstStage
from edm3d.inference.generation import check_options
from edm3d.inference.real_pictures import real_pictures, spread
from edm3d.inference.refiner import Refiner, sampler_of
from edm3d.inference.snapshot import Snapshot
from edm3d.inference.starts import started
from edm3d.networks.conditioning import Part, takes_of
from edm3d.networks.parts import PARTS
from edm3d.reporting.slices import Asked, Block, Picture
from edm3d.samplers.noise import ImageGenerators
from edm3d.training.phases import Task
from edm3d.training.preview import Show, Shown
from edm3d.training.validation import Held
from edm3d.utils.precision import resolve_precision
from edm3d.utils.schema import Quality, Sampling, sampling_options

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

    Real volumes above, samples of seeds 0, 1, ... below; latents that nothing decodes channel by channel, beside those
    of held-out items where there are any. A network that is told something is told what is asked for, else what is
    known of held-out items, which are shown above; what was decoded of their latents, where it draws these. The network
    is drawn from alone, without guidance; the first stage decodes where the run has it.
    """
    if task.snapshot.refines is not None:
        return build_refined(config, task, held, count, device)
    if task.snapshot.dose is not None:
        return build_scans(config, task, held, count, device)
    samples = [] if held is None else spread(held.dataset, count)
    snapshot, options, drawer, meta, known = drawing_of(config, task, samples, device)
    seeds = list(range(count))
    in_latents = drawer.latent and drawer.first_stage is None
    if in_latents:
        look, real = {"spacing": [1] * min(len(drawer.shape) - 1, 2)}, clean_of(task, samples, device)
    elif known:
        look = {**look_of(snapshot.facts), "aligned": True}
        real = held_pictures(drawer, samples, clean_of(task, samples, device))
    else:
        look = look_of(snapshot.facts)
        real, _ = real_pictures(snapshot, options.real, count, trust=True)  # the data set is his own configuration

    def show(net: torch.nn.Module) -> Shown:
        alone = drawer._replace(denoiser=partial(around, net, None))
        arrays = draw_all(alone, seeds, options.batch_size)
        told = {**look, "captions": captions(meta, seeds, arrays.get("classes"), arrays.get("attributes"))}
        samples = Samples(seeds, arrays, meta)
        if in_latents:
            return Shown(latent_blocks(arrays["latents"], real),
                         {**told, "windows": shades(arrays["latents"], real)}, samples)
        generated = list(zip(arrays["images"], arrays.get("labels", [None] * count), strict=True))
        return Shown([("Held out" if known else "Real", real), ("Generated", generated)],
                     {**told, "asked": Asked.of(meta.facts, arrays)}, samples)

    return show


class Drawing(NamedTuple):
    """What draws by a network while it is trained, how, what samples files say of it, and what it is told of items."""

    snapshot: Snapshot
    options: Sampling
    drawer: Drawer
    meta: SampleMeta
    known: dict[str, list]


def drawing_of(config: dict, task: Task, samples: Sequence[Sample], device: torch.device) -> Drawing:
    """What draws one sample for each seed, told what is known of held-out items in turn, if anything is."""
    options, run_root = preview_options(config), config["training"]["options"]["run_root"]
    own = replace(task.snapshot, config=config)
    snapshot = complete(own, options, run_root)
    if snapshot.first_stage is not None and snapshot.first_stage.network is None:
        options = replace(options, decode=False)
    known = known_of(samples, takes_of(task.net))
    conditions = asker_of(task.net, snapshot, known)(options)
    drawer = make_drawer(task.net, snapshot, options, device, conditions, run_root=run_root)
    return Drawing(snapshot, options, drawer, sample_meta(own, snapshot, options, {}, conditions.record,
                                                          drawer.refiner, noise=drawer.noise), known)


def preview_options(config: dict) -> Sampling:
    """How samples are drawn while training: one for each seed, with nothing kept of the way, of the prior alone."""
    options = replace(sampling_options(config), posterior={}, trajectory=False, sweep={}, pairs=False,
                      samples_per_condition=1, quality=Quality())
    check_options(options)
    return started(replace(options, trust=options.trust or config["training"]["options"]["trust"]))


def build_scans(config: dict, task: Task, held: Held | None, count: int, device: torch.device) -> Show:
    """The preview of a network of PET: low dose, what it draws, high dose and phantom of held-out items, on one scale.

    Of one that is told no scan what it draws alone. ValueError where nothing is held out that scans could be of.
    """
    options, own = preview_options(config), replace(task.snapshot, config=config)
    if "images" in takes_of(task.net):
        if held is None:
            raise ValueError("no phantoms are held out; choose training.validation.split, and max_items of 1 or more")
        asker = scans_of_items(task.net, own, spread(held.dataset, count), own.facts, options.trust,
                               config["training"]["options"]["run_root"])
    else:
        asker = asker_of(task.net, own)
    conditions = asker(options)
    snapshot = in_units(own, conditions)
    drawer = make_drawer(task.net, snapshot, options, device, conditions)
    meta, seeds = sample_meta(own, snapshot, options, {}, conditions.record, noise=drawer.noise), list(range(count))

    def show(net: torch.nn.Module) -> Shown:
        arrays = draw_all(drawer._replace(denoiser=partial(around, net, None)), seeds, options.batch_size)
        look = {**look_of(snapshot.facts), "captions": captions(meta, seeds, arrays.get("classes"),
                                                                arrays.get("attributes"))}
        if conditions.scans:
            look["windows"] = window_of_scans(arrays)
        return Shown(scan_blocks(arrays), look, Samples(seeds, arrays, meta))

    return show


def build_refined(config: dict, task: Task, held: Held | None, count: int, device: torch.device) -> Show:
    """The preview of a refiner: held-out images, what its first stage gives back of them, and what it makes of that.

    On patches where it is trained on these. ValueError where nothing is held out.
    """
    if held is None:
        raise ValueError("no volumes are held out; choose training.validation.split, and max_items of 1 or more")
    own, options = replace(task.snapshot, config=config), config["training"]["options"]
    node, precision = sampler_of(own, {}, options["trust"]), resolve_precision(options["precision"], device)
    batch, intensity = collate(spread(held.dataset, count)).to(device), own.facts.intensity
    generators = ImageGenerators(range(len(batch.images)), device=device)
    with torch.no_grad():
        x, told = task.seen(batch, generators)
    keys, before = range(len(x)), intensity.from_network(told.images)

    def show(net: torch.nn.Module) -> Shown:
        refiner = Refiner(own, net, node, precision)
        real = refiner.restored(x, told.images, told.semantic)
        blocks = {"Held out": intensity.from_network(real), "Decoded": before,
                  "Refined": refiner(before, told.semantic, keys, told)}
        return Shown([(name, [(image, None) for image in images.cpu().numpy()]) for name, images in blocks.items()],
                     {**look_of(own.facts), "aligned": True})

    return show


def clean_of(task: Task, samples: Sequence[Sample], device: torch.device) -> np.ndarray | None:
    """Held-out items [N,C,*s] as the network is to draw them, None where there are none."""
    if not samples:
        return None
    generators = ImageGenerators(range(len(samples)), device=device)
    with torch.no_grad():
        return task.seen(collate(samples).to(device), generators)[0].cpu().numpy()


def known_of(samples: Sequence[Sample], takes: Mapping[str, Part]) -> dict[str, list]:
    """What is known of items, by the parts of it that a network takes; maps and images only where all have one."""
    known = {name: [sample.condition[name] for sample in samples] for name in takes
             if samples and all(name in sample.condition for sample in samples)}
    return {name: [PARTS[name].value(row) for row in rows] for name, rows in known.items()
            if not PARTS[name].grid or not any((row == PARTS[name].null(takes[name].width)).all() for row in rows)}


def held_pictures(drawer: Drawer, samples: Sequence[Sample], clean: np.ndarray) -> list[Picture]:
    """Held-out items, [N,C,*s] as the network is to draw them, as images in stored units and label maps."""
    pictures = []
    for i, (sample, x) in enumerate(zip(samples, torch.from_numpy(clean).to(drawer.device).split(1), strict=True)):
        told = collate([sample]).to(drawer.device).condition  # masked first stages want its map
        made = {name: array[0].cpu().numpy() for name, array in arrays_of(drawer, x, [i], told).items()}
        pictures.append((made["images"], made.get("labels", None if drawer.latent else sample.label)))
    return pictures


def look_of(facts: Facts) -> dict:
    """How a montage shows volumes of which this is known."""
    return {"spacing": facts.spacing, "label_classes": facts.label_classes, "channels": facts.channels,
            "affine": facts.affine}
