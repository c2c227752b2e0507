"""Overrides as they are typed: text in the quotes that Hydra and the shell take off again, and what is said of others.

Hydra itself is asked in utils/compose.py alone.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

from edm3d.utils.checks import listed
from edm3d.utils.names import one_line
from edm3d.utils.plain import describe, fits
from edm3d.utils.schema import Experiment

KEY = re.compile(r"[A-Za-z_$][\w$-]*(?:\.[\w$-]+)*(?:/[A-Za-z_][\w-]*)*(?:@[\w$.-]*)?", re.ASCII)
LONGEST = 200  # letters of an override that is quoted in full


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
