"""Samples while training: what all ranks draw every few ticks, what is measured of them, and what the best goes by."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from edm3d.training.phases import OF_SAMPLES, Best
from edm3d.utils import distributed
from edm3d.utils.checks import check_choice
from edm3d.utils.files import first_line, plain_hash
from edm3d.utils.log import is_lack_of_memory

KEY = "training.validation"
# what network-best.pt may go by: lower is better
MEASURES = tuple(f"{OF_SAMPLES}{name}" for name in ("frechet", "latents_frechet", "ks", "ms_ssim_gap"))


class SampleTable(NamedTuple):
    """Numbers of what was drawn, by name, and PNG bytes of a montage, None where there are no images."""

    numbers: dict[str, float]
    png: bytes | None = None


class SampleMeasures(NamedTuple):
    """What draws samples of a network and measures them, all ranks together; the names of what it measures.

    settings: what numbers depend on besides weights and held-out data.
    """

    draw: Callable[[torch.nn.Module], SampleTable]
    names: Sequence[str]
    settings: object


class Sampled(NamedTuple):
    """What is drawn of an averaged network every few ticks. All ranks must call it together."""

    measured: SampleMeasures
    every_ticks: int
    count: int
    fingerprint: str


def choose_best(validation: dict, own: Best, draws: bool) -> Best:
    """What network-best.pt goes by: the task's own measure unless another is asked for; ValueError for an unknown one.
    """
    name = validation["best"]
    if name is None or name == own.name:
        return own
    check_choice(f"{KEY}.best", name, dict.fromkeys([own.name, "loss", *(MEASURES if draws else ())]))
    if name in MEASURES and validation["sample_ticks"] is None:
        raise ValueError(f"{KEY}.best={name}: no samples are drawn while training; wanted as well "
                         f"{KEY}.sample_ticks=10")
    return Best(name, chosen=True)


def build_sampled(validation: dict, best: Best, held_fingerprint: str, make: Callable[[int], SampleMeasures]
                  ) -> tuple[Sampled | None, list[str]]:
    """What training.validation asks to draw, None without; and what to say where nothing can be drawn.

    make(count): what draws so many, ValueError where none can be. All ranks must call this together. ValueError where
    the best snapshot goes by what is not measured.
    """
    every, count = validation["sample_ticks"], validation["num_samples"]
    if every is None:
        return None, []
    made, why = None, ""
    try:
        with torch.random.fork_rng():  # the training must not feel it
            made = make(count)
    except ValueError as e:
        why = str(e)
    reasons = [reason for reason in distributed.gather_objects(why) if reason]
    if best.of_samples and (reasons or best.key.partition("/")[2] not in made.names):
        raise ValueError(f"{KEY}.best={best.name}: " + (reasons[0] if reasons else "of these samples are measured "
                                                        + ", ".join(f"{OF_SAMPLES}{name}" for name in made.names)))
    if reasons:
        return None, [f"Warning: no samples while training ({KEY}.sample_ticks={every}): {reasons[0]}"]
    return Sampled(made, every, count, plain_hash([held_fingerprint, count, made.settings])[:16]), []


def draw_table(sampled: Sampled, net: torch.nn.Module) -> tuple[SampleTable | None, str]:
    """The table of a network's samples, and what was said where memory ran out, else ''."""
    try:
        return sampled.measured.draw(net), ""
    except Exception as e:
        if not is_lack_of_memory(e):
            raise
        return None, first_line(e)


def in_words(table: SampleTable, count: int, seconds: float) -> str:
    """A line of the log."""
    numbers = table.numbers
    said = [f"{name} {value:.4g}" + (f" (real to real {numbers[f'{name}_floor']:.4g})"
                                     if f"{name}_floor" in numbers else "")
            for name, value in numbers.items() if "_floor" not in name]
    return f"Samples   {count} drawn and measured in {seconds:.1f} s: {', '.join(said)}"
