"""Plain configs: the check of every key against its target, building from them, and their YAML."""

import difflib
import importlib.util
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import lru_cache, partial
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from edm3d.utils.files import first_line
from edm3d.utils.log import is_lack_of_memory
from edm3d.utils.own_code import import_module
from edm3d.utils.plain import describe, fits, shown
from edm3d.utils.trusted import NETWORKS, SAMPLERS, is_listed
from edm3d.utils.yaml_files import checked_text

ROOMS = ("metrics.", "networks.", "physics.", "samplers.", "training.")  # of our own targets, which go by short names
TRUST = "if you trust the file, say so: training.options.trust=true, sampling.trust=true or --trust"
RESERVED = ("_target_", "_partial_", "_convert_", "_recursive_")  # words of a node that are no argument
DEEPEST, MOST_VALUES, MOST_PATH = 32, 100_000, 1000  # of a node out of a file; MOST_PATH in characters of a message
LENGTH = 40  # characters of a value in a message
# arguments that the program itself gives a target, by the target's place in the config, which must not
GIVEN_SAMPLER = ("net", "latents")
GIVEN = {"sampling.sampler": ("net", "latents", "condition", "randn_like", "callback"),
         "sampling.posterior": ("net", "y", "image"),
         "training.optimizer": ("params",), "training.discriminator.optimizer": ("params",)}
BESIDE = {"sampling.posterior": ("measurement", "simulate")}  # keys of a target that are no arguments, by its place


def find_target(name: str, path: str) -> Callable:
    """The class or function behind a `_target_`; ValueError naming the config path when there is none."""
    if not isinstance(name, str):
        raise ValueError(f"{path}._target_={name!r}: wanted the name of a class or function")
    module, _, attribute = full_name(name).rpartition(".")
    try:
        found = import_module(module)
    except (ImportError, AttributeError, TypeError, ValueError) as e:
        raise ValueError(f"{path}._target_={name}: cannot be imported ({first_line(e)})") from e
    try:
        target = getattr(found, attribute)
    except AttributeError as e:
        likely = near(attribute, [key for key, value in vars(found).items() if callable(value)])
        raise ValueError(f"{path}._target_={name}: cannot be imported ({getattr(found, '__file__', None) or module} "
                         f"has no {attribute!r}" + "".join(f"; did you mean '{one}'?" for one in likely) + ")") from e
    if not callable(target):
        raise ValueError(f"{path}._target_={name}: not a class or function")
    return target


def full_name(name: str) -> str:
    """The name by which a `_target_` is imported: networks.unet.ADMUNet means ours, before anybody else's."""
    module = f"edm3d.{name.rpartition('.')[0]}"
    try:
        is_ours = name.startswith(ROOMS) and importlib.util.find_spec(module) is not None
    except ImportError:  # of a folder above it
        is_ours = False
    return f"edm3d.{name}" if is_ours else name


def targets(config: object, path: str) -> Iterator[tuple[str, dict]]:
    """All nodes with a `_target_` below a plain config, inner ones included, with their paths."""
    if isinstance(config, dict):
        if "_target_" in config:
            yield path, config
        for key, value in config.items():
            yield from targets(value, f"{path}.{key}")
    elif isinstance(config, (list, tuple)):
        for i, value in enumerate(config):
            yield from targets(value, f"{path}[{i}]")


def check_signature(path: str, node: dict, filled: tuple[str, ...] = ()) -> None:
    """Hold a node's keys and values against its target's signature; `filled` are arguments that code will add."""
    target = find_target(node["_target_"], path)
    parameters = inspect.signature(target).parameters
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key, value in node.items():
        if key in (*RESERVED, *BESIDE.get(path, ())):
            continue
        if key not in parameters and not takes_any:
            what = f"parameter of {node['_target_']}"
            known = [name for name in (*parameters, *BESIDE.get(path, ())) if name not in GIVEN.get(path, ())]
            raise ValueError(f"{path}.{key}: {no_such(what, key, known, 'it has')}")
        if key in hints and not fits(value, hints[key]):
            as_text = f"; text stands in quotes, \"{path}.{key}='...'\"" if fits("", hints[key]) else ""
            raise ValueError(f"{path}.{key}={value!r}: wanted {describe(hints[key])}{as_text}")
    for name, p in parameters.items():
        needed = p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        if needed and name not in node and name not in filled and not node.get("_partial_"):
            raise ValueError(f"{path}.{name}: no value, but {node['_target_']} needs one")


def check_targets(config: dict, path: str, filled: tuple[str, ...] = ()) -> None:
    """Check every `_target_` node below `config`; `filled` are arguments that code adds to any of them.

    Those of GIVEN are added too, and refused in the config.
    """
    for where, node in targets(config, path):
        given = GIVEN.get(where, ())
        for key in given:
            if key in node:
                raise ValueError(f"{where}.{key}: the program gives this itself; leave it out")
        check_signature(where, node, (*filled, *given))


def build(node: dict, *arguments: object, path: str = "", trust: bool = False) -> Any:
    """Make a checked `_target_` node, nested ones first; `arguments` are given to it besides. Its text stays text.

    What the user's configuration said is resolved by now: ${...} in a text came out of a file that filled a value in.
    It is refused, unless trust. Errors of the target come out as they are; ValueErrors say the config path in front
    (`said_at`), if `path` says that of node.
    """
    if not trust and (found := next(interpolations(node, path or "a configuration"), None)):
        raise ValueError(f"{path or found}: holds ${{...}}, as no file of ours does; {TRUST}")
    return _made(node, path, path, arguments)


def _made(node: dict, path: str, root: str, arguments: Sequence[object] = ()) -> Any:
    """What a node's target makes of its values; root: path of the node that is built, "" where errors stay as they are.
    """
    target = find_target(node["_target_"], path or "config")
    values = {key: value if node.get("_recursive_") is False else _value(value, f"{path}.{key}", root)
              for key, value in node.items() if key not in RESERVED}
    if node.get("_partial_"):
        return partial(target, *arguments, **values)
    try:
        return target(*arguments, **values)
    except ValueError as e:
        if not root or str(e).startswith(root):
            raise
        raise ValueError(said_at(path, node, str(e))) from e


def _value(value: object, path: str, root: str) -> Any:
    """A value as a target gets it: its nodes made, its dicts and lists its own."""
    if isinstance(value, dict):
        return _made(value, path, root) if "_target_" in value else {
            key: _value(inner, f"{path}.{key}", root) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_value(inner, f"{path}[{i}]", root) for i, inner in enumerate(value)]
    return value


def interpolations(value: object, path: str) -> Iterator[str]:
    """Paths of texts, keys too, in which OmegaConf would fill something in."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from interpolations(str(key), path)
            yield from interpolations(inner, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            yield from interpolations(inner, f"{path}[{i}]")
    elif isinstance(value, str) and "${" in value:
        yield path


def said_at(path: str, node: dict, message: str) -> str:
    """An error of a target with its place in the config: of the key that it begins with, where that is a parameter.

    Libraries end with the value alone (Invalid learning rate: -1): of the key that has it, if but one in or below does.
    """
    first = re.match(r"(\w+)(?:[=.:]| \()", message)
    if first and first[1] in inspect.signature(find_target(node["_target_"], path)).parameters:
        return f"{path}.{message}"
    last = re.search(r": (\S+)$", message)
    keys = [f"{where}.{key}={value}" for where, inner in targets(node, path) for key, value in inner.items()
            if last and last[1] in map(str, value if isinstance(value, (list, tuple)) else [value])]
    return f"{keys[0] if len(keys) == 1 else path}: {message}"


def build_from_file(node: dict, source: str, trust: bool = False, allowed: frozenset[str] = NETWORKS) -> Any:
    """Make a node that came out of a file: only what its list allows, unless trust.

    ValueError where that fails; what is trusted fails as it does.
    """
    check_from_file(node, source, trust, allowed)
    try:
        return build(node, trust=trust)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        if trust or is_lack_of_memory(e) or str(e).startswith(source):
            raise
        kind = "" if isinstance(e, ValueError) else f"{type(e).__name__}: "
        raise ValueError(f"{source}: {shown(node['_target_'])} cannot be built of what is said of it there "
                         f"({kind}{first_line(e)})") from e


def check_from_file(node: dict, source: str, trust: bool = False, allowed: frozenset[str] = NETWORKS) -> None:
    """ValueError for a node out of a file that is not plain, or names what is not on its list, unless trust."""
    check_plain(node, source, trust)
    if "_target_" not in node:
        raise ValueError(f"{source}: config._target_ is missing: it names no class")
    named = list(targets(node, "config"))
    for path, inner in named:
        if not trust and not is_trusted(inner["_target_"], path, allowed):
            raise ValueError(f"{source}: {path}._target_={inner['_target_']!s:.200} is not on the list of what a file "
                             f"may name (docs/files.md has it); {TRUST}")
    for path, inner in named:
        try:
            check_signature(path, inner, GIVEN_SAMPLER if allowed is SAMPLERS else ())
        except ValueError as e:
            raise ValueError(f"{source}: {e}") from e


def check_plain(node: object, source: str, trust: bool = False) -> None:
    """ValueError unless a node out of a file is a dict of plain values, of no great depth or number.

    Neither words of Hydra's own (`_partial_`, `_args_`, ...) nor ${...} are taken, unless trust.
    """
    waiting, count = [("config", node, 0)], 0
    if not isinstance(node, dict):
        raise ValueError(f"{source}: config is {shown(node)}, wanted names with values")
    while waiting:
        path, value, depth = waiting.pop()
        count += len(value) if isinstance(value, (dict, list, tuple)) else 0
        if depth > DEEPEST or count > MOST_VALUES:
            raise ValueError(f"{source}: {path[:LENGTH]}... is nested deeper than {DEEPEST}, or one of more than "
                             f"{MOST_VALUES:,} values; no configuration of ours is")
        if isinstance(value, dict):
            for key, inner in value.items():
                if not isinstance(key, str) or (not trust and key.startswith("_") and key != "_target_"):
                    raise ValueError(f"{source}: {path} has the key {shown(key)}, as no file of ours does"
                                     + (f"; {TRUST}" if isinstance(key, str) else ""))
                waiting += [(path, key, depth), (f"{path}.{key}"[:MOST_PATH], inner, depth + 1)]
        elif isinstance(value, (list, tuple)):
            waiting += [(f"{path}[{i}]"[:MOST_PATH], inner, depth + 1) for i, inner in enumerate(value)]
        elif isinstance(value, str):
            if "${" in value and not trust:
                raise ValueError(f"{source}: {path} holds ${{...}}; {TRUST}")
        elif not isinstance(value, (bool, int, float, type(None))):
            raise ValueError(f"{source}: {path} is a {type(value).__name__}, wanted a plain value")


def is_trusted(name: object, path: str, allowed: frozenset[str] = NETWORKS) -> bool:
    """Whether a file may name a target: it stands on the list, and is a class (of SAMPLERS: a function)."""
    if not is_listed(name, allowed):
        return False
    target = find_target(name, path)
    return inspect.isfunction(target) if allowed is SAMPLERS else inspect.isclass(target)


def all_arguments(node: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a node's target: those of the node, else the defaults."""
    parameters = inspect.signature(find_target(node["_target_"], "config")).parameters
    return {key: node.get(key, p.default) for key, p in parameters.items()}


def fill(node: dict, **values: object) -> dict:
    """A copy of a network node in which parameters its targets have, and the YAML left out, take measured values."""
    node = dict(node)
    for key, value in node.items():
        if isinstance(value, dict):
            node[key] = fill(value, **values)
    if "_target_" in node:
        parameters = inspect.signature(find_target(node["_target_"], "network")).parameters
        node.update({k: v for k, v in values.items() if k in parameters and node.get(k) is None})
    return node


def differences(old: object, new: object, path: str = "") -> Iterator[tuple[str, object, object]]:
    """Paths at which two plain configs differ, with the values of both; None is none, and as good as an empty node."""
    if all(value is None or isinstance(value, dict) for value in (old, new)):
        old, new = old or {}, new or {}
        for key in sorted({*old, *new}, key=str):
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield path, old, new


def in_short(value: object) -> str:
    """A value in a line; hashes, paths and long lists by how they start and end."""
    text = "none" if value is None else str(value)
    return text if len(text) <= LENGTH else f"{text[:LENGTH // 2]}...{text[-LENGTH // 2:]}"


def no_such(what: str, name: object, known: Iterable[str], are: str = "there are") -> str:
    """'no such ...' with the nearest right name, or all."""
    likely = near(name, known)
    return f"no such {what}; " + (f"did you mean '{likely[0]}'?" if likely else f"{are} {', '.join(known)}")


def near(name: object, known: Iterable[str]) -> list[str]:
    """The name that is nearest to a wrong one, none where none is near."""
    return difflib.get_close_matches(str(name), known, n=1)


def to_yaml(config: dict) -> str:
    """A plain config as YAML text."""
    return OmegaConf.to_yaml(OmegaConf.create(config))


def read_yaml(path: Path) -> dict[str, Any]:
    """A plain config from a YAML file, its ${...} as they stand; ValueError when it is damaged or no keys and values.
    """
    found = yaml_content(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: wanted keys and values, this is a {type(found).__name__}")
    return found


def yaml_content(path: Path) -> dict | list:
    """What a YAML file holds, a mapping or a list, its ${...} as they stand; ValueError when it is damaged."""
    text = checked_text(path)
    try:
        return deepcopy(plain_content(text))
    except (OmegaConfBaseException, yaml.YAMLError, OSError, ValueError, RecursionError, AssertionError) as e:
        raise ValueError(f"{path}: not readable as YAML ({first_line(e)})") from e


@lru_cache(maxsize=256)
def plain_content(text: str) -> dict | list:
    """What a YAML text holds, not to be changed; the same text is taken apart once. Errors are those of OmegaConf."""
    return OmegaConf.to_container(OmegaConf.load(StringIO(text)), resolve=False)
