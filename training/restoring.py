"""Whether a training state fits the modules and optimisers that go on from it, before any of them is changed, and
whether what was measured still compares.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from math import inf
from typing import Any

import torch

from edm3d.formats.training_state import Progress, TrainingState
from edm3d.training.phases import Best, Phase
from edm3d.utils.checkpoint import check_weights
from edm3d.utils.checks import listed
from edm3d.utils.files import plain_hash
from edm3d.utils.plain import shown

# settings of optimisers that may be others than before: of the schedule, and of how the machine computes
FREE = ("lr", "fused", "foreach", "capturable")


def check_fits(state: TrainingState, phases: Sequence[Phase], emas: Sequence[torch.nn.Module], batch_size: int) -> None:
    """ValueError naming file and key unless a state is one of these phases and averages."""
    try:
        for key, found in (("modules", state.modules), ("optimizers", state.optimizers)):
            if sorted(found) != sorted(phase.name for phase in phases):
                raise ValueError(f"{key} are of {listed(found)}, wanted {listed(phase.name for phase in phases)}")
        if len(state.more_emas) != len(emas) - 1:
            raise ValueError(f"more_emas has {len(state.more_emas)} averages, wanted {len(emas) - 1}")
        for key, module, weights in all_weights(state, phases, emas):
            check_weights(weights, module.state_dict(), state.path, key)
        for phase in phases:
            begun = state.nimg - batch_size >= phase.start_kimg * 1000
            check_optimizer(phase.optimizer, state.optimizers[phase.name], begun, f"optimizers.{phase.name}",
                            same_torch=state.environment.get("torch") == str(torch.__version__))
    except ValueError as e:
        raise ValueError(f"training.options.resume={state.path}: the state does not fit the networks or optimisers of "
                         f"this program, though its configuration does: "
                         f"{str(e).removeprefix(f'{state.path}: ')}") from e


def measured_anew(p: Progress, best: Best, fingerprint: str) -> list[str]:
    """Forget the best validation where it was not measured on what has this fingerprint; a line where there was one."""
    now, lost = plain_hash([best.name, fingerprint])[:16] if best.chosen else fingerprint, p.best < inf
    if p.measured == now:
        return []
    p.best, p.measured = inf, now
    return ["Warning: validation measures other items than before, or network-best.pt goes by another measure "
            "(training.validation.split, .max_items, .best or .num_samples): what is measured does not compare with "
            "what was before, network-best.pt is chosen anew"] if lost else []


def all_weights(state: TrainingState, phases: Sequence[Phase], emas: Sequence[torch.nn.Module]
                ) -> Iterator[tuple[str, torch.nn.Module, dict[str, torch.Tensor]]]:
    """Keys of a state with the module that its weights are for."""
    for phase in phases:
        yield f"modules.{phase.name}", phase.module, state.modules[phase.name]
    for i, (ema, weights) in enumerate(zip(emas, [state.ema, *state.more_emas], strict=True)):
        yield f"more_emas[{i - 1}]" if i else "ema", ema, weights


def check_optimizer(optimizer: torch.optim.Optimizer, found: Mapping[str, Any], begun: bool, key: str, *,
                    same_torch: bool) -> None:
    """ValueError unless the state of an optimiser is of these settings and weights.

    begun: whether it has made a step. What other versions of torch name and set besides is left to them.
    """
    groups = optimizer.state_dict()["param_groups"]
    if len(found["param_groups"]) != len(groups):
        raise ValueError(f"{key}.param_groups has {len(found['param_groups'])} groups, wanted {len(groups)}")
    for i, (own, group) in enumerate(zip(groups, found["param_groups"], strict=True)):
        check_group(own, group, f"{key}.param_groups[{i}]", same_torch)
    wanted = {}
    if begun:
        wanted = {number: entries for own, group in zip(groups, optimizer.param_groups, strict=True)
                  for number, p in zip(own["params"], group["params"], strict=True)
                  if (entries := entries_of(optimizer, group, p))}
    if set(found["state"]) != set(wanted):
        raise ValueError(f"{key}.state is of {len(found['state'])} weights, wanted {len(wanted)}")
    for number, entries in wanted.items():
        check_entries(entries, found["state"][number], f"{key}.state.{number}")


def check_group(own: Mapping[str, Any], found: Mapping[str, Any], key: str, same_torch: bool) -> None:
    """ValueError unless a group has the weights and settings of an optimiser's own."""
    lacking = [name for name in own if name not in found]
    unknown = [name for name in found if name not in own]
    if found.get("params") != own["params"] or (same_torch and (lacking or unknown)):
        raise ValueError(f"{key} is of other weights, or has other names ({listed([*lacking, *unknown]) or 'params'})")
    for name, value in own.items():
        got = found.get(name, value)
        alike = type(got) is type(value) or (name in FREE and name != "lr" and isinstance(got, (bool, type(None))))
        fits = got == value or (name in FREE and alike and (name != "lr" or got >= 0)) or not same_torch
        if isinstance(value, torch.Tensor) or (alike and fits):
            continue
        raise ValueError(f"{key}.{name} is {shown(got)}, wanted {shown(value)}")


def entries_of(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], weight: torch.Tensor) -> dict[str, Any]:
    """What an optimiser keeps of a weight: found out by a step on zeros in its place."""
    stand_in = torch.nn.Parameter(torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device))
    stand_in.grad = torch.zeros_like(stand_in)
    probe = copy(optimizer)
    probe.state, probe.param_groups = defaultdict(dict), [{**group, "params": [stand_in]}]
    probe.step()
    return dict(probe.state[stand_in])


def check_entries(wanted: Mapping[str, Any], found: Mapping[str, Any], key: str) -> None:
    """ValueError unless what is kept of a weight has the names, types and shapes of what an optimiser keeps."""
    if set(found) != set(wanted):
        raise ValueError(f"{key} has {listed(sorted(found)) or 'nothing'}, wanted {listed(sorted(wanted))}")
    for name, value in wanted.items():
        got = found[name]
        if type(got) is not type(value) or kind_of(got) != kind_of(value):
            raise ValueError(f"{key}.{name} is {kind_of(got) or shown(got)}, wanted {kind_of(value) or shown(value)}")
        if name == "step" and not got >= 1:
            raise ValueError(f"{key}.step is {float(got):g}, wanted 1 or more")


def kind_of(value: Any) -> str:
    """Type and shape of a tensor, '' for anything else."""
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else ""
