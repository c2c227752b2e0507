"""Pictures while training: held-out volumes and what comes back of them, or samples of seeds that stay the same."""

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from formats.facts import Facts
from formats.samples import SampleMeta, write_samples
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
from training.validation import Held
from utils import distributed
from utils.config import sampling_options
from utils.files import atomic_path, first_line, remove_temporary
from utils.log import is_lack_of_memory
from utils.precision import resolve_precision

SHADES = (0.5, 99.5)  # percentiles of latents that are shown as black and white
Block = tuple[str, list[Picture]]


class DrawnSamples(NamedTuple):
    """What a network drew: arrays by name with a row per seed, and what their file says of them."""

    seeds: list[int]
    arrays: dict[str, np.ndarray]
    meta: SampleMeta


class Shown(NamedTuple):
    """Blocks of pictures, the further arguments of reporting.montages.montage, and the samples where there are any."""

    blocks: list[Block]
    look: dict[str, Any]
    samples: DrawnSamples | None = None


class Preview(NamedTuple):
    """What is shown of an averaged network every few ticks. All ranks must call it together."""

    show: Callable[[torch.nn.Module], Shown]
    every_ticks: int


class MadePreview(NamedTuple):
    """A preview ready to be kept."""

    png: bytes
    samples: DrawnSamples | None


# ---- what is shown ----


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


def check_preview(validation: dict) -> None:
    """ValueError for settings that no preview could follow."""
    for key in ("preview_ticks", "preview_items"):
        if (value := validation[key]) is not None and value < 1:
            off = ", or null for no pictures" if key == "preview_ticks" else ""
            raise ValueError(f"training.validation.{key}={value}: wanted 1 or more{off}")


def build_preview(config: dict, task: Task, held: Held | None, device: torch.device
                  ) -> tuple[Preview | None, list[str]]:
    """The preview that training.validation asks for, None without one; and what to say where none can be made.

    All ranks must call this together: they show something together, or not at all.
    """
    every, count = (config["training"]["validation"][key] for key in ("preview_ticks", "preview_items"))
    if every is None:
        return None, []
    build_shown = build_given_back if config["training"]["task"] == "autoencoder" else build_drawn
    show, why = None, ""
    try:
        show = build_shown(config, task, held, count, device)
    except ValueError as e:  # what is only drawn with does not keep a network from being trained
        why = str(e)
    reasons = [reason for reason in distributed.gather_objects(why) if reason]
    if not reasons:
        return Preview(show, every), []
    return None, [f"Warning: no pictures while training (training.validation.preview_ticks={every}): {reasons[0]}"]


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


# ---- making and keeping ----


def make(preview: Preview, net: torch.nn.Module, is_main: bool) -> tuple[MadePreview | None, str]:
    """The preview of a network, drawn on the main rank; and what was said where memory ran out, else ''."""
    try:
        shown = preview.show(net)
        return (MadePreview(drawn_png(shown), shown.samples) if is_main else None), ""
    except Exception as e:
        if not is_lack_of_memory(e):
            raise
        return None, first_line(e)


def drawn_png(shown: Shown) -> bytes:
    """The PNG bytes of a preview."""
    from reporting.montages import montage, png_bytes
    return png_bytes(montage(shown.blocks, **shown.look))


def pixels(png: bytes) -> np.ndarray:
    """Colours [H,W,3] uint8 of a PNG."""
    from matplotlib.image import imread
    return np.round(imread(io.BytesIO(png), format="png")[..., :3] * 255).astype(np.uint8)


def write_preview(run_dir: Path, name: str, made: MadePreview) -> None:
    """Write previews/preview-NAME.png, and beside it as .npz the samples as the network drew them.

    Images that were decoded from latents are left out: the latents give them again.
    """
    folder = run_dir / "previews"
    folder.mkdir(exist_ok=True)
    remove_temporary(folder)
    with atomic_path(folder / f"preview-{name}.png", len(made.png)) as temporary:
        temporary.write_bytes(made.png)
    if made.samples is None:
        return
    seeds, arrays, meta = made.samples
    kept = {key: array for key, array in arrays.items() if key != "images" or "latents" not in arrays}
    write_samples(folder / f"preview-{name}.npz", seeds, kept, np.asarray(meta.facts.affine),
                  meta._replace(snapshot=str(run_dir / f"network-snapshot-{name}.pt")))
