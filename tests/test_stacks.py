"""Slices of padding: found by one rule, recorded, and left out of what reports measure on images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edm3d.formats.facts import Facts, rows_of
from edm3d.formats.intensity import Intensity
from edm3d.formats.padding import held_slices, padded_slices, padding_lines
from edm3d.formats.sample_meta import SampleMeta
from edm3d.formats.samples import write_samples
from edm3d.formats.volumes import Item, VolumesFile, VolumesMeta, VolumesWriter
from edm3d.inference.encode import fitted
from edm3d.inference.evaluate import ComparisonOptions, evaluate
from edm3d.inference.extractors import latents_held
from edm3d.inference.features import FeatureOptions, feature_pass
from edm3d.inference.padding import padding_of
from edm3d.reporting import sections
from edm3d.reporting.cases import Case, DecodedCase, Layout
from edm3d.reporting.comparison import Comparison
from edm3d.reporting.section import Padding
from edm3d.reporting.sections.grain import Grain
from edm3d.reporting.sections.held_out import HeldOut
from edm3d.reporting.sections.intensities import Intensities
from edm3d.reporting.sections.pairs import likeness
from edm3d.reporting.sections.texture import Texture
from evaluate import main
from tests.commands import refused, succeed

DEPTH, SIDE = 9, 8
LAYOUT = Layout(("mr",), (), (10.0, 2.0, 2.0), 0.0, 1.0, "a.u.")


def stack(number: int, first: int = 1, last: int = DEPTH - 1, padding: float = 0.0) -> np.ndarray:
    """An image [1,D,H,W] in [0,1] whose slices first to last hold noise, the others one value."""
    image = np.full((1, DEPTH, SIDE, SIDE), padding, np.float32)
    image[:, first:last] = np.random.default_rng(number).random((last - first, SIDE, SIDE))
    return image


def write_real(path: Path, spans: list[tuple[int, int]], recorded: bool = True) -> VolumesFile:
    """A volumes file of stacks that hold image in these slices, half of them in the test split."""
    meta = VolumesMeta(3, ("mr",), ("target",), (), (), (), (), Intensity(0.0, 1.0, True, "a.u."))
    with VolumesWriter(path, meta, {"kind": "prepare"}) as writer:
        for i, (first, last) in enumerate(spans):
            box = np.array([[first if recorded else 0, 0, 0], [last if recorded else DEPTH, SIDE, SIDE]])
            writer.add("test" if i % 2 else "train", Item(stack(i, first, last), None, None, None, f"s{i}", f"s{i}",
                                                          np.diag([10.0, 2, 2, 1]), box))
    return VolumesFile(path)


# ---- the rule ----


def test_padding_is_flat_slices_at_the_ends_alone():
    image = stack(0, 2, 7)
    image[:, 4] = 0.5  # between others
    assert held_slices(image, 1.0) == (2, 7)
    noise = np.random.default_rng(1).normal(0, 1, (2, SIDE, SIDE))
    image[0, :2] = 0.3 + 0.04 * noise / noise.std((1, 2), keepdims=True)
    assert held_slices(image, 1.0) == (2, 7)
    image[0, 1] = 0.3 + 0.06 * noise[0] / noise[0].std()
    assert held_slices(image, 1.0) == (1, 7)
    assert held_slices(image * 200, 200.0) == (1, 7) and held_slices(image, 200.0) == (0, DEPTH)


def test_a_flat_stack_counts_whole_and_one_channel_with_image_is_enough():
    assert held_slices(np.zeros((1, DEPTH, 4, 4)), 1.0) == (0, DEPTH)
    two = np.concatenate([stack(0, 3, 6), stack(1, 2, 5)])
    assert held_slices(two, 1.0) == (2, 6)


def test_slices_are_counted_and_said():
    boxes = np.array([[[1, 0, 0], [8, 4, 4]], [[0, 2, 2], [9, 4, 4]], [[0, 0, 0], [5, 4, 4]]])
    assert padded_slices(boxes, 9).tolist() == [2, 0, 4] and padding_lines(boxes[1:2], 9) == []
    assert padding_lines(boxes, 9) == ["padding: 2 of 3 stacks of 9 slices have slices of padding at their ends, up to "
                                       "4, 6 in all"]


def test_encoding_on_another_grid_moves_what_is_recorded(tmp_path):
    file = write_real(tmp_path / "v.h5", [(2, 7)])
    assert fitted(file, "train", 0, (13, SIDE, SIDE)).box[:, 0].tolist() == [4, 9]
    assert fitted(file, "train", 0, (3, SIDE, SIDE)).box[:, 0].tolist() == [0, 3]


# ---- what is kept ----


def test_slices_that_hold_image_in_every_real_stack_are_kept(tmp_path):
    file, size = write_real(tmp_path / "v.h5", [(1, 8), (0, 7), (2, 9)]), (DEPTH, SIDE, SIDE)
    assert padding_of(file, size, None) == Padding(3, 3, 6, DEPTH, (2, 7)) == padding_of(file, size, True)
    assert padding_of(file, size, False) == Padding(3, 3, 6, DEPTH, None)
    assert padding_of(file, (13, SIDE, SIDE), None).kept == (4, 9)
    assert padding_of(file, (5, SIDE, SIDE), None).kept == (0, 5)
    assert padding_of(file, (4, SIDE, SIDE), None).kept == (0, 4)


def test_where_nothing_is_recorded_nothing_is_left_out(tmp_path):
    file = write_real(tmp_path / "v.h5", [(1, 8)] * 2, recorded=False)
    assert padding_of(file, (DEPTH, SIDE, SIDE), None) is None is padding_of(file, (DEPTH, SIDE, SIDE), False)
    with pytest.raises(ValueError, match="--leave-padding-out: .*v.h5 records no slices of padding; prepare it anew"):
        padding_of(file, (DEPTH, SIDE, SIDE), True)
    with pytest.raises(ValueError, match="no slice holds image in all of its 2 stacks.*give --keep-padding"):
        padding_of(write_real(tmp_path / "w.h5", [(0, 4), (4, 9)]), (DEPTH, SIDE, SIDE), None)


def test_a_case_within_its_slices():
    label = np.arange(DEPTH)[:, None, None] * np.ones((1, SIDE, SIDE), int)
    case = Case("a", stack(0), label, semantic=label, held=(2, 5))
    assert case.inside.label[:, 0, 0].tolist() == [2, 3, 4] and case.inside.image.shape == (1, 3, SIDE, SIDE)
    assert case.inside.inside is case.inside or case.inside.inside.image.shape == (1, 3, SIDE, SIDE)
    assert case._replace(held=None).inside is not None and case._replace(held=None).inside.image is case.image
    both = DecodedCase(case, case._replace(held=None)).inside
    assert both.real.image.shape == both.decoded.image.shape == (1, 3, SIDE, SIDE)


# ---- what is measured ----


def measured(section, case, held):
    """What a section keeps of a volume, or of one decoded, as arrays."""
    context = Comparison(layout=LAYOUT, provenance={}, real=None, generated=None)
    return section.measure(DecodedCase(case._replace(held=held), case) if section.sets == ("decoded",) else
                           case._replace(held=held), context)


@pytest.mark.parametrize("section", [Texture(), Grain("generated"), Grain("decoded")])
def test_what_lies_in_padding_does_not_count(section):
    one, other = Case("a", stack(0, 2, 7), None), Case("a", stack(0, 2, 7, padding=0.9), None)
    for held, alike in (((2, 7), True), (None, False)):
        found = [np.concatenate([np.ravel(part) for part in flat(measured(section, case, held))])
                 for case in (one, other)]
        assert np.array_equal(*found, equal_nan=True) == alike


def flat(found) -> list:
    """The arrays of tuples of tuples."""
    return [array for part in found for array in (flat(part) if isinstance(part, tuple) else [part])]


def test_intensities_psnr_and_ssim_are_of_the_kept_slices():
    case = Case("a", stack(0, 2, 7), None, held=(2, 7))
    assert Intensities().measure(case, LAYOUT)["intensity_mean"] == pytest.approx(float(case.image[:, 2:7].mean()))
    noisy = Case("b", np.clip(case.image + 0.1 * (case.image > 0), 0, 2), None)
    context = Comparison(layout=LAYOUT, provenance={}, real=None, generated=None)
    row = HeldOut().measure(DecodedCase(case, noisy), context)
    assert row.psnr == pytest.approx(20, abs=0.05)
    assert HeldOut().measure(DecodedCase(case._replace(held=None), noisy), context).psnr == pytest.approx(
        20 + 10 * np.log10(9 / 5), abs=0.05)
    filled = noisy._replace(image=np.where(case.image > 0, noisy.image, 0.9))
    inside, other = (likeness(case, each, context) for each in (noisy, filled))
    assert inside[0] == pytest.approx(row.psnr) and np.array_equal(inside, other, equal_nan=True)
    assert likeness(case._replace(held=None), filled, context)[0] < row.psnr - 5


def test_features_are_of_the_kept_slices():
    cases = [Case("a", stack(0, 2, 7, padding), None, held=(2, 7)) for padding in (0.0, 0.9)]
    found = []
    for held in ((2, 7), None):
        passing = feature_pass(FeatureOptions(("random",)), LAYOUT, (DEPTH, SIDE, SIDE), None, "none",
                               torch.device("cpu"), held)
        for case in passing.over("real", [case._replace(held=held) for case in cases], 2):
            assert case.image.shape == (1, DEPTH, SIDE, SIDE)
        found.append(passing.features().found["random"]["volume"]["real"])
    assert np.array_equal(found[0][0], found[0][1]) and not np.array_equal(found[1][0], found[1][1])


def test_latents_that_lie_whole_in_the_kept_slices():
    assert latents_held((3, 10), 13, 13) == (3, 10) and latents_held((2, 7), 9, 3) == (1, 2)
    assert latents_held((0, 9), 9, 3) == (0, 3) and latents_held((1, 2), 9, 3) == (0, 3)


# ---- the report ----


def write_drawn(path: Path, spans: list[tuple[int, int]]) -> Path:
    facts = Facts("", "", ("mr",), intensity=Intensity(0.0, 1.0, True, "a.u."), spatial_shape=(DEPTH, SIDE, SIDE),
                  affine=rows_of(np.diag([10.0, 2, 2, 1])))
    images = np.stack([stack(100 + i, *span, 0.02) for i, span in enumerate(spans)])
    write_samples(path, range(len(spans)), {"images": images}, np.diag([10.0, 2, 2, 1]),
                  SampleMeta(facts, "gone.pt", "", {}))
    return path


def report_of(folder: Path, *options: str, recorded: bool = True) -> tuple[dict, str]:
    """report.json and the page of stacks with padding in both, and what was printed before it."""
    write_real(folder / "v.h5", [(1, 8), (2, 9), (0, 7), (2, 8)] * 2, recorded)
    drawn = write_drawn(folder / "s.h5", [(1, 8)] * 5 + [(0, 9), (3, 6)])
    said = succeed(main, "--real", str(folder / "v.h5"), "--generated", str(drawn), "--dest", str(folder / "r"),
                   "--overwrite", "--features", "random", *options)
    return json.loads((folder / "r" / "report.json").read_text()), (folder / "r" / "report.html").read_text() + said


def test_a_report_says_what_it_left_out(tmp_path):
    found, page = report_of(tmp_path)
    part = found["padding"]
    assert (part["left_out"], part["slices"], part["kept"], part["of"]) == (True, 4, [2, 7], DEPTH)
    assert part["recorded"] == {"volumes": 8, "of": 8, "slices": 18}
    assert part["real"] == {"volumes": 8, "of": 8, "slices": 18, "most": 3}
    assert part["generated"] == {"volumes": 6, "of": 7, "slices": 16, "most": 6}
    assert "4 of 9 slices, where any has some, are left out" in page and ">Slices of padding</h2>" in page
    assert "5 x 8 x 8 voxels" in found["provenance"]["extractors"]["random"]["preprocessing"]
    inside = [stack(i, *span)[:, 2:7].mean() for i, span in enumerate([(1, 8), (2, 9), (0, 7), (2, 8)] * 2)]
    assert found["metrics"]["intensity_mean"]["real_mean"] == pytest.approx(np.mean(inside), rel=1e-5)


def test_a_report_may_keep_padding_and_says_so(tmp_path):
    found, page = report_of(tmp_path, "--keep-padding")
    assert not found["padding"]["left_out"] and found["padding"]["kept"] == [0, DEPTH]
    assert "they count in all that is measured (--keep-padding)" in page
    whole = [stack(i, *span).mean() for i, span in enumerate([(1, 8), (2, 9), (0, 7), (2, 8)] * 2)]
    assert found["metrics"]["intensity_mean"]["real_mean"] == pytest.approx(np.mean(whole), rel=1e-5)


def test_a_report_without_recorded_padding_says_nothing_of_it(tmp_path):
    found, page = report_of(tmp_path, recorded=False)
    assert "padding" not in found and "Slices of padding" not in page
    assert "records no slices of padding" in refused(
        tmp_path, main, "--real", str(tmp_path / "v.h5"), "--generated", str(tmp_path / "s.h5"), "--dest",
        str(tmp_path / "r"), "--leave-padding-out")


def test_all_sets_of_both_reports_are_looked_at():
    assert [section.sets for section in (*sections.COMPARISON, *sections.FIRST_STAGE)
            if type(section).__name__ == "PaddingSlices"] == [("real", "generated", "noise"), ("decoded",)]
    assert ComparisonOptions().padding is None and callable(evaluate)
