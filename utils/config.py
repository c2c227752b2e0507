"""Plain configs: the check of every key against its target, building from them, and their YAML."""

import difflib
import importlib.util
import inspect
import json
import re
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.errors import InstantiationException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from edm3d.utils.files import first_line
from edm3d.utils.own_code import import_module
from edm3d.utils.plain import describe, fits

# homes of the classes that a file may name
TRUSTED = ("edm3d.networks.", "edm3d.training.datasets.", "torch.nn.", "monai.networks.nets.",
           "monai.networks.blocks.", "monai.networks.layers.")
TRUSTED_SAMPLERS = ("edm3d.samplers.",)  # homes of the functions that a file may name as its sampler
ROOMS = ("metrics.", "networks.", "physics.", "samplers.", "training.")  # of our own targets, which go by short names
TRUST = "if you trust the file, say so: training.options.trust=true, sampling.trust=true or --trust"
LENGTH = 40  # characters of a value in a message
# arguments that the program itself gives a target, by the target's place in the config, which must not
GIVEN = {"sampling.sampler": ("net", "latents", "condition", "randn_like", "callback"),
         "training.optimizer": ("params",), "training.discriminator.optimizer": ("params",)}


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


def with_full_names(node: Any) -> Any:
    """A plain config whose `_target_`s stand as they are imported."""
    if isinstance(node, dict):
        return {k: full_name(v) if k == "_target_" else with_full_names(v) for k, v in node.items()}
    return [with_full_names(value) for value in node] if isinstance(node, (list, tuple)) else node


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
        if key in ("_target_", "_partial_", "_convert_", "_recursive_"):
            continue
        if key not in parameters and not takes_any:
            what = f"parameter of {node['_target_']}"
            known = [name for name in parameters if name not in GIVEN.get(path, ())]
            raise ValueError(f"{path}.{key}: {no_such(what, key, known, 'it has')}")
        if key in hints and not fits(value, hints[key]):
            raise ValueError(f"{path}.{key}={value!r}: wanted {describe(hints[key])}")
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
    """Instantiate a checked `_target_` node, nested ones first; `arguments` are given to it besides.

    What the user's configuration said is resolved by now: ${...} in a text came out of a file that filled a value in,
    and could be anything, also code. It is refused, unless trust. Errors of the target come out as they are;
    ValueErrors say the config path in front (`said_at`), if `path` says that of node.
    """
    if not trust and "${" in json.dumps(node, default=str):
        raise ValueError(f"{path or 'a configuration'}: holds ${{...}}, as no file of ours does; {TRUST}")
    for where, inner in targets(node, path or "config"):
        find_target(inner["_target_"], where)  # which Hydra then finds, too
    try:
        return hydra.utils.instantiate(with_full_names(node), *arguments, _convert_="all")
    except InstantiationException as e:
        cause = e.__cause__
        if not isinstance(cause, Exception):
            raise ValueError(str(e)) from e
        if not path or not isinstance(cause, ValueError) or str(cause).startswith(path):
            raise cause from None
        inner = re.search(r"\nfull_key: (.+)$", str(e))
        where = f"{path}.{inner[1]}" if inner else path
        raise ValueError(said_at(where, dict(targets(node, path))[where], str(cause))) from cause


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


def build_from_file(node: dict, source: str, trust: bool = False) -> Any:
    """Instantiate a node that came out of a file: only classes that live on the allow-list, unless trust."""
    check_from_file(node, source, trust)
    return build(node, trust=trust)


def check_from_file(node: dict, source: str, trust: bool = False, homes: tuple[str, ...] = TRUSTED) -> None:
    """ValueError for a node out of a file that names what does not live in these homes, unless trust.
    """
    for path, inner in targets(node, "config"):
        name = str(inner["_target_"])
        if not trust and not is_trusted(name, path, homes):
            raise ValueError(f"{source}: {path}._target_={name} is not on the list of what a file may name "
                             f"(those of {', '.join(homes)}); {TRUST}")
        if homes == TRUSTED:
            check_signature(path, inner)
    if not trust and "${" in json.dumps(node, default=str):  # could make a target out of text, after the check
        raise ValueError(f"{source}: its configuration holds ${{...}}; {TRUST}")


def is_trusted(name: str, path: str, homes: tuple[str, ...] = TRUSTED) -> bool:
    """Whether a target is a class (of TRUSTED_SAMPLERS: a function) that is defined, not only imported, in its home."""
    if not full_name(name).startswith(homes):
        return False
    target = find_target(name, path)
    is_kind = inspect.isfunction(target) if homes == TRUSTED_SAMPLERS else inspect.isclass(target)
    return is_kind and f"{target.__module__}.".startswith(homes)


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
        for key in sorted({*old, *new}):
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


def read_yaml(path: Path) -> dict:
    """A plain config from a YAML file of ours; ValueError when it is damaged."""
    try:
        return OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OmegaConfBaseException, yaml.YAMLError, OSError, ValueError) as e:
        raise ValueError(f"{path}: not readable as YAML ({str(e).splitlines()[0]})") from e
