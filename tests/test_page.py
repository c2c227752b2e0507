"""The page of a report in a real browser: nothing missing, nothing sticks out, and its viewer does what it says."""

import base64
import gzip
import json
import re
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest

from edm3d.formats.png import COLOURS
from edm3d.formats.prediction import Prediction
from edm3d.formats.sample_settings import SweptAttribute
from edm3d.inference.evaluate_downstream import evaluate_downstream
from edm3d.inference.evaluate_enhancement import EnhancementOptions, evaluate_enhancement
from edm3d.inference.evaluate_first_stage import FirstStageOptions, evaluate_first_stage
from edm3d.reporting import comparison, report, viewer
from edm3d.reporting.cases import Case, Layout
from edm3d.reporting.comparison import Comparison
from edm3d.reporting.html import html_contents
from edm3d.reporting.montages import montage, png_bytes
from edm3d.reporting.overlays import LABEL_COLOURS, colour_of
from edm3d.reporting.reference import Cases
from edm3d.reporting.section import missing, walk
from edm3d.reporting.sections import COMPARISON, NUMBERS
from edm3d.reporting.sections.asked_attributes import AttributesFollowed
from edm3d.reporting.sections.sample_pictures import SamplePictures
from edm3d.reporting.sections.sweep import AttributeSweep
from edm3d.reporting.sections.viewer import Viewer, real_and_generated
from edm3d.reporting.sections.way_from_noise import WayFromNoise
from tests import browser
from tests import test_evaluate_downstream as downstream
from tests import test_evaluate_enhancement as scans
from tests import test_evaluate_first_stage as stages
from tests.conftest import ROOT
from tests.test_evaluate import describe, write_phantoms

SHAPE, SPACING = (16, 14, 12), (1.0, 1.5, 2.0)
AFFINE = tuple(map(tuple, np.diag([*SPACING, 1.0]).tolist()))
HOSTILE = ("background", "</script><script>document.title='x'</script>", "<img src=x onerror=alert(1)>", '"quoted\'',
           "心臓\u202e", "a & b", "$x", "x" * 300)
DRIVE = """
(async () => {
  const root = document.getElementById("viewer"), one = (selector) => root.querySelector(selector);
  const pause = () => new Promise((done) => setTimeout(done, 20));
  const tell = (control, value, kind) => { control.value = value; control.dispatchEvent(new Event(kind || "input")); };
  const figures = [...root.querySelectorAll("[data-plane]")];
  const told = () => [...root.querySelectorAll("[data-told]")].map((x) => x.textContent);
  const read = (plane, pane) => {
    const canvas = figures[plane].querySelectorAll("canvas")[pane];
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
    copy.drawImage(canvas, 0, 0);
    const data = copy.getImageData(0, 0, canvas.width, canvas.height).data;
    return { shape: [canvas.height, canvas.width, 3], values: [...data].filter((_, i) => i % 4 < 3) };
  };
  for (let i = 0; i < 200 && told().some((text) => text === "unpacking"); i++) await pause();
  const found = { asFirst: read(0, 0), names: [...root.querySelectorAll("option")].map((x) => x.textContent),
    classes: [...root.querySelectorAll(".legend li")].map((x) => x.textContent), slices: {}, told: told(),
    focus: [...root.querySelectorAll("input, select, button")].every((x) => x.tabIndex === 0),
    ratio: figures.map((f) => f.querySelector("canvas").clientWidth / f.querySelector("canvas").clientHeight),
    small: Math.min(...figures.map((f) => f.querySelector("canvas").clientWidth)) };
  tell(one("[data-control=level]"), 0.5);
  tell(one("[data-control=width]"), 1);
  found.labelled = read(0, 0);
  if (one("[data-class='1']")) { one("[data-class='1']").click(); found.hidden = read(0, 0); }
  if (one("[data-control=labels]")) one("[data-control=labels]").click();
  figures.forEach((figure, plane) => {
    const slider = figure.querySelector("input");
    const at = (slice) => { tell(slider, slice); return read(plane, 0); };
    found.slices[plane] = slider ? [0, 3].map(at) : [read(plane, 0)];
  });
  tell(one("[data-control=width]"), 0.5);
  found.narrow = read(0, 0);
  one("[data-control=reset]").click();
  found.reset = read(0, 0);
  const canvas = figures[0].querySelector("canvas"), box = canvas.getBoundingClientRect();
  canvas.dispatchEvent(new PointerEvent("pointerdown", { clientX: box.left + 1, clientY: box.top + 1 }));
  found.pointed = figures.map((f) => f.querySelector("input") && Number(f.querySelector("input").value));
  const select = one("select[data-pane]");
  const before = told()[0];
  tell(select, select.options.length - 1, "change");
  for (let i = 0; i < 100 && told()[0] === before; i++) await pause();
  tell(one("[data-control=level]"), 0.5);
  tell(one("[data-control=width]"), 1);
  found.other = read(0, 0);
  return found;
})()
"""


def write_page(folder: Path, layout: Layout, sets: dict[str, list[Case]], sections=COMPARISON, **more: object) -> Path:
    """The page of a report of sets of volumes; more: fields of the comparison."""
    cases = {name: Cases(name, len(kept), kept.__getitem__) for name, kept in sets.items()}
    absent = {"decoded": "<i>gone</i>", "noise": "no network"}
    context = Comparison(layout=layout, provenance={}, seeds=range(len(sets["generated"])), missing=absent, **cases,
                         **more)
    about = {"title": "samples.h5", "date": "2030-01-01", "command": "evaluate.py " + "x" * 200, "versions": {},
             "definitions": {word: text for section in sections for word, text in section.words.items()},
             "real": {"path": "/long" * 30, "content_hash": "ab", "reference": "volumes", "num": len(sets["real"])},
             "generated": {"path": "samples.h5", "sha256": "cd", "num": len(sets["generated"]), "seeds": "0-3",
                           "snapshot": "old.pt", "snapshot_hash": "ef", "sampling": {"num_steps": 18},
                           "quality": missing("not asked for"),
                           "labels": {"available": True}}, "noise": missing("no network")}
    report.write_report(folder, sections, comparison.FRAME, walk(sections, context, sets), about)
    return folder / "report.html"


def known(count: int, start: int, shape=SHAPE, channels: int = 1, labels: bool = True) -> list[Case]:
    """Volumes of the 256 greys of the page in the range 0 to 1, with a box of class 1 and within it one of class 2."""
    rng = np.random.default_rng(start)
    label = np.zeros(shape, np.uint8)
    label[tuple(slice(2, n - 3) for n in shape)], label[tuple(slice(4, n - 5) for n in shape)] = 1, 2
    return [Case(f"volume-{start + i}", rng.integers(256, size=(channels, *shape)).astype(np.float32) / 255,
                 label if labels else None) for i in range(count)]


def picture(found: dict) -> np.ndarray:
    """Pixels [h,w,3] that were read of a canvas."""
    return np.reshape(found["values"], found["shape"])


def greys(case: Case, axis: int, index: int) -> np.ndarray:
    """The slice of a volume whose axes run to the right, the front and the head, as a viewer hangs it [h,w]."""
    return np.rint(np.take(case.image[0], index, axis) * 255).T[::-1, ::-1]


@pytest.fixture(scope="module")
def tab(tmp_path_factory) -> Iterator[browser.Tab]:
    """One browser for all."""
    with browser.opened(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture(scope="module")
def seen(tmp_path_factory, tab) -> tuple[dict[str, list[Case]], dict]:
    """The page of a whole report in a browser, and what its viewer draws."""
    layout = Layout(("echo",), ("background", "wall", "cavity"), SPACING, 0.0, 1.0, "a.u.", AFFINE)
    sets = {"real": known(4, 0), "generated": known(3, 10)}
    page = write_page(tmp_path_factory.mktemp("page"), layout, sets)
    return sets, browser.check_page(tab, page, DRIVE)


def test_nothing_is_missing_fails_or_sticks_out_and_all_controls_have_the_focus(seen, tab):
    assert all(drawn["focus"] and drawn["small"] > 100 for drawn in seen[1].values())
    assert tab.run("document.images.length") > 8


def test_sliders_follow_the_keys(seen, tab):
    tab.run("document.querySelector('[data-plane] input').focus()")
    place = "[...document.querySelectorAll('[data-plane] output')].map((x) => x.textContent)"
    before = tab.run(place)
    tab.press("ArrowRight", 39)
    assert tab.run(place) == ["5 of 12", *before[1:]] and before[0] == "4 of 12"


@pytest.mark.parametrize(("change", "said"), [
    ("document.querySelector('main').innerHTML += '<img src=\"data:image/png;base64,AAAA\">'", "broken"),
    ("document.querySelector('main').innerHTML += '<img width=\"9\" src=\"data:image/gif;base64,"
     "R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==\">'", "larger than they are"),
    ("setTimeout(() => nothing(), 0)", "nothing is not defined"), ("console.error('odd')", "odd"),
    ("document.querySelector('h1').style.width = '2000px'", "2000px"),
    ("document.querySelector('table').style.width = '1400px'", "1400px")])
def test_the_check_sees_what_is_wrong(seen, tab, tmp_path, change, said):
    page = tmp_path / "page.html"
    page.write_text(f"<main><h1>a</h1><table><tr><td>b</td></tr></table></main><script>{change}</script>")
    with pytest.raises(AssertionError, match=said):
        browser.check_page(tab, page)


@pytest.mark.parametrize("width", browser.WIDTHS)
def test_sliders_show_the_slices_that_they_say(seen, width):
    (case, *_), drawn = seen[0]["real"], seen[1][width]
    for plane, axis in enumerate((2, 1, 0)):  # axial, coronal, sagittal
        for index, found in zip((0, 3), drawn["slices"][str(plane)], strict=True):
            np.testing.assert_array_equal(picture(found), np.repeat(greys(case, axis, index)[..., None], 3, -1))
    assert drawn["ratio"] == pytest.approx([16 / 21, 16 / 24, 21 / 24], rel=0.02)  # mm
    assert drawn["pointed"] == [3, 13, 15]  # a click on the corner: far front and right, in the slice that it is on


def test_label_maps_tint_and_can_be_hidden_one_by_one(seen):
    (case, *_), drawn = seen[0]["real"], seen[1][1280]
    middle = round(float(np.nonzero(case.label)[2].mean()))
    grey, label = greys(case, 2, middle), case.label[..., middle].T[::-1, ::-1]
    for found, tinted in ((drawn["labelled"], (1, 2)), (drawn["hidden"], (2,))):
        wanted = np.repeat(grey[..., None], 3, -1)
        for value in tinted:
            colour = [int(LABEL_COLOURS[value - 1][i:i + 2], 16) for i in (1, 3, 5)]
            wanted[label == value] = ((1 - viewer.OPACITY) * wanted[label == value]
                                      + viewer.OPACITY * np.array(colour))
        np.testing.assert_allclose(picture(found), wanted, atol=1)  # halves go either way
    assert drawn["classes"] == ["wall", "cavity"]


def test_window_stretches_greys_and_a_volume_is_chosen(seen):
    sets, drawn = seen[0], seen[1][1280]
    narrow = np.clip((greys(sets["real"][0], 2, 3) / 255 - 0.25) / 0.5, 0, 1) * 255
    np.testing.assert_allclose(picture(drawn["narrow"])[..., 0], narrow, atol=0.51 + 255 / 510 * 2)  # steps of sliders
    assert (picture(drawn["reset"]) != picture(drawn["narrow"])).any()
    np.testing.assert_array_equal(picture(drawn["other"])[..., 0], greys(sets["generated"][-1], 2, 3))
    assert drawn["names"][:4] == [f"real: volume-{i}" for i in range(4)]
    assert all(text.startswith("at the cross: 0.") and text.endswith("a.u., cavity") for text in drawn["told"])


def test_hostile_names_many_classes_and_volumes_of_one_grey_are_text_and_pictures(tab, tmp_path):
    """One volume of each set, 40 classes."""
    classes = (*HOSTILE, *(f"class {i}" for i in range(len(HOSTILE), 41)))
    label = (np.arange(np.prod(SHAPE)) % 41).reshape(SHAPE).astype(np.uint8)
    sets = {name: [Case(HOSTILE[1] + "\u202e", np.full((2, *SHAPE), 0.4, np.float32), label, HOSTILE[2])]
            for name in ("real", "generated")}
    layout = Layout((HOSTILE[1], HOSTILE[3]), classes, SPACING, 0.0, 1.0, "</b>", AFFINE)
    page = write_page(tmp_path / "page", layout, sets, (Viewer(real_and_generated),))
    text, drawn = page.read_text(encoding="utf-8"), browser.check_page(tab, page, DRIVE)[390]
    assert len(re.findall("<script", text)) == 2 and len(re.findall("</script", text)) == 2 and "\u202e" not in text
    assert "<img" not in text and drawn["classes"] == [name.replace("\u202e", "\\u202e") for name in classes[1:]]
    assert drawn["names"][0] == f"real: {HOSTILE[1]}\\u202e ({HOSTILE[2]})"
    assert (picture(drawn["slices"]["0"][0]) == 102).all()
    assert len({tuple(pixel) for pixel in picture(drawn["labelled"]).reshape(-1, 3)}) > 30
    assert len({colour_of(k) for k in range(1, 256)}) > 250


def test_colour_pictures_have_one_plane_in_colour_and_no_label_maps(tab, tmp_path):
    layout = Layout(COLOURS, (), (1.0, 1.0), 0.0, 1.0, "")
    sets = {"real": known(1, 0, (9, 12), 3, labels=False), "generated": known(2, 5, (9, 12), 3, labels=False)}
    page = write_page(tmp_path / "page", layout, sets, (Viewer(real_and_generated),))
    drawn, (case,) = browser.check_page(tab, page, DRIVE)[1280], sets["real"]
    np.testing.assert_array_equal(picture(drawn["slices"]["0"][0]), np.rint(np.moveaxis(case.image, 0, -1) * 255))
    assert list(drawn["slices"]) == ["0"] and not drawn["classes"] and drawn["pointed"] == [None]
    assert drawn["ratio"] == pytest.approx([12 / 9], rel=0.02)


def test_signals_have_no_viewer_and_the_page_says_so(tmp_path):
    layout = Layout(("ecg",), (), (1.0,), 0.0, 1.0, "")
    sets = {name: [Case("a", np.zeros((1, 32), np.float32), None)] for name in ("real", "generated")}
    text = write_page(tmp_path, layout, sets, (Viewer(real_and_generated),)).read_text()
    assert "Viewer: not available: signals have no planes" in text and "<script" not in text


# ---- the other reports ----


def check_whole(tab: browser.Tab, page: Path, parts: set[str]) -> None:
    """A page is whole at all widths, and has pictures and these parts."""
    browser.check_page(tab, page)
    assert tab.run("document.images.length") > 2
    assert parts <= set(tab.run("[...document.querySelectorAll('h2')].map((x) => x.textContent)"))


@pytest.mark.parametrize("dims", [2, 3])
def test_the_page_of_a_first_stage(tab, tmp_path, dims):
    path = stages.snapshot(tmp_path / "stage.pt", {**stages.NODE, "num_classes": 4, "spatial_dims": dims},
                           describe(dims))
    file = write_phantoms(tmp_path / "echo.h5", dims=dims)
    evaluate_first_stage(str(path), file, tmp_path / "out", FirstStageOptions(num=2, gif=True))
    check_whole(tab, tmp_path / "out" / "report.html", {"Pictures", "Worst cases", "Viewer"})
    assert tab.run("[...document.images].filter((x) => x.src.startsWith('data:image/gif')).length") == 1


def test_the_pages_of_downstream_networks(tab, tmp_path):
    """Segmenters whose names are long, and classifiers of views."""
    long = "a-run-of-a-name-that-is-" + "very-" * 20 + "long.pt"
    with chdir(tmp_path):
        downstream.write(Path("real.h5"), {"train": downstream.toy_items("t", 4), "test": downstream.toy_items("v", 5)})
        for name, seed in (("good.pt", 0), (long, 1)):
            downstream.snapshot(Path(name), "real.h5", downstream.by_level(-0.4, 0.4), seed=seed)
        downstream.snapshot(Path("view.pt"), "real.h5", downstream.means([0, 8, 0], [0, 0, -99]),
                            Prediction("classes", downstream.VIEWS))
        evaluate_downstream(["good.pt", long], Path("real.h5"), Path("segmented"), downstream.TRUSTED)
        evaluate_downstream(["view.pt"], Path("real.h5"), Path("classified"), downstream.TRUSTED)
    for name in ("segmented", "classified"):
        check_whole(tab, tmp_path / name / "report.html", {"Worst cases"})


def test_the_page_of_enhanced_scans(tab, tmp_path):
    evaluate_enhancement([scans.write(tmp_path / "samples.h5", count=3, draws=4)], tmp_path / "out",
                         EnhancementOptions())
    check_whole(tab, tmp_path / "out" / "report.html", set())


def test_the_page_of_a_sweep_with_its_way_from_noise_and_an_animation(tab, tmp_path):
    """Eight values of two seeds, asked for by the volume of a class."""
    name = "wall_volume"
    values = [10.0 * k for k in range(8)]
    cases = [case._replace(attributes=np.array([values[i % 8]])) for i, case in enumerate(known(16, 0))]
    layout = Layout(("echo",), ("background", "wall", "cavity"), SPACING, 0.0, 1.0, "a.u.", AFFINE,
                    attributes=((name, "ml"),))
    wide = png_bytes(montage([("Sampler", [(case.image, None) for case in cases[:8]])], SPACING))
    sections = (SamplePictures(), AttributesFollowed(NUMBERS), AttributeSweep(NUMBERS), WayFromNoise())
    page = write_page(tmp_path, layout, {"real": cases[:3], "generated": cases}, sections, animate=True,
                      sweep=SweptAttribute(name, "ml", values, 0), ways={"seed000000_1": wide})
    check_whole(tab, page, {"Sweep", "From noise to image", "Pictures"})


# ---- what is packed ----


def test_volumes_beyond_64_are_shrunk_without_moving_and_ten_take_2_mb_at_most():
    """Noise, which no packing makes small, of two channels; and a block that stays where it was, in mm."""
    rng = np.random.default_rng(0)
    layout = Layout(("a", "b"), ("none", "block"), (1.0, 1.0, 4.0), 0.0, 1.0, "")
    label = np.zeros((96, 80, 20), np.uint8)
    label[48:72, 20:40, 5:15] = 1
    cases = [Case(str(i), rng.random((2, 96, 80, 20), dtype=np.float32), label) for i in range(2)]
    data = viewer.viewer_data({"real": cases}, layout)
    size = len(json.dumps(data)) / 2
    assert size < 205_000 and max(data["shape"]) <= 64 and "shrunk from 96 x 80 x 20 to" in viewer.viewer_note(data)
    assert data["extent"] == [96, 80, 80]
    unpacked = gzip.decompress(base64.b64decode(data["volumes"][0]["data"]))
    small = np.frombuffer(unpacked, np.uint8).reshape(3, *data["shape"])[2]
    spacing = np.divide(data["extent"], data["shape"])
    for axis, (low, high) in enumerate(((48, 72), (20, 40), (20, 60))):  # mm
        places = np.nonzero(small)[axis]
        assert abs(places.min() * spacing[axis] - low) <= spacing[axis]
        assert abs((places.max() + 1) * spacing[axis] - high) <= spacing[axis]
    ramp = np.broadcast_to(np.arange(96, dtype=np.float32)[:, None, None], (1, 96, 80, 20))
    smooth = viewer.shrunk(ramp, (48, 40, 10))
    np.testing.assert_allclose(smooth[0, 2:-2, 20, 5], np.arange(0.5, 96, 2)[2:-2], atol=1e-3)


def test_contents_lead_to_all_headings_and_the_code_is_small():
    contents, body = html_contents("<h1>a</h1><h2>b &lt;i&gt;</h2>x<h2>c</h2>")
    assert contents == ('<nav aria-label="Contents"><a href="#part-1">b &lt;i&gt;</a><a href="#part-2">c</a></nav>')
    assert body == '<h1>a</h1><h2 id="part-1">b &lt;i&gt;</h2>x<h2 id="part-2">c</h2>'
    assert sum((ROOT / "reporting" / name).stat().st_size for name in ("viewer.js", "viewer.css")) < 20_000


def test_a_browser_that_is_required_is_not_skipped(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("EDM3D_BROWSER", raising=False)
    with pytest.raises(pytest.skip.Exception, match="chromium is not installed"):
        browser.path_of_browser()
    monkeypatch.setenv("EDM3D_BROWSER", "required")
    with pytest.raises(pytest.fail.Exception, match="apt-get install chromium"):
        browser.path_of_browser()
