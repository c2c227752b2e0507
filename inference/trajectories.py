"""The way from noise to image: what a sampler goes through, beside a volume under as much noise, as picture and table.
"""

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from edm3d.formats.nifti import spacing_of
from edm3d.formats.samples import SamplesFile
from edm3d.inference.conditions import stacked
from edm3d.inference.drawing import Drawer, arrays_in_units, solve
from edm3d.inference.real_pictures import real_volume
from edm3d.inference.sample_files import TRAJECTORIES as FOLDER
from edm3d.inference.sample_files import records
from edm3d.inference.snapshot import Snapshot
from edm3d.networks.conditioning import Condition
from edm3d.reporting.cases import Layout
from edm3d.reporting.strips import evenly
from edm3d.samplers.denoiser import Denoiser, Wrapper
from edm3d.samplers.noise import ImageGenerators
from edm3d.utils.checks import listed
from edm3d.utils.files import arrays_hash, first_line, plain_hash
from edm3d.utils.log import progress
from edm3d.utils.precision import autocast
from edm3d.utils.schema import Sampling

SHOWN = 8  # noise levels in a picture, evenly over the steps, from the first to the last
HEAD = ("what", "step", "sigma", "mean", "std", "min", "max")
NOISED, ESTIMATE, X, DENOISED = "noised", "noised_estimate", "x", "x_estimate"
KNOWN = {"class_labels", "attributes", "semantic"}  # of a volume, by parts of a condition


class Step(NamedTuple):
    """A step of a sampler: the noise level, x [1,C,*s] at it, and what the network takes the image to be there."""

    sigma: float
    x: torch.Tensor
    denoised: torch.Tensor


class Watched(Wrapper):
    """A denoiser that remembers the first call of every step; `see` is the sampler's callback."""

    def __init__(self, net: Denoiser):
        super().__init__(net)
        self.steps: list[Step] = []
        self.first: tuple[float, torch.Tensor] | None = None

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor | float, *others: Any, **named: Any) -> torch.Tensor:
        if self.first is None:
            self.first = float(torch.as_tensor(sigma).max()), x.detach().to("cpu", torch.float32)
        return self.net(x, sigma, *others, **named)

    def see(self, step: int, x: torch.Tensor, denoised: torch.Tensor) -> None:
        """Keep what the step began with; a step without a call has nothing to show."""
        if self.first is None:
            return
        self.steps.append(Step(*self.first, denoised.detach().to("cpu", torch.float32)))
        self.first = None


class Way(NamedTuple):
    """What is shown of a sample: every step of its sampler, and a volume `clean` [1,C,*s] under as much noise as at
    some of them, by their numbers. unreal: why that is the sample itself, '' for a real volume.
    """

    steps: list[Step]
    noised: dict[int, Step]
    clean: torch.Tensor
    unreal: str
    told: Condition


def write_trajectories(outdir: Path, samples: SamplesFile, drawer: Drawer, snapshot: Snapshot, options: Sampling
                       ) -> Iterator[str]:
    """Draw the first samples again, by themselves, and write what they went through: trajectories/NAME.csv, and
    pictures NAME_1.png, NAME_2.png, ...

    What is there as it was written is left; lines to say.
    """
    if not options.trajectory_montage:
        return
    record = records(outdir, samples.meta)[FOLDER]
    yield from record.begin()
    record.load()
    count, unreal = min(options.trajectory_montage, len(samples)), ""
    seeds = [int(seed) for seed in samples.seeds[:count]]
    source = "latents" if "latents" in samples.names else "images"
    for i, name in enumerate(progress(samples.meta.file_names(seeds), desc=FOLDER, unit="sample")):
        of = plain_hash([arrays_hash({source: samples.row(source, i)}), SHOWN])
        had = [file for file in record.files if file.startswith((f"{FOLDER}/{name}.", f"{FOLDER}/{name}_"))]
        if had and all(record.is_finished(file, of) for file in had):
            continue
        way = way_of(drawer, seeds[i], int(samples.row("attempts", i) or 0), snapshot, options)
        if not way.steps:
            yield f"Note      no trajectories: the sampler shows none of its steps ({snapshot.path})"
            return
        unreal = way.unreal or unreal
        pictures = pictures_of_way(way, drawer, seeds[i], samples, i)
        written = {".csv": table(way).encode(), **{f"_{k + 1}.png": data for k, data in enumerate(pictures)}}
        for ending, data in written.items():
            with record.writing(f"{FOLDER}/{name}{ending}", str(seeds[i]), of) as temporary:
                temporary.write_bytes(data)
    record.settle()
    yield (f"Ways      {outdir / FOLDER}: from noise to image, {count} samples"
           + f"; noised are these themselves: {unreal}" * bool(unreal))


def way_of(drawer: Drawer, number: int, attempt: int, snapshot: Snapshot, options: Sampling) -> Way:
    """What a sample of a number goes through."""
    watched: list[Watched] = []

    def watch(net: Denoiser) -> Watched:
        watched.append(Watched(net))
        return watched[-1]

    found = solve(drawer, [number], attempt, lambda *seen: watched[-1].see(*seen), watch)
    steps, told = watched[-1].steps, found.told
    clean, known, unreal = found.x.cpu(), told, ""
    try:
        clean, known = clean_volume(drawer, snapshot, options)
    except (OSError, ValueError) as e:
        unreal = first_line(e)
    noise = ImageGenerators(found.keys, purpose="trajectory").randn(drawer.shape)
    numbers = evenly(len(steps), SHOWN) if steps else []
    return Way(steps, {i: noised(drawer, clean, noise, steps[i].sigma, known) for i in numbers}, clean, unreal,
               told)


@torch.no_grad()
def noised(drawer: Drawer, clean: torch.Tensor, noise: torch.Tensor, sigma: float, told: Condition) -> Step:
    """A volume under noise of a level, and what the network takes it to be, without anything measured."""
    x = clean.double() + sigma * noise.double()
    with autocast(drawer.precision, drawer.device):
        net = drawer.denoiser(())
        level = torch.tensor(sigma, dtype=torch.float64)
        estimate = net(x.to(drawer.device), level, told.to(drawer.device))
    return Step(sigma, x.float(), estimate.to("cpu", torch.float32))


@torch.no_grad()
def clean_volume(drawer: Drawer, snapshot: Snapshot, options: Sampling) -> tuple[torch.Tensor, Condition]:
    """A real volume [1,C,*s] as the network draws it, and what that is told of it; ValueError where that is not known.
    """
    takes = drawer.conditions.takes
    if unknown := takes.keys() - KNOWN:
        raise ValueError(f"the network is told {listed(sorted(unknown))}")
    if drawer.latent and drawer.first_stage is None:
        raise ValueError("nothing encodes it (sampling.decode is false)")
    item, facts, stage = real_volume(snapshot, options.real), snapshot.facts, drawer.first_stage
    if item.label is None and (drawer.label_coding or (stage and stage.net.num_classes)):
        raise ValueError("it has no label map")
    image, label, semantic = (None if array is None else torch.from_numpy(np.ascontiguousarray(array))[None].to(
        drawer.device) for array in (item.image, item.label, item.semantic))
    if image.shape[2:] != tuple(drawer.conditions.size):
        raise ValueError(f"its size is {list(image.shape[2:])}, the network's {list(drawer.conditions.size)}")
    if drawer.latent:
        x = stage.encode(image, label if stage.net.num_classes else None, semantic if stage.masked else None)
    else:
        x = facts.intensity.to_network(image)
        x = drawer.label_coding.join(x, label) if drawer.label_coding else x
    if x.shape[1:] != drawer.shape:
        raise ValueError(f"it is {list(x.shape[1:])} to the network, which draws {list(drawer.shape)}")
    known = {"class_labels": item.class_index, "attributes": item.attributes, "semantic": item.semantic}
    return x.float().cpu(), stacked({name: [value] for name, value in known.items() if name in takes}, takes,
                                    image.shape[2:])


# ---- what is written ----


def table(way: Way) -> str:
    """CSV: of every x and every estimate its mean, standard deviation, least and greatest value in the network's units.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEAD)
    for names, steps in (((NOISED, ESTIMATE), way.noised), ((X, DENOISED), dict(enumerate(way.steps)))):
        for number, step in steps.items():
            for name, values in zip(names, (step.x, step.denoised), strict=True):
                v = values.double()
                writer.writerow([name, number, *(f"{float(value):.6g}" for value in (
                    step.sigma, v.mean(), v.std(correction=0), v.min(), v.max()))])
    return out.getvalue()


def as_spread(step: Step, clean: torch.Tensor) -> torch.Tensor:
    """A noisy x [1,C,*s] with the noise of its level scaled away: of a volume `clean` and noise with the mean and the
    standard deviation of every channel of the volume.
    """
    axes = tuple(range(2, clean.ndim))
    mean, spread = clean.mean(axes, keepdim=True), clean.std(axes, keepdim=True, correction=0).clamp(min=1e-6)
    return mean + (step.x - mean) / (1 + (step.sigma / spread) ** 2).sqrt()


def pictures_of_way(way: Way, drawer: Drawer, number: int, samples: SamplesFile, row: int) -> list[bytes]:
    """PNGs of four rows, a column for each noise level: the volume under noise, what it is taken to be, and the same of
    what the sampler goes through. What is noisy is shown by `as_spread`.
    """
    from edm3d.reporting.montages import png_bytes
    from edm3d.reporting.noise_levels import noise_levels
    numbers, plain = evenly(len(way.steps), SHOWN), drawer._replace(refiner=None)

    def seen(x: torch.Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        arrays = arrays_in_units(plain, x.to(drawer.device), [number], way.told.to(drawer.device))
        made: Mapping[str, np.ndarray] = {name: array[0].float().cpu().numpy() for name, array in arrays.items()}
        label = made.get("labels")
        return made.get("images", made.get("latents")), None if label is None else label.astype(np.uint8)

    def rows(title: str, steps: list[Step]) -> list[tuple[str, list]]:
        scaled = [as_spread(step, way.clean) for step in steps]
        return [(title, [(seen(x)[0], None) for x in scaled]),
                ("What the network takes it to be", [seen(step.denoised) for step in steps])]

    title = "The sample itself, noised" if way.unreal else "Real volume, noised"
    blocks = rows(title, [way.noised[i] for i in numbers]) + rows("Sampler, from noise to image",
                                                                 [way.steps[i] for i in numbers])
    facts, affine = samples.meta.facts, samples.affine_of(row)
    dims, in_latents = len(drawer.shape) - 1, "images" not in samples.names
    spacing = (1.0,) * dims if in_latents else tuple(spacing_of(affine)[:dims])
    layout = Layout(() if in_latents else facts.channels, facts.label_classes, spacing, 0.0, 1.0, "",
                    None if in_latents else affine)
    return [png_bytes(figure) for figure in noise_levels(blocks, layout, [f"sigma {way.steps[i].sigma:.3g}"
                                                                          for i in numbers])]
