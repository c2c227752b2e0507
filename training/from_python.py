"""Training from Python: an experiment by its name, a YAML file, or a dict of what a file holds."""

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edm3d.training.run import train
from edm3d.utils.compose import check_is_experiment, compose
from edm3d.utils.config import read_yaml, to_yaml
from edm3d.utils.terminal import sturdy_streams

SCHEMA = ["experiment_schema", "_self_"]  # defaults of a configuration that is whole, as a run folder's config.yaml


def train_from(config: str | Path | Mapping[str, Any], overrides: Sequence[str], name: str | None) -> Path | None:
    """Train what edm3d.train is given; the run folder, None for a dry run."""
    if name is not None and not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"name={name!r}: wanted letters, digits, _, - and .: it becomes part of a folder's name")
    with sturdy_streams():
        with experiment(config) as (found, folder, run):
            resolved = compose(found, overrides, folder)
        return train(name or run, resolved)


@contextmanager
def experiment(config: str | Path | Mapping[str, Any]) -> Iterator[tuple[str, Path | None, str]]:
    """What composes: the name of a YAML, its folder (None: where experiments are looked for), and what a run is called.
    """
    content, run = config, "python"
    if not isinstance(config, Mapping):
        path = Path(config)
        if path.suffix not in (".yaml", ".yml"):
            yield str(config), None, str(config)
            return
        content, run = read_yaml(path), path.stem
        if "defaults" in content:
            yield path.stem, path.parent, run
            return
    check_is_experiment(content, "config" if content is config else path)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "given.yaml").write_text(to_yaml({"defaults": SCHEMA, **content}), encoding="utf-8")
        yield "given", Path(folder), run
