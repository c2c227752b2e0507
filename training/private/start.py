"""How a private run begins: its budget, what is said of it, and what it may show."""

from dataclasses import replace
from typing import Any

from edm3d.formats.privacy import UNITS, Ledger
from edm3d.inference.snapshot import Snapshot
from edm3d.training.phases import Task
from edm3d.training.private.accounting import epsilon
from edm3d.training.private.budget import KEY, Budget, check_privacy, open_budget, warnings_of
from edm3d.training.private.checks import check_config, check_task
from edm3d.training.private.release import Release, public_facts, without_sources
from edm3d.utils import distributed
from edm3d.utils.schema import Options, Privacy


def asked_privacy(training: dict[str, Any], options: Options) -> Privacy | None:
    """The privacy that a training half asks for, None for none; ValueError for what does not go with it."""
    privacy = Privacy(**training["privacy"])
    if privacy.target_epsilon is None:
        if privacy != Privacy():
            raise ValueError(f"{KEY}: target_epsilon is null, which is no privacy, and other keys are set; wanted "
                             f"{KEY}.target_epsilon as well, as by privacy=eps10")
        return None
    check_privacy(privacy)
    check_config(training, options)
    return privacy


def open_private(privacy: Privacy, task: Task, dataset: Any, options: Options, public: Snapshot | None,
                 spent: Ledger | None, *, measures: bool, forks: bool) -> Release:
    """What a private run spends and gives away. All ranks call this together.

    public: the snapshot of init_from. spent: the ledger that it goes on from; forks: where others may have gone on from
    it as well. measures: whether anything is measured on held-out items.
    """
    check_task(task, options.trainable)
    budget = distributed.from_rank_0(lambda: open_budget(
        privacy, options, dataset, spent, start="" if public is None else public.hash, forks=forks))
    refined = getattr(task.seen, "snapshot", None) if task.snapshot.refines else None
    return Release(budget, public, measures, refined=refined and refined.privacy)


def said_of(budget: Budget) -> list[str]:
    """Lines for the log at the start."""
    options, rate = budget.options, budget.sampling_rate
    ends = epsilon(budget.ledger.after(budget.noise_multiplier, rate, budget.steps - budget.ledger.steps).history,
                   options.target_delta) if budget.steps > budget.ledger.steps else budget.epsilon()
    lines = [f"Privacy     epsilon {options.target_epsilon:g} at delta {options.target_delta:g} per {options.unit}: "
             f"{budget.steps} steps spend {ends:.4g}; rate {rate:.4g} of {len(budget.units)} {UNITS[options.unit]}, "
             f"noise multiplier {budget.noise_multiplier:.4g}, gradients clipped to {options.max_grad_norm:g}"]
    if budget.ledger.steps:
        lines.append(f"Note: {budget.ledger.steps} steps are spent; the run goes on with the same ledger and the same "
                     "law, and with new random numbers, so not to the same bits")
    return lines + warnings_of(budget)


def shown_without_data(config: dict[str, Any], task: Task) -> tuple[dict[str, Any], Task]:
    """A configuration and a task by which pictures of samples are made, and none of data; ValueError where only data
    could be shown.
    """
    if task.seen is None:
        raise ValueError("those of a task that draws nothing show volumes, which are private")
    snapshot = replace(task.snapshot, facts=public_facts(task.snapshot.facts, None))
    return without_sources(config), replace(task, snapshot=snapshot)
