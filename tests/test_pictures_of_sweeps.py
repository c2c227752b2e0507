"""The sweep of an attribute in the report: slopes and ranks known by hand, for each seed, and its pictures."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from edm3d.formats.sample_settings import SweptAttribute
from edm3d.metrics.agreement import rank_correlation, slope
from edm3d.reporting.cases import Case, Layout
from edm3d.reporting.comparison import Comparison
from edm3d.reporting.reference import Cases
from edm3d.reporting.section import COMPARED, walk
from edm3d.reporting.sections import COMPARISON
from edm3d.reporting.sections.scalars import Numbers
from edm3d.reporting.sections.sweep import AttributeSweep
from tests.test_page import write_page

VALUES = [10.0, 20.0, 30.0, 40.0]


class Level(Numbers):
    """The mean of an image, NaN for an empty one."""

    def units(self, layout: Layout) -> dict[str, str | None]:
        return {"level": "HU", "is_odd": None}

    def measure(self, case: Case, layout: Layout) -> dict[str, float | bool]:
        return {"level": float(case.image.mean()) if case.image.any() else np.nan, "is_odd": False}


def swept(levels: dict[int, list[float]], name: str = "level", unit: str = "HU") -> Comparison:
    """A sweep of a seed's levels, each of a volume that is that bright."""
    cases = [Case(f"{seed}-{k}", np.full((1, 4, 4), level, np.float32), None)
             for seed, of in levels.items() for k, level in enumerate(of)]
    numbers = [seed * len(VALUES) + k for seed, of in levels.items() for k in range(len(of))]
    known = Cases("", len(cases), cases.__getitem__)
    layout = Layout(("ct",), (), (1.0, 1.0), 0.0, 100.0, "HU", attributes=((name, unit),))
    return Comparison(layout=layout, provenance={}, real=known, generated=known, seeds=numbers,
                      sweep=SweptAttribute(name, unit, VALUES, 0))


def gone_through(context: Comparison) -> tuple[AttributeSweep, dict, dict]:
    """The section, its report and its figures."""
    section = AttributeSweep((Level(),))
    sets = {name: list(context.generated) for name in COMPARED[:2]}
    walked = walk((section,), context, sets)
    found, = walked.found
    report = section.compute(found, walked.context)
    assert section.columns(found, walked.context, "real") == {}
    column = section.columns(found, walked.context, "generated")
    assert column in ({}, {"noise_seed": [str(n // len(VALUES)) for n in context.seeds]})
    return section, report, section.figures(found, walked.context, report)


def test_slope_and_rank_correlation_are_those_of_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=9), rng.normal(size=9)
    assert slope(a, b) == pytest.approx(stats.linregress(a, b).slope)
    assert rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert np.isnan(slope(np.ones(3), b[:3])) and np.isnan(rank_correlation(a[:3], np.ones(3)))


def test_every_seed_has_a_slope_and_ranks():
    """One follows at half the slope, one goes the other way, one has no volumes at two values."""
    section, report, figures = gone_through(swept({2: [6, 11, 16, 21], 5: [40, 30, 20, 10], 9: [1, 0, 0, 61]}))
    part = report["sweep"]
    assert part["seeds"] == [2, 5, 9] and part["values"] == VALUES and part["measured"]["by"] == "level"
    rows = part["measured"]["of_seed"]
    assert [row["slope"] for row in rows] == pytest.approx([0.5, -1, 2])
    assert [row["rho"] for row in rows] == pytest.approx([1, -1, 1])
    assert rows[2]["values"] == [1, None, None, 61]
    assert part["measured"]["slope"] == pytest.approx({"mean": 0.5, "lowest": -1, "highest": 2})
    assert set(figures) == {"sweep_1", "sweep_measured"}
    titles = [text.get_text() for text in figures["sweep_1"].texts]
    assert titles[:3] == ["Seed 2", "Seed 5", "Seed 9"] and "level\n40 HU" in titles
    assert section.lines(report) == ["Sweep of level [HU]: 3 seeds, 4 values; slope 0.500 (-1.000 to "
                                     "2.000), rho 0.333 (-1.000 to 1.000)"]


@pytest.mark.parametrize(("name", "unit", "said"), [("age", "HU", "no number of this name"), ("level", "mm", "in mm")])
def test_what_is_not_measured_is_shown_all_the_same(name, unit, said):
    section, report, figures = gone_through(swept({0: [1, 2, 3, 4], 1: [1, 2]}, name, unit))
    assert said in report["sweep"]["measured"]["reason"] and set(figures) == {"sweep_1"}
    assert next(text.get_text() for text in figures["sweep_1"].texts) == "Seed 0"
    assert said in section.page(report, {}) and said in section.lines(report)[0]


def test_samples_of_no_sweep_are_said_to_be_none(tmp_path: Path):
    _, report, figures = gone_through(swept({0: [1, 2, 3, 4]}).__class__(**{
        **vars(swept({0: [1, 2, 3, 4]})), "sweep": None}))
    assert not report["sweep"]["available"] and figures == {}
    assert any(isinstance(section, AttributeSweep) for section in COMPARISON)
    case = Case("a", np.random.default_rng(0).random((1, 8, 8), np.float32), None)
    page = write_page(tmp_path, Layout(("ct",), (), (1.0, 1.0), 0.0, 1.0, ""), {"real": [case], "generated": [case]},
                      (AttributeSweep((Level(),)),))
    assert "Sweep of an attribute: not available: the samples are no sweep" in page.read_text()
