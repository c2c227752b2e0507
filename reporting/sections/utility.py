"""What generated volumes are worth to networks that are trained on them: the table of a report of its own."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from edm3d.reporting.comparison import Comparison
from edm3d.reporting.html import html_missing, html_table
from edm3d.reporting.scores import MEASURES
from edm3d.reporting.section import Score, Section, missing
from edm3d.reporting.sections.trained_on import keys_of, table, unmatched
from edm3d.reporting.tables import aligned
from edm3d.utils.names import one_line


class Utility(Section):
    """Train on synthetic, test on real: taken over from a report of `evaluate.py downstream`.

    utility.{available, path, sha256, date, title, real, downstream, rows, runs}     as that report has them
    """

    words = {"utility": "Networks trained on real volumes, on samples, or on both, all tested on the same real cases: "
             "taken over, number for number, from a report of evaluate.py downstream."}
    sets = ()
    citations = {"utility": "Esteban C, Hyland SL, Ratsch G. Real-valued (medical) time series generation with "
                            "recurrent conditional GANs. arXiv:1706.02633 (train on synthetic, test on real)"}

    def compute(self, found: Any, context: Comparison) -> dict[str, Any]:
        if context.utility is None:
            return {"utility": missing("no report of downstream networks was given (--downstream)")}
        return {"utility": {"available": True, **context.utility}}

    def lines(self, report: dict) -> list[str]:
        part = report["utility"]
        if not part["available"]:
            return [f"Utility: not available: {part['reason']}"]
        return ["", f"Utility, {source(part)}", aligned([[one_line(cell) for cell in row] for row in table(part)]),
                *remarks(report), *unmatched(part)]

    def scores(self, report: dict) -> Mapping[str, Sequence[Score]]:
        part = report["utility"]
        if not part["available"]:
            return {}
        key, found = keys_of(part)[0], []
        for row in part["rows"]:
            beside = next((each for each in part["rows"] if row["beside"] and each["name"] == row["beside"]["row"]),
                          None)
            if not row["is_real"]:
                found.append(Score(f"{MEASURES[key].title} on real cases, trained on {row['name']}", row[key]["mean"],
                                   unit=MEASURES[key].unit, real=beside and beside[key]["mean"]))
        return {"consistency": found}

    def cited(self, report: dict) -> Mapping[str, str]:
        return self.citations if report["utility"]["available"] else {}

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        part, title = report["utility"], "<h2>Utility</h2>"
        if not part["available"]:
            return title + html_missing("Utility: train on synthetic, test on real", part)
        top, *rows = table(part)
        notes = "".join(f"<p class=note>{escape(line)}</p>" for line in (*remarks(report), *unmatched(part)))
        return f"{title}<p>{escape(source(part))}.</p>{html_table(top, rows, main=3)}{notes}"


def source(part: Mapping[str, Any]) -> str:
    """Where the table is from, in a line."""
    real = part["real"]
    return one_line(f"of {part['path']} (sha256 {part['sha256'][:16]}) of {part['date']}: tested on {real['num']} real "
                    f"cases of split {real['split']!r} of {real['path']}; predicted: {part['downstream']['predicts']}")


def remarks(report: Mapping[str, Any]) -> list[str]:
    """What is to be known before the table is set beside the rest of the report."""
    if report["utility"]["real"]["content_hash"] == report["real"]["content_hash"]:
        return []
    return ["Note: the downstream networks were tested on another file than the real volumes of this report"]
