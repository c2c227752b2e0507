"""Guidance as it is asked for: held against the network, put around it, and recorded."""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from edm3d.inference.conditions import Conditions
from edm3d.inference.snapshot import Snapshot
from edm3d.networks.conditioning import takes_of
from edm3d.networks.parts import PARTS
from edm3d.samplers import Calls, Guided, Strength
from edm3d.samplers.denoiser import Denoiser, Wrapper
from edm3d.samplers.guidance import NeverLeftOut
from edm3d.utils.checks import listed
from edm3d.utils.config import no_such
from edm3d.utils.names import one_line
from edm3d.utils.runs import find_file
from edm3d.utils.schema import Guidance, Sampling

NOTHING_AT_1 = ("does nothing at sampling.guidance.strength=1; wanted another strength, more than 1 to draw better "
                "than the guide")


def add_guidance(net: torch.nn.Module, snapshot: Snapshot, options: Sampling, run_root: Path, device: torch.device
                 ) -> tuple[Callable[[Denoiser], Denoiser] | None, dict]:
    """What puts the guidance that is asked for around the network, and a record of it; None and {} for none."""
    asked = options.guidance
    parts = strengths_of_parts(asked, net)
    if asked.strength == 1 and all(part.strength == 1 for part in parts.values()):
        if asked.network is not None:
            raise ValueError(f"sampling.guidance.network={asked.network}: {NOTHING_AT_1}")
        return None, {}
    if Wrapper(net).self_condition:
        raise ValueError(f"{first_key(asked)}: the network is shown its own last estimate (self_condition), which "
                         "guidance would mix with the guide's; wanted strength 1")
    settings = {"strength": asked.strength, "interval": asked.interval}
    if parts:
        settings["parts"] = {name: asdict(part) for name, part in asked.parts.items()}
    if asked.network is None:
        guided = partial(Guided, strength=asked.strength, interval=asked.interval, parts=parts, calls=Calls())
    else:
        if parts:
            raise ValueError(f"sampling.guidance.network={asked.network}: another network as guide is told the same "
                             f"parts, and sampling.guidance.parts has strengths of {listed(parts)}; wanted one of both")
        settings["guide"], guide = open_guide(snapshot, options, run_root, device)
        guided = partial(Guided, strength=asked.strength, interval=asked.interval, guide=guide)
    try:
        check_all_used(asked, guided(net))  # which refuses what it cannot guide before anything is drawn
    except NeverLeftOut as e:
        trained = f"train with {dropout_option(e.part)}=0.1, or " if e.part else ""
        raise ValueError(f"{e}: {trained}name one by sampling.guidance.network") from e
    return guided, settings


def strengths_of_parts(asked: Guidance, net: Denoiser) -> dict[str, Strength]:
    """The strengths that are asked for of single parts; ValueError naming the key of one that cannot be.

    So is an interval that holds for no strength but 1.
    """
    if asked.interval is not None and asked.strength == 1 and all(
            part.interval is not None or part.strength == 1 for part in asked.parts.values()):
        raise ValueError(f"sampling.guidance.interval={asked.interval}: {NOTHING_AT_1}")
    strengths = {}
    for name, part in asked.parts.items():
        key = f"sampling.guidance.parts.{one_line(name)}"
        if name not in PARTS:
            raise ValueError(f"{key}: {no_such('part of a condition', name, PARTS)}")
        if name not in takes_of(net):
            kind = PARTS[name]
            raise ValueError(f"{key}={part.strength:g}: the network takes no {kind.one} ({kind.width_key}=0), only "
                             f"{listed(takes_of(net)) or 'the noisy image'}; leave it out")
        if part.strength == 1 and part.interval is not None:
            raise ValueError(f"{key}.interval={part.interval}: does nothing at strength 1; wanted another strength")
        try:
            strengths[name] = Strength.checked(part.strength, part.interval or asked.interval)
        except ValueError as e:
            raise ValueError(f"{key}: {e}") from e
    return strengths


def first_key(asked: Guidance) -> str:
    """The first key that asks for guidance, with its value."""
    if asked.strength != 1:
        return f"sampling.guidance.strength={asked.strength:g}"
    name, part = next((name, part) for name, part in asked.parts.items() if part.strength != 1)
    return f"sampling.guidance.parts.{name}={part.strength:g}"


def dropout_option(name: str) -> str:
    """The key by which networks are trained without a part: that of classes is the preconditioner's own."""
    return f"training.network.{'' if name == 'class_labels' else 'model.'}{PARTS[name].dropout_key}"


def check_all_used(asked: Guidance, guided: Guided) -> None:
    """ValueError for a strength of all parts where each that can be guided has its own."""
    if guided.guide is None and asked.strength != 1 and asked.parts.keys() >= guided.strengths.keys():
        raise ValueError(f"sampling.guidance.strength={asked.strength:g}: does nothing, as sampling.guidance.parts has "
                         f"strengths of all parts that the network can do without ({listed(guided.strengths)}); leave "
                         "it out")


def open_guide(snapshot: Snapshot, options: Sampling, run_root: Path, device: torch.device
               ) -> tuple[str, torch.nn.Module]:
    """Hash and network of the snapshot that is to guide; ValueError for one that draws something else, or is the same.
    """
    name = options.guidance.network
    path = find_file(name, "network-snapshot", run_root, "sampling.guidance.network")
    other = Snapshot.read(path, snapshot.task)
    if drawn_space(other) != drawn_space(snapshot):
        raise ValueError(f"sampling.guidance.network={name}: {path} draws {drawn_space(other)}, the network draws "
                         f"{drawn_space(snapshot)}; choose a snapshot of the same data")
    guide = other.build(options.trust).to(device)
    if other.hash == snapshot.hash:
        raise ValueError(f"sampling.guidance.network={name}: {path} is the network itself, which moves nothing; "
                         "wanted an earlier or worse snapshot")
    return other.hash, guide


def drawn_space(snapshot: Snapshot) -> str:
    """What a diffusion snapshot draws: shape, and latents of which first stage or voxels."""
    return f"{list(snapshot.shape)} {snapshot.space}"


def check_moves(asked: Guidance, denoiser: Denoiser, conditions: Conditions) -> None:
    """ValueError for guidance of parts of which nothing is asked, so that it would move nothing."""
    if not isinstance(denoiser, Guided) or denoiser.guide is not None:
        return
    for name, part in asked.parts.items():
        if part.strength != 1 and not conditions.tells(name):
            raise ValueError(f"sampling.guidance.parts.{name}={part.strength:g}: moves nothing, as no "
                             f"{PARTS[name].one} is asked for; ask for some, or leave it out")
    moved = [name for name, strength in denoiser.strengths.items() if strength.strength != 1]
    if not any(map(conditions.tells, moved)):
        raise ValueError(f"{first_key(asked)}: moves nothing, as nothing is asked for of what the network can do "
                         f"without ({names_of(moved)}); ask for some, or leave it out")


def names_of(parts: Iterable[str]) -> str:
    """Parts as messages have them."""
    return listed(PARTS[name].one for name in parts)


def described(asked: Guidance) -> str:
    """Guidance for a line on what draws; '' for none."""
    parts = [f"{name} {within(part.strength, part.interval)}" for name, part in asked.parts.items()]
    if asked.strength == 1 and all(part.strength == 1 for part in asked.parts.values()):
        return ""
    return f", guidance {', '.join([within(asked.strength, asked.interval), *parts])}" + (
        f" by {asked.network}" if asked.network else "")


def within(strength: float, interval: list[float] | None) -> str:
    """A strength with its interval."""
    return f"{strength:g}" + (f" in {list(interval)}" if interval else "")
