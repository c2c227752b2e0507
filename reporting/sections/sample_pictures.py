"""Pictures of real and generated volumes."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from edm3d.reporting.animations import html_animation, in_report, said_of
from edm3d.reporting.comparison import Comparison
from edm3d.reporting.html import html_missing, html_strips
from edm3d.reporting.section import Section, missing
from edm3d.reporting.slices import Block
from edm3d.reporting.strips import pictures_of, strips


class SamplePictures(Section):
    """The first real volumes above the first generated ones; where it is wanted a GIF through their depth, too.

    animation.available                                             where one is wanted
    """

    sets = ()

    def compute(self, found: Any, context: Comparison) -> dict[str, Any]:
        return said_of(context)

    def figures(self, found: Any, context: Comparison, report: dict) -> dict[str, Figure]:
        return strips("samples", blocks_of(context), context.layout)

    def animations(self, found: Any, context: Comparison, report: dict) -> dict[str, bytes]:
        return in_report(context, blocks_of(context))

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        return ("<h2>Pictures</h2><p class=note>The first cases of each set, not a choice. Slices through the middle "
                "of what is labelled, interpolated for display. Black is the minimum and white the 99.8 % point of the "
                "real images shown, for all alike.</p>" + hidden(report) + html_strips("samples", figures)
                + html_animation(report, figures))


def blocks_of(context: Comparison) -> list[Block]:
    """What is shown, below titles."""
    return [(name.capitalize(), pictures_of(context.first[name])) for name in ("real", "generated")]


def hidden(report: dict) -> str:
    """That real volumes are not shown, where they are private."""
    private = report.get("private", {"shown": True})
    return "" if private["shown"] else html_missing("Pictures of real volumes", missing(
        "the data are private; --show-private shows them"))
