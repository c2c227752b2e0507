"""What several trainings have spent together."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from edm3d.formats import h5
from edm3d.formats.latents import LatentsFile
from edm3d.formats.privacy import NAME, UNITS, Earlier, Ledger, PrivacyStatement, once
from edm3d.formats.samples import SamplesFile
from edm3d.formats.training_state import TrainingState
from edm3d.inference.snapshot import Snapshot
from edm3d.training.private.accounting import epsilon
from edm3d.utils.checkpoint import read_plain
from edm3d.utils.checks import listed
from edm3d.utils.runs import is_published, list_files


class Spender(NamedTuple):
    """A ledger, whose it is, and the delta that is stated, None for none; earlier: of what its training stands on."""

    name: str
    ledger: Ledger
    delta: float | None
    earlier: list[Earlier] = []


def composed(paths: Sequence[Path], delta: float | None = None) -> Iterator[str]:
    """Lines on what each file has spent, and all together, at one delta: the largest that they state unless given.

    What the trainings stand on counts as well, and a training that is met twice counts once. ValueError for files
    without a ledger, of different units, and without a delta.
    """
    given = [spender_of(path) for path in paths]
    behind = [Spender(f"{spender.name}, {each.what}", each.ledger, each.delta)
              for spender in given for each in spender.earlier]
    spenders = once([*given, *behind])
    units = sorted({spender.ledger.unit for spender in spenders})
    if len(units) > 1:
        raise ValueError(f"the ledgers are of different units ({listed(units)}): the loss of a record and of a patient "
                         "do not add up")
    stated = [spender.delta for spender in spenders if spender.delta is not None]
    if delta is None and not stated:
        raise ValueError("training states say no delta: give one by --delta")
    delta = max(stated) if delta is None else delta
    if not 0 < delta < 1:
        raise ValueError(f"--delta {delta}: wanted a number between 0 and 1")
    for name, ledger, *_ in spenders:
        yield (f"{name}: epsilon {epsilon(ledger.history, delta):.4g} at delta {delta:g} per {ledger.unit}, "
               f"{ledger.steps} steps on {ledger.count} {UNITS[ledger.unit]}")
    history = [spent for spender in spenders for spent in spender.ledger.history]
    yield (f"Together: epsilon {epsilon(history, delta):.4g} at delta {delta:g} per {units[0]} that is in the data of "
           "all of them")


def spender_of(path: Path) -> Spender:
    """The ledger of a run folder, its privacy.json, a training state, a snapshot, a published folder or samples.

    ValueError where there is none.
    """
    if path.is_dir() and not is_published(path):
        files = [path / NAME] if (path / NAME).is_file() else list_files(path, "training-state")
        if not files:
            raise ValueError(f"{path}: holds no {NAME} and no training state; wanted the folder of a private run")
        path = files[-1]
    if path.suffix == ".json":
        statement = PrivacyStatement.read(path)
    elif path.suffix == ".pt" and is_state(path):
        if (ledger := TrainingState.read(path).ledger) is not None:
            return Spender(str(path), ledger, None)
        statement = None
    elif path.suffix == ".h5" and h5.read_format(path) == "latents":
        statement = LatentsFile(path).first_stage_privacy
    elif path.suffix in (".h5", ".npz"):
        statement = SamplesFile(path).meta.privacy
    else:
        statement = Snapshot.read(path).privacy
    if statement is None:
        raise ValueError(f"{path}: holds no privacy ledger; it comes from a training without privacy")
    return Spender(str(path), statement.ledger, statement.delta, statement.earlier)


def is_state(path: Path) -> bool:
    """Whether a torch file is a training state."""
    content = read_plain(path)
    return isinstance(content, dict) and content.get("format") == "state"
