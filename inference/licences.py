"""On which terms volumes and weights may be used, as far as files say so."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from edm3d.reporting.comparison import NOT_STATED
from edm3d.utils.files import read_bounded
from edm3d.utils.names import one_line
from edm3d.utils.yaml_files import LOADER, check_events

KEYS = ("licence", "license")
CARD = "README.md"  # of a published network
MOST_BYTES, MOST_WORDS = 1 << 20, 200
OF_DATA = re.compile(r"^.*Licence of the data: (.+?)\. File `", re.MULTILINE)


def licences_of(provenance: Mapping[str, Any], snapshot: Path) -> dict[str, str]:
    """Of real volumes, by what their file says, and of the network and its training data by the card of its folder."""
    weights, data = card_says(snapshot)
    return {"real data": stated(next((provenance[key] for key in KEYS if key in provenance), None)), "weights": weights,
            "training data": data}


def card_says(snapshot: Path) -> tuple[str, str]:
    """Licences of weights and of training data out of the card of a published network, a folder or a file of one."""
    folder = snapshot if snapshot.is_dir() else snapshot.parent
    path = folder / CARD
    if not (folder / "config.json").is_file() or not path.is_file():
        return NOT_STATED, NOT_STATED
    try:
        text = read_bounded(path, MOST_BYTES, "a card")
        front = text.split("---\n", 2)[1] if text.startswith("---\n") else ""
        check_events(front, path)
        head = yaml.load(front, Loader=LOADER)
    except (ValueError, IndexError, yaml.YAMLError, RecursionError):
        return NOT_STATED, NOT_STATED
    of_data = OF_DATA.search(text)
    return stated(head.get("license") if isinstance(head, Mapping) else None), stated(of_data and of_data[1])


def stated(value: object) -> str:
    """A licence as it may be shown; what is no text of some words says nothing."""
    return one_line(value[:MOST_WORDS]).strip() or NOT_STATED if isinstance(value, str) else NOT_STATED
