"""Composing an experiment from configs/ and the command line."""

import os
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import ResultDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from edm3d.utils import overrides as typed
from edm3d.utils.checks import listed
from edm3d.utils.compose_errors import composition_error, config_groups, no_such_key, paths_of, yaml_error
from edm3d.utils.config import no_such, plain_content, read_yaml, yaml_content
from edm3d.utils.files import first_line
from edm3d.utils.log import note
from edm3d.utils.retarget import Layer, leave_out, leaves, target_paths
from edm3d.utils.schema import Experiment
from edm3d.utils.yaml_files import Refused, checked_text

Overrides = Sequence[str]


def shipped_configs() -> Path:
    """The configs/ that belong to the code: at the top of a checkout, or below edm3d where that is installed."""
    return Path(__file__).resolve().parents[1] / "configs"


def config_folders(given: Path | None = None) -> list[Path]:
    """Where experiments and groups are looked for, the first place first: `given` (--config-dir), configs/ in the
    working folder, the shipped ones.

    ValueError where `given` is no folder.
    """
    if given is not None and not given.is_dir():
        raise ValueError(f"--config-dir {given}: no such folder; wanted one with experiments (NAME.yaml) and groups "
                         "(network/NAME.yaml, ...)")
    folders = [given] * (given is not None) + [Path("configs"), shipped_configs()]
    return list(dict.fromkeys(folder.resolve() for folder in folders if folder.is_dir()))


def compose(name: str, overrides: Overrides = (), config_dir: Path | None = None) -> dict:
    """The resolved plain config of an experiment with command-line overrides; ValueError for what does not fit.

    Composed without Hydra's main, so that no output folder and no job log of Hydra's own come into being. Keys that
    belonged to another target than the chosen one are left out, each with a note (utils/retarget.py).
    """
    ConfigStore.instance().store(name="experiment_schema", node=Experiment)
    folders = config_folders(config_dir)
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    if name not in known:
        where = " or ".join(map(shown_folder, folders))
        bare = Path(name).name.removesuffix(".yaml")  # it may have been typed as a path
        raise ValueError(f"-cn={name}: {no_such(f'experiment in {where}', bare, known)}")
    check_file(next(path for folder in folders if (path := folder / f"{name}.yaml").exists()))
    asked = [(found, value_of(found)) for override in overrides if (found := typed.named(override))]
    given = added_where_new(readable([text for text in overrides if not typed.named(text)], folders))
    try:
        raw, parts = compose_raw(folders, name, given)
        composed = {} if any(map(changes_targets, given)) else {name: raw}  # experiments by themselves
        notes = leave_out(raw, yaml_layers(folders, parts), typed_paths(given),
                          cache(partial(targets_alone, folders, composed)))
        plain = to_plain(raw)
    except (HydraException, OmegaConfBaseException, NotComposed) as e:
        place = at_fault(folders, name, given) or f"-cn={name}"
        if isinstance(e, NotComposed):
            raise ValueError(f"{place}: {e}") from e
        raise ValueError(composition_error(e, place, given, config_groups(folders), partial(
            elsewhere, folders, name, given))) from e
    check_keys(plain, Experiment, plain)
    for each, value in asked:
        put_in(plain, each, value)
    for text in notes:
        note(text)
    return plain


def check_file(path: Path) -> None:
    """ValueError for a YAML that can be read and is no experiment; of one that cannot be, Hydra says where it is not.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no file, wanted the YAML of an experiment")
    try:
        content = read_yaml(path)
    except ValueError:
        return
    check_is_experiment(content, path)


def check_is_experiment(content: Mapping[str, Any], source: object) -> None:
    """ValueError for the content of a YAML, or a dict of such, that cannot be an experiment's."""
    if not {"defaults", "training"} & set(content):
        found = f"its keys are {listed(content)}" if content else "it is empty"
        raise ValueError(f"{source}: no experiment, {found}; wanted a list 'defaults', as the shipped ones have, or "
                         "'training' and 'sampling' in full, as config.yaml in the folder of a run")


class NotComposed(ValueError):
    """What Hydra cannot compose, for a reason that it says in no way of its own."""


class MoreFolders(SearchPathPlugin):
    """By which Hydra looks into more folders than the one it is started with."""

    folders: Sequence[Path] = ()

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add them, in their order."""
        for folder in self.folders:
            search_path.append("edm3d", f"file://{folder}")


class CheckedFiles(FileConfigSource):
    """Hydra's reader of YAML files, which looks first at what reading one would cost, and reads a text once."""

    def load_config(self, config_path: str) -> ConfigResult:
        """Read a file; Refused where that would take for ever."""
        path = Path(self.path, self._normalize_file_name(config_path))
        if path.is_file():
            text = checked_text(path)
            with suppress(yaml.YAMLError):  # of which Hydra says where it is
                return ConfigResult(config=OmegaConf.create(plain_content(text)), provider=self.provider,
                                    path=f"{self.scheme()}://{self.path}", header=self._get_header_dict(text[:512]))
        return super().load_config(config_path)


@contextmanager
def hydra_in(folders: Sequence[Path]) -> Iterator[None]:
    """Hydra, looking into these folders while the block lasts."""
    Plugins.instance().register(MoreFolders)
    SourcesRegistry.instance().types["file"] = CheckedFiles
    MoreFolders.folders = folders[1:]
    try:
        with hydra.initialize_config_dir(str(folders[0]), version_base=None):
            yield
    finally:
        MoreFolders.folders = ()


def shown_folder(folder: Path) -> str:
    """A folder of configurations as its user knows it."""
    if folder == shipped_configs():
        return "the shipped configs/"
    return f"{folder.relative_to(os.getcwd()) if folder.is_relative_to(os.getcwd()) else folder}/"


class Composed(NamedTuple):
    """What Hydra composes, and of which YAMLs, in the order in which a later one overrules those before it."""

    raw: DictConfig
    parts: list[ResultDefault]


def parts_to_come() -> list[ResultDefault]:
    """A list that fills with what the present Hydra is going to compose: to find that out anew would take as long."""
    loader, found = GlobalHydra.instance().config_loader(), []
    put_together = loader._compose_config_from_defaults_list

    def noted(defaults: list[ResultDefault], repo: Any) -> DictConfig:
        found.extend(defaults)
        return put_together(defaults, repo)

    loader._compose_config_from_defaults_list = noted  # of this loader, which ends with its hydra_in
    return found


def compose_raw(folders: Sequence[Path], name: str, overrides: Overrides) -> Composed:
    """What Hydra composes; ValueError for files that are no YAML, for odd defaults, and without the schema."""
    try:
        with hydra_in(folders):
            parts = parts_to_come()
            config = hydra.compose(name, list(overrides))
            assert parts, "Hydra composes by other means than that of 1.3"
    except (HydraException, OmegaConfBaseException, Refused):
        raise
    except yaml.YAMLError as e:
        raise ValueError(yaml_error(e)) from e
    except (AssertionError, AttributeError, KeyError, OSError, TypeError, ValueError) as e:
        raise NotComposed(f"cannot be composed, look at its defaults ({first_line(e)})") from e
    if OmegaConf.get_type(config) is not Experiment:
        raise ValueError(f"-cn={name}: its defaults lack experiment_schema, by which all keys are checked")
    return Composed(config, parts)


# ---- overrides ----


def readable(given: Overrides, folders: Sequence[Path]) -> list[str]:
    """Overrides as Hydra reads them; ValueError, naming the one at fault, for what it cannot read.

    Where a key takes text alone and what was typed is something else to Hydra (`a=b`, `1,2`, `1_000`), the text is put
    in quotes. So is what is typed for a key of which there is none: that is said of it later.
    """
    groups = cache(lambda: {name: group.choices for name, group in config_groups(folders).items()})
    texts = []
    for override in given:
        parsed, (sign, key, value) = parse(override), typed.split(override)
        is_several = parsed is not None and parsed.is_sweep_override()
        is_text = parsed is not None and not is_several and isinstance(parsed.value(), (str, type(None)))
        if typed.takes_text(key) and not is_text and typed.is_plain(value):
            texts.append(f"{sign}{key}={typed.quoted(value)}")
        elif parsed is not None and key and not is_several and (sign or key not in groups() or (is_text and value)):
            texts.append(override)
        elif typed.names_nothing(key, groups()) and parse(f"{sign}{key}=''"):
            texts.append(f"{sign}{key}=''")
        else:
            raise ValueError(typed.several(override) if is_several else typed.unreadable(override, groups()))
    return texts


def value_of(asked: typed.Named) -> Any:
    """What is typed for a name of the user's, as plain data; ValueError naming the override for what is no value."""
    parsed = parse(f"k={asked.value}")
    if "${" in asked.value or (parsed is None and (asked.value[:1] in ("[", "{") or not typed.is_plain(asked.value))):
        raise ValueError(f"{asked.override}: cannot be read; text with such letters stands in quotes, and holds no "
                         "'${'")
    if parsed is not None and parsed.is_sweep_override():
        raise ValueError(f"{asked.override}: several values for one name; write a list, as in [40,200,6]")
    return to_native(asked.value if parsed is None else parsed.value())


def put_in(plain: dict, asked: typed.Named, value: Any) -> None:
    """Give a name of the user's its value in a composed config; ValueError naming the override for one that has none.
    """
    node = plain
    for name in asked.path[:-1]:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise ValueError(f"{asked.override}: {name} has a value of its own already, and no names below it")
    if isinstance(value, dict) and isinstance(node.get(asked.path[-1]), dict):
        node[asked.path[-1]].update(value)
    else:
        node[asked.path[-1]] = value


def to_native(value: Any) -> Any:
    """What Hydra reads, as plain data: quoted text is text, also in lists and dicts."""
    if isinstance(value, dict):
        return {str(getattr(key, "text", key)): to_native(inner) for key, inner in value.items()}
    return [to_native(inner) for inner in value] if isinstance(value, list) else getattr(value, "text", value)


def at_fault(folders: Sequence[Path], name: str, given: Overrides) -> str:
    """The first override that cannot be composed by itself, '' where there is none."""
    for override in given:
        try:
            compose_raw(folders, name, [override])
        except (HydraException, OmegaConfBaseException, ValueError):
            return override
    return ""


def parse(override: str) -> Override | None:
    """What Hydra reads in an override, None where it cannot; ValueError for bytes that are no text."""
    try:
        override.encode()
        return OverridesParser.create().parse_override(override)
    except UnicodeEncodeError as e:
        raise ValueError(f"{override}: not UTF-8; rename what it names, or set LC_ALL=C.UTF-8") from e
    except (HydraException, RecursionError):
        return None


def added_where_new(overrides: Overrides) -> list[str]:
    """Overrides in which keys of a node whose `_target_` is given, too, may be new: ++key=value.

    A preset, which no experiment chooses by itself, is one of the same kind: +preset=name.
    """
    nodes = [found[1] for text in overrides if (found := re.match(r"\+{0,2}([\w.]+)\._target_=", text))]
    nodes += [found[1] for text in overrides if (found := re.match(r"([\w.]+)=\{.*\b_target_:", text))]
    overrides = [f"+{text}" if text.startswith("preset=") else text for text in overrides]
    return [f"++{text}" if any(re.match(rf"{re.escape(node)}(\.[\w.]+)?=", text) for node in nodes) else text
            for text in overrides]


def changes_targets(override: str) -> bool:
    """Whether an override may choose another target: a `_target_`, or a group."""
    return "_target_" in override or "." not in override.partition("=")[0]


def typed_paths(overrides: Overrides) -> set[str]:
    """Paths of all values that overrides give."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return {path for each in parsed if not each.is_delete() for path in leaves(each.value(), each.key_or_group)}


# ---- what the parts of an experiment say ----


def yaml_layers(folders: Sequence[Path], parts: Sequence[ResultDefault]) -> list[Layer]:
    """What each YAML sets that an experiment is composed of, in their order."""
    layers = []
    for default in parts:
        paths = [path for folder in folders if (path := folder / f"{default.config_path}.yaml").is_file()]
        if paths:
            tree = yaml_content(paths[0])
            for key in reversed((default.package or "").split(".")):
                tree = {key: tree} if key else tree
            layers.append(Layer(default.config_path, tree))
    return layers


def targets_alone(folders: Sequence[Path], composed: Mapping[str, DictConfig], name: str) -> dict[str, str]:
    """Path -> target of an experiment by itself, without overrides; {} for what is no experiment by itself."""
    try:
        raw = composed.get(name) or compose_raw(folders, name, []).raw
    except (HydraException, OmegaConfBaseException, ValueError):
        return {}
    return target_paths(tree_of(raw))


def tree_of(raw: DictConfig) -> dict:
    """A composed config as a plain tree, references and missing values as they stand there."""
    return OmegaConf.to_container(raw, resolve=False, structured_config_mode=typing.cast(Any, "dict"))


def elsewhere(folders: Sequence[Path], name: str, overrides: Overrides, typed: str) -> list[str]:
    """Full paths that somebody may have meant who typed a key that is not there."""
    others = [text for text in overrides if not text.lstrip("+~").startswith(typed)]
    for fewer in (others, []):
        try:
            return paths_of(typed, tree_of(compose_raw(folders, name, fewer).raw))
        except (HydraException, OmegaConfBaseException, ValueError):
            continue
    return []


# ---- the whole ----


def check_keys(config: dict, schema: type, whole: dict, path: str = "") -> None:
    """ValueError for keys that a dataclass schema lacks, or has alone: `+key=value` and `~key` get past Hydra.

    whole: the config of which `config` is the part at `path`.
    """
    hints = typing.get_type_hints(schema)
    for key in hints:
        if key not in config:
            raise ValueError(f"{path}{key}: missing; give it a value, or leave it out for its default")
    for key, value in config.items():
        if key not in hints:
            raise ValueError(no_such_key(f"{path}{key}", hints, partial(paths_of, tree=whole)))
        if is_dataclass(hints[key]):
            check_keys(value, hints[key], whole, f"{path}{key}.")


def to_plain(config: DictConfig) -> dict:
    """Resolved plain dict of a config; ValueError naming the missing keys where a value is `???`."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(f"{', '.join(missing)}: no value; set it in the experiment's YAML or on the command line")
    return OmegaConf.to_container(config, resolve=True, structured_config_mode=typing.cast(Any, "dict"))
