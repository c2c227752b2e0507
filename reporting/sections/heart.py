"""The left ventricle's wall: wall_thickness, whether it encloses the cavity, and in stacks of slices the heart's angle.

Hearts with an atrium are measured as solids, those in stacks slice by slice, as they are read.
"""

from edm3d.metrics import clinical
from edm3d.reporting.cases import Case, Layout
from edm3d.reporting.hearts import LEFT, MYOCARDIUM, RIGHT, class_called
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


class StackedHeart(Numbers):
    """What can be asked of short-axis stacks with left ventricle and myocardium, and of a right ventricle there."""

    words = {
        "wall thickness in stacks": "Mean over the slices in which a ring of myocardium closes around the cavity, in "
                                    "mm in the plane, by the areas of both (metrics/clinical.py).",
        "angle": "From the middle of the left ventricle to that of the right one, in the plane of the slices: 0 where "
                 "that lies to the left, 90 below (metrics/clinical.py).",
    }
    titles = {"angle": "angle of the right ventricle"}

    def units(self, layout: Layout) -> dict[str, str | None]:
        found = stacked(layout)
        if not found:
            return {}
        return {"wall_thickness": "mm"} | ({"angle": "deg"} if "right" in found else {})

    def measure(self, case: Case, layout: Layout) -> dict[str, float | bool]:
        found, spacing = stacked(layout), layout.spacing
        numbers = {"wall_thickness": clinical.stack_thickness(case.label, spacing, found["left"], found["myocardium"])}
        if "right" in found:
            numbers["angle"] = clinical.ventricle_angle(case.label, spacing, found["left"], found["right"])
        return numbers


def stacked(layout: Layout) -> dict[str, int]:
    """Values of the classes left, myocardium and, if there is one, right; {} for what is no stack with the first two.

    An atrium makes it a heart that is measured as a solid.
    """
    if clinical.slice_axis(layout.spacing) is None or set(HEART) <= set(layout.label_classes):
        return {}
    called = {"left": LEFT, "myocardium": MYOCARDIUM, "right": RIGHT}
    found = {key: value for key, names in called.items() if (value := class_called(layout, names)) is not None}
    return found if {"left", "myocardium"} <= set(found) else {}
