"""Volumes of the labelled structures: CLASS_volume, and clinical names for the echo anatomy."""

from edm3d.metrics import clinical
from edm3d.reporting.cases import Case, Layout
from edm3d.reporting.hearts import volume_names
from edm3d.reporting.sections.scalars import Numbers


class Structures(Numbers):
    """The volume of every class but the background."""

    words = {"structure volume": "Voxels of the class times the voxel size (mL; in 2D the area)."}
    titles = {"lv_volume": "LV volume", "la_volume": "LA volume"}

    def units(self, layout: Layout) -> dict[str, str | None]:
        unit = "mL" if len(layout.spacing) == 3 else "cm2"
        return {name: unit for name in volume_names(layout.label_classes[1:])}

    def measure(self, case: Case, layout: Layout) -> dict[str, float | bool]:
        volumes = clinical.structure_volumes(case.label, layout.spacing, len(layout.label_classes))
        return {name: float(value) for name, value in zip(self.units(layout), volumes[1:], strict=True)}
