"""Start a new run from the weights of a snapshot, as far as they fit, and say which were taken and which not."""

from collections.abc import Iterable
from pathlib import Path

import torch

from edm3d.inference.snapshot import Snapshot
from edm3d.networks.precond import Precond
from edm3d.training.trainable import left_random
from edm3d.utils import distributed
from edm3d.utils.checks import listed
from edm3d.utils.config import differences
from edm3d.utils.runs import find_file
from edm3d.utils.schema import Options


def init_from(net: torch.nn.Module, known: Snapshot, options: Options) -> list[str]:
    """Copy the averaged weights of training.options.init_from into a network; returns the lines of the report.

    known: what the network's own snapshots will say of it. ValueError when fewer than half of its weight tensors are in
    the snapshot and fit.
    """
    path = distributed.from_rank_0(lambda: find_file(options.init_from, "network-snapshot", Path(options.run_root),
                                                     "training.options.init_from"))
    snapshot = Snapshot.read(path)
    changes = {key: f"{key} {old} -> {new}" for key, old, new in differences(snapshot.network, known.network)
               if None not in (old, new)}  # what one of them leaves out is most often the default
    own, taken = own_weights(net), fitting(net, snapshot.weights)
    if 2 * len(taken) < len(own):
        why = f"; training.network differs: {listed(sorted(changes.values()))}" if changes else ""
        raise ValueError(f"training.options.init_from={options.init_from}: {len(taken)} of the network's {len(own)} "
                         f"weights fit by name and shape in {path}, wanted half of them or more{why}")
    lines = [f"Weights     from {path}", *take_weights(net, snapshot.weights)]
    lines.extend(left_random(net, options.trainable, own.keys() - taken.keys()))
    meaning = [changes[key] for key in ("_target_", "objective", "model.codec") if key in changes]
    if meaning:
        lines.append(f"  trained for another output of the network: {', '.join(meaning)}")
    if snapshot.space != known.space:
        lines.append(f"  trained on {snapshot.space}, now on {known.space}")
    return lines


def own_weights(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a snapshot may give a network: all of its state but the preconditioner's tables, which the config gives."""
    return {k: v for k, v in net.state_dict().items() if k not in tables_of(net)}


def tables_of(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tables of a preconditioner; other networks have none, what they keep themselves is learnt, as a codebook."""
    return dict(net.named_buffers(recurse=False)) if isinstance(net, Precond) else {}


def fitting(net: torch.nn.Module, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights that fit a network by name, shape and type; another type would be cast in silence."""
    return {k: weights[k] for k, v in own_weights(net).items() if k in weights and kind_of(weights[k]) == kind_of(v)}


def kind_of(weight: torch.Tensor) -> str:
    """Shape of a weight, and its type where that is not the usual one."""
    return f"{list(weight.shape)}" + ("" if weight.dtype == torch.float32 else f" {weight.dtype}")


def take_weights(net: torch.nn.Module, weights: dict[str, torch.Tensor]) -> list[str]:
    """Copy what fits by name and shape; the report."""
    own, taken = own_weights(net), fitting(net, weights)
    net.load_state_dict(taken, strict=False)
    other = [f"{k} {kind_of(weights[k])} -> {kind_of(own[k])}" for k in own if k in weights and k not in taken]
    left = weights.keys() - net.state_dict().keys()
    changed = [k for k, v in tables_of(net).items() if k in weights and not same(weights[k], v)]
    return [f"  {len(taken)} of the network's {len(own)} taken",
            *report("not taken, of another shape", other),
            *report("start afresh, not in the snapshot", own.keys() - weights.keys()),
            *report("left over in the snapshot", left),
            *report("not taken, as the configuration says otherwise", changed)]


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two weights hold the same."""
    return kind_of(one) == kind_of(other) and torch.equal(one.to(other), other)


def report(what: str, names: Iterable[str]) -> list[str]:
    """A line on weights of a kind, none where there are none."""
    names = list(names)
    return [f"  {len(names)} {what}: {listed(sorted(names))}"] if names else []
