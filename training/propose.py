"""Two experiments that fit a volumes file and a machine: a first stage, and diffusion on its latents."""

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from itertools import takewhile
from math import prod
from pathlib import Path
from typing import NamedTuple, TypeVar

import psutil
import torch

from edm3d.formats.facts import Facts, volume_facts
from edm3d.formats.volumes import VolumesFile
from edm3d.networks.tiles import Tiles
from edm3d.training.descent import Descent, descend, far_apart, plain_kernels
from edm3d.training.plan import DecodePlan, StepPlan, plan_decode, plan_encode, plan_step
from edm3d.training.plan_fit import GIB, apply_override, gib, room_of, step_levers
from edm3d.training.tasks.base import PATCHES, SIZE, Lever, PlannedData, fill_network, halved
from edm3d.utils.compose import compose, shipped_configs
from edm3d.utils.precision import resolve_precision

SMALL = 1000  # positions at which a UNet goes no deeper
HEAD = 64  # channels of an attention head
MANY = 1000  # training volumes from which on diffusion goes without dropout
STAGE, UNET = "training.network.channels", "training.network.model.model_channels"


class Scale(NamedTuple):
    """What is reasonable on a kind of device: widths from wide to narrow, blocks per level, steps of training.

    At most: positions of latents, those of a level that attends, FLOPs of a training unless the narrowest needs more.
    """

    stage_widths: Sequence[int]
    unet_widths: Sequence[int]
    blocks: int
    positions: int
    attended: int
    batch: int
    stage_steps: int
    unet_steps: int
    flops: float


SCALES = {"cuda": Scale((64, 48, 32, 24, 16), (192, 128, 96, 64, 32, 16), 2, 48_000, 4096, 32, 20_000, 50_000,
                        4e18),
          "cpu": Scale((16, 8), (32, 16), 1, 8_000, 1024, 16, 1_200, 2_600, 1e15)}
STAGE_BATCH, STAGE_PASSES, UNET_PASSES = 4, 1000, 15_000  # images per step, times through the training volumes
FEWEST_STEPS = 1000


class Computer(NamedTuple):
    """What the experiments are to run on: a card (cuda) or a processor (cpu), its memory in GiB and the precision."""

    device: str
    gib: float
    precision: str

    @property
    def scale(self) -> Scale:
        """What is reasonable on it."""
        return SCALES[self.device]

    @property
    def room(self) -> float:
        """Bytes that a plan may take."""
        return room_of(self.gib)


class Cohort(NamedTuple):
    """A volumes file: size [*S] of its largest volume, spacing [*S] in mm, training volumes, and whether any are held
    out for validation.
    """

    path: Path
    size: tuple[int, ...]
    spacing: tuple[float, ...]
    num: int
    held: bool
    facts: Facts

    @property
    def slices(self) -> list[bool]:
        """Of each axis, whether it is one of slices."""
        return far_apart(self.spacing)


class Coding(NamedTuple):
    """How volumes go through a first stage: so many at a time, whole or in tiles of a size."""

    batch: int
    tile: list[int] | None
    peak: int


_Fitting = TypeVar("_Fitting", Coding, DecodePlan)


class Chosen(NamedTuple):
    """An experiment: its config, that of its step, where it goes down, the data it sees."""

    config: dict
    step: StepPlan
    levels: Descent
    source: PlannedData


class Proposed(NamedTuple):
    """Both experiments, and how volumes go into latents and out of them."""

    cohort: Cohort
    machine: Computer
    stage: Chosen
    diffusion: Chosen
    encode: Coding
    decode: DecodePlan

    @property
    def size(self) -> tuple[int, ...] | None:
        """What volumes are padded to, None: nothing."""
        size = self.stage.source.shape[1:]
        return None if size == self.cohort.size and same_sizes(self.cohort) else size


def propose(path: Path, latents: Path, machine: Computer) -> Proposed:
    """Experiments for a volumes file; latents: the file that encoding will write.

    ValueError where not even the smallest fit.
    """
    cohort = look(path)
    stage_levels = descend(cohort.size, cohort.spacing, cohort.slices, lambda steps, positions: steps >= 3 or (
        steps == 2 and positions <= machine.scale.positions))
    unet_levels = descend(stage_levels.sizes[-1], stage_levels.spacings[-1], cohort.slices,
                          lambda steps, positions: steps >= 3 or (steps >= 1 and positions <= SMALL))
    grid = [s * u for s, u in zip(stage_levels.factor, unet_levels.factor, strict=True)]
    size = tuple(-(-n // g) * g for n, g in zip(cohort.size, grid, strict=True))
    source = PlannedData((len(cohort.facts.channels), *size), cohort.facts, {})
    stage = choose_stage(cohort, machine, source, stage_levels, compose("echo_vae", config_dir=shipped_configs()))
    node = fill_network(stage.config["training"], source)
    coded = source._replace(first_stage=node)
    encode = choose_encoding(machine, coded, stage_levels.factor)
    shape = (node["latent_channels"], *(n // f for n, f in zip(size, stage_levels.factor, strict=True)))
    diffusion = choose_diffusion(cohort, machine, coded._replace(shape=shape), unet_levels,
                                 compose("echo_edm", config_dir=shipped_configs()))
    set_all(diffusion.config, {"training.dataset.path": str(latents)})
    decode = choose_decoding(machine, diffusion, size, stage_levels.factor)
    return Proposed(cohort, machine, stage, diffusion, encode, decode)


# ---- what there is ----


def this_machine(memory: float | None, device: str | None) -> Computer:
    """What to plan for: `memory` GiB, else what the card has or, without one, what is free here.

    device: cuda or cpu; None: cuda where memory is given or there is a card.
    """
    there = torch.cuda.is_available()
    device = device or ("cuda" if memory or there else "cpu")
    if memory is None and device == "cuda" and not there:
        raise ValueError("--device cuda: there is no card here; say by --memory how many GiB the one has that you mean")
    if memory is None:
        memory = (torch.cuda.get_device_properties(0).total_memory if device == "cuda"
                  else psutil.virtual_memory().available) / GIB
    known = device == "cpu" or there
    return Computer(device, memory, resolve_precision("auto", torch.device(device)) if known else "bf16")


def look(path: Path) -> Cohort:
    """What a volumes file holds; ValueError where nothing can be trained on it."""
    file = VolumesFile(path)
    num = file.length("train") if "train" in file.splits else 0
    if not num:
        raise ValueError(f"{path}: split 'train' has no items, it has {', '.join(file.splits)}; prepare it anew with "
                         "another --split")
    facts = volume_facts(file, "train")
    size = tuple(map(max, zip(*(file.spatial_shape(split) for split in file.splits))))
    held = "val" in file.splits and file.length("val") > 0
    return Cohort(path, size, tuple(float(s) for s in facts.spacing), num, held, facts)


def same_sizes(cohort: Cohort) -> bool:
    """Whether the training volumes are as large as the largest."""
    return cohort.facts.spatial_shape == cohort.size


# ---- what fits ----


def choose_stage(cohort: Cohort, machine: Computer, source: PlannedData, levels: Descent, config: dict) -> Chosen:
    """The widest first stage that fits whole volumes, with all that saves memory; else the widest that fits crops."""
    scale, kernels, labels = machine.scale, levels.kernels, bool(cohort.facts.label_classes)
    whole = source.shape[1:] == cohort.size and same_sizes(cohort)
    set_all(config, {
        "training.dataset.path": str(cohort.path), "training.dataset.size": None if whole else list(source.shape[1:]),
        "training.dataset.cache": cohort.num * prod(source.shape) * 4 < psutil.virtual_memory().total / 2,
        "training.network.latent_channels": 4 if source.shape[0] == 1 else 8,
        "training.network.strides": levels.strides, "training.network.kernel_size": plain_kernels(kernels),
        "training.network.num_blocks": scale.blocks, "training.network.num_blocks_decoder": scale.blocks,
        "training.loss.l1_weight": 3 if labels else 1, "training.loss.kl_reduction": "voxel",
        "training.loss.kl_weight": 0.03,
        **run_options(cohort, machine, STAGE_BATCH, scale.stage_steps, STAGE_PASSES)})
    check_least(machine, "first stage", deepcopy(config), stage_width(scale.stage_widths[-1], levels), source)
    for on_crops in (False, True):
        for width in scale.stage_widths:
            set_all(config, stage_width(width, levels))
            levers = step_levers(config, source)
            found = squeezed(config, source, machine.room, levers if on_crops else takewhile(is_of_whole, levers))
            if found and (flops_of(*found) <= scale.flops or width == scale.stage_widths[-1]):
                return held_out_of(machine, Chosen(*found, levels, source))
    raise AssertionError("the least fits, and is tried")


def stage_width(width: int, levels: Descent) -> dict[str, object]:
    """What makes a first stage so wide at its full size, and what goes with it."""
    return {STAGE: [width * m for m in (1, 2, 4, 4)[:len(levels.sizes)]],
            "training.optimizer.lr": round(min(0.016 / width, 2e-3), 5)}


def is_of_whole(lever: Lever) -> bool:
    """Whether a lever leaves a first stage whole volumes."""
    return lever.key != SIZE


def held_out_of(machine: Computer, stage: Chosen) -> Chosen:
    """A first stage that is validated on whole volumes only where they fit, which matters to one trained on crops."""
    training = stage.config["training"]
    if training["augment"].get("_target_") != PATCHES:
        return stage
    set_all(stage.config, {"training.augment.flip": 0, "training.augment.intensity": 0})
    step, coded = stage.step, stage.source._replace(first_stage=fill_network(training, stage.source))
    count = training["options"]["batch_gpu"] or training["options"]["batch_size"]
    peak = max(plan_encode(coded, count, None), count * plan_decode(stage.config, stage.source).peak)
    if step.weights + step.averages + step.optimizer + peak > machine.room:
        set_all(stage.config, {"training.validation.max_items": 0, "training.validation.preview_ticks": None})
    return stage


def choose_diffusion(cohort: Cohort, machine: Computer, source: PlannedData, levels: Descent, config: dict) -> Chosen:
    """The widest UNet that fits, with all that saves memory."""
    scale, classes, depth = machine.scale, len(cohort.facts.class_names), len(levels.sizes)
    set_all(config, {
        "training.network.model.channel_mult": [1, 2, 3, 4][:depth], "training.network.model.strides": levels.strides,
        "training.network.model.kernel_size": plain_kernels(levels.kernels),
        "training.network.model.num_blocks": scale.blocks, "training.network.model.label_dim": classes,
        "training.network.model.attention_levels": [
            i for i, size in enumerate(levels.sizes) if prod(size) <= scale.attended],
        "training.network.model.dropout": 0 if cohort.num >= MANY else 0.1,
        "training.network.label_dropout": 0.1 if classes else 0, "sampling.batch_size": 16,
        **run_options(cohort, machine, scale.batch, scale.unet_steps, UNET_PASSES)})
    check_least(machine, "diffusion network", deepcopy(config), unet_width(scale.unet_widths[-1]), source)
    for width in scale.unet_widths:
        set_all(config, unet_width(width))
        found = squeezed(config, source, machine.room, step_levers(config, source))
        if found and (flops_of(*found) <= scale.flops or width == scale.unet_widths[-1]):
            return Chosen(*found, levels, source)
    raise AssertionError("the least fits, and is tried")


def unet_width(width: int) -> dict[str, object]:
    """What makes a UNet so wide at its full size, and what goes with it."""
    return {UNET: width, "training.network.model.channels_per_head": min(width, HEAD),
            "training.optimizer.lr": round(0.064 / width, 5)}


def run_options(cohort: Cohort, machine: Computer, batch: int, steps: int, passes: int) -> dict[str, object]:
    """What both trainings are told of their length and of the machine.

    So many steps, or fewer that go `passes` times through the training volumes, but FEWEST_STEPS at least.
    """
    kimg = batch * min(steps, max(FEWEST_STEPS, passes * cohort.num // batch)) / 1000
    return {"training.options.batch_size": batch, "training.options.total_kimg": rounded(kimg, 12),
            "training.options.kimg_per_tick": rounded(kimg / 40), "training.options.lr_rampup_kimg": rounded(kimg / 20),
            "training.options.ema_halflife_kimg": rounded(kimg / 30), "training.options.precision": machine.precision,
            "training.validation.max_items": 64 if cohort.held else 0,
            "training.validation.preview_ticks": 10 if cohort.held else None}


def rounded(value: float, digits: int = 3) -> float:
    """A number of so many digits, a whole one as such."""
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() else short


def squeezed(config: dict, source: PlannedData, room: float, levers: Iterable[Lever]) -> tuple[dict, StepPlan] | None:
    """A config with as many levers as it takes to fit into so many bytes, and its plan; None where all are too few."""
    step, rest = plan_step(config["training"], source), list(levers)
    if step.peak > room and with_all(deepcopy(config), source, rest).peak > room:
        return None
    config = deepcopy(config)
    while step.peak > room and rest:
        step = with_all(config, source, [rest.pop(0)])
    return (config, step) if step.peak <= room else None


def flops_of(config: dict, step: StepPlan) -> int:
    """FLOPs of a whole training."""
    return steps_of(config) * step.flops


def steps_of(config: dict) -> int:
    """Steps of a training."""
    options = config["training"]["options"]
    return round(options["total_kimg"] * 1000 / options["batch_size"])


def check_least(machine: Computer, what: str, config: dict, narrowest: dict[str, object], source: PlannedData) -> None:
    """ValueError where not even the narrowest network fits, with all that saves memory."""
    set_all(config, narrowest)
    peak = with_all(config, source, step_levers(config, source)).peak
    if peak > machine.room:
        raise ValueError(f"--memory {machine.gib:.3g}: not even the narrowest {what} fits, which takes {gib(peak)} for "
                         "a step with all that saves memory, while a tenth stays free; give more memory, or prepare "
                         "smaller volumes (--size, --spacing)")


def with_all(config: dict, source: PlannedData, levers: Iterable[Lever]) -> StepPlan:
    """The plan of a config with all levers, which it then has."""
    for lever in levers:
        set_all(config, {**lever.sets, lever.key: lever.value})
    return plan_step(config["training"], source)


def choose_encoding(machine: Computer, source: PlannedData, factor: Sequence[int]) -> Coding:
    """How the first stage encodes: as many volumes at a time as fit, of 8 at most, else one in ever smaller tiles."""
    def plan(batch: int, tile: list[int] | None) -> Coding:
        return Coding(batch, tile, plan_encode(source, batch, Tiles(tuple(tile), 0.25, "blend") if tile else None))

    return first_that_fits(machine, "encoding", (plan(*way) for way in codings(8, source.shape[1:], factor)))


def choose_decoding(machine: Computer, diffusion: Chosen, size: Sequence[int], factor: Sequence[int]) -> DecodePlan:
    """The same of decoding, which is written into the experiment."""
    def plan(batch: int, tile: list[int] | None) -> DecodePlan:
        set_all(diffusion.config, {"sampling.batch_size": batch, "sampling.tile": tile})
        return plan_decode(diffusion.config, diffusion.source)

    return first_that_fits(machine, "decoding", (plan(*way) for way in codings(16, size, factor)))


def codings(most: int, size: Sequence[int], factor: Sequence[int]) -> Iterator[tuple[int, list[int] | None]]:
    """Volumes at a time and tiles, from `most` whole ones, a power of two, to one in the smallest tiles."""
    for halvings in range(most.bit_length()):
        yield most >> halvings, None
    for tile in halved(size, factor):
        yield 1, tile


def first_that_fits(machine: Computer, what: str, plans: Iterable[_Fitting]) -> _Fitting:
    """The first of ever smaller plans that fits; ValueError where none does, with what the last takes."""
    for plan in plans:
        if plan.peak <= machine.room:
            return plan
    tiles = f" in tiles of {plan.tile}" if plan.tile else ""
    raise ValueError(f"--memory {machine.gib:.3g}: {what} a single volume{tiles} takes {gib(plan.peak)}, while a tenth "
                     "stays free; give more memory, or prepare smaller volumes (--size, --spacing)")


def set_all(config: dict, values: dict[str, object]) -> None:
    """Set keys of a plain config."""
    for key, value in values.items():
        apply_override(config, key, value)
