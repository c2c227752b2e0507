"""Composing an experiment from configs/ and the command line, and what is said of what does not fit."""

import inspect
import itertools
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, InterpolationKeyError, OmegaConfBaseException

from edm3d.utils.config import find_target, no_such
from edm3d.utils.files import first_line
from edm3d.utils.schema import Experiment

COMPOSING = re.compile(r"In '.*': \w+ raised while composing config:$")  # Hydra's heading above OmegaConf's error


def compose(config_dir: Path, name: str, overrides: Sequence[str]) -> dict:
    """The resolved plain config of an experiment with command-line overrides; ValueError for what does not fit.

    Composed without Hydra's main, so that no output folder and no job log of Hydra's own come into being.
    """
    ConfigStore.instance().store(name="experiment_schema", node=Experiment)
    known = sorted(p.stem for p in config_dir.glob("*.yaml"))
    if name not in known:
        raise ValueError(f"-cn={name}: {no_such(f'experiment in {config_dir.name}/', name, known)}")
    try:
        plain = to_plain(compose_raw(config_dir, name, overrides))
    except (HydraException, OmegaConfBaseException) as e:
        raise ValueError(composition_error(e, name, config_groups(config_dir))) from e
    check_keys(plain, Experiment)
    return plain


def compose_raw(config_dir: Path, name: str, overrides: Sequence[str]) -> DictConfig:
    """What Hydra composes; ValueError for files that are no YAML, for odd defaults, and without the schema."""
    try:
        with hydra.initialize_config_dir(str(config_dir.resolve()), version_base=None):
            config = hydra.compose(name, quote_seeds(overrides))
    except (HydraException, OmegaConfBaseException):
        raise
    except yaml.YAMLError as e:
        raise ValueError(yaml_error(e)) from e
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as e:
        raise ValueError(f"-cn={name}: cannot be composed, look at its defaults ({first_line(e)})") from e
    if OmegaConf.get_type(config) is not Experiment:
        raise ValueError(f"-cn={name}: its defaults lack experiment_schema, by which all keys are checked")
    return config


def yaml_error(error: yaml.YAMLError) -> str:
    """What is wrong with a YAML file, and where, as one line."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"{getattr(error, 'name', 'YAML')}: {' '.join(str(error).split())}"
    return f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}: {error.problem}"


def quote_seeds(overrides: Sequence[str]) -> list[str]:
    """Overrides in which a list of seeds is text: Hydra takes `sampling.seeds=1,2` for a sweep, `[1,2]` for a list."""
    return [re.sub(r"""^(\+{0,2}sampling\.seeds)=([^'"]*,[^'"]*)$""", r"\1='\2'", text) for text in overrides]


class Group(NamedTuple):
    """A group of configs/: the config path that its files fill (`# @package ...`), and their names."""

    package: str
    choices: list[str]


def config_groups(config_dir: Path) -> dict[str, Group]:
    """The groups, which are the folders of configs/, by name."""
    groups: dict[str, Group] = {}
    for path in sorted(config_dir.glob("*/*.yaml")):
        package = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# @package").strip()
        groups.setdefault(path.parent.name, Group(package, [])).choices.append(path.stem)
    return groups


def check_keys(config: dict, schema: type, path: str = "") -> None:
    """ValueError for keys that a dataclass schema lacks, or has alone: `+key=value` and `~key` get past Hydra."""
    hints = typing.get_type_hints(schema)
    for key in hints:
        if key not in config:
            raise ValueError(f"{path}{key}: missing; give it a value, or leave it out for its default")
    for key, value in config.items():
        if key not in hints:
            raise ValueError(f"{path}{key or repr(key)}: {no_such('key', key, hints)}")
        if is_dataclass(hints[key]):
            check_keys(value, hints[key], f"{path}{key}.")


def composition_error(error: Exception, name: str, groups: Mapping[str, Group]) -> str:
    """Hydra's or OmegaConf's error as one line with the config path and the nearest right key or group.

    name: of the experiment.
    """
    while not isinstance(error, OmegaConfBaseException) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not COMPOSING.match(line)]
    if "--multirun" in str(error):
        given = re.search(r"'(.*)'", lines[0])[1]
        key = given.partition("=")[0]
        return f"{given}: several values for one key, but there are no sweeps; write {key}=[a,b] or \"{key}='a,b'\""
    full = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key:")), None)
    if full is None:
        text = " ".join(itertools.takewhile(lambda line: not line.startswith("Config search path"), lines))
        return f"-cn={name}: {text}"
    if isinstance(error, InterpolationKeyError):
        return missing_source(full, lines[0])
    if isinstance(error, (ConfigAttributeError, ConfigKeyError)):
        chosen_first = nothing_chosen(full.rpartition(".")[0], error.parent_node, groups)
        if chosen_first:
            return f"{full}: {chosen_first}"
        key, known = full.rpartition(".")[2], keys_around(full, error.parent_node)
        if key in known:
            return f"{full}: not in the YAML; write +{full}=... to add it"
        if full in groups:
            package = groups[full].package
            return (f"{full} is a group: to choose another {full} write {full}=NAME; its keys are under {package}, "
                    f"as in {package}.KEY=...")
        return f"{full or repr(full)}: {no_such('key', key, known if '.' in full else [*known, *groups])}"
    group = full.rpartition(".")[2]
    hint = f"; to choose another {group}, write {group}=NAME" if group in groups else ""
    return f"{full or f'-cn={name}'}: {lines[0]}{hint}"


def missing_source(full: str, message: str) -> str:
    """What is said of a key that takes the value of one which is not there; message: OmegaConf's."""
    source = re.search(r"'(.*)'", message)[1]
    hint = ""
    if full.startswith("training.loss.") and source.startswith("training.network."):
        hint = "; choose precond and loss that go together, as in precond=ddpm loss=ddpm"
    return f"{full} takes {source}, which is not there{hint}"


def nothing_chosen(path: str, node: Any, groups: Mapping[str, Group]) -> str:
    """What is said of keys below a config path whose group has chosen nothing, '' where something is there."""
    group = next((name for name, group in groups.items() if group.package == path), None)
    if group is None or node:
        return ""
    return f"nothing is chosen here; choose {group}=NAME first ({', '.join(groups[group].choices)})"


def keys_around(full: str, parent: Any) -> list[str]:
    """Keys that may stand beside a config path: of the schema, or of its target and the YAML."""
    schema = OmegaConf.get_type(parent)
    if is_dataclass(schema):
        return [f.name for f in fields(schema)]
    known = [str(key) for key in parent] if isinstance(parent, DictConfig) else []
    if "_target_" in known:
        known += inspect.signature(find_target(parent["_target_"], full.rpartition(".")[0])).parameters
    return known


def to_plain(config: DictConfig) -> dict:
    """Resolved plain dict of a config; ValueError naming the missing keys where a value is `???`."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(f"{', '.join(missing)}: no value; set it in the experiment's YAML or on the command line")
    return OmegaConf.to_container(config, resolve=True, structured_config_mode=typing.cast(Any, "dict"))
