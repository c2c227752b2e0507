"""Training states: everything that a run needs to go on bit for bit."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import torch

from edm3d.formats.facts import Facts
from edm3d.formats.privacy import Ledger
from edm3d.utils import checkpoint
from edm3d.utils.checks import listed
from edm3d.utils.plain import from_plain, shown

MOST_IMAGES = 10 ** 15  # seen by any run
Weights = dict[str, torch.Tensor]


@dataclass
class Progress:
    """What changes from step to step besides weights; all of it is in the training state."""

    nimg: int = 0
    tick: int = 0
    tick_nimg: int = 0          # at the start of the tick
    tick_seconds: float = 0
    seconds: float = 0          # of the ticks that are over
    bad_steps: int = 0          # in a row
    best: float = inf           # score of the best validation, lower is better
    measured: str = ""          # what it was measured on, as `Held.fingerprint`
    loss_scale: float = 65536   # in fp16: what the loss is multiplied by (training/loss_scale.py),
    scale_steps: int = 0        # and the good steps since it last changed


LATER = ("loss_scale", "scale_steps")  # states of before have none


class Collected(NamedTuple):
    """What steps have reported since the last tick: names by group, and [ranks, names, 2] sums and counts."""

    groups: list[list[str]]
    ranks: torch.Tensor


class OptimizerContent(NamedTuple):
    """The state_dict of an optimiser."""

    state: dict[int, dict[str, Any]]
    param_groups: list[dict[str, Any]]


class StateContent(NamedTuple):
    """What a training-state file holds."""

    config: dict[str, Any]
    data: dict[str, Any]
    total_kimg: float
    environment: dict[str, Any]
    progress: dict[str, Any]
    stats: Collected
    ema: Weights
    more_emas: list[Weights]
    modules: dict[str, Weights]
    optimizers: dict[str, OptimizerContent]
    ledger: dict[str, Any] | None = None


@dataclass(frozen=True)
class TrainingState:
    """The configuration and data of a run, how far it is (progress, stats), and all that it has learned.

    environment: what changes the last bits of a result. ema, more_emas: the averages; modules, optimizers: of the
    phases, by name. ledger: of the noisy steps that the weights have seen, None where training is not private. path: of
    its file, where it came out of one.
    """

    config: dict[str, Any]
    facts: Facts
    total_kimg: float
    environment: dict[str, Any]
    progress: dict[str, Any]
    stats: dict[str, Any]
    ema: dict[str, Any]
    more_emas: list[dict[str, Any]]
    modules: dict[str, dict[str, Any]]
    optimizers: dict[str, dict[str, Any]]
    ledger: Ledger | None = None
    path: Path = field(default=Path(), compare=False)

    @property
    def nimg(self) -> int:
        """Images seen."""
        return self.progress["nimg"]

    @classmethod
    def read(cls, path: Path) -> "TrainingState":
        """From a file; ValueError when it is damaged, lacks something, or holds what no state does."""
        found = checkpoint.load(path, "state").content
        needed = [name for name in StateContent._fields if name not in StateContent._field_defaults]
        if lacking := sorted(name for name in needed if found.get(name) is None):
            raise ValueError(f"{path}: the state lacks {listed(lacking)}: it was written by another version of this "
                             "program")
        held = from_plain(StateContent, {name: found[name] for name in StateContent._fields if name in found}, path)
        check_numbers(held, path)
        found["facts"] = Facts.from_plain(held.data, path)
        found["ledger"] = None if held.ledger is None else Ledger.from_plain(held.ledger, path)
        return cls(**{f.name: found[f.name] for f in fields(cls) if f.name != "path"}, path=Path(path))

    def plain(self) -> dict[str, Any]:
        """As a file holds it."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("facts", "ledger", "path")}
        return {**found, "data": self.facts.plain(), **({"ledger": self.ledger.plain()} if self.ledger else {})}


def check_numbers(held: StateContent, path: Path) -> None:
    """ValueError naming file and key for a configuration, numbers or weights that no run has."""
    training = held.config.get("training")
    if not isinstance(training, dict) or not isinstance(training.get("options"), dict):
        raise ValueError(f"{path}: config.training.options is missing, or no names with values")
    check_progress(held.progress, path)
    ranks, names = held.stats.ranks, sum(map(len, held.stats.groups))
    if ranks.dtype != torch.float64 or ranks.ndim != 3 or not len(ranks) or ranks.shape[1:] != (names, 2):
        raise ValueError(f"{path}: stats.ranks is {ranks.dtype} {list(ranks.shape)}, wanted float64 "
                         f"[ranks, {names}, 2]")
    if not ranks.isfinite().all():
        raise ValueError(f"{path}: stats.ranks has values that are not finite")
    averages = {"ema": held.ema, **{f"more_emas[{i}]": ema for i, ema in enumerate(held.more_emas)}}
    for key, weights in {**averages, **{f"modules.{name}": m for name, m in held.modules.items()}}.items():
        checkpoint.check_finite(weights, path, key)
    for name, optimizer in held.optimizers.items():
        for number, entries in optimizer.state.items():
            tensors = {key: value for key, value in entries.items() if isinstance(value, torch.Tensor)}
            checkpoint.check_finite(tensors, path, f"optimizers.{name}.state.{number}")


def check_progress(found: Mapping[str, Any], path: Path) -> None:
    """ValueError naming file and key for progress that no run has made."""
    lacking = [f.name for f in fields(Progress) if f.name not in (*found, *LATER)]
    if lacking:
        raise ValueError(f"{path}: progress lacks {listed(lacking)}")
    p = from_plain(Progress, {**found, "best": 0} if found["best"] == inf else found, path, "progress")
    for name in ("nimg", "tick", "tick_nimg", "tick_seconds", "seconds", "bad_steps", "scale_steps"):
        if not 0 <= getattr(p, name) <= MOST_IMAGES:
            raise ValueError(f"{path}: progress.{name} is {shown(getattr(p, name))}, wanted 0 or more")
    if not p.loss_scale > 0:
        raise ValueError(f"{path}: progress.loss_scale is {p.loss_scale}, wanted more than 0")
    if p.tick_nimg > p.nimg:
        raise ValueError(f"{path}: progress.tick_nimg is {p.tick_nimg}, wanted no more than nimg, {p.nimg}")
