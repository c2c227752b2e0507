"""Drawing: what is checked and built once, a batch of seeds -> noise -> sampler -> (decode), and what is recorded."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch

from edm3d.formats.intensity import Intensity
from edm3d.formats.sample_meta import SampleMeta, SampleStage
from edm3d.inference.conditions import Conditions
from edm3d.inference.first_stage import FirstStage, check_decoding, tiled, tiles_of
from edm3d.inference.guidance import check_moves
from edm3d.inference.measurements import Measurements, open_measurements
from edm3d.inference.private_samples import said_of_samples
from edm3d.inference.quality import Ranges, make_ranges
from edm3d.inference.refiner import Refiner, open_refiner
from edm3d.inference.snapshot import Snapshot
from edm3d.inference.starts import LateStart, start_of
from edm3d.networks.conditioning import Condition
from edm3d.networks.label_coding import LabelCoding
from edm3d.samplers import ShownItsEstimate
from edm3d.samplers.denoiser import Denoiser, Wrapper
from edm3d.samplers.edm import Callback
from edm3d.samplers.noise import GENERATORS, scheme_on
from edm3d.utils.checks import check_memory
from edm3d.utils.config import build, said_at
from edm3d.utils.precision import autocast, resolve_precision
from edm3d.utils.runs import find_file
from edm3d.utils.schema import Sampling

DRAWING = 40  # bytes per value at least: a sampler's estimates are in float64, and it keeps several of them


class Drawer(NamedTuple):
    """What turns seeds into volumes.

    denoiser and conditions give for a batch of seeds what the sampler calls, and what that is told. latent says whether
    latents are drawn (else voxels); first_stage decodes them and may be left out, whole is what to hold its tiles
    against; refiner draws what it cannot keep. trajectory: keep what every step took the image to be. start: what the
    sampler begins around, None where it starts from noise alone. label_coding: how label maps stand in voxels.
    measured: of what posterior samples are drawn. quality: by what samples are drawn again, None: kept as they come.
    noise: the scheme by which noise is drawn.
    """

    denoiser: Callable[[Sequence[int]], Denoiser]
    conditions: Conditions
    latent: bool
    first_stage: FirstStage | None
    sampler: Callable
    shape: tuple[int, ...]
    intensity: Intensity
    device: torch.device
    precision: str
    whole: FirstStage | None = None
    trajectory: bool = False
    start: LateStart | None = None
    refiner: Refiner | None = None
    label_coding: LabelCoding | None = None
    measured: Measurements | None = None
    quality: Ranges | None = None
    noise: str = GENERATORS

    def decode(self, x: torch.Tensor, keys: Sequence[Hashable], told: Condition
               ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images [N,C,*S] in stored units and label maps [N,*S] of latents [N,z,*s], refined where there is a refiner.

        keys: what the noise of each follows from; told: what they were drawn for.
        """
        image, label = self.first_stage.decode(x, told.semantic)
        return image if self.refiner is None else self.refiner(image, label, keys, told), label


def complete(snapshot: Snapshot, options: Sampling, run_root: str) -> Snapshot:
    """A snapshot with the first stage that the user names, where it does not carry one; ValueError for another one."""
    stage, name = snapshot.first_stage, options.autoencoder
    if stage is None or name is None:
        return snapshot
    path = find_file(name, "network-snapshot", Path(run_root), "sampling.autoencoder")
    named = Snapshot.read(path, "autoencoder")
    if stage.network is None:
        return snapshot.with_autoencoder(named)
    if named.network_hash != stage.hash:
        raise ValueError(f"sampling.autoencoder={name}: {path} has hash {named.network_hash[:12]}, the network was "
                         f"trained on latents of {stage.hash[:12]}; leave sampling.autoencoder away to use the one it "
                         "carries")
    return snapshot


def make_drawer(net: torch.nn.Module, snapshot: Snapshot, options: Sampling, device: torch.device,
                conditions: Conditions, guided: Callable[[Denoiser], Denoiser] | None = None, *,
                run_root: str = "results") -> Drawer:
    """Put the first stage on the device and the sampler beside the network; guided: see add_guidance."""
    stage, first_stage, whole = snapshot.first_stage, None, None
    if device.type == "cpu":
        check_memory(f"{snapshot.path}: drawing {options.batch_size} x {list(snapshot.shape)}",
                     DRAWING * options.batch_size * prod(snapshot.shape))
    precision = resolve_precision(options.precision, device)
    if stage is not None and options.decode:
        first_stage = snapshot.open_first_stage(options.trust, precision).to(device)
        check_decoding(first_stage, snapshot.shape[1:], options.batch_size, snapshot.path)
        try:
            first_stage, whole = tiled(first_stage, tiles_of(vars(options)), options.tile_compare)
        except ValueError as e:
            raise ValueError(f"sampling.{str(e).replace('tile ', 'tile_')}") from e
    refiner = add_refiner(snapshot, first_stage, options, conditions, run_root) if options.refiner else None
    sampler = build({**options.sampler, "_partial_": True})
    measured = open_measurements(options.posterior, snapshot, whole_stage(snapshot, options, first_stage, device),
                                 conditions, device, run_root)
    denoiser = partial(around, net, guided, measured=measured)
    try_sampler(sampler, denoiser(()), options.sampler)
    check_moves(options.guidance, denoiser(()), conditions)
    start = start_of(options, sampler, denoiser(()), conditions, snapshot.shape)
    return Drawer(denoiser, conditions, stage is not None, first_stage, sampler, snapshot.shape,
                  snapshot.facts.intensity, device, precision, whole, options.trajectory, start, refiner,
                  snapshot.label_coding, measured, make_ranges(options.quality, snapshot, first_stage, conditions),
                  options.noise or scheme_on(device))


def whole_stage(snapshot: Snapshot, options: Sampling, stage: FirstStage | None, device: torch.device
                ) -> FirstStage | None:
    """The first stage that measurements are seen through: as it decodes, but in one piece, as gradients go through it.
    """
    if snapshot.first_stage is None or not options.posterior or (stage is not None and stage.whole):
        return stage
    return snapshot.open_first_stage(options.trust, resolve_precision(options.precision, device)).to(device)


def add_refiner(snapshot: Snapshot, stage: FirstStage | None, options: Sampling, conditions: Conditions, run_root: str
                ) -> Refiner:
    """The refiner that is asked for; ValueError where nothing is decoded (stage None), or by another first stage than
    its own.
    """
    if stage is None:
        raise ValueError(f"sampling.refiner={options.refiner}: there is no image of a first stage to refine; "
                         + ("sampling.decode is false" if snapshot.first_stage else f"{snapshot.path} draws voxels"))
    refiner = open_refiner(options.refiner, Path(run_root), stage.device, sampler=options.refiner_sampler,
                           precision=stage.precision, tiles=tiles_of(vars(options)), trust=options.trust)
    told, size = {name for name in refiner.takes if conditions.tells(name)}, stage.size_of(snapshot.shape[1:])
    refiner.check(stage, snapshot.first_stage.hash, snapshot.facts, told, snapshot.path)
    refiner.check_size(size)
    if stage.device.type == "cpu":
        shape = [options.batch_size, refiner.snapshot.shape[0], *size]
        check_memory(f"sampling.refiner={options.refiner}: drawing {shape}", DRAWING * prod(shape))
    return refiner


def around(net: Denoiser, guided: Callable[[Denoiser], Denoiser] | None, seeds: Sequence[int],
           measured: Measurements | None = None) -> Denoiser:
    """What the sampler calls for a batch of seeds: the network, shown its estimate where it takes one, guided, and
    beside what was measured.
    """
    denoiser = ShownItsEstimate(net) if Wrapper(net).self_condition else net
    denoiser = denoiser if guided is None else guided(denoiser)
    return denoiser if measured is None or not seeds else measured(denoiser, seeds)


class Blank(Wrapper):
    """A denoiser that says 0 at the noise levels of a network: what a sampler makes of its arguments, at no cost."""

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: Condition | None = None,
                 augment_labels: torch.Tensor | None = None) -> torch.Tensor:
        return torch.zeros_like(x)


def try_sampler(sampler: Callable, net: Callable, node: dict) -> None:
    """ValueError for arguments that the sampler refuses for this network, before anything is drawn."""
    try:
        sampler(Blank(net), torch.zeros(1, 1, 1))
    except ValueError as e:
        raise ValueError(said_at("sampling.sampler", node, str(e))) from e


def sample_meta(snapshot: Snapshot, whole: Snapshot, options: Sampling, guidance: dict,
                asked: Mapping[str, Any] = MappingProxyType({}), refiner: Refiner | None = None,
                measured: Measurements | None = None, quality: Ranges | None = None, noise: str = GENERATORS
                ) -> SampleMeta:
    """What the samples file records; `sampling` holds what a sample depends on besides the seed and the snapshot.

    whole: the snapshot with its first stage, which is a setting where the snapshot itself does not carry it. asked: the
    record of the conditions. refiner: what the images went through. measured: what they were drawn given. quality: by
    what they were drawn again. noise: the scheme by which noise was drawn.
    """
    stage, tiles = whole.first_stage, tiles_of(vars(options))
    settings = {"sampler": options.sampler, "decode": options.decode, "precision": options.precision,
                "classes": options.classes, **({"guidance": guidance} if guidance else {}),
                **({"start": options.start} if options.start != "noise" else {}),
                **({"start_sigma": options.start_sigma} if options.start_sigma is not None else {}),
                **({"trajectory": True} if options.trajectory else {}), **(tiles.plain() if tiles else {}),
                **({"first_stage": stage.hash} if whole.first_stage is not snapshot.first_stage else {}),
                **({"refiner": refiner.record} if refiner else {}),
                **({"posterior": measured.record} if measured else {}),
                **({"quality": quality.record} if quality else {}),
                **({"noise": noise} if noise != GENERATORS else {}),
                **({"compile": True} if options.compile else {}), **asked}
    said = snapshot.privacy and said_of_samples(snapshot.privacy, settings, refiner and refiner.snapshot)
    return SampleMeta(whole.facts, str(snapshot.path), snapshot.hash, settings,
                      stage and SampleStage(stage.hash, stage.scaling), said)


def draw_kept(drawer: Drawer, seeds: list[int]) -> dict[str, np.ndarray]:
    """Samples of some numbers as they are kept: drawn again, each by itself, while they leave the ranges of a quality
    check and there are attempts left; then the least far out is kept, the first of equals, and flagged.
    """
    arrays, ranges = draw(drawer, seeds), drawer.quality
    if ranges is None:
        return arrays
    out = np.array([ranges.out(arrays, row) for row in range(len(seeds))])
    arrays |= {"attempts": np.zeros(len(seeds), np.int64)}
    for attempt in range(1, ranges.attempts):
        if not len(again := np.flatnonzero(out > 0)):
            break
        drawn = draw(drawer, [seeds[row] for row in again], attempt)
        for i, row in enumerate(again):
            if (found := ranges.out(drawn, i)) < out[row]:
                out[row] = found
                for name, array in drawn.items():
                    arrays[name][row] = array[i]
                arrays["attempts"][row] = attempt
    return arrays | {"flagged": (out > 0).astype(np.uint8)}


def draw(drawer: Drawer, seeds: list[int], attempt: int = 0) -> dict[str, np.ndarray]:
    """Samples of some numbers, which are seeds where each has but one; the noise is drawn for every attempt anew.
    """
    steps: list[torch.Tensor] = []
    found = solve(drawer, seeds, attempt, keep(steps) if drawer.trajectory else None)
    arrays = arrays_in_units(drawer, found.x, seeds, found.told.to(drawer.device), found.keys)
    if drawer.trajectory:
        arrays["trajectory"] = torch.stack(steps, dim=1)
    asked = drawer.conditions.stored(found.told) | drawer.conditions.stored_scans(seeds)
    if "cond_images" in asked and drawer.conditions.scans is None:
        asked["cond_images"] = drawer.intensity.from_network(asked["cond_images"])
    return asked | {name: array.cpu().numpy() for name, array in arrays.items()}


class Solved(NamedTuple):
    """What a sampler ends at, x [N,C,*s], by the keys of its noise, told a condition (on the CPU)."""

    x: torch.Tensor
    keys: list[Hashable]
    told: Condition


def solve(drawer: Drawer, seeds: Sequence[int], attempt: int = 0, callback: Callback | None = None,
          watch: Callable[[Denoiser], Denoiser] = lambda net: net) -> Solved:
    """Go from the noise of some numbers to what the network draws; watch: what looks on at the sampler's calls."""
    generators = drawer.conditions.generators(seeds, attempt, drawer.noise, drawer.device)
    noise = generators.randn(drawer.shape).to(drawer.device)
    condition = drawer.conditions(seeds)
    denoiser, told = drawer.denoiser(seeds), condition.to(drawer.device)
    with autocast(drawer.precision, drawer.device):
        if drawer.start is not None:
            noise = drawer.start.latents(denoiser, noise, told)
        x = drawer.sampler(watch(denoiser), noise, condition=told, randn_like=generators.randn_like,
                           **({"callback": callback} if callback else {})).float()
    return Solved(x, drawer.conditions.keys(seeds, attempt), condition)


def arrays_in_units(drawer: Drawer, x: torch.Tensor, seeds: Sequence[int], told: Condition,
                    keys: Sequence[Hashable] = ()) -> dict[str, torch.Tensor]:
    """What samples of some numbers hold of x [N,C,*s], as `arrays_of`, but for scans on the scale of each."""
    scans = drawer.conditions.scans
    if scans is None:
        return arrays_of(drawer, x, keys or seeds, told)
    return {"images": scans.scale.from_network(x, scans(drawer.conditions.seeds(seeds)).scale)}


def arrays_of(drawer: Drawer, x: torch.Tensor, seeds: Sequence[int], told: Condition) -> dict[str, torch.Tensor]:
    """What samples hold of x [N,C,*s] that a network has drawn by seeds for a condition: latents, and as far as it has
    or decodes any, images in stored units and label maps.
    """
    if not drawer.latent:
        image, label = drawer.label_coding.split(x) if drawer.label_coding else (x, None)
        image = drawer.intensity.from_network(image)
    elif drawer.first_stage is not None:
        image, label = drawer.decode(x, seeds, told)
    else:
        image = label = None
    found = {"latents": x if drawer.latent else None, "images": image, "labels": label}
    return {name: array for name, array in found.items() if array is not None}


def draw_all(drawer: Drawer, seeds: Sequence[int], batch_size: int) -> dict[str, np.ndarray]:
    """Volumes of all seeds in memory, drawn so many at a time."""
    parts = [draw_kept(drawer, list(seeds[i:i + batch_size])) for i in range(0, len(seeds), batch_size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def keep(steps: list[torch.Tensor]) -> Callback:
    """A sampler's callback that appends the denoised image of every step, float32 on the CPU."""
    return lambda step, x, denoised: steps.append(denoised.to("cpu", torch.float32))
