"""Writing a report of sections: report.json, report.html (one file, works offline), figures/*.png and
*.gif, cases.csv.

In report.json a number that does not exist is null, and a part that could not be had is
{"available": false, "reason": "..."}. All reports have title, date, command, versions.{python,torch,numpy,scipy,monai},
scheme, definitions.NAME and citations.NAME (what to cite of what is used); what else there is is said by the frame
(reporting.comparison, reporting.first_stage, reporting.downstream, reporting.enhancement) and by each section
(reporting.sections).
"""

import csv
import io
import json
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from edm3d.reporting.html import html_contents, html_frame, html_table, picture_kind
from edm3d.reporting.montages import png_bytes
from edm3d.reporting.section import Context, Section, Walked
from edm3d.utils.files import atomic_path, write_text
from edm3d.utils.log import note
from edm3d.utils.names import cell, file_names, printable, renamed
from edm3d.utils.plain import from_plain, read_json

REPORT, CASES, PAGE = "report.json", "cases.csv", "report.html"
SCHEME = 2  # of what the numbers of a report mean: raised where one of a name is computed otherwise than before


class Frame(NamedTuple):
    """What stands around the sections of a report.

    listed: sets whose volumes are the rows of cases.csv; keys: the first columns of these rows, given a set's name and
    ids; head: top of the page, given the facts of all sections; origin: rows that say where the report comes from.
    """

    listed: Sequence[str]
    keys: Callable[[Context, str, Sequence[str]], dict[str, Sequence[str]]]
    head: Callable[[dict, list[tuple[str, str]]], str]
    origin: Callable[[dict], list[list[str]]]


def opening(title: str, sections: Sequence[Section]) -> dict[str, Any]:
    """Title, when, by which command and by which versions a report is made, and what its words mean."""
    return {"title": title, "date": datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": shlex.join(sys.argv), "scheme": SCHEME,
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("torch", "numpy", "scipy", "monai")},
            "definitions": {word: text for section in sections for word, text in section.words.items()}}


def write_report(dest: Path, sections: Sequence[Section], frame: Frame, walked: Walked, about: dict) -> dict:
    """Write all files of a report into a folder, each whole or not at all, the page last; what report.json holds.

    about: what is compared, before the sections' entries. ValueError, with nothing written, for a number that does not
    exist and is not null.
    """
    report, figures, parts = dict(about), {}, list(zip(sections, walked.found, strict=True))
    for section, found in parts:
        add(report, section.compute(found, walked.context))
    for section in sections:
        add(report, section.summarise(report))
    add(report, {"citations": {name: text for section in sections for name, text in section.cited(report).items()}})
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    embedded: dict[str, bytes] = {}
    for section, found in parts:
        drawn = section.figures(found, walked.context, report)
        add(figures, {name: png_bytes(figure) for name, figure in drawn.items()})
        add(figures, section.animations(found, walked.context, report))
        add(embedded, section.embedded(found, walked.context, report))
    page, cases = html_page(sections, frame, report, figures | embedded), cases_csv(sections, frame, walked)
    write_text(dest / REPORT, text)  # first: it says whose the others are
    names = file_names([*figures])
    for name, picture in zip(names, figures.values(), strict=True):
        with atomic_path(dest / "figures" / f"{name}.{picture_kind(picture)}") as temporary:
            temporary.write_bytes(picture)
    if changed := renamed(figures, names):
        note(f"Note: figures of names that no file can have: {', '.join(changed)}")
    write_text(dest / CASES, printable(cases))
    write_text(dest / PAGE, printable(page))
    return report


def check_report(dest: Path, inputs: Mapping[str, Mapping[str, str]], overwrite: bool) -> None:
    """ValueError for a folder with files of a report's names that are none of ours, or a report of other inputs.

    inputs: some entries of report.json that say what is compared. A report of the same inputs may be written anew.
    """
    if not (dest / REPORT).exists():
        if in_the_way := [name for name in (CASES, PAGE) if (dest / name).exists()]:
            raise ValueError(f"--dest {dest}: holds {' and '.join(in_the_way)}, and no {REPORT} that says that "
                             "evaluate wrote it; choose another folder")
        return
    try:
        found = from_plain(Head, {name: value for name, value in dict(read_json(dest / REPORT)).items()
                                  if name in Head.__dataclass_fields__}, dest / REPORT)
    except (TypeError, ValueError) as e:
        raise ValueError(f"--dest {dest}: {e}; nothing but a report is overwritten, choose another folder") from e
    had = {name: entry for name in inputs if (entry := getattr(found, name))}
    if not overwrite and not all(had.get(name, {}).get(key) == value for name, entry in inputs.items()
                                 for key, value in entry.items()):
        raise ValueError(f"--dest {dest}: holds a report of other volumes or another network ({found.title}); choose "
                         "another folder, or --overwrite it")


@dataclass(frozen=True)
class Head:
    """What a report.json says of where it comes from, as far as any report does."""

    title: str
    date: str
    command: str
    definitions: dict[str, str]
    real: dict[str, Any] | None = None
    generated: dict[str, Any] | None = None
    autoencoder: dict[str, Any] | None = None
    refiner: dict[str, Any] | None = None
    downstream: dict[str, Any] | None = None
    samples: dict[str, Any] | None = None


def add(whole: dict, part: dict) -> None:
    """Add the entries of a section, which are its own alone."""
    assert not whole.keys() & part.keys(), f"two sections give {sorted(whole.keys() & part.keys())}"
    whole |= part


def html_page(sections: Sequence[Section], frame: Frame, report: dict, figures: Mapping[str, bytes]) -> str:
    """The page, with style and figures inside it."""
    head = frame.head(report, [fact for section in sections for fact in section.facts(report)])
    rows = [*frame.origin(report),
            ["versions", ", ".join(f"{name} {number}" for name, number in report["versions"].items())],
            ["command", report["command"]]]
    foot = (f"<h2>Where this comes from</h2>{html_table(None, rows, kind='plain')}"
            f"{html_citations(report['citations'])}"
            f"<h2>What the words mean</h2>{html_table(None, report['definitions'].items(), kind='plain')}")
    return html_frame(report["title"], *html_contents(
        "\n".join([head, *(section.page(report, figures) for section in sections), foot])))


def html_citations(citations: Mapping[str, str]) -> str:
    """What to cite; nothing where no section names anything."""
    note = "<p class=note>Networks, extractors and data that others made are to be cited as their authors ask.</p>"
    return f"<h2>How to cite</h2>{html_table(None, citations.items(), kind='plain')}{note}" if citations else ""


def cases_csv(sections: Sequence[Section], frame: Frame, walked: Walked) -> str:
    """CSV text, a row per volume of the sets that are listed; nothing that a spreadsheet would compute.

    What a section says of some of the sets alone is empty in the rows of the others.
    """
    listed = [name for name in frame.listed if name in walked.ids]
    tables = {name: dict(frame.keys(walked.context, name, walked.ids[name])) for name in listed}
    for section, found in zip(sections, walked.found, strict=True):
        given = {name: section.columns(found, walked.context, name) for name in listed}
        names = dict.fromkeys(column for columns in given.values() for column in columns)
        for name, columns in given.items():
            add(tables[name], {column: columns.get(column, [""] * len(walked.ids[name])) for column in names})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(cell, tables[listed[0]]))
    for columns in tables.values():
        writer.writerows(map(cell, row) for row in zip(*columns.values(), strict=True))
    return out.getvalue()
