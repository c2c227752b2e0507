"""Overrides as they are typed: text in the quotes that Hydra and the shell take off again, and what is said of others.

Hydra itself is asked in utils/compose.py alone.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, get_origin, get_type_hints

from edm3d.utils.checks import listed
from edm3d.utils.names import one_line
from edm3d.utils.plain import describe, fits
from edm3d.utils.schema import TARGETS, Experiment, Sampling

KEY = re.compile(r"[A-Za-z_$][\w$-]*(?:\.[\w$-]+)*(?:/[A-Za-z_][\w-]*)*(?:@[\w$.-]*)?", re.ASCII)
LONGEST = 200  # letters of an override that is quoted in full
NAME = re.compile(r"""\.(?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'|([^."'=]+))""", re.DOTALL)  # in quotes, or bare


def split(override: str) -> tuple[str, str, str]:
    """Sign (+, ++, ~ or none), key and value of an override."""
    sign, key, value = re.fullmatch(r"(\+\+|\+|~|)([^=]*)=?(.*)", override, re.DOTALL).groups()
    return sign, key, value


def quoted(text: str) -> str:
    r"""A text as the value of an override that is this text to the letter.

    `${` would refer to another key, and is `\${` for OmegaConf; for Hydra a quote within quotes is `\'`. Both take
    backslashes that stand before it, and Hydra those at the end, in pairs.
    """
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    mark = '"' if "'" in text and '"' not in text else "'"
    inner = re.sub(rf"(\\*)({mark}|\Z)", lambda found: found[1] * 2 + (f"\\{mark}" if found[2] else ""), text)
    return f"{mark}{inner}{mark}"


def to_type(key: str, text: str) -> str:
    """What to type in a shell so that a key gets a text: `"training.dataset.path='a=b.h5'"`."""
    word = f"{key}={quoted(text)}"
    if not re.search(r'["$`\\!]', word):
        return f'"{word}"'
    return f"'{word}'" if "'" not in word else shlex.quote(word)


def hint_of(key: str) -> Any:
    """The type that the schema has for a key, Any where it leaves that to a target."""
    kind: Any = Experiment
    for part in key.split("."):
        kind = get_type_hints(kind).get(part, Any) if hasattr(kind, "__dataclass_fields__") else Any
    return kind


def takes_text(key: str) -> bool:
    """Whether the schema has text, and no list, for a key."""
    hint = hint_of(key)
    return hint is not Any and fits("a", hint) and not fits([], hint)


def is_plain(text: str) -> bool:
    r"""Whether a value can only be meant as it stands: no quotes or backslashes of Hydra's, no `${` of OmegaConf's."""
    return text == text.strip() and text.isprintable() and not re.search(r"""['"\\]|\$\{""", text)


def names_nothing(key: str, groups: Mapping[str, Sequence[str]]) -> bool:
    """Whether a key is neither a group nor in one of the halves of an experiment."""
    return bool(KEY.fullmatch(key)) and key not in groups and key.partition(".")[0] not in get_type_hints(Experiment)


def unreadable(override: str, groups: Mapping[str, Sequence[str]]) -> str:
    """What is said of an override that Hydra cannot read; groups: their choices."""
    sign, key, value = split(override)
    shown = one_line(override if len(override) <= LONGEST else f"{override[:LONGEST]}... ({len(override)} letters)")
    if "=" not in override and (sign != "~" or not KEY.fullmatch(key)):
        return f"{shown!r}: wanted key=value or group=NAME, without blanks around '='"
    if not KEY.fullmatch(key):
        return (f"{shown}: {key!r} is no key; keys are names of letters, digits and _ with dots between them, and no "
                "blank before '='")
    if key in groups:
        return f"{shown}: no such {key}; there are {listed(groups[key])}"
    hint = hint_of(key)
    if hint is not Any and not fits("a", hint) and not fits({}, hint):
        return f"{shown}: wanted {describe(hint)}"
    if value[:1] in ("[", "{"):
        return (f"{shown}: cannot be read; brackets come in pairs, and text with other letters than a-z, digits and "
                f"_-./ stands in quotes within them, as in \"{sign}{key}=['a=b']\"")
    if "${" in value and not takes_text(key):  # what a target gets is no text that may refer to anything
        return f"{shown}: '${{' cannot stand in this value"
    if len(override) > LONGEST or not value.isprintable():
        return f"{shown}: the value has letters that have to stand in quotes, as in \"{sign}{key}='VALUE'\""
    return f"{shown}: text with such letters stands in quotes; write {to_type(sign + key, value)}"


def several(override: str) -> str:
    """What is said of an override with several values for one key."""
    sign, key, value = split(override)
    a_list = "" if re.match(r"\w+\s*\(", value) else f"{sign}{key}=[{value}] or "
    return (f"{override}: several values for one key, but there are no sweeps; write {a_list}"
            f"{to_type(sign + key, value)}")


# ---- names that are the user's ----


class Named(NamedTuple):
    """An override of a key below one whose names are the user's: `sampling.attributes."body mass"=25`.

    Or of several as a dict, `sampling.attributes={age: 60, ef: 55}`: path is that of the open key.
    """

    path: tuple[str, ...]
    value: str  # as it was typed
    override: str


@cache
def open_keys() -> list[str]:
    """Keys of the sampling half whose names below them are the user's, such as sampling.attributes."""
    return list(_open_below(Sampling, "sampling"))


def _open_below(kind: type, path: str) -> Iterator[str]:
    for name, hint in get_type_hints(kind).items():
        if hasattr(hint, "__dataclass_fields__"):
            yield from _open_below(hint, f"{path}.{name}")
        elif get_origin(hint) is dict and f"{path}.{name}" not in TARGETS:
            yield f"{path}.{name}"


def named(override: str) -> Named | None:
    """An override below one of the open keys, None for another; ValueError for one that cannot be read.

    Names stand bare, or in quotes where they have dots, quotes or `=` in them; a sign (+, ++) says nothing here.
    """
    key = next((key for key in open_keys() if re.match(rf"\+{{0,2}}{re.escape(key)}(\.|={{)", override)), None)
    if key is None:
        return None
    at, names = override.index(key) + len(key), []
    while found := NAME.match(override, at):
        names.append(found[3] if found[3] is not None else re.sub(r"\\(.)", r"\1", found[1] or found[2] or ""))
        at = found.end()
    shown = one_line(override if len(override) <= LONGEST else f"{override[:LONGEST]}... ({len(override)} letters)")
    if not names and override[at:at + 1] == "=":
        return Named(tuple(key.split(".")), override[at + 1:], shown)
    if not names or override[at:at + 1] != "=" or any(name != name.strip() or not name for name in names):
        raise ValueError(f"{shown}: wanted {key}.NAME=value, without blanks around '='; names with dots, quotes or '=' "
                         f"stand in quotes, as in '{key}.\"NAME\"=value'")
    return Named((*key.split("."), *names), override[at + 1:], shown)
