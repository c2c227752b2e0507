"""The budget of a private run: its units, rate and noise, how far it reaches, and what of it is spent."""

import secrets
from collections.abc import Hashable, Sequence, Sized
from math import isfinite

from edm3d.formats.privacy import UNITS, Ledger
from edm3d.training.private import accounting
from edm3d.utils.checks import check_choice, check_positive, listed
from edm3d.utils.schema import Options, Privacy

KEY = "training.privacy"
KEY_BYTES = 8  # of a ledger
HASH = 12  # digits of a hash that people are shown


class Budget:
    """What a run may spend of (target_epsilon, target_delta), and its ledger.

    units: the items of each unit of privacy. steps: after which the run ends, all those of the ledger included.
    """

    def __init__(self, options: Privacy, units: Sequence[Sequence[int]], batch_size: int, ledger: Ledger,
                 noise_multiplier: float, steps: int):
        self.options, self.units, self.batch_size = options, units, batch_size
        self.ledger, self.noise_multiplier, self.steps = ledger, noise_multiplier, steps
        self.sampling_rate = batch_size / len(units)

    def spend(self) -> None:
        """Write a step into the ledger."""
        self.ledger = self.ledger.after(self.noise_multiplier, self.sampling_rate)

    def go_on(self, ledger: Ledger | None, nimg: int) -> None:
        """Go on from the ledger of a state at so many images; ValueError unless its steps are those of the weights."""
        if ledger is None:
            raise ValueError("training.options.resume: the state has no privacy ledger, so that nothing is known of "
                             "what its weights have cost; start anew, or from them as public weights "
                             "(training.options.init_from)")
        if ledger.steps * self.batch_size != nimg:
            raise ValueError(f"training.options.resume: the state's privacy ledger is of {ledger.steps} steps, its "
                             f"weights have made {nimg / self.batch_size:g}")
        check_goes_on(ledger, self.ledger, self.sampling_rate)
        self.ledger = ledger._replace(key=self.ledger.key)

    def epsilon(self) -> float:
        """What is spent."""
        return accounting.epsilon(self.ledger.history, self.options.target_delta)


def check_privacy(options: Privacy) -> None:
    """ValueError for what no private run could follow."""
    given = {f"{KEY}.{name}": value for name in ("target_epsilon", "max_grad_norm", "noise_multiplier")
             if (value := getattr(options, name)) is not None}
    check_positive(given)
    for key, value in given.items():
        if not isfinite(value):
            raise ValueError(f"{key}={value}: wanted a number that is finite")
    if options.target_delta is None or not 0 < options.target_delta < 1:
        raise ValueError(f"{KEY}.target_delta={options.target_delta}: wanted a number between 0 and 1, below 1 over "
                         "the number of records, as 1e-5")
    if options.noise_multiplicity < 1:
        raise ValueError(f"{KEY}.noise_multiplicity={options.noise_multiplicity}: wanted 1 or more")
    check_choice(f"{KEY}.unit", options.unit, UNITS)


def units_of(dataset: Sized, unit: str) -> list[list[int]]:
    """The items of each unit of privacy of a data set; ValueError where it does not say which items are of a group.

    A record that is several items, as a data set that repeats some says by `records`, is one unit.
    """
    names = getattr(dataset, "records", range(len(dataset))) if unit == "record" else getattr(dataset, "groups", None)
    if names is None:
        raise ValueError(f"{KEY}.unit=group: the data set does not say which items are of one patient (groups); choose "
                         "dataset=volumes or dataset=latents, or unit=record")
    members: dict[Hashable, list[int]] = {}
    for index, name in enumerate(names):
        members.setdefault(name, []).append(index)
    return list(members.values())


def open_budget(privacy: Privacy, options: Options, dataset: Sized, spent: Ledger | None = None, *, start: str = "",
                forks: bool = False) -> Budget:
    """The budget of a run, which goes on from what is spent already where that is given.

    start: hash of the snapshot that the weights started from. forks: it goes on in a folder of its own, or in one with
    later snapshots, so that there may be two that do, of which each counts. The noise is that of the ledger where it
    has any, else the one that is asked for, else what spends the whole budget in total_kimg. ValueError for a budget
    that does not reach for a step, and for a ledger of another kind.
    """
    units = units_of(dataset, privacy.unit)
    rate, batch = options.batch_size / len(units), options.batch_size
    if rate > 1:
        raise ValueError(f"training.options.batch_size={batch}: there are {len(units)} {UNITS[privacy.unit]}, of which "
                         "each is to enter a batch at random; wanted no more than that")
    ledger = Ledger(privacy.unit, len(units), privacy.max_grad_norm, accounting.ACCOUNTANT, accounting.version(),
                    key=secrets.token_hex(KEY_BYTES), start=start)
    wanted = -(-round(options.total_kimg * 1000) // batch)
    epsilon, delta, noise = privacy.target_epsilon, privacy.target_delta, privacy.noise_multiplier
    if spent is not None:
        check_goes_on(spent, ledger, rate)
        ledger = spent._replace(accountant=ledger.accountant, version=ledger.version,
                                key=ledger.key if forks or not spent.key else spent.key)
        noise = spent.history[-1].noise_multiplier if spent.history else noise
    if noise is None:
        noise = accounting.noise_multiplier(epsilon, delta, rate, wanted)
    steps = ledger.steps + accounting.steps_within(epsilon, delta, ledger, noise, rate, wanted - ledger.steps)
    if not steps:
        one = accounting.epsilon(ledger.after(noise, rate).history, delta)
        raise ValueError(f"{KEY}.target_epsilon={epsilon:g}: a single step with noise multiplier {noise:g} costs "
                         f"{one:.4g}; wanted more of either")
    return Budget(privacy, units, batch, ledger, noise, steps)


def check_goes_on(spent: Ledger, now: Ledger, rate: float) -> None:
    """ValueError where a ledger was kept of another unit, clipping or sampling than a run has now."""
    pairs = {f"{KEY}.unit": (spent.unit, now.unit), f"{KEY}.max_grad_norm": (spent.max_grad_norm, now.max_grad_norm),
             "the number of units": (spent.count, now.count)}
    if spent.key and spent.start != now.start:
        pairs["the weights at the start (training.options.init_from), by their hash"] = (
            spent.start[:HASH] or "none known", now.start[:HASH] or "none")
    if spent.history:
        pairs["the sampling rate"] = (spent.history[-1].sampling_rate, rate)
    if other := [f"{name}: {old} -> {new}" for name, (old, new) in pairs.items() if old != new]:
        raise ValueError(f"training.options.resume: the state's privacy ledger is of another kind ({listed(other)}); "
                         "what was spent then and what is spent now would not add up; go on with the same, or start "
                         "anew")


def warnings_of(budget: Budget) -> list[str]:
    """Lines about a budget that says less than it seems to."""
    delta, count = budget.options.target_delta, len(budget.units)
    if delta * count <= 1:
        return []
    return [f"Warning: {KEY}.target_delta={delta:g} is above 1 / {count}, the number of {UNITS[budget.options.unit]}: "
            "publishing one of them whole would be within it; wanted less"]
