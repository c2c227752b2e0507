"""Slices of padding at the ends of stacks: which are left out of what is measured on images, and who has how many."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edm3d.formats.padding import FLAT, held_slices
from edm3d.reporting.cases import Case, DecodedCase
from edm3d.reporting.html import html_table
from edm3d.reporting.section import COMPARED, DECODED, NOISE, Context, Section
from edm3d.reporting.tables import number


class PaddingSlices(Section):
    """Slices of padding of the volumes of each set, found by one rule; nothing where the real file records none.

    padding.{left_out, slices, kept, of}        whether any are, of so many; kept [first, past last] of the first axis
    padding.recorded.{volumes, of, slices}      in the boxes of the real file
    padding.SET.{volumes, of, slices, most}     found: volumes with any, how many slices in all, and of one at most
    """

    def __init__(self, sets: Sequence[str]):
        self.sets = sets

    def measure(self, item: Case | DecodedCase, context: Context) -> int:
        if context.padding is None:
            return 0
        image = item.decoded.image if isinstance(item, DecodedCase) else item.image
        first, last = held_slices(image, context.layout.data_range)
        return image.shape[1] - (last - first)

    def compute(self, found: dict[str, list], context: Context) -> dict[str, Any]:
        if context.padding is None:
            return {}
        padding, kept = context.padding, context.padding.kept or (0, context.padding.depth)
        rows = {name: {"volumes": int(np.count_nonzero(counts)), "of": len(counts), "slices": int(sum(counts)),
                       "most": int(max(counts))} for name, counts in found.items()}
        return {"padding": {"left_out": padding.kept is not None, "slices": padding.depth - (kept[1] - kept[0]),
                            "kept": list(kept), "of": padding.depth,
                            "recorded": {"volumes": padding.volumes, "of": padding.num, "slices": padding.slices},
                            **rows}}

    def lines(self, report: dict) -> list[str]:
        return [f"Padding   {said(report['padding'])}"] if "padding" in report else []

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        if (part := report.get("padding")) is None:
            return ""
        named = [("recorded in the real file", part["recorded"])] + [
            (NOISE if name == "noise" else name, part[name]) for name in (*COMPARED, *DECODED) if name in part]
        rows = [[name, f"{row['volumes']} of {row['of']}", str(row["slices"]), number(row["slices"] / row["of"], 2),
                 str(row.get("most", ""))] for name, row in named]
        head = ["slices of padding", "volumes with any", "in all", "mean", "most"]
        return (f"<h2>Slices of padding</h2><p>{said(part)}</p>" + html_table(head, rows)
                + f"<p class=note>Found by one rule for all: slices at the ends of the first axis whose standard "
                  f"deviation is at most {FLAT:g} of the intensity range. Label maps, pictures and the search for "
                  "copies are of whole stacks.</p>")


def said(part: Mapping[str, Any]) -> str:
    """What was left out, in a sentence."""
    recorded = part["recorded"]
    padded = f"{recorded['volumes']} of {recorded['of']} stacks of the real file have slices of padding"
    if not part["left_out"]:
        return f"{padded}; they count in all that is measured (--keep-padding)"
    first, last = part["kept"]
    return (f"{padded}; {part['slices']} of {part['of']} slices, where any has some, are left out of what is measured "
            f"on the images of all volumes, real or not, and of features: slices {first} to {last - 1} are kept")
