"""The viewer of volumes: three planes of the first ones, slice by slice."""

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from edm3d.reporting.cases import Case
from edm3d.reporting.html import html_missing
from edm3d.reporting.section import Context, Section, missing
from edm3d.reporting.viewer import html_viewer, viewer_data, viewer_note


class Viewer(Section):
    """The first volumes of every set, to be looked through in the page; shown: of a context, by set."""

    sets = ()

    def __init__(self, shown: Callable[[Context], Mapping[str, Sequence[Case]]]):
        self.shown = shown

    def embedded(self, found: Any, context: Context, report: dict) -> dict[str, bytes]:
        if len(context.layout.spacing) == 1:
            return {}
        return {"viewer": json.dumps(viewer_data(self.shown(context), context.layout)).encode()}

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        if "viewer" not in figures:
            return "<h2>Viewer</h2>" + html_missing("Viewer", missing("signals have no planes"))
        data = json.loads(figures["viewer"])
        return (f"<h2>Viewer</h2><p class=note>The first cases of each set, not a choice. {escape(viewer_note(data))} "
                "All planes show the voxel at the cross, which sliders (arrow keys work), clicks and drags move; the "
                f"window opens as in the pictures.</p>{html_viewer(data)}")


def real_and_generated(context: Context) -> dict[str, list[Case]]:
    """Real and generated volumes."""
    return {name: context.first[name] for name in ("real", "generated")}


def real_and_decoded(context: Context) -> dict[str, list[Case]]:
    """Volumes before and after a first stage."""
    items = context.first["decoded"]
    return {"real": [item.real for item in items], "decoded": [item.decoded for item in items]}
