"""Diffusion models that draw 3D medical volumes with their label maps; docs/python.md shows their use from Python.

Functions import what they need when they are called, so that the commands start at once.
"""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if not Path(__file__).with_name("networks").is_dir():  # a checkout has the folders beside this one, a wheel in it
    __path__ = [*__path__, str(Path(__file__).resolve().parents[1])]

if TYPE_CHECKING:
    from edm3d.inference.model import Model
    from edm3d.inference.predictor import Predictor


def load(name: str | Path, **options: Any) -> Model | Predictor:
    """A trained network: the newest of an experiment's name or a run folder, a snapshot file, or a published folder.

    A Predictor where it is a segmenter or classifier, else a Model. options: run_root, device, precision and trust of
    inference.model.Model. ValueError when there is none.
    """
    from edm3d.inference.model import load as run
    return run(name, **options)


def train(config: str | Path | Mapping[str, Any], *overrides: str, name: str | None = None) -> Path | None:
    """Train an experiment as the command train does; its run folder, None for a dry run.

    config: the name of an experiment, a YAML file (also the config.yaml of a run folder), or a dict of what a file
    holds. name: of the run, by default that of the experiment or file. ValueError for what cannot be run; SystemExit,
    with its state saved, where it was asked to stop before its end.
    """
    from edm3d.training.from_python import train_from
    return train_from(config, overrides, name)


def _name_user() -> None:
    """Give a user whom the machine does not know, as in a container, a name: MONAI asks for one when it is imported."""
    try:
        getpass.getuser()
    except (ImportError, KeyError, OSError):
        os.environ["USER"] = f"uid{os.getuid()}"


def _let_threads_sleep() -> None:
    """Threads of OpenMP that wait for each other soon sleep, unless the user says otherwise; in force if before torch.

    By default they keep their cores busy while they wait, which on a machine with other work takes the cores from the
    very thread that is waited for. So many turns are some microseconds: enough where nothing else runs.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


class _Package(ModuleType):
    """The package, in which `train` stays the function where the script edm3d/train.py is imported as well."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name == "train" and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
_name_user()
_let_threads_sleep()
