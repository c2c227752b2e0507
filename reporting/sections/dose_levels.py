"""What is recovered of every level of activity in PET scans: bias and contrast."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from edm3d.metrics.bootstrap import bootstrap
from edm3d.metrics.pet import bias, contrast_recovery
from edm3d.reporting import dose_charts
from edm3d.reporting.enhancement import EnhancementContext, ScanScores
from edm3d.reporting.html import html_grid, html_table
from edm3d.reporting.section import Section, missing
from edm3d.reporting.sections.dose_methods import with_ends
from edm3d.reporting.tables import finite, number

NUMBERS = {"bias": "bias [%]", "contrast": "contrast recovery"}


class DoseLevels(Section):
    """Every level that any phantom has.

    levels.available, reason          without phantoms there are none
    levels.background                 activity of the background of contrast recovery
    levels.rows.[{activity, pixels, share, scans, METHOD.{bias, contrast}.{value, low, high}}]    bias as a share;
                                      low to high: 95 % interval over slices; null for none
    """

    words = {
        "level": "Pixels of one activity of the phantoms or, where these have more than 16, of a range of them.",
        "bias": "Mean of the image over all pixels of a level, less that of the phantom, over that of the phantom.",
        "contrast recovery": "(I / I_b - 1) / (T / T_b - 1) of mean activities over all pixels of a level, in the "
                             "image I and the phantom T, with b as background the level of the most pixels in uniform "
                             "regions: the contrast recovery coefficient of NEMA NU 2. 1: all of the contrast is "
                             "there. Levels near the background have little contrast, and wide intervals.",
    }

    def compute(self, found: ScanScores, context: EnhancementContext) -> dict[str, Any]:
        seen = np.flatnonzero(found.count.sum(0))
        if not len(seen):
            return {"levels": missing("the samples hold no phantoms")}
        background = background_of(found)
        values, ends = measured(found, background), None
        if len({*context.groups}) > 1:
            ends = bootstrap(lambda weights: flat(measured(found, background, weights)), context.groups, context.seed)
        shape, rows = values["bias"][0].shape, []
        low, high = (np.full((2, *shape), np.nan) if ends is None else end.reshape(2, *shape)
                     for end in (ends and ends.low, ends and ends.high))
        count, activity = found.count.sum(0), activities(found)
        for level in seen:
            cells = {method: {key: {"value": finite(values[key][0, place, level]),
                                    "low": finite(low[k, place, level]), "high": finite(high[k, place, level])}
                              for k, key in enumerate(NUMBERS)} for place, method in enumerate(context.methods)}
            rows.append({"activity": float(activity[level]), "pixels": int(count[level]),
                         "share": float(count[level] / count.sum()), "scans": int((found.count[:, level] > 0).sum()),
                         **cells})
        return {"levels": {"available": True, "background": float(activity[background]), "rows": rows}}

    def figures(self, found: ScanScores, context: EnhancementContext, report: dict) -> dict[str, Figure]:
        if not report["levels"]["available"]:
            return {}
        rows, titles = report["levels"]["rows"], {name: context.title(name) for name in context.methods}
        activity = np.array([row["activity"] for row in rows])
        return {f"levels_{key}": dose_charts.levels_chart(
            activity, {name: np.array([np.nan if (value := row[name][key]["value"]) is None else value * times
                                       for row in rows]) for name in context.methods}, titles, title, context.unit,
            right) for (key, title), times, right in zip(NUMBERS.items(), (100, 1), (0, 1), strict=True)}

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        levels = report["levels"]
        body = "<h2>Levels of activity</h2>"
        if not levels["available"]:
            return f"{body}<p class=missing>{levels['reason']}</p>"
        body += html_grid([f"levels_{key}" for key in NUMBERS], figures)
        names = {name: row["title"] for name, row in report["methods"].items() if row["available"]}
        for key, title in NUMBERS.items():
            head = [dose_charts.activity_in(report["samples"]["unit"]), "pixels [%]", *names.values()]
            rows = [[f"{row['activity']:.3g}", number(100 * row["share"], 1),
                     *(with_ends(row[name][key], 1 if key == "bias" else 2, 100 if key == "bias" else 1)
                       for name in names)] for row in levels["rows"]]
            body += f"<h2>{title[0].upper() + title[1:]} by level</h2>{html_table(head, rows)}"
        return body + f"<p class=note>Background of contrast recovery: activity {levels['background']:.3g}.</p>"


def activities(found: ScanScores) -> np.ndarray:
    """The mean activity [L] of every level, NaN for those of no pixel."""
    count = found.count.sum(0)
    return np.divide(found.truth.sum(0), count, out=np.full(len(count), np.nan), where=count > 0)


def background_of(found: ScanScores) -> int:
    """The level with the most pixels in uniform regions, as a background should be, else that of the most pixels."""
    uniform = found.uniform.sum(0)
    return int((uniform if uniform.any() else found.count.sum(0)).argmax())


def measured(found: ScanScores, background: int, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Bias and contrast recovery [R,methods,L] over all pixels of scans by weight [R,N]; R = 1 without."""
    weights = np.ones((1, len(found.count))) if weights is None else np.asarray(weights, np.float64)
    count, truth = (weights @ values for values in (found.count, found.truth))
    image = np.einsum("rn,nml->rml", weights, found.image)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_truth, mean_image = (truth / count)[:, None], image / count[:, None]
    return {"bias": bias(np.broadcast_to(truth[:, None], image.shape), image),
            "contrast": contrast_recovery(mean_truth, mean_image, background)}


def flat(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """All of them side by side [R,S]."""
    return np.concatenate([value.reshape(len(value), -1) for value in values.values()], axis=1)
