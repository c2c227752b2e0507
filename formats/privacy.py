"""What is known of the privacy of a training: the ledger of its noisy steps, and the statement made of it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from edm3d.utils.checks import check_choice, check_positive
from edm3d.utils.plain import from_plain, read_json

UNITS = {"record": "records", "group": "groups (patients)"}  # whose presence is hidden, and what many are called
MOST_STEPS = 10 ** 12
NAME = "privacy.json"  # of a statement in a run folder
HasLedger = TypeVar("HasLedger")


class Spent(NamedTuple):
    """Steps with one noise multiplier (over the clipping norm) and one rate at which each unit enters a batch."""

    noise_multiplier: float
    sampling_rate: float
    steps: int


class Ledger(NamedTuple):
    """All noisy steps that weights have seen, and what they were taken on.

    unit: record or group; count: how many there are; max_grad_norm: the L2 norm to which the gradient of each is
    clipped; accountant and its version: by which the steps are turned into an epsilon. key: drawn for each training, by
    which its ledger is known again and not counted twice, "" in files of before; start: hash of the snapshot that the
    weights started from, "" for none.
    """

    unit: str
    count: int
    max_grad_norm: float
    accountant: str
    version: str
    history: list[Spent] = []
    key: str = ""
    start: str = ""

    @property
    def steps(self) -> int:
        """Noisy steps in all."""
        return sum(spent.steps for spent in self.history)

    def after(self, noise_multiplier: float, sampling_rate: float, steps: int = 1) -> "Ledger":
        """The same with further steps; those like the last ones are counted with them."""
        *before, last = self.history or [Spent(noise_multiplier, sampling_rate, 0)]
        if (last.noise_multiplier, last.sampling_rate) == (noise_multiplier, sampling_rate):
            return self._replace(history=[*before, last._replace(steps=last.steps + steps)])
        return self._replace(history=[*before, last, Spent(noise_multiplier, sampling_rate, steps)])

    def plain(self) -> dict[str, Any]:
        """As plain data, for a file."""
        return {**self._asdict(), "history": [spent._asdict() for spent in self.history]}

    @classmethod
    def from_plain(cls, found: object, source: object, key: str = "ledger") -> "Ledger":
        """From what `plain` gave; ValueError naming the file (source) and the key for what no training has spent."""
        ledger = from_plain(cls, found, source, key)
        try:
            check_choice("unit", ledger.unit, UNITS)
            check_positive({"count": ledger.count, "max_grad_norm": ledger.max_grad_norm})
            for spent in ledger.history:
                check_positive({"noise_multiplier": spent.noise_multiplier})
                if not 0 < spent.sampling_rate <= 1 or not 0 < spent.steps <= MOST_STEPS:
                    raise ValueError(f"history has {spent.steps} steps at a rate of {spent.sampling_rate}, wanted 1 or "
                                     "more, and a rate in (0, 1]")
        except ValueError as e:
            raise ValueError(f"{source}: {key}.{e}") from e
        return ledger


class Earlier(NamedTuple):
    """A private training that another one stands on: what it gave to it, and what it has spent by its own ledger."""

    what: str
    epsilon: float
    delta: float
    ledger: Ledger

    def plain(self) -> dict[str, Any]:
        """As plain data, for a file."""
        return {**self._asdict(), "ledger": self.ledger.plain()}


class PrivacyStatement(NamedTuple):
    """What a trained network says of the privacy of its data: (epsilon, delta) by a ledger, and where that ends.

    noise_multiplicity: noise levels per image that are averaged before clipping. first_stage and start: what is known
    of the privacy of the autoencoder and of the weights at the start. not_covered: what else was taken from the data.
    trained: which part of the weights moved, "" where a file of before does not say. earlier: the private trainings of
    first stage and start, and those that they stand on.
    """

    epsilon: float
    delta: float
    ledger: Ledger
    noise_multiplicity: int
    first_stage: str
    start: str
    not_covered: list[str]
    trained: str = ""
    earlier: list[Earlier] = []

    def plain(self) -> dict[str, Any]:
        """As plain data, for a file."""
        return {**self._asdict(), "ledger": self.ledger.plain(), "earlier": [each.plain() for each in self.earlier]}

    @classmethod
    def from_plain(cls, found: object, source: object, key: str = "privacy") -> "PrivacyStatement":
        """From what `plain` gave; ValueError naming the file (source) and the key for anything else."""
        statement = from_plain(cls, found, source, key)
        if isinstance(found, Mapping):
            Ledger.from_plain(found["ledger"], source, f"{key}.ledger")
            for number, each in enumerate(found.get("earlier", ())):
                Ledger.from_plain(each["ledger"], source, f"{key}.earlier[{number}].ledger")
        if statement.noise_multiplicity < 1 or any(not 0 < each.delta < 1 or each.epsilon < 0
                                                   for each in (statement, *statement.earlier)):
            raise ValueError(f"{source}: {key} has epsilon {statement.epsilon}, delta {statement.delta}, "
                             f"noise_multiplicity {statement.noise_multiplicity}; wanted 0 or more, a delta between 0 "
                             "and 1, and 1 or more, of what it stands on as well")
        return statement

    def as_earlier(self, what: str) -> list[Earlier]:
        """Itself, as what it gave to a training, and what it stands on."""
        return [Earlier(what, self.epsilon, self.delta, self.ledger), *self.earlier]

    @classmethod
    def read(cls, path: Path) -> "PrivacyStatement":
        """From the privacy.json of a run folder."""
        return cls.from_plain(read_json(path), path)

    def lines(self) -> Iterator[str]:
        """In words."""
        ledger = self.ledger
        yield (f"Privacy     epsilon {self.epsilon:.4g} at delta {self.delta:g} per {ledger.unit}, of {ledger.count} "
               f"{UNITS[ledger.unit]}")
        for spent in ledger.history:
            yield (f"  {spent.steps} steps at sampling rate {spent.sampling_rate:.6g} with noise multiplier "
                   f"{spent.noise_multiplier:.6g}")
        more = f", {self.noise_multiplicity} noise levels per image" if self.noise_multiplicity > 1 else ""
        yield f"  gradients clipped to {ledger.max_grad_norm:g}{more}; accountant {ledger.accountant}, {ledger.version}"
        yield f"  first stage: {self.first_stage}"
        yield f"  weights at the start: {self.start}"
        if self.trained:
            yield f"  trained: {self.trained}"
        yield from (f"  with what it stands on: {line}" for line in self.together())
        for text in self.not_covered:
            yield f"  not covered: {text}"

    def together(self) -> Iterator[str]:
        """What a unit has lost that is in the data of this training and of those that it stands on."""
        if not self.earlier:
            return
        if other := sorted({each.ledger.unit for each in self.earlier} - {self.ledger.unit}):
            yield f"does not add up, as that is counted per {other[0]} and this per {self.ledger.unit}"
            return
        spent = [self, *self.earlier]
        yield (f"epsilon {sum(each.epsilon for each in spent):.4g} at delta {sum(each.delta for each in spent):g} per "
               f"{self.ledger.unit} that is in the data of all of them, by adding up; dataset_tool.py privacy-ledger "
               "counts closer")


def once(found: Sequence[HasLedger]) -> list[HasLedger]:
    """Those of different trainings: of those that are known to be of the same, the one with the most steps."""
    kept: dict[object, HasLedger] = {}
    for number, one in enumerate(found):
        key = one.ledger.key or number  # ledgers of before have none: each may be of a training of its own
        if key not in kept or one.ledger.steps > kept[key].ledger.steps:
            kept[key] = one
    return list(kept.values())
