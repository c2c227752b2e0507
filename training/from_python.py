"""Training from Python: an experiment by its name, a YAML file, or a dict of the same content."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edm3d.training.run import train
from edm3d.utils.compose import compose
from edm3d.utils.config import read_yaml, to_yaml

SCHEMA = ["experiment_schema", "_self_"]  # defaults of a configuration that is whole, as a run folder's config.yaml


def train_from(config: str | Path | Mapping[str, Any], overrides: Sequence[str], name: str | None) -> Path | None:
    """Train what edm3d.train is given; the run folder, None for a dry run."""
    with experiment(config, name) as (found, folder):
        resolved = compose(found, overrides, folder)
    return train(found, resolved)


@contextmanager
def experiment(config: str | Path | Mapping[str, Any], name: str | None) -> Iterator[tuple[str, Path | None]]:
    """The name of an experiment and the folder that holds it, None for where experiments are looked for anyway."""
    if isinstance(config, Mapping):
        with tempfile.TemporaryDirectory() as folder:
            found = name or "python"
            (Path(folder) / f"{found}.yaml").write_text(to_yaml({"defaults": SCHEMA, **config}), encoding="utf-8")
            yield found, Path(folder)
        return
    path = Path(config)
    if path.suffix not in (".yaml", ".yml"):
        if name not in (None, str(config)):
            raise ValueError(f"name={name}: the experiment {config} has a name; training.options.desc=... adds to it")
        yield str(config), None
        return
    content = read_yaml(path)
    if "defaults" not in content or name:
        with experiment(content, name or path.stem) as made:
            yield made
    else:
        yield path.stem, path.parent
