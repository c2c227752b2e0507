"""The scorecard: the seven criteria for synthetic medical data, each with the figures of this report, or why not.

Zamzmi G, et al. Scorecard for synthetic medical data evaluation. Commun Eng 2025;4:130.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from edm3d.reporting.html import html_missing, html_table
from edm3d.reporting.section import CRITERIA, Score, Section, missing

COLUMNS = ("real", "floor", "ceiling")


class Scorecard(Section):
    """Figures of all sections by criterion; nothing is added up, and no criterion is passed or failed.

    scorecard.CRITERION.{available, figures.[{name, value, unit, low, high, floor, ceiling, real, said}]}
    """

    words = {"scorecard": "The seven criteria of the scorecard for synthetic medical data: "
             + " ".join(f"{name}: {asked}" for name, asked in CRITERIA.items())
             + " Real: the same figure of real volumes. Floor: what chance, or real against real, comes to. Ceiling: "
               "the best that is to be had, of distances that of decoded noise, the worst. No figure is a pass."}
    sets = ()
    citations = {"scorecard": "Zamzmi G, et al. Scorecard for synthetic medical data evaluation. Commun Eng 2025; "
                              "4:130. doi:10.1038/s44172-025-00450-1"}

    def __init__(self, others: Sequence[Section]):
        self.others = tuple(others)

    def summarise(self, report: dict) -> dict[str, Any]:
        found: dict[str, list[Score]] = {name: [] for name in CRITERIA}
        for section in self.others:
            for criterion, scores in section.scores(report).items():
                found[criterion] += scores
        return {"scorecard": {name: {"available": True, "figures": [score._asdict() for score in scores]} if scores else
                              missing(f"no section of this report has a figure of it ({CRITERIA[name]})")
                              for name, scores in found.items()}}

    def lines(self, report: dict) -> list[str]:
        without = [name for name, part in report["scorecard"].items() if not part["available"]]
        said = f"; without: {', '.join(without)}" if without else ""
        return [f"Scorecard: {len(CRITERIA) - len(without)} of {len(CRITERIA)} criteria have figures{said}"]

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        body = "<h2>Scorecard</h2>"
        for name, part in report["scorecard"].items():
            body += f"<h3>{escape(name.capitalize())}</h3><p class=note>{escape(CRITERIA[name])}</p>"
            body += html_missing(name.capitalize(), part)
            if part["available"]:
                body += html_table(["", "figure (95 % interval)", *COLUMNS],
                                   [cells(row) for row in part["figures"]], main=1)
        return body


def cells(row: Mapping[str, Any]) -> list[str]:
    """A figure as a row of the table."""
    value = "" if row["value"] is None else short(row["value"])
    ends = "" if row["low"] is None else f" [{short(row['low'])}, {short(row['high'])}]"
    words = " ".join(part for part in (value + ends, row["unit"] if value else "", row["said"]) if part)
    return [row["name"], words or "-", *("" if row[key] is None else short(row[key]) for key in COLUMNS)]


def short(value: float) -> str:
    """A number with three digits that count."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
