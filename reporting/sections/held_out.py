"""How held-out volumes survive the first stage that decoded the samples."""

from collections.abc import Mapping
from html import escape
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from edm3d.reporting.cases import DecodedCase
from edm3d.reporting.comparison import Comparison
from edm3d.reporting.html import html_missing, html_strips, html_table
from edm3d.reporting.section import DECODED, Section, missing
from edm3d.reporting.sections import fidelity
from edm3d.reporting.strips import pictures_of, strips


class HeldOutRow(NamedTuple):
    """What is kept of one volume: PSNR in dB, Dice [K], and see fidelity.speckle_psnr."""

    psnr: float
    dice: np.ndarray
    ceiling: float | str


class HeldOut(Section):
    """PSNR and Dice of decode(encode(x)); the report of a first stage says more.

    first_stage.{available, split, num, dice.CLASS, dice_min.CLASS, psnr_db, ceiling.{available, psnr_db, gap_db}}
    """

    words = fidelity.WORDS
    sets = DECODED

    def measure(self, item: DecodedCase, context: Comparison) -> HeldOutRow:
        layout, inside = context.layout, item.inside
        return HeldOutRow(fidelity.psnr(inside.decoded.image, inside.real.image, layout.data_range),
                          fidelity.case_dice(item, layout), fidelity.speckle_psnr(item.real, context))

    def compute(self, found: dict[str, list], context: Comparison) -> dict[str, Any]:
        if "decoded" not in found:
            return {"first_stage": missing(context.missing["decoded"])}
        psnrs, dice, ceilings = zip(*found["decoded"], strict=True)
        mean = float(np.mean(psnrs))
        return {"first_stage": {"available": True, "split": context.held_out, "num": len(psnrs), "psnr_db": mean,
                                "ceiling": fidelity.ceiling(ceilings, mean),
                                **fidelity.dice_measures(np.stack(dice), context.layout.label_classes)}}

    def figures(self, found: dict[str, list], context: Comparison, report: dict) -> dict[str, Figure]:
        items = context.first.get("decoded", [])
        return strips("first_stage", [("Held out", pictures_of([item.real for item in items])),
                                      ("Decoded from its latents", pictures_of([item.decoded for item in items]))],
                      context.layout)

    def facts(self, report: dict) -> list[tuple[str, str]]:
        part = report["first_stage"]
        return [(value, "least Dice of the first stage") for value in fidelity.least_dice(part)] \
            if part["available"] else []

    def lines(self, report: dict) -> list[str]:
        part = report["first_stage"]
        if not part["available"]:
            return [f"First stage: not available: {part['reason']}"]
        top = part["ceiling"]
        gap = (f", ceiling without speckle {top['psnr_db']:.2f} dB, gap {top['gap_db']:.2f} dB" if top["available"]
               else f", ceiling not available: {top['reason']}")
        dice = "".join(f"Dice {text}; " for text in fidelity.dice_text(part))
        return [f"First stage on {part['num']} volumes of split {part['split']!r}: {dice}PSNR {part['psnr_db']:.2f} dB"
                f"{gap}"]

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        part = report["first_stage"]
        if not part["available"]:
            return "<h2>First stage</h2>" + html_missing("First stage", part)
        top, rows = part["ceiling"], [["reconstruction", f"{part['psnr_db']:.2f}"]]
        if top["available"]:
            rows += [["image without speckle (ceiling)", f"{top['psnr_db']:.2f}"], ["gap", f"{top['gap_db']:.2f}"]]
        return (f"<h2>First stage</h2><p>Decoded again from their latents: {part['num']} volumes of split "
                f"{escape(repr(part['split']))}.</p>" + fidelity.dice_table(part)
                + html_table(["PSNR", "dB"], rows, main=1) + html_missing("Ceiling of the PSNR", top)
                + html_strips("first_stage", figures))
