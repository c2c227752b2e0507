"""A plan held against a card: whether an experiment fits it, what would make it fit, and all of that in words."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import NamedTuple

import torch

from edm3d.training.build import check_training
from edm3d.training.plan import DecodePlan, StepPlan, plan_decode, plan_step
from edm3d.training.step import split_batch
from edm3d.training.tasks import TASKS
from edm3d.training.tasks.base import Lever, PlannedData, halved
from edm3d.utils.precision import resolve_precision

GIB = 2 ** 30
FREE = 0.1  # share of a card that is left to its driver, to kernels and to gaps between tensors


class Proposal(NamedTuple):
    """Overrides, and the bytes of the peak with them."""

    overrides: list[str]
    peak: int


class Plan(NamedTuple):
    """What an experiment will ask for; the proposals are there where a card is given and it does not fit."""

    step: StepPlan
    decode: DecodePlan | None
    step_proposals: list[Proposal]
    decode_proposals: list[Proposal]


def plan(config: dict, source: PlannedData, card: float | None = None, ranks: int = 1) -> Plan:
    """The plan of an experiment on each of `ranks` cards of `card` GiB; without a card nothing is proposed."""
    config = on_card(config, card, ranks)
    step, decode = plan_step(config["training"], source), plan_decode(config, source)
    room = room_of(card) if card else float("inf")
    steps, decodes = [], []
    if step.peak > room:
        steps = list(propose(config, step_levers(config, source), room, lambda c: plan_step(c["training"], source)))
    if decode and decode.peak > room:
        decodes = list(propose(config, decode_levers(config, source, decode), room, lambda c: plan_decode(c, source)))
    return Plan(step, decode, steps, decodes)


def on_card(config: dict, card: float | None, ranks: int) -> dict:
    """What of an experiment runs on one of `ranks` cards: its share of the batch, in the precision of a card.

    ValueError for a training half that does not go with its targets, and for a batch that does not divide.
    """
    config = deepcopy(config)
    check_training(config["training"])
    options = config["training"]["options"]
    if options["batch_size"] % ranks:
        raise ValueError(f"training.options.batch_size={options['batch_size']} does not divide over --ranks {ranks}")
    options["batch_size"] //= ranks
    for half in (options, config["sampling"]):
        if card and half["precision"] == "auto":
            half["precision"] = "bf16"
    return config


def room_of(card: float) -> float:
    """Bytes of a card of so many GiB that a plan may take."""
    return card * GIB * (1 - FREE)


def propose(config: dict, levers: Iterator[Lever], room: float, make: Callable[[dict], StepPlan | DecodePlan]
            ) -> Iterator[Proposal]:
    """What makes that smaller which `make` plans, one lever more at a time, up to the first that fits.

    It ends at values that do not fit the experiment, as patches too small for its discriminator.
    """
    made: dict[str, str] = {}
    config = deepcopy(config)
    for lever in levers:
        for key, value in lever.sets.items():
            apply_override(config, key, value)
        made[lever.key] = f"{lever.group} {apply_override(config, lever.key, lever.value)}".lstrip()
        try:
            peak = make(config).peak
        except ValueError:
            return
        yield Proposal(list(made.values()), peak)
        if peak <= room:
            return


def step_levers(config: dict, source: PlannedData) -> Iterator[Lever]:
    """What makes a step smaller, the cheapest first: fewer images at a time, bf16, checkpointing, what the task knows.
    """
    options = config["training"]["options"]
    batch = split_batch(options["batch_size"], options["batch_gpu"], 1)[0]
    while batch > 1 and not options["graphs"]:
        batch = max(b for b in range(1, batch // 2 + 1) if options["batch_size"] % b == 0)
        yield Lever("training.options.batch_gpu", batch)
    if resolve_precision(options["precision"], torch.device("cpu")) == "fp32":
        yield Lever("training.options.precision", "bf16")
    if not options["checkpointing"] and config["training"]["privacy"]["target_epsilon"] is None:
        yield Lever("training.options.checkpointing", True)
    yield from TASKS[config["training"]["task"]].levers(config["training"], source)


def decode_levers(config: dict, source: PlannedData, decode: DecodePlan) -> Iterator[Lever]:
    """What makes decoding smaller: one volume at a time, then ever smaller tiles."""
    if decode.batch > 1:
        yield Lever("sampling.batch_size", 1)
    with torch.device("meta"):
        factor = TASKS[config["training"]["task"]].decoding(config, source).make().factor
    for size in halved(decode.tile or decode.size, factor):
        yield Lever("sampling.tile", size)


def apply_override(config: dict, key: str, value: object) -> str:
    """Set a key of a plain config; how the command line says it."""
    half, *path, last = key.split(".")
    node = config[half]
    for part in path:
        node = node[part]
    node[last] = value
    return f"{key}={str(value).lower().replace(' ', '')}"


# ---- in words ----


def plain(made: Plan, experiment: str, source: PlannedData, card: float | None) -> dict:
    """A plan as plain data; bytes but for parameters and flops."""
    room = room_of(card) if card else None
    proposals = {part: [{"overrides": p.overrides, "peak": p.peak, "fits": p.peak <= room} for p in found]
                 for part, found in (("step", made.step_proposals), ("decode", made.decode_proposals))}
    return {"experiment": experiment, "shape": list(source.shape), "classes": len(source.facts.label_classes),
            "step": made.step._asdict(), "decode": made.decode and made.decode._asdict(), "card_gib": card,
            "fits": room and all(part.peak <= room for part in (made.step, made.decode) if part),
            "proposals": proposals}


def lines(made: Plan, experiment: str, source: PlannedData, card: float | None) -> Iterator[str]:
    """A plan for people."""
    step, decode = made.step, made.decode
    yield (f"{experiment} on items of {' x '.join(map(str, source.shape))}"
           + (f" with {len(source.facts.label_classes)} label classes" if source.facts.label_classes else ""))
    part = f", {step.trained / 1e6:.2f} M of them trained" if step.trained < step.parameters else ""
    yield f"Parameters  {step.parameters / 1e6:.2f} M{part}"
    yield f"Step        {gib(step.peak)} at its peak, {step.flops / 1e12:.3g} TFLOP per rank"
    for name in ("weights", "averages", "optimizer", "activations", "temporary"):
        note = f", of {gib(step.gradients)} gradients in all" if name == "temporary" else ""
        yield f"  {name:<12}{gib(getattr(step, name))}{note}"
    yield from verdict("A step", step.peak, card, made.step_proposals)
    if decode is None:
        yield "Decode      not planned: there is no first stage, or its file of latents is not there"
        return
    size = "x".join(map(str, decode.size))
    tiles = f" in tiles of {'x'.join(map(str, decode.tile))}" if decode.tile else ""
    yield (f"Decode      {gib(decode.peak)} at its peak, {decode.batch} of {size}{tiles}, weights "
           f"{gib(decode.weights)}, {decode.flops / 1e12:.3g} TFLOP")
    yield from verdict("Decoding", decode.peak, card, made.decode_proposals)


def verdict(what: str, peak: int, card: float | None, proposals: list[Proposal]) -> Iterator[str]:
    """Whether something fits a card, and what would."""
    if card is None:
        return
    room = room_of(card)
    yield f"  {what} {'fits' if peak <= room else 'does not fit'} {card:g} GiB, of which a tenth stays free"
    for proposal in proposals:
        mark = "fits" if proposal.peak <= room else "too much"
        yield f"    {gib(proposal.peak)} {mark:<9}{' '.join(proposal.overrides)}"
    if peak > room and not (proposals and proposals[-1].peak <= room):
        yield "    nothing that is known here makes it fit: choose a smaller network, or share it (parallel=fsdp)"


def gib(count: float) -> str:
    """Bytes in GiB."""
    return f"{count / GIB:.3f} GiB"
