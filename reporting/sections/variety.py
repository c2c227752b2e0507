"""How much the volumes of a set resemble each other."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from edm3d.metrics import image
from edm3d.reporting import charts
from edm3d.reporting.comparison import Comparison
from edm3d.reporting.html import html_grid, html_missing, html_table
from edm3d.reporting.section import Score, Section, missing
from edm3d.reporting.tables import number, plus_minus

VOLUMES, PAIRS = 64, 128
Pairs = dict[str, np.ndarray]  # MS-SSIM [P] by set


class Variety(Section):
    """MS-SSIM of random pairs of real and of generated volumes, the first of each set.

    ms_ssim.CHANNEL.{available, volumes, pairs, scales, real_mean, real_std, generated_mean, generated_std,
                     generated_max}
    """

    words = {"MS-SSIM": "Multi-scale structural similarity of random pairs of one set (3 scales, 2 for sides under 28; "
                        "windows of 7 voxels). Generated far above real: too little variety; 1 = copies."}
    sets = ()
    citations = {"MS-SSIM": "Wang Z, Simoncelli EP, Bovik AC. Multiscale structural similarity for image quality "
                            "assessment. Asilomar 2003"}

    def gather(self, rows: dict[str, list], context: Comparison) -> dict[str, tuple[dict, Pairs]]:
        layout, volumes = context.layout, {}
        for key, cases in (("real", context.real), ("generated", context.generated)):
            images = np.stack([cases.case(i).inside.image for i in range(min(VOLUMES, len(cases)))])
            volumes[key] = np.clip((images - layout.lo) / layout.data_range, 0, 1)
        return {name: ms_ssim_row(*(values[:, c:c + 1] for values in volumes.values()), context.seed)
                for c, name in enumerate(layout.channels)}

    def compute(self, found: dict[str, tuple[dict, Pairs]], context: Comparison) -> dict[str, Any]:
        return {"ms_ssim": {name: row for name, (row, _) in found.items()}}

    def figures(self, found: dict[str, tuple[dict, Pairs]], context: Comparison, report: dict) -> dict[str, Figure]:
        return {f"ms_ssim_{name}": charts.pairs_chart(pairs) for name, (_, pairs) in found.items() if pairs}

    def scores(self, report: dict) -> Mapping[str, Sequence[Score]]:
        return {"coverage": [Score(f"MS-SSIM of pairs, {channel}", row["generated_mean"], real=row["real_mean"])
                             for channel, row in report["ms_ssim"].items() if row["available"]]}

    def cited(self, report: dict) -> Mapping[str, str]:
        return self.citations if any(row["available"] for row in report["ms_ssim"].values()) else {}

    def rows(self, report: dict) -> list[tuple[str, ...]]:
        return [(f"MS-SSIM of pairs, {channel}", plus_minus(row, "real"), plus_minus(row, "generated"), "", "", "")
                for channel, row in report["ms_ssim"].items() if row["available"]]

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        body = "<h2>Variety</h2>"
        for channel, row in report["ms_ssim"].items():
            body += html_missing(f"MS-SSIM of {channel}", row)
            if row["available"]:
                cells = [channel, plus_minus(row, "real"), plus_minus(row, "generated"), number(row["generated_max"]),
                         str(row["pairs"])]
                head = ["MS-SSIM of pairs", "real", "generated", "largest, generated", "pairs"]
                body += html_table(head, [cells], main=2) + html_grid([f"ms_ssim_{channel}"], figures)
        return body


def ms_ssim_row(real: np.ndarray, generated: np.ndarray, seed: int = 0) -> tuple[dict, Pairs]:
    """MS-SSIM of random pairs within real and within generated volumes [N, 1, *S] in [0, 1]: a row, and the values."""
    if min(len(real), len(generated)) < 2:
        return missing("a set of fewer than two volumes has no pairs"), {}
    scales = int(np.clip(np.log2(min(real.shape[2:]) / 7) + 1, 1, 3))  # the coarsest must hold a window of 7 voxels
    try:
        values = {name: image.ms_ssim_pairs(volumes, num_pairs=PAIRS, data_range=1.0, seed=seed, scales=scales)
                  for name, volumes in (("real", real), ("generated", generated))}
    except ValueError as error:  # volumes too small for the window and the scales
        return missing(str(error)), {}
    row = {"available": True, "volumes": len(generated), "pairs": len(values["generated"]), "scales": scales}
    for name, sample in values.items():
        row |= {f"{name}_mean": float(sample.mean()), f"{name}_std": float(sample.std())}
    return row | {"generated_max": float(values["generated"].max())}, values
