"""Whether generated volumes have the attributes that were asked for, as far as numbers of these names are measured."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from edm3d.metrics.agreement import MEASURES, agreement, by_chance
from edm3d.reporting import charts
from edm3d.reporting.cases import Case, Layout
from edm3d.reporting.comparison import Comparison
from edm3d.reporting.hearts import asked_numbers, has_phases, phase_of, plain_word
from edm3d.reporting.html import html_grid, html_missing, html_table
from edm3d.reporting.section import Section, missing
from edm3d.reporting.sections.scalars import MeasuredOnce, Numbers
from edm3d.reporting.tables import finite, number
from edm3d.utils.names import titled

FEWEST = 3  # volumes of which an attribute was asked
SAME_UNITS = ({"ml", "cm3", "cc", "cm^3"}, {"cm2", "cm^2"})
BOTH = ("real", "generated")
FRACTIONS = ("lvef", "rvef", "ejectionfraction")


class Match(NamedTuple):
    """An attribute, by its number, and the number of volumes that measures it; or why none does.

    phase: at which of a heart's phases it does, 0 ED, 1 ES; None: at any.
    """

    column: int
    name: str
    unit: str
    number: str | None
    reason: str = ""
    phase: int | None = None


class Followed(NamedTuple):
    """Of a set: attributes [N,A], NaN where there are none, measured numbers [N,A] likewise, and patients [N]."""

    asked: np.ndarray
    measured: np.ndarray
    groups: list[str]


class AttributesFollowed(Section):
    """What was asked for against what is measured; of real volumes their own attributes, as the ceiling.

    asked.{available, unmeasured.NAME}                                              unmeasured: why
    asked.attributes.NAME.{unit, measured_by, available}
    asked.attributes.NAME.phase                         ED or ES, of attributes that are measured on such volumes alone
    asked.attributes.NAME.{chance_r, chance_mae}                    of generated ones in random order
    asked.attributes.NAME.SET.{num, MEASURE, MEASURE_low, MEASURE_high}     SET: generated, real; MEASURE: r, rho, mae,
                                                                             bias
    """

    words = {
        "asked and measured": "An attribute is held against the number of the same name and unit that is measured on "
                              "the volume. r: Pearson's correlation; rho: Spearman's; mean absolute error and bias "
                              "(measured less asked) in the attribute's unit; 95 % bootstrap intervals. Real: the "
                              "attributes that real volumes have against what is measured on them, which is as good "
                              "as it can get. By chance: generated volumes in random order. Volumes at ED and ES, as "
                              "LVEDV and LVESV, are measured on the volumes of that phase.",
    }

    def __init__(self, numbers: Iterable[Numbers] | MeasuredOnce):
        self.numbers = MeasuredOnce.of(numbers)

    def measure(self, item: Case, context: Comparison) -> tuple[list[float], list[float], str] | None:
        matches = self.matches(context.layout)
        if not matches:
            return None
        known, phase = self.numbers.measure(item, context.layout), phase_of(item, context.layout)
        asked = [np.nan] * len(matches) if item.attributes is None else list(map(float, item.attributes))
        measured = [float(known[match.number]) if match.number and match.phase in (None, phase) else np.nan
                    for match in matches]
        return asked, measured, item.group or item.id

    def gather(self, rows: dict[str, list], context: Comparison) -> dict[str, Followed] | None:
        if not context.layout.attributes:
            return None
        found = {}
        for name, kept in rows.items():
            asked, measured, groups = zip(*kept, strict=True)
            found[name] = Followed(np.array(asked), np.array(measured), list(groups))
        return found

    def matches(self, layout: Layout) -> list[Match]:
        """Which number measures which attribute."""
        units = {name: unit for name, unit in self.numbers.units(layout).items() if unit is not None}
        of_phases = asked_numbers(layout) if has_phases(layout) else {}
        return [match(column, name, unit, units, of_phases) for column, (name, unit) in enumerate(layout.attributes)]

    def compute(self, found: dict[str, Followed] | None, context: Comparison) -> dict[str, Any]:
        if found is None:
            return {"asked": missing("the samples were not asked for by attributes")}
        matches = self.matches(context.layout)
        asked = [each for each in matches if np.isfinite(found["generated"].asked[:, each.column]).any()]
        unmeasured = {each.name: each.reason for each in asked if each.number is None}
        unmeasured |= {each.name: "no sample was asked for by it" for each in matches if each not in asked}
        rows = {each.name: attribute_row(each, found, context.seed) for each in asked if each.number}
        return {"asked": {"available": True, "unmeasured": unmeasured, "attributes": rows}}

    def figures(self, found: dict[str, Followed] | None, context: Comparison, report: dict) -> dict[str, Figure]:
        figures = {}
        for each in self.matches(context.layout):
            if found and report["asked"]["attributes"].get(each.name, {}).get("available"):
                figures[f"asked_{each.name}"] = charts.asked_chart(
                    {name: of_one(found[name], each.column)[:2] for name in BOTH}, each.name, each.unit)
        return figures

    def columns(self, found: dict[str, Followed] | None, context: Comparison, name: str) -> dict[str, Sequence[str]]:
        if found is None:
            return {}
        return {f"{each.name} (attribute)": [f"{v:.6g}" if np.isfinite(v) else "" for v in values]
                for each, values in zip(self.matches(context.layout), found[name].asked.T, strict=True)}

    def facts(self, report: dict) -> list[tuple[str, str]]:
        rows = report["asked"].get("attributes", {})
        return [(number(row["generated"]["r"], 2), f"correlation of {name} with what was asked")
                for name, row in rows.items() if row["available"] and row["generated"]["r"] is not None][:2]

    def lines(self, report: dict) -> list[str]:
        part = report["asked"]
        if not part["available"]:
            return [f"Asked attributes: not available: {part['reason']}"]
        lines = [f"Asked for {titled(name, row['unit'])}: r {interval(row['generated'], 'r')}, mean absolute error "
                 f"{interval(row['generated'], 'mae')}, bias {interval(row['generated'], 'bias')}; real volumes have r "
                 f"{number(row['real']['r'])}, mean absolute error {number(row['real']['mae'])}"
                 if row["available"] else f"Asked for {name}: not available: {row['reason']}"
                 for name, row in part["attributes"].items()]
        return lines + [f"Asked for {name}: not measured: {reason}" for name, reason in part["unmeasured"].items()]

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        part, body = report["asked"], "<h2>Asked and measured</h2>"
        if not part["available"]:
            return body + html_missing("Asked attributes", part)
        head = ["asked", "measured by", "set", "volumes", "r", "rho", "mean absolute error", "bias",
                "r by chance, 99 %", "error by chance"]
        rows = []
        for name, row in part["attributes"].items():
            body += html_missing(name, row)
            for key in BOTH if row["available"] else ():
                of = row[key]
                rows.append([titled(name, row["unit"]), measured_by(row), key, str(of["num"]),
                             *(interval(of, measure) for measure in MEASURES),
                             *(number(row[k] if key == "generated" else None) for k in ("chance_r", "chance_mae"))])
        body += html_table(head, rows, main=4) if rows else ""
        body += "".join(f"<p class=note>{escape(name)}: not measured: {escape(reason)}.</p>"
                        for name, reason in part["unmeasured"].items())
        return body + html_grid([f"asked_{name}" for name in part["attributes"]], figures)


def match(column: int, name: str, unit: str, units: Mapping[str, str],
          of_phases: Mapping[str, tuple[str, int]] | None = None) -> Match:
    """The number of units by name that an attribute is held against: that of its name, and of the same unit.

    of_phases: of attributes by their plain words, the number and the phase of the volumes on which it is measured.
    """
    wanted, word = plain_name(name), plain_word(name)
    number_ = next((known for known in units if plain_name(known) == wanted), None)
    phase = None
    if number_ is None and of_phases and word in of_phases and of_phases[word][0] in units:
        number_, phase = of_phases[word]
    if number_ is None and word in FRACTIONS:
        return Match(column, name, unit, None, "it is of two volumes of a patient; see the ejection fraction")
    if number_ is None:
        return Match(column, name, unit, None, "no number of this name is measured"
                     + ("" if any(key.endswith("_volume") for key in units) else ", and there are no label maps"))
    if unit and not same_unit(unit, units[number_]):
        return Match(column, name, unit, None, f"it is in {unit}, what is measured in {units[number_]}")
    return Match(column, name, units[number_], number_, phase=phase)


def measured_by(row: Mapping[str, Any]) -> str:
    """The number that an attribute is held against, with the phase of the volumes."""
    return row["measured_by"] + (f" at {row['phase']}" if "phase" in row else "")


def plain_name(name: str) -> str:
    """A name in small letters, its words joined by _."""
    return "_".join(name.casefold().replace("-", " ").replace("_", " ").split())


def same_unit(one: str, other: str) -> bool:
    """Whether two units are one."""
    a, b = one.strip().casefold(), other.strip().casefold()
    return a == b or any({a, b} <= units for units in SAME_UNITS)


def of_one(found: Followed, column: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Asked, measured [n] and patients of the volumes that have both."""
    asked, measured = found.asked[:, column], found.measured[:, column]
    there = np.isfinite(asked) & np.isfinite(measured)
    return asked[there], measured[there], [group for group, has in zip(found.groups, there, strict=True) if has]


def attribute_row(each: Match, found: dict[str, Followed], seed: int) -> dict[str, Any]:
    """What is said of one attribute."""
    row: dict[str, Any] = {"unit": each.unit, "measured_by": each.number}
    row |= {} if each.phase is None else {"phase": ("ED", "ES")[each.phase]}
    asked, measured, _ = of_one(found["generated"], each.column)
    if len(asked) < FEWEST:
        return row | missing(f"wanted {FEWEST} samples or more that were asked for by it and can be measured, there "
                             f"are {len(asked)}")
    chance = by_chance(asked, measured, seed)
    row |= {"available": True, "chance_r": finite(chance[0]), "chance_mae": finite(chance[1])}
    return row | {name: set_row(*of_one(found[name], each.column), seed) for name in BOTH}


def set_row(asked: np.ndarray, measured: np.ndarray, groups: Sequence[str], seed: int) -> dict[str, Any]:
    """Agreement of one set; null where too few volumes have the attribute."""
    keys = [f"{measure}{end}" for measure in MEASURES for end in ("", "_low", "_high")]
    if len(asked) < FEWEST:
        return {"num": len(asked)} | dict.fromkeys(keys)
    values = np.stack(agreement(asked, measured, groups, seed), axis=1).ravel()
    return {"num": len(asked)} | {key: finite(value) for key, value in zip(keys, values, strict=True)}


def interval(row: Mapping[str, Any], key: str) -> str:
    """A value with its interval."""
    return number(row[key]) + ("" if row[f"{key}_low"] is None else
                               f" ({number(row[f'{key}_low'])} to {number(row[f'{key}_high'])})")
