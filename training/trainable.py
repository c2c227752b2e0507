"""Training a chosen part of a network (training.options.trainable): which weights move, and all others stay to the bit.

Averages of a network never have adapters: they are averages of the weights that adapters and their layers make
together, so that snapshots, validation and pictures know plain networks alone.
"""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from edm3d.networks.lora import LowRank, product, takes_low_rank
from edm3d.networks.unet_blocks import UNetBlock
from edm3d.samplers.noise import mix_seed
from edm3d.training.phases import Task
from edm3d.utils import sharding
from edm3d.utils.checks import listed
from edm3d.utils.files import write_text

KEY = "training.options.trainable"
RANK = 8  # of adapters, where none is asked for
ASKED = re.compile(r"attention|conditioning|lora(:[1-9]\d{0,3})?|re:.+")
# layers that attend, by their types in our networks, MONAI's and torch's, and those of our blocks by their names
ATTENTION = re.compile(r"(Attention|AttentionBlock|SABlock)$")
OF_BLOCK = ("norm2", "qkv", "proj")
# layers by which networks see what they are told, by their names in our networks and in MONAI's diffusion UNet
CONDITIONING = re.compile(r"map_\w+|attribute_tokens|affine|spade\d*|cross|time_embed|time_emb_proj|class_embedding")


@dataclass(frozen=True)
class TrainedPart:
    """A part of a network: weights that move, by name, and layers, by name, that change by adapters of a rank."""

    names: frozenset[str]
    adapted: tuple[str, ...]
    rank: int


# ---- what is asked for ----


def asked(wanted: object) -> list[str]:
    """What training.options.trainable asks for, one by one, [] for all; ValueError for what it cannot ask for."""
    if wanted in (None, "all"):
        return []
    ones = wanted if isinstance(wanted, list) else [wanted]
    fits = bool(ones) and all(isinstance(one, str) and ASKED.fullmatch(one) for one in ones)
    if not fits or sum(one.startswith("lora") for one in ones) > 1:
        raise ValueError(f"{KEY}={shown(wanted)}: wanted all, attention, conditioning, lora, lora:RANK, re:PATTERN, or "
                         "a list of these; null is all")
    for one in ones:
        if one.startswith("re:"):
            try:
                re.compile(one[3:])
            except re.error as e:
                raise ValueError(f"{KEY}={shown(wanted)}: {one[3:]} is no regular expression ({e})") from e
    return ones


def choose(net: nn.Module, wanted: object) -> TrainedPart | None:
    """The part of a network without adapters that is asked for, None for all of it; ValueError where there is none."""
    ones = asked(wanted)
    if not ones:
        return None
    lora = next((one for one in ones if one.startswith("lora")), "")
    found = {one: named(net, one) for one in ones if one != lora}
    names = frozenset().union(*found.values())
    adapted = adaptable(net, names) if lora else ()
    for one in ones:
        if not (adapted if one == lora else found[one]):
            raise ValueError(f"{KEY}={one}: the network has nothing of that; there is {there_is(net)}")
    return TrainedPart(names, adapted, int(lora[5:] or RANK) if lora else RANK)


def named(net: nn.Module, one: str) -> set[str]:
    """Names of the weights that are of a kind, or in which a pattern is found."""
    weights = {name for name, _ in net.named_parameters()}
    if one.startswith("re:"):
        return {name for name in weights if re.search(one[3:], name)}
    found: set[str] = set()
    for name, owner in net.named_modules():
        for key, layer in owner.named_children():
            attends = ATTENTION.search(type(layer).__name__) or (isinstance(owner, UNetBlock) and key in OF_BLOCK)
            if attends if one == "attention" else CONDITIONING.fullmatch(key):
                found |= {inner for inner, _ in layer.named_parameters(f"{name}.{key}".lstrip("."))}
    return found & weights


def adaptable(net: nn.Module, names: Collection[str] = ()) -> tuple[str, ...]:
    """Names of the layers that take adapters, those whose weights move by themselves left out."""
    return tuple(name for name, layer in net.named_modules()
                 if name and takes_low_rank(layer) and f"{name}.weight" not in names)


def there_is(net: nn.Module) -> str:
    """What of a network could be trained, in words."""
    kinds = [one for one in ("attention", "conditioning") if named(net, one)] + ["lora"] * bool(adaptable(net))
    depth = 2 if len(list(net.children())) == 1 else 1  # behind a preconditioner
    parts = dict.fromkeys(".".join(name.split(".")[:depth]) for name, _ in net.named_parameters())
    return f"{listed(['all', *kinds])}, and re:PATTERN of weights in {listed(parts)}"


def start_notes(net: nn.Module, wanted: object, init_from: str | None) -> list[str]:
    """A warning where what is not trained has no weights to start from; ValueError as `choose`."""
    if choose(net, wanted) is None or init_from:
        return []
    return [f"Warning: {KEY}={shown(wanted)} without training.options.init_from: what is not trained keeps the random "
            "weights of a new network"]


def left_random(net: nn.Module, wanted: object, fresh: Collection[str]) -> list[str]:
    """A warning where weights that start afresh, by name, are not trained either."""
    part = choose(net, wanted)
    stuck = [] if part is None else [name for name, _ in net.named_parameters()
                                     if name in fresh and name not in part.names]
    return [f"  Warning: {len(stuck)} of those that start afresh are not trained ({KEY}={shown(wanted)}): "
            f"{listed(stuck)}"] if stuck else []


def shown(wanted: object) -> str:
    """What is asked for, as the command line says it."""
    return f"[{','.join(map(str, wanted))}]" if isinstance(wanted, list) else str(wanted)


# ---- the training ----


def train_part(task: Task, wanted: object, seed: int) -> None:
    """Have the optimiser of a task's network move the part that is asked for, and leave the rest as it is.

    Adapters take the places of their layers, drawn by the seed. What networks learn by other means than gradients stays
    as well: running statistics of norms that are not trained, and codebooks.
    """
    part = choose(task.net, wanted)
    if part is None:
        return
    for name, weight in task.net.named_parameters():
        weight.requires_grad_(name in part.names)
    adapt(task.net, part, seed)
    for module in task.net.modules():
        if isinstance(module, _NormBase) and not any(p.requires_grad for p in module.parameters()):
            module.eval()
    for phase in task.phases:
        if phase.module is task.net:
            phase.absorb = None
            regroup(phase.optimizer, phase.module)


def adapt(net: nn.Module, part: TrainedPart, seed: int) -> None:
    """Put adapters in the places of their layers, wherever a network keeps these; the global generator stays as it is.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix_seed(seed, "lora"))
        made = {id(layer): LowRank(layer, part.rank) for layer in map(net.get_submodule, part.adapted)}
    for owner in list(net.modules()):
        for place in (owner._modules, *(value for value in vars(owner).values() if isinstance(value, list))):
            for key, layer in list(enumerate(place) if isinstance(place, list) else place.items()):
                place[key] = made.get(id(layer), layer)


def regroup(optimizer: torch.optim.Optimizer, module: nn.Module) -> None:
    """Leave a fresh optimiser the weights that move: those of before in their groups, adapters in the first."""
    assert not optimizer.state, "a part is chosen before the first step"
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p.requires_grad]
    new = [p for p in module.parameters() if p.requires_grad and id(p) not in known]
    optimizer.param_groups[0]["params"].extend(new)


def moving(net: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights that training moves, by their names in a network without adapters; these are merged."""
    inside: set[str] = set()
    for name, module in net.named_modules():
        if isinstance(module, LowRank):
            inside |= {inner for inner, _ in module.named_parameters(name)}
            base, up, down = (layer.weight.detach() for layer in (module.base, module.up, module.down))
            change = product(sharding.whole_tensor(up), sharding.whole_tensor(down), base)
            yield f"{name}.weight", base + sharding.share(change, base)
    yield from ((name, p.detach()) for name, p in net.named_parameters() if p.requires_grad and name not in inside)


# ---- in words ----


def trained(net: nn.Module) -> dict[str, int]:
    """How many numbers move in each layer of a network, by its name."""
    counts: dict[str, int] = defaultdict(int)
    for name, weight in net.named_parameters():
        if weight.requires_grad:
            counts[name.rpartition(".")[0]] += weight.numel()
    return dict(counts)


def trained_lines(net: nn.Module, wanted: object) -> list[str]:
    """What of a network moves, block by block, as lines for the log; [] where all does."""
    if not asked(wanted):
        return []
    counts, blocks = trained(net), defaultdict(lambda: defaultdict(int))
    for name, count in counts.items():
        block, _, layer = re.sub(r"\.(up|down)$", "", name).rpartition(".")
        blocks[block][layer] += count
    width = max(map(len, blocks))
    lines = [f"  {block:<{width}}  {sum(layers.values()):>11,} in {', '.join(layers)}"
             for block, layers in blocks.items()]
    return [f"Trained     {part_line(net, wanted)}", *lines]


def part_line(net: nn.Module, wanted: object) -> str:
    """What of a network moves, in a line."""
    total = sum(p.numel() for p in net.parameters())
    return f"{sum(trained(net).values()):,} of {total:,} weights ({KEY}={shown(wanted)})" if asked(wanted) \
        else f"all {total:,} weights"


def write_trained(run_dir: Path, net: nn.Module, wanted: object) -> None:
    """Keep in trained.json of a run folder what of a network moves; nothing where all does."""
    if asked(wanted):
        layers = trained(net)
        found = {"trainable": wanted, "weights": sum(p.numel() for p in net.parameters()),
                 "trained": sum(layers.values()), "layers": layers}
        write_text(run_dir / "trained.json", json.dumps(found, indent=2) + "\n")
