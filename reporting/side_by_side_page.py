"""How reports side by side are shown: on the terminal, and as a page."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from edm3d.reporting.html import html_contents, html_frame, html_table
from edm3d.reporting.tables import aligned
from edm3d.utils.files import write_text
from edm3d.utils.names import one_line, printable
from edm3d.utils.plain import read_json

JSON, PAGE = "compare.json", "compare.html"
MOST_WORDS = 60  # characters of a cell of text on the terminal


def text(result: Mapping[str, Any]) -> str:
    """For the terminal: whose reports, where they do not compare, and the scorecards (all numbers without any)."""
    loud = [f"NOT COMPARABLE  {line}" for line in differences(result)]
    rows = result["scorecard"] or result["numbers"]
    table = aligned([[one_line(cell) for cell in row] for row in (head(result), *map(cells, rows))])
    whose = [one_line(f"{each['letter']}  {each['path']}: {each['title']}, {each['date']}")
             for each in result["reports"]]
    return "\n".join([*whose, "", *loud, *[""][:len(loud)], table, "", *loud, *result["notes"]])


def differences(result: Mapping[str, Any]) -> list[str]:
    """In what reports differ so that numbers do not compare, a line each."""
    letters = [each["letter"] for each in result["reports"]]
    return [f"{part['what']}: " + ("" if len(set(part["values"])) == 1 else "; ".join(
        f"{letter} {value}" for letter, value in zip(letters, part["values"])) + "; ") + part["why"]
        for part in result["not_comparable"]]


def head(result: Mapping[str, Any]) -> list[str]:
    """Of the tables."""
    letters = [each["letter"] for each in result["reports"]]
    return ["", *letters, *(f"{letter} - {letters[0]}" for letter in letters[1:]), "95 % intervals", "floors"]


def cells(row: Mapping[str, Any]) -> list[str]:
    """A figure of all reports."""
    floors = ["-" if value is None or value["floor"] is None else f"{value['floor']:.3g}" for value in row["values"]]
    return [row["name"], *map(said, row["values"]),
            *("-" if value is None else f"{value:+.3g}" for value in row["differences"]), row["intervals"] or "-",
            " / ".join(floors) if set(floors) != {"-"} else "-"]


def said(value: Mapping[str, Any] | None) -> str:
    """A figure with its interval."""
    if value is None:
        return "-"
    ends = "" if value["low"] is None or value["high"] is None else f" [{value['low']:.3g}, {value['high']:.3g}]"
    number = "" if value["value"] is None else f"{value['value']:.4g}{ends}"
    return " ".join(filter(None, (number, value["said"][:MOST_WORDS]))) or "-"


def page(result: Mapping[str, Any]) -> str:
    """The page."""
    loud = "".join(f"<p class=missing><b>Not comparable</b>: {escape(line)}</p>" for line in differences(result))
    whose = html_table(None, [[each["letter"], f"{each['path']} (sha256 {each['sha256'][:16]}): {each['title']}, "
                               f"{each['date']}"] for each in result["reports"]], kind="plain")
    notes = "".join(f"<p class=note>{escape(line)}</p>" for line in result["notes"])
    tables = [f"<h2>{title}</h2>" + html_table(head(result), map(cells, result[key]), main=1)
              for key, title in (("scorecard", "Scorecards"), ("numbers", "All numbers")) if result[key]]
    reading = ("<p class=note>Differences are to the first report. Intervals are apart where that of any report does "
               "not overlap that of the first; a difference below the floors is one that chance makes.</p>")
    foot = html_table(None, [["command", result["command"]]], kind="plain")
    return html_frame("reports side by side", *html_contents("\n".join(
        [f"<h1>Reports side by side</h1>{whose}{loud}{notes}{reading}", *tables,
         f"<h2>Where this comes from</h2>{foot}"])))


def write(dest: Path, result: Mapping[str, Any], content: str) -> None:
    """Both files, the page last; content: compare.json."""
    write_text(dest / JSON, content)
    write_text(dest / PAGE, printable(page(result)))


def check_dest(dest: Path, hashes: list[str], overwrite: bool) -> None:
    """ValueError for a folder with files of these names that are none of ours, or of other reports."""
    if not (dest / JSON).exists():
        if (dest / PAGE).exists():
            raise ValueError(f"--dest {dest}: holds {PAGE}, and no {JSON} that says that evaluate wrote it; choose "
                             "another folder")
        return
    found = read_json(dest / JSON)
    reports = found.get("reports") if isinstance(found, dict) else None
    if not isinstance(reports, list) or not all(isinstance(each, dict) and "sha256" in each for each in reports):
        raise ValueError(f"--dest {dest}: its {JSON} is none of ours; nothing else is overwritten, choose another "
                         "folder")
    if not overwrite and [each["sha256"] for each in reports] != hashes:
        raise ValueError(f"--dest {dest}: holds other reports side by side; choose another folder, or --overwrite it")
