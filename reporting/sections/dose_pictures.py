"""Pictures of PET scans: those whose posterior mean is nearest to the truth, in the middle, and farthest."""

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from edm3d.reporting import dose_charts
from edm3d.reporting.enhancement import AGAINST, DRAW, FILTERED, HIGH, LOW, MEAN, TITLES, EnhancementContext, ScanScores
from edm3d.reporting.html import html_figure
from edm3d.reporting.scores import chosen
from edm3d.reporting.section import Section

HEADS = {"best": "Best", "median": "Median", "worst": "Worst"}
SHOWN = ("phantom", HIGH, LOW, FILTERED, MEAN, DRAW)
WHITE = 99.8  # percentile of the activities beyond which all is as dark


class DosePictures(Section):
    """One scan of each.

    shown.{best, median, worst}.{scan, value}     value: relative L2 error of the posterior mean
    """

    def compute(self, found: ScanScores, context: EnhancementContext) -> dict[str, Any]:
        errors = errors_of(found, context)
        return {"shown": {name: {"scan": context.names[index], "value": float(errors[index])}
                          for name, index in shown(errors).items()}}

    def figures(self, found: ScanScores, context: EnhancementContext, report: dict) -> dict[str, Figure]:
        errors = errors_of(found, context)
        scans = {name: {key: middle(image) for key, image in context.images(index).items()}
                 for name, index in shown(errors).items()}
        if not scans:
            return {}
        top = max(float(np.percentile(images[context.against if context.against != HIGH else LOW], WHITE))
                  for images in scans.values()) * 1.1
        faults = {name: images[MEAN] - images[context.against] for name, images in scans.items()}
        most = max(float(np.percentile(np.abs(fault), WHITE)) for fault in faults.values()) or 1.0
        drawn = {}
        for name, index in shown(errors).items():
            images = scans[name]
            parts = [(TITLES.get(key, key), images[key]) for key in SHOWN if key in images]
            below = [("posterior mean - " + ("phantom" if context.against == "phantom" else "high dose"), faults[name])]
            below = [*([("std of the draws", images["std"])] if "std" in images else ()), *below]
            drawn[f"scan_{name}"] = dose_charts.scan_picture(
                parts, below, top, most, context.unit,
                f"{HEADS[name]}: {context.names[index]}, error {errors[index]:.3f}")
        return drawn

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        against = next(iter(report["reduction"]))
        said = (f"By the relative L2 error of the posterior mean to {AGAINST[against]}. All images are in one scale of "
                "activity, and all errors and standard deviations in another; of stacks the middle slice.")
        pictures = "".join(html_figure(f"scan_{name}", figures) for name in HEADS)
        return f"<h2>Scans</h2><p class=note>{escape(said)}</p><div class=\"charts\">{pictures}</div>"


def errors_of(found: ScanScores, context: EnhancementContext) -> np.ndarray:
    """Relative L2 errors [N] of the posterior mean."""
    return found.errors[context.against][:, context.methods.index(MEAN), 0]


def shown(errors: np.ndarray) -> dict[str, int]:
    """Numbers of the best, the median and the worst scan."""
    found = {name: cases[0] for name, cases in chosen(-errors).items()}
    return {name: found[name] for name in HEADS if name in found}


def middle(image: np.ndarray) -> np.ndarray:
    """A slice [H,W], of a stack the one in the middle."""
    return image if image.ndim == 2 else image[len(image) // 2]
