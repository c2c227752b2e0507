"""How rough the surfaces of the labelled structures are: CLASS_roughness."""

from edm3d.metrics.roughness import COARSE, FINE, roughness
from edm3d.reporting.boxes import class_masks
from edm3d.reporting.cases import Case, Layout
from edm3d.reporting.sections.scalars import Numbers

MARGIN = int(3 * COARSE + 0.5) + 1  # voxels around a class that its blurred mask reaches


class Surfaces(Numbers):
    """Of every class but the background."""

    words = {"roughness": f"Mean angle between the surface's normals at a blur of {FINE:g} voxel and at "
                          f"{COARSE:g} voxels: 0 for a plane, more for bumps of a few voxels, and for walls of less "
                          "than about 3 (metrics/roughness.py)."}

    def units(self, layout: Layout) -> dict[str, str | None]:
        return {f"{name}_roughness": "deg" for name in layout.label_classes[1:]}

    def measure(self, case: Case, layout: Layout) -> dict[str, float | bool]:
        found = [roughness(mask, layout.spacing) if mask.size else float("nan")
                 for mask, _ in class_masks(case.label, len(layout.label_classes), MARGIN)]
        return dict(zip(self.units(layout), found, strict=True))
