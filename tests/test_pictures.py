"""GIFs of volumes: each frame shows the slice that it says, of a size that is bounded, where one is asked for alone."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import evaluate
from edm3d.reporting import animations, comparison, report
from edm3d.reporting.animations import MOST_BYTES, NO_SLICES, animation
from edm3d.reporting.cases import Case, Layout
from edm3d.reporting.comparison import Comparison
from edm3d.reporting.montages import GAP, HEADING, MARGIN
from edm3d.reporting.reference import Cases
from edm3d.reporting.section import missing, walk
from edm3d.reporting.sections.sample_pictures import SamplePictures
from edm3d.reporting.slices import TILE
from tests.test_evaluate import describe, write_phantoms
from tests.test_evaluate_first_stage import NODE, snapshot

SHAPE = (8, 8, 5)
GREYS = np.array([0.0, 0.25, 0.5, 0.75, 1.0], np.float32)


def layout_of(dims: int, channels: tuple[str, ...] = ("echo",), classes: tuple[str, ...] = ()) -> Layout:
    return Layout(channels, classes, (1.0,) * dims, 0.0, 1.0, "")


def frames_of(data: bytes) -> list[np.ndarray]:
    """The frames of a GIF [H,W], grey from 0 to 1."""
    picture, found = Image.open(io.BytesIO(data)), []
    for i in range(picture.n_frames):
        picture.seek(i)
        found.append(np.asarray(picture.convert("L"), np.float32) / 255)
    return found


def tile(frame: np.ndarray, row: int, column: int = 0) -> float:
    """The grey at the middle of a volume's tile."""
    top = (row + 1) * HEADING + row * TILE + TILE // 2
    return float(frame[top, MARGIN + column * (TILE + GAP) + TILE // 2])


def test_every_frame_shows_its_slice_of_real_and_generated_volumes():
    """Real volumes get brighter by depth, generated ones darker; the generated one is twice as deep."""
    real = np.broadcast_to(GREYS, (1, *SHAPE))
    generated = np.broadcast_to(np.repeat(GREYS[::-1], 2), (1, 8, 8, 10))
    frames = frames_of(animation([("Real", [(real, None)] * 2), ("Generated", [(generated, None)])], layout_of(3)))
    assert len(frames) == 10
    np.testing.assert_allclose([tile(f, 0, 1) for f in frames], np.interp(np.rint(np.linspace(0, 4, 10)), range(5),
                                                                         GREYS), atol=0.04)
    np.testing.assert_allclose([tile(f, 1) for f in frames], np.repeat(GREYS[::-1], 2), atol=0.04)


def test_images_follow_one_another_and_signals_are_refused():
    images = [(np.full((1, 6, 6), value, np.float32), None) for value in (0, 1, 0.5)]
    frames = frames_of(animation([("Real", images), ("Generated", images[::-1] + images)], layout_of(2)))
    np.testing.assert_allclose([[tile(f, row) for row in (0, 1)] for f in frames], [[0, 0.5], [1, 1], [0.5, 0]],
                               atol=0.04)
    with pytest.raises(ValueError, match="signals"):
        animation([("Real", [(np.zeros((1, 32)), None)])], layout_of(1))


def test_a_gif_of_what_no_packing_makes_small_is_bounded_and_lasts_as_long(monkeypatch):
    rng = np.random.default_rng(0)
    steps = [Image.fromarray(rng.integers(256, size=(200, 300, 3), dtype=np.uint8)) for _ in range(24)]
    monkeypatch.setattr(animations, "MOST_BYTES", 200_000)
    data = animations.packed(steps, 100)
    picture = Image.open(io.BytesIO(data))
    assert len(data) <= 200_000 < MOST_BYTES and picture.info["duration"] * picture.n_frames == 2400
    assert picture.info["loop"] == 0


@pytest.mark.parametrize(("dims", "animate"), [(3, True), (2, True), (1, True), (3, False)])
def test_a_report_has_a_gif_where_one_is_asked_for(tmp_path, dims, animate):
    cases = [Case(f"v{i}", np.random.default_rng(i).random((1, *SHAPE[:dims]), np.float32), None) for i in range(2)]
    sets = {"real": cases, "generated": cases}
    known = {name: Cases(name, 2, kept.__getitem__) for name, kept in sets.items()}
    context = Comparison(layout=layout_of(dims), provenance={}, seeds=range(2), animate=animate, **known)
    sections = (SamplePictures(),)
    about = {"title": "x", "date": "", "command": "", "versions": {}, "definitions": {},
             "real": {"path": "r", "content_hash": "", "reference": "", "num": 2},
             "generated": {"path": "s", "sha256": "", "num": 2, "seeds": "", "snapshot": "", "snapshot_hash": "",
                           "sampling": {}, "quality": missing(""), "labels": missing("")}}
    found = report.write_report(tmp_path, sections, comparison.FRAME, walk(sections, context, sets), about)
    page, is_there = (tmp_path / "report.html").read_text(), animate and dims > 1
    assert (tmp_path / "figures" / "animation.gif").exists() == is_there == ("data:image/gif" in page)
    assert found.get("animation") == ({"available": True} if is_there else missing(NO_SLICES) if animate else None)
    assert (NO_SLICES in page) == (animate and dims == 1)


def test_the_report_of_a_first_stage_has_one_by_the_command(tmp_path):
    path = snapshot(tmp_path / "stage.pt", {**NODE, "num_classes": 4, "spatial_dims": 2}, describe(2))
    file = write_phantoms(tmp_path / "echo.h5", dims=2)
    answer = CliRunner().invoke(evaluate.main, ["--autoencoder", str(path), "--real", str(file), "--gif",
                                                "--dest", str(tmp_path / "out"), "--num", "2"])
    assert answer.exit_code == 0, answer.output
    gif = Path(tmp_path / "out" / "figures" / "animation.gif").read_bytes()
    assert len(frames_of(gif)) == 2 and json.loads((tmp_path / "out" / "report.json").read_text())["animation"]
