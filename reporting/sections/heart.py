"""The left ventricle's wall: wall_thickness, and whether it encloses the cavity, cavity_enclosed."""

from edm3d.metrics import clinical
from edm3d.reporting.cases import Case, Layout
from edm3d.reporting.sections.scalars import Numbers

HEART = ("cavity", "myocardium", "atrium")


class HeartWall(Numbers):
    """What can be asked where there are all classes of the heart."""

    words = {
        "wall thickness": "Estimated from the label map, in mm, by one estimator for all sets (metrics/clinical.py).",
        "cavity_enclosed": "The cavity is one component and, mitral plane aside, touches nothing but myocardium "
                           "(metrics/clinical.py). Interval: Wilson, 95 %.",
    }
    titles = {"cavity_enclosed": "cavity is one piece, enclosed by myocardium"}

    def units(self, layout: Layout) -> dict[str, str | None]:
        return {"wall_thickness": "mm", "cavity_enclosed": None} if set(HEART) <= set(layout.label_classes) else {}

    def measure(self, case: Case, layout: Layout) -> dict[str, float | bool]:
        labels = {name: layout.label_classes.index(name) for name in HEART}
        return {"wall_thickness": float(clinical.wall_thickness(case.label, layout.spacing, **labels)),
                "cavity_enclosed": bool(clinical.cavity_enclosed(case.label, **labels))}
