"""Training states: everything that a run needs to go on bit for bit."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from edm3d.formats.facts import Facts
from edm3d.utils import checkpoint
from edm3d.utils.checks import listed


@dataclass(frozen=True)
class TrainingState:
    """The configuration and data of a run, how far it is (progress, stats), and all that it has learned.

    environment: what changes the last bits of a result. ema, more_emas: the averages; modules, optimizers: of the
    phases, by name.
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

    @property
    def nimg(self) -> int:
        """Images seen."""
        return self.progress["nimg"]

    @classmethod
    def read(cls, path: Path) -> "TrainingState":
        """From a file; ValueError when it is damaged or lacks something."""
        found = checkpoint.load(path, "state").content
        found["facts"] = found.pop("data", None)
        names = [f.name for f in fields(cls)]
        if lacking := sorted("data" if name == "facts" else name for name in names if found.get(name) is None):
            raise ValueError(f"{path}: the state lacks {listed(lacking)}: it was written by another version of this "
                             "program")
        return cls(**{name: found[name] for name in names} | {"facts": Facts.from_plain(found["facts"], path)})

    def plain(self) -> dict[str, Any]:
        """As a file holds it."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "facts"}
        return {**found, "data": self.facts.plain()}
