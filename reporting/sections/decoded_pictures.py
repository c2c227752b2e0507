"""Pictures of volumes before and after a first stage."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from edm3d.reporting.animations import html_animation, in_report, said_of
from edm3d.reporting.cases import DecodedCase, Layout
from edm3d.reporting.first_stage import RoundTrip
from edm3d.reporting.html import html_strips
from edm3d.reporting.montages import windows_of
from edm3d.reporting.section import DECODED, Section
from edm3d.reporting.sections.fidelity import psnr
from edm3d.reporting.strips import pictures_of, strips

PICTURES, WORST = 6, 3  # volumes shown
CONTRAST = 0.25  # share of the intensities shown that is white in pictures of differences


class DecodedPictures(Section):
    """The first volumes and those of the lowest PSNR, with what differs; where it is wanted a GIF of the first, too.

    worst.[{id, psnr_db}]
    animation.available                                             where one is wanted
    """

    sets = DECODED

    def measure(self, item: DecodedCase, context: RoundTrip) -> tuple[str, float]:
        inside = item.inside
        return item.id, psnr(inside.decoded.image, inside.real.image, context.layout.data_range)

    def gather(self, rows: dict[str, list], context: RoundTrip) -> dict[int, tuple[str, float]]:
        """The worst volumes by their number."""
        return dict(sorted(enumerate(rows["decoded"]), key=lambda item: item[1][1])[:WORST])

    def compute(self, found: dict[int, tuple[str, float]], context: RoundTrip) -> dict[str, Any]:
        return {"worst": [{"id": name, "psnr_db": value} for name, value in found.values()],
                **said_of(context)}

    def animations(self, found: dict[int, tuple[str, float]], context: RoundTrip, report: dict) -> dict[str, bytes]:
        first = context.first["decoded"]
        return in_report(context, [("Real", pictures_of([item.real for item in first])),
                                   ("Decoded from its latents", pictures_of([item.decoded for item in first]))])

    def figures(self, found: dict[int, tuple[str, float]], context: RoundTrip, report: dict) -> dict[str, Figure]:
        layout, first, worst = context.layout, context.first["decoded"][:PICTURES], list(context.decoded(list(found)))
        captions = [f"{name}\n{value:.2f} dB" for name, value in found.values()]
        return with_differences("pictures", first, layout, ()) | with_differences("worst", worst, layout, captions)

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        body = ("<h2>Pictures</h2><p class=note>The first cases, not a choice. Slices through the middle of what is "
                "labelled in the real volume. Black is the minimum and white the 99.8 % point of the real images "
                f"shown; in differences grey is none, and black and white are {CONTRAST:.0%} of that range.</p>")
        body += html_strips("pictures", figures) + html_animation(report, figures)
        worst = ", ".join(f"{case['id']} {case['psnr_db']:.2f} dB" for case in report["worst"])
        body += f"<h2>Worst cases</h2><p class=note>Those of the lowest PSNR: {escape(worst)}.</p>"
        return body + html_strips("worst", figures)


def with_differences(name: str, items: Sequence[DecodedCase], layout: Layout, captions: Sequence[str]
                     ) -> dict[str, Figure]:
    """Real, decoded and their difference, where grey is none; a column per volume."""
    real, decoded = pictures_of([item.real for item in items]), pictures_of([item.decoded for item in items])
    low, high = windows_of([("", real)], len(layout.spacing), layout.channels).T
    high = np.where(high > low, high, low + 1)
    middle = ((low + high) / 2).astype(np.float32).reshape(-1, *[1] * len(layout.spacing))
    off = [(middle + 0.5 / CONTRAST * (b.astype(np.float32) - a), None)
           for (a, _), (b, _) in zip(real, decoded, strict=True)]
    blocks = [("Real", real), ("Decoded from its latents", decoded), ("Decoded less real", off)]
    return strips(name, blocks, layout, windows=np.stack([low, high], axis=1), captions=captions, aligned=True)
