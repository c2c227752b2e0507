"""YAML files held against what reading them may cost, before anything is made of them."""

import re
from contextlib import suppress
from pathlib import Path

import yaml

from edm3d.utils.files import read_bounded

MOST_BYTES = 1 << 18  # of a YAML file; the largest of ours has some 5 kB
MOST_VALUES, MOST_LEVELS = 20_000, 50  # that it may hold, anchors written out; an experiment has a few hundred
MOST_REFERENCE, MOST_NESTED = 1000, 10  # characters of a text with ${...}, and of these within one another
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Refused(ValueError):
    """A YAML file that is not to be read at all."""


def checked_text(path: Path) -> str:
    """The text of a YAML file; Refused, naming it, where that cannot be read, is too large, nested too deeply, or grows
    by its anchors.

    What is no YAML is left to who makes something of it.
    """
    try:
        text = read_bounded(path, MOST_BYTES, "any configuration")
    except ValueError as e:
        raise Refused(str(e)) from e
    with suppress(yaml.YAMLError):
        check_events(text, path)
    return text


def check_events(text: str, path: Path) -> None:
    """Refused for a text of more values than a configuration has, anchors written out as often as they are named."""
    sizes: dict[str, int] = {}
    nodes: list[tuple[str | None, int]] = [(None, 0)]  # of each that has begun: its anchor, and its values so far
    for seen, event in enumerate(yaml.parse(text, Loader=LOADER)):
        anchor, count = getattr(event, "anchor", None), 0
        if isinstance(event, yaml.CollectionStartEvent):
            nodes.append((anchor, 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, count = nodes.pop()
        elif isinstance(event, yaml.AliasEvent):
            if anchor in [name for name, _ in nodes]:
                raise Refused(f"{path}: its anchor {anchor!r:.60} holds itself")
            count, anchor = sizes.get(anchor, 1), None
        elif isinstance(event, yaml.ScalarEvent):
            count = 1
            check_references(event.value, path)
        if anchor and count:
            sizes[anchor] = count
        nodes[-1] = (nodes[-1][0], nodes[-1][1] + count)
        if len(nodes) > MOST_LEVELS:
            raise Refused(f"{path}: nested more than {MOST_LEVELS} levels deep")
        if max(seen, nodes[-1][1]) > MOST_VALUES:
            raise Refused(f"{path}: holds more than {MOST_VALUES:,} values, its anchors written out")


def check_references(text: str, path: Path) -> None:
    """Refused for a text whose ${...} would take long to be understood."""
    if "${" in text and (len(text) > MOST_REFERENCE or len(re.findall(r"\$\{", text)) > MOST_NESTED):
        raise Refused(f"{path}: a text with more ${{...}} than any configuration has ({text[:40]!r}...)")
