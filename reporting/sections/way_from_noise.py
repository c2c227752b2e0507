"""What samplers went through from noise to image, as far as pictures of that lie beside the samples."""

from collections.abc import Mapping
from html import escape
from typing import Any

from edm3d.reporting.comparison import Comparison
from edm3d.reporting.html import html_figure, html_missing
from edm3d.reporting.section import Section, missing


class WayFromNoise(Section):
    """Pictures that generate.py wrote of the first samples.

    trajectories.{available, pictures}          pictures: names of those that are shown
    """

    words = {"from noise to image": "What a sampler goes through, a column for each noise level (sigma): below, its x "
             "and what the network takes the image to be; above, a volume under as much noise, and what the network "
             "takes that to be. What is noisy is scaled to the mean and spread of the volume."}
    sets = ()

    def compute(self, found: Any, context: Comparison) -> dict[str, Any]:
        return {"trajectories": {"available": True, "pictures": list(context.ways)} if context.ways else
                missing(context.missing.get("trajectories") or "none are given")}

    def embedded(self, found: Any, context: Comparison, report: dict) -> dict[str, bytes]:
        return {picture_name(name): data for name, data in context.ways.items()}

    def lines(self, report: dict) -> list[str]:
        part = report["trajectories"]
        return [] if part["available"] else [f"From noise to image: not available: {part['reason']}"]

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        part, title = report["trajectories"], "<h2>From noise to image</h2>"
        if not part["available"]:
            return title + html_missing("Pictures of the way from noise", part)
        shown = "".join(html_figure(picture_name(name), figures) for name in part["pictures"])
        return (f"{title}<p class=note>Samples drawn again, step by step: {escape(', '.join(part['pictures']))}. "
                "The numbers of every step lie beside the samples, in trajectories/*.csv.</p>"
                f'<div class="dark">{shown}</div>')


def picture_name(name: str) -> str:
    """Of the picture of a sample, in the page."""
    return f"from noise to {name}"
