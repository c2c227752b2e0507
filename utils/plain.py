"""Plain data out of files held against type hints: JSON that is read whole, and objects built of it."""

import inspect
import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

from edm3d.utils.files import read_bounded

Built = TypeVar("Built")

MOST_BYTES = 64 << 20  # of a JSON file
SHOWN = 60  # characters of a value in a message


# ---- JSON ----


def parse_json(text: str, source: object) -> Any:
    """What a JSON text holds; ValueError naming `source` for one that is none, or is nested too deeply to be read."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{source}: not readable as JSON ({type(e).__name__}: {e!s:.200})") from e


def read_json(path: Path, most_bytes: int = MOST_BYTES) -> Any:
    """What a JSON file holds; ValueError naming it when it is missing, damaged, or larger than any of its kind."""
    return parse_json(read_bounded(path, most_bytes, "any JSON file of this program"), path)


# ---- objects ----


def from_plain(kind: type[Built], found: object, source: object, key: str = "") -> Built:
    """An object of a dataclass or NamedTuple, built of plain data out of a file.

    Every field must have the type of its hint, and numbers be finite; lists become tuples where the hint says so, and
    what is nested is built likewise. Fields with a default may lack, others and unknown ones are errors. ValueError
    names the file (source) and the key, below `key`.
    """
    if not isinstance(found, Mapping):
        raise ValueError(f"{source}: {key or 'its content'} is {shown(found)}, wanted names with values")
    hints, needed = typing.get_type_hints(kind), _needed(kind)
    values = {}
    for name, value in found.items():
        at = f"{key}.{name}" if key else str(name)
        if name not in needed:
            raise ValueError(f"{source}: {shown(at)} is unknown, wanted {', '.join(needed)}")
        values[name] = taken(value, hints[name], source, at)
    if lacking := [name for name, is_needed in needed.items() if is_needed and name not in found]:
        raise ValueError(f"{source}: {key and f'{key}: '}{', '.join(lacking)} missing")
    try:
        return kind(**values)
    except ValueError as e:  # of the object's own checks
        raise ValueError(f"{source}: {key and f'{key}: '}{e}") from e


def _needed(kind: type) -> dict[str, bool]:
    """The fields of a dataclass or NamedTuple, and whether each must be given."""
    if is_dataclass(kind):
        return {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(kind) if f.init}
    return {name: name not in kind._field_defaults for name in kind._fields}


def taken(value: object, hint: Any, source: object, key: str) -> Any:
    """A plain value as a type hint wants it (see from_plain); ValueError naming file and key for another."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _taken_by_one(value, args, hint, source, key)
    if inspect.isclass(hint) and (is_dataclass(hint) or hasattr(hint, "_fields")):
        return value if isinstance(value, hint) else from_plain(hint, value, source, key)
    is_sequence = origin in (list, tuple, Sequence)
    wrong = ValueError(f"{source}: {key} is {shown(value)}, wanted {describe(hint)}")
    if is_sequence and isinstance(value, (list, tuple)):
        inner = [args[0]] * len(value) if origin is not tuple or args[-1] is Ellipsis else args
        if len(inner) != len(value):
            raise wrong
        parts = [taken(v, h, source, f"{key}[{i}]") for i, (v, h) in enumerate(zip(value, inner))]
        return parts if origin is list else tuple(parts)
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return {taken(k, args[0], source, f"a name in {key}"): taken(v, args[1], source, f"{key}.{k}")
                for k, v in value.items()}
    if is_sequence or origin in (dict, Mapping) or not _is_of(value, hint):
        raise wrong
    return value


def _taken_by_one(value: object, args: Sequence[Any], hint: Any, source: object, key: str) -> Any:
    """A value as one of several hints wants it; where but one is more than null, its own complaint comes out."""
    several = [a for a in args if a is not type(None)]
    if value is None and len(several) < len(args):
        return None
    if len(several) == 1:
        return taken(value, several[0], source, key)
    for one in several:
        try:
            return taken(value, one, source, key)
        except ValueError:
            continue
    raise ValueError(f"{source}: {key} is {shown(value)}, wanted {describe(hint)}")


def _is_of(value: object, hint: Any) -> bool:
    """Whether a single value is what a hint says; a number must be finite, and not too large for a float."""
    if hint in (float, int):
        try:
            return fits(value, hint) and isfinite(value)
        except OverflowError:
            return False
    return hint is Any or (isinstance(value, hint) if inspect.isclass(hint) else fits(value, hint))


def shown(value: object) -> str:
    """A value as a message may quote it, a long one by its start."""
    text = repr(value) if isinstance(value, (str, int, float, bool, type(None))) else f"a {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


# ---- hints ----


def fits(value: object, hint: object) -> bool:
    """Whether a plain value can be what a type hint says; hints that plain data cannot decide pass."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, a) for a in args)
    if hint in (None, type(None)):
        return value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool, dict):
        return isinstance(value, hint)
    if is_tensor(hint):
        return False
    if named(hint) == "torch.nn.modules.module.Module":  # which is not imported here, either
        return isinstance(value, dict) and "_target_" in value
    if origin in (list, tuple, Sequence):
        inner = [a for a in args if a is not Ellipsis]
        return isinstance(value, (list, tuple)) and (not inner or all(any(fits(v, a) for a in inner) for v in value))
    return True


def describe(hint: object) -> str:
    """A type hint as a person would say it, without what plain values cannot be."""
    origin, args = typing.get_origin(hint), [a for a in typing.get_args(hint) if a is not Ellipsis]
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(a) for a in args if not is_tensor(a))
    if hint in (None, type(None)):
        return "null"
    if (origin or hint) in (list, tuple, Sequence):
        return "a list" + (f" of {' or '.join(dict.fromkeys(map(describe, args)))}" if args else "")
    return hint.__name__ if inspect.isclass(hint) else str(hint).replace("typing.", "")


def is_tensor(hint: object) -> bool:
    """Whether a type hint is torch.Tensor, which is not imported here."""
    return named(hint) == "torch.Tensor"


def named(hint: object) -> str:
    """The full name of a class, "" for another hint."""
    return f"{hint.__module__}.{hint.__qualname__}" if inspect.isclass(hint) else ""
