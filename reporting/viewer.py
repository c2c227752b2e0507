"""The viewer of the page: volumes packed into it, and the controls that viewer.js works."""

import base64
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np

from edm3d.formats.geometry import resample
from edm3d.formats.png import COLOURS
from edm3d.reporting.cases import Case, Layout
from edm3d.reporting.montages import windows_of
from edm3d.reporting.overlays import colour_of
from edm3d.reporting.slices import Hanging, centre_of, hanging, known_affine, plane_names
from edm3d.reporting.strips import pictures_of
from edm3d.utils.names import one_line

MOST = {2: 512, 3: 64}  # voxels per axis, by the number of axes
BUDGET = 200_000  # letters of the page that a volume may take in the mean: 2 MB for ten
LEVELS = (256, 64)  # greys, fewer before the grid is made coarser
COARSER, COARSEST = 7 / 8, 8
OPACITY = 0.35
# Of the patient.
SIDES = {"R": "right", "L": "left", "A": "anterior", "P": "posterior", "S": "superior", "I": "inferior"}
OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))


class Packed(NamedTuple):
    """Volumes as the page holds them: grid [*s], number of greys, and of each the gzip bytes in base64."""

    shape: tuple[int, ...]
    levels: int
    volumes: list[str]


def viewer_data(sets: Mapping[str, Sequence[Case]], layout: Layout) -> dict[str, Any]:
    """What viewer.js reads of sets of volumes of one grid, of two or three axes; plain data.

    shape: of the packed grid; full_shape: of the volumes; planes: how they hang, after the axes of the array; start:
    voxel of the first cut; windows: low and high of every channel; bytes of a volume: channels, then its label map.
    """
    cases = [(name, case) for name, found in sets.items() for case in found]
    first = cases[0][1]
    full, colour = first.image.shape[1:], tuple(layout.channels) == COLOURS
    packed = pack([case for _, case in cases], layout)
    centre = centre_of(full, first.label)
    windows = windows_of([(name, pictures_of(found)) for name, found in sets.items()], len(full), layout.channels)
    return {"shape": packed.shape, "full_shape": full, "levels": packed.levels, "colour": colour,
            "extent": [n * step for n, step in zip(full, layout.spacing, strict=True)],
            "start": [i * new // old for i, new, old in zip(centre, packed.shape, full, strict=True)],
            "channels": [one_line(name) for name in layout.channels], "lo": layout.lo, "hi": layout.hi,
            "unit": one_line(layout.unit), "windows": [list(opened(*pair, layout)) for pair in windows.tolist()],
            "classes": [[one_line(name), colour_of(k) if k else "#000000"]
                        for k, name in enumerate(layout.label_classes)],
            "planes": list(planes(layout)),
            "volumes": [{"set": name, "name": named(case), "label": has_label(case, layout), "data": data}
                        for (name, case), data in zip(cases, packed.volumes, strict=True)]}


def named(case: Case) -> str:
    """Id of a volume, with its class if it is of one."""
    return one_line(case.id) + (f" ({one_line(case.class_name)})" if case.class_name else "")


def has_label(case: Case, layout: Layout) -> bool:
    return case.label is not None and bool(layout.label_classes)


def opened(low: float, high: float, layout: Layout) -> tuple[float, float]:
    """A window that is not empty, within the range of intensities."""
    low, high = (float(np.clip(value, layout.lo, layout.hi)) for value in (low, high))
    return (low, high) if high > low else (layout.lo, layout.hi)


def planes(layout: Layout) -> Iterator[dict[str, Any]]:
    """Name, axes and directions of each plane, as the montages have them."""
    ndim, affine = len(layout.spacing), known_affine(layout.affine)
    names = [name for name, _ in plane_names(ndim, layout.affine)] or [""]
    for name, normal in zip(names, reversed(range(ndim)) if ndim == 3 else [None], strict=True):
        hung = hanging(normal, affine)
        yield {"name": name, "normal": normal, "shows": sides(hung, affine), **hung._asdict()}


def sides(hung: Hanging, affine: np.ndarray | None) -> str:
    """Which side of the patient is at the top and on the left of a plane; '' where it is not known."""
    if affine is None:
        return ""
    codes = [nibabel.aff2axcodes(affine)[axis] for axis in (hung.down, hung.across)]
    top, left = (SIDES[code if from_end else OPPOSITE[code]]
                 for code, from_end in zip(codes, (hung.from_end_down, hung.from_end_across), strict=True))
    return f"{top} up, {left} on the left"


# ---- packing ----


def pack(cases: Sequence[Case], layout: Layout) -> Packed:
    """Volumes on a grid of at most MOST voxels per axis, with fewer greys and then on coarser grids until they are
    within BUDGET.
    """
    full = cases[0].image.shape[1:]
    most = MOST[len(full)]
    while True:
        shape = tuple(min(n, most) for n in full)
        for levels in LEVELS:
            volumes = [packed(case, shape, levels, layout) for case in cases]
            if sum(map(len, volumes)) <= BUDGET * len(cases) or max(shape) <= COARSEST:
                return Packed(shape, levels, volumes)
        most = int(max(shape) * COARSER)


def packed(case: Case, shape: tuple[int, ...], levels: int, layout: Layout) -> str:
    """A volume in base64: gzip bytes of its channels uint8 [C,*s], lo as 0 and hi as 255, and of its label map [*s]."""
    image = shrunk(np.nan_to_num(case.image.astype(np.float32), nan=layout.lo), shape)
    share = np.clip((image - layout.lo) / max(layout.data_range, 1e-12), 0, 1)
    grey = np.rint(np.rint(share * (levels - 1)) * (255 / (levels - 1))).astype(np.uint8)
    label = b"" if not has_label(case, layout) else nearest(case.label, shape).astype(np.uint8).tobytes()
    return base64.b64encode(gzip.compress(grey.tobytes() + label, 9, mtime=0)).decode()


def shrunk(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Channels [C,*S] on a coarser grid [C,*s] of the same extent: blurred, then interpolated linearly."""
    if image.shape[1:] == shape:
        return image
    flat = 3 - len(shape)
    steps = np.array([*(old / new for old, new in zip(image.shape[1:], shape, strict=True)), *[1] * flat])
    onto = np.diag([*steps, 1.0])
    onto[:3, 3] = (steps - 1) / 2
    deep = image.reshape(*image.shape, *[1] * flat)
    return resample(deep, np.eye(4), (*shape, *[1] * flat), onto, order=1, antialias=True).reshape(-1, *shape)


def nearest(label: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A label map [*S] on a coarser grid [*s]: of each new voxel what lies at its middle."""
    return label[np.ix_(*(((np.arange(new) + 0.5) * old / new).astype(int)
                          for old, new in zip(label.shape, shape, strict=True)))]


# ---- the page ----


def viewer_note(data: Mapping[str, Any]) -> str:
    """How the volumes are packed, in words."""
    size, full = (" x ".join(map(str, data[key])) for key in ("shape", "full_shape"))
    what = f"shrunk from {full} to {size} for this page" if size != full else f"{full}, as they are"
    greys = f"{data['levels']} greys between {data['lo']:g} and {data['hi']:g} {data['unit']}".rstrip(" .")
    return f"Voxels: {what}; label maps: the class at the middle of each; {greys}."


def html_viewer(data: Mapping[str, Any]) -> str:
    """The viewer with its volumes; the page needs nothing else."""
    text = json.dumps(data).replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    style, script = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("viewer.css", "viewer.js"))
    sets = list(dict.fromkeys(volume["set"] for volume in data["volumes"]))
    panes = min(2, len(data["volumes"]))
    chosen = [next(i for i, volume in enumerate(data["volumes"]) if volume["set"] == sets[pane]) if pane < len(sets)
              else pane for pane in range(panes)]
    controls = "".join(html_choice(pane, chosen[pane], data["volumes"]) for pane in range(panes)) + html_controls(data)
    figures = "".join(html_plane(number, plane, panes, data) for number, plane in enumerate(data["planes"]))
    return (f'<style>\n{style}</style><div class="viewer" id="viewer"><div class="controls">{controls}</div>'
            f'<div class="planes">{figures}</div>{html_legend(data)}<noscript>The viewer needs JavaScript.</noscript>'
            f'</div>\n<script type="application/json" id="viewer-data">{text}</script>\n<script>\n{script}</script>')


def html_choice(pane: int, chosen: int, volumes: Sequence[Mapping[str, Any]]) -> str:
    """Which volume a pane shows."""
    options = "".join(f'<option value="{i}"{" selected" if i == chosen else ""}>{escape(volume["set"])}: '
                      f'{escape(volume["name"])}</option>' for i, volume in enumerate(volumes))
    return (f'<div><label>Volume {"AB"[pane]} <select data-pane="{pane}" autocomplete="off">{options}</select></label>'
            f'<output data-told="{pane}">unpacking</output></div>')


def html_controls(data: Mapping[str, Any]) -> str:
    """Channel, window and label maps."""
    lo, hi = data["lo"], data["hi"]
    parts = []
    if len(data["channels"]) > 1 and not data["colour"]:
        options = "".join(f'<option value="{i}">{escape(name)}</option>' for i, name in enumerate(data["channels"]))
        parts.append(f'<label>Channel <select data-control="channel" autocomplete="off">{options}</select></label>')
    step = (hi - lo) / 510  # half a grey
    parts += [html_range("Level", "level", lo, hi, step), html_range("Width", "width", 2 * step, hi - lo, step)]
    parts.append('<div><button type="button" data-control="reset">Reset the window</button></div>')
    if any(volume["label"] for volume in data["volumes"]):
        parts += ['<label><input type="checkbox" data-control="labels" checked autocomplete="off"> Label maps</label>',
                  '<label>Opacity of label maps<input type="range" data-control="opacity" min="0" max="1" step="0.05" '
                  f'value="{OPACITY}" autocomplete="off"></label>']
    return "".join(parts)


def html_range(title: str, name: str, low: float, high: float, step: float) -> str:
    return (f'<label>{title} <output data-shows="{name}"></output><input type="range" data-control="{name}" '
            f'min="{low!r}" max="{high!r}" step="{step!r}" autocomplete="off"></label>')


def html_plane(number: int, plane: Mapping[str, Any], panes: int, data: Mapping[str, Any]) -> str:
    """A plane of the volumes of all panes, with the slider of its slices."""
    (height, width), (tall, wide) = ([data[key][plane[axis]] for axis in ("down", "across")]
                                     for key in ("shape", "extent"))
    name, shows = escape(plane["name"] or "image"), f" ({plane['shows']})" if plane["shows"] else ""
    lines = "" if plane["normal"] is None else '<i class="down"></i><i class="across"></i>'
    boxes = "".join(f'<div class="pane"><canvas width="{width}" height="{height}" role="img" aria-label="{name}, '
                    f'volume {letter}" style="aspect-ratio: {wide:g} / {tall:g}"></canvas>{lines}<b>{letter}</b></div>'
                    for letter in "AB"[:panes])
    slider = shows.strip() if plane["normal"] is None else \
        (f'<label>{name}{shows} <output></output><input type="range" min="0" '
         f'max="{data["shape"][plane["normal"]] - 1}" step="1" autocomplete="off"></label>')
    return f'<figure data-plane="{number}"><div class="panes">{boxes}</div><figcaption>{slider}</figcaption></figure>'


def html_legend(data: Mapping[str, Any]) -> str:
    """The classes, each of which can be hidden."""
    if not any(volume["label"] for volume in data["volumes"]):
        return ""
    items = "".join(f'<li><label><input type="checkbox" data-class="{k}" checked autocomplete="off"><span '
                    f'style="background: {colour}"></span>{escape(name)}</label></li>'
                    for k, (name, colour) in enumerate(data["classes"]) if k)
    return f'<ul class="legend" aria-label="Classes of the label maps">{items}</ul>'
