"""Pieces and Euler characteristic of the labelled structures: CLASS_components, CLASS_euler."""

import numpy as np

from edm3d.metrics.topology import components, euler_characteristic
from edm3d.reporting.boxes import class_masks
from edm3d.reporting.cases import Case, Layout
from edm3d.reporting.sections.scalars import Numbers


class Topology(Numbers):
    """Of every class but the background, voxels being neighbours by faces (edges in 2D)."""

    words = {
        "components": "Pieces of the class; voxels that share a face (an edge in 2D) are of one. 0: there are none.",
        "euler": "Euler characteristic of the class, counted exactly: pieces less tunnels and, in 3D, plus closed "
                 "hollows. 1 of a solid piece, 0 of a ring, 2 of a hollow shell.",
    }

    def units(self, layout: Layout) -> dict[str, str | None]:
        return {f"{name}_{key}": "" for name in layout.label_classes[1:] for key in ("components", "euler")}

    def measure(self, case: Case, layout: Layout) -> dict[str, float | bool]:
        found = [value for mask, _ in class_masks(case.label, len(layout.label_classes))
                 for value in ((components(mask), euler_characteristic(mask)) if np.size(mask) else (0, 0))]
        return dict(zip(self.units(layout), map(float, found), strict=True))
