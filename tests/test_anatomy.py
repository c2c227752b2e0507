"""Anatomy of generated volumes against real ones: tests, topology, roughness, pairs, and what was asked for."""

import json
import warnings

import numpy as np
import pytest
from scipy import stats

import dataset_tool
from edm3d.formats.facts import volume_facts
from edm3d.formats.sample_meta import SampleMeta
from edm3d.formats.samples import Samples
from edm3d.formats.volumes import VolumesFile
from edm3d.inference import evaluate
from edm3d.inference.evaluate import ComparisonOptions
from edm3d.metrics import clinical, two_sets
from edm3d.metrics.agreement import agreement, by_chance, ranks
from edm3d.metrics.roughness import roughness
from edm3d.metrics.texture import uniform_std
from edm3d.metrics.topology import components, euler_characteristic
from edm3d.physics.phantoms import EXTENT, LABEL_CLASSES, echo_phantom
from edm3d.reporting.boxes import class_masks
from edm3d.reporting.cases import Case, Layout
from edm3d.reporting.comparison import Comparison
from edm3d.reporting.section import walk
from edm3d.reporting.sections import NUMBERS
from edm3d.reporting.sections.asked_attributes import AttributesFollowed, match
from edm3d.reporting.sections.ejection import Ejection, PhaseRow, paired
from edm3d.reporting.sections.scalars import MeasuredOnce
from edm3d.reporting.sections.structures import Structures
from edm3d.reporting.sections.told_apart import ToldApart, adjust
from edm3d.reporting.sections.topology import Topology
from tests.commands import succeed

RNG = np.random.default_rng(0)


# ---- two sets ----


def test_p_values_are_those_of_scipy_without_the_values_that_are_not_there():
    a, b = RNG.normal(size=30), RNG.normal(0.5, 2, size=40)
    with_gaps = np.r_[a, np.nan, np.inf]
    assert two_sets.welch(with_gaps, b) == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue)
    assert two_sets.brown_forsythe(with_gaps, b) == pytest.approx(stats.levene(a, b, center="median").pvalue)
    assert two_sets.kolmogorov_smirnov(with_gaps, b) == pytest.approx(stats.ks_2samp(a, b, method="asymp").pvalue)
    assert two_sets.wasserstein(a, a + 3) == pytest.approx(3)
    assert two_sets.fisher(3, 4, 1, 4) == pytest.approx(34 / 70)  # 17 / 35: the lady who tastes tea, both sides


@pytest.mark.parametrize(("a", "b"), [([], [1, 2]), ([1], [2]), ([3, 3, 3], [3, 3]), ([1, 1], [2, 2]),
                                      ([1e9, 1e9], [1e9 + 1e-6] * 2)])
def test_where_nothing_varies_there_is_no_test_and_no_warning(a, b):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(two_sets.welch(np.array(a), np.array(b)))
        assert np.isnan(two_sets.brown_forsythe(np.array(a), np.array(b)))


def test_holm_by_hand_leaves_out_what_is_no_test():
    assert two_sets.holm([0.01, 0.04, np.nan, 0.03]) == pytest.approx([0.03, 0.06, np.nan, 0.06], nan_ok=True)
    assert two_sets.holm([0.9, 0.8]).tolist() == [1, 1] and two_sets.holm([]).size == 0


def test_a_larger_heart_is_told_apart_and_the_same_is_not():
    real, same = np.exp(RNG.normal(4.4, 0.207, size=(2, 256)))
    layout = Layout(("echo",), (), (1.0,) * 3, 0.0, 1.0, "")
    section, context = ToldApart(()), Comparison(layout=layout, provenance={}, real=None, generated=None)
    section.numbers.units = lambda layout: {"volume": "mL"}
    larger = section.compute({"real": {"volume": real}, "generated": {"volume": 1.03**3 * same}}, context)["tests"]
    alike = section.compute({"real": {"volume": real}, "generated": {"volume": same}}, context)["tests"]
    assert larger["told_apart"] == ["volume"] and alike["told_apart"] == [] and larger["num"] == 3
    row = larger["numbers"]["volume"]
    assert row["p_mean"] < 0.01 and row["p_holm"] >= row["p_mean"] and row["wasserstein"] > row["floor_p99"]
    assert row["relative"] == pytest.approx(row["wasserstein"] / real.std())
    assert alike["numbers"]["volume"]["wasserstein"] < alike["numbers"]["volume"]["floor_p99"]


def test_values_that_are_missing_on_one_side_are_told_and_shares_are_tested():
    case = MeasuredOnce(())
    case.units = lambda layout: {"wall": "mm", "whole": None}
    context = Comparison(layout=None, provenance={}, real=None, generated=None)
    values = np.arange(20.0)
    found = {"real": {"wall": values, "whole": values < 20},
             "generated": {"wall": np.where(values < 10, values, np.nan), "whole": values < 2}}
    tests = ToldApart(case).compute(found, context)["tests"]
    assert tests["numbers"]["wall"]["p_undefined"] == pytest.approx(stats.fisher_exact([[0, 20], [10, 10]]).pvalue)
    assert tests["told_apart"] == ["wall", "whole"] and tests["num"] == 5
    found["generated"]["wall"] = np.full(20, np.nan)
    row = ToldApart(case).compute(found, context)["tests"]["numbers"]["wall"]
    assert row["wasserstein"] is None and row["p_mean"] is None and row["p_holm"] < 1e-4
    json.dumps(tests, allow_nan=False)


def test_a_number_without_any_test_has_no_p():
    rows = [{"p_mean": None}, {"p": 0.01}]
    assert adjust(rows) == 1 and [row["p_holm"] for row in rows] == [None, 0.01]


# ---- topology and surfaces ----


def solid(*shape: int) -> np.ndarray:
    """A block of voxels in the middle of nothing."""
    return np.pad(np.ones(shape, bool), 2)


def ring(dims: int) -> np.ndarray:
    mask = solid(*([5, 5, 3][:dims]))
    mask[(slice(4, 5), slice(4, 5), slice(None))[:dims]] = False
    return mask


def shell() -> np.ndarray:
    mask = solid(5, 5, 5)
    mask[4, 4, 4] = False
    return mask


@pytest.mark.parametrize(("mask", "pieces", "euler"), [
    (solid(3, 4), 1, 1), (ring(2), 1, 0), (solid(2, 3, 4), 1, 1), (ring(3), 1, 0), (shell(), 1, 2),
    (np.zeros((4, 4, 4), bool), 0, 0), (np.eye(3, dtype=bool), 3, 3), (np.ones((3, 3), bool), 1, 1),
    (np.stack([np.eye(2, dtype=bool)] * 2), 2, 2),  # two bars that share an edge are two
    (solid(1, 1, 1) | np.roll(solid(1, 1, 1), 1, 0), 1, 1)])
def test_pieces_and_euler_characteristic_by_hand(mask, pieces, euler):
    assert (components(mask), euler_characteristic(mask)) == (pieces, euler)


def test_euler_characteristic_is_pieces_less_holes_of_noise_in_2d():
    from scipy import ndimage

    mask = np.pad(RNG.random((40, 40)) < 0.6, 1)
    holes = ndimage.label(~mask, np.ones((3, 3)))[1] - 1  # but the outside
    assert euler_characteristic(mask) == components(mask) - holes


def test_phantoms_are_of_one_piece_and_a_class_that_is_not_there_has_none():
    layout = Layout(("echo",), (*LABEL_CLASSES, "clip"), (EXTENT / 32,) * 3, 0.0, 1.0, "")
    phantom = echo_phantom(3, seed=1, size=32)
    found = MeasuredOnce(NUMBERS).measure(Case("a", phantom.image[None], phantom.label), layout)
    assert [found[f"{name}_{key}"] for name in LABEL_CLASSES[1:] for key in ("components", "euler")] == [1] * 6
    assert found["clip_components"] == found["clip_euler"] == 0 and np.isnan(found["clip_roughness"])
    with pytest.raises(ValueError, match="labels from 0 to 3, wanted 0 to 1"):
        Topology().measure(Case("a", phantom.image[None], phantom.label), Layout(("e",), ("no", "yes"), (1, 1, 1), 0, 1,
                                                                                 ""))


def test_masks_of_classes_are_cut_out_with_their_margin():
    label = np.zeros((6, 6), np.uint8)
    label[2:4, 5] = 2
    (none, _), (two, place) = class_masks(label, 3, margin=1)
    assert none.size == 0 and place == (slice(1, 5), slice(4, 7)) and two.tolist() == (label[1:5, 4:] == 2).tolist()


def test_roughness_of_planes_waves_and_balls():
    grid = np.indices((32, 32, 32)) - 15.5
    assert roughness(grid[0] < 0, (1, 1, 3)) == pytest.approx(0, abs=1e-3)
    ball = (grid**2).sum(0) <= 100
    spiky = ball | ((grid**2).sum(0) <= 121) & (RNG.random(ball.shape) < 0.2)
    wave = grid[0] < 2 * np.sin(2 * np.pi * grid[1] / 8)
    smooth = roughness(ball, (1, 1, 1))
    assert smooth < 5 and roughness(spiky, (1, 1, 1)) > 1.5 * smooth and roughness(wave, (1, 1, 1)) > 3 * smooth
    assert np.isnan(roughness(np.zeros((4, 4), bool), (1, 1))) and np.isnan(roughness(np.ones((4, 4), bool), (1, 1)))


def test_noise_is_found_where_the_image_is_uniform():
    """A ramp with noise of 0.1, a border with none, and half that is empty."""
    image = np.full((48, 48, 48), 5.0)
    image[:24] += np.linspace(0, 1, 48)[None, :, None] + RNG.normal(0, 0.1, (24, 48, 48))
    image[24:] = 0
    assert uniform_std(image, 0.5) == pytest.approx(0.1, rel=0.02)
    assert uniform_std(np.full((4, 4), 2.0), 0.1) == pytest.approx(0) and np.isnan(uniform_std(np.zeros((16, 16)), 0.1))
    assert np.isnan(uniform_std(np.ones((3, 9)), 0.1))


# ---- exactness ----


def errors(num: int, size: int) -> np.ndarray:
    """Relative errors of both volumes, and that of the wall thickness in voxels [N,3]."""
    found, step = [], EXTENT / size
    for i in range(num):
        phantom = echo_phantom(i, seed=77, size=size, pairs=True)
        lv, wall, la, _ = phantom.attributes
        volumes = clinical.structure_volumes(phantom.label, (step,) * 3, 4)
        thickness = clinical.wall_thickness(phantom.label, (step,) * 3)
        found.append((volumes[1] / lv - 1, volumes[3] / la - 1, (thickness - wall) / step))
    return np.abs(found)


def test_volumes_and_thickness_are_the_exact_attributes():
    assert (errors(4, 64).mean(0) < [0.01, 0.01, 0.1]).all()


@pytest.mark.slow
def test_volumes_and_thickness_of_many_phantoms_are_the_exact_attributes():
    found = errors(60, 64)
    assert (found.mean(0) < [0.004, 0.005, 0.06]).all()
    assert (np.quantile(found, 0.9, axis=0) < [0.01, 0.01, 0.1]).all()


# ---- measured once ----


def test_a_volume_is_measured_once_for_all_sections():
    class Counted(Structures):
        calls = 0

        def measure(self, case, layout):
            self.calls += 1
            return super().measure(case, layout)

    counted, layout = Counted(), Layout(("echo",), ("no", "yes"), (1.0, 1.0), 0.0, 1.0, "")
    measured = MeasuredOnce([counted])
    cases = [Case(str(i), np.zeros((1, 4, 4)), np.full((4, 4), i % 2, np.uint8)) for i in range(3)]
    context = Comparison(layout=layout, provenance={}, real=None, generated=None)
    found = walk([ToldApart(measured), ToldApart(measured)], context, {"real": cases, "generated": cases}).found
    assert counted.calls == 6 and found[0]["real"]["yes_volume"].tolist() == pytest.approx([0, 0.16, 0])


# ---- pairs ----


def test_ejection_fraction_of_pairs_by_hand():
    rows = [PhaseRow("a", 0, [100.0]), PhaseRow("b", 1, [50.0]), PhaseRow("a", 1, [40.0]), PhaseRow("a", 0, [80.0]),
            PhaseRow("c", 0, [0.0]), PhaseRow("c", 1, [5.0]), PhaseRow(None, 0, [1.0]), PhaseRow("d", None, [1.0])]
    found = paired(rows, 1)
    assert found.pairs.tolist() == [[0, 2], [4, 5]] and found.values[0] == 60 and np.isnan(found.values[1])


@pytest.mark.parametrize(("layout", "reason"), [
    (Layout(("e",), (), (1.0, 1.0), 0.0, 1.0, ""), "no label maps"),
    (Layout(("e",), ("no", "liver"), (1.0, 1.0), 0.0, 1.0, ""), "no class is called as a ventricle"),
    (Layout(("e",), ("no", "LV"), (1.0, 1.0), 0.0, 1.0, ""), "of no phases"),
    (Layout(("e",), ("no", "LV"), (1.0, 1.0), 0.0, 1.0, "", None, ("End-diastole", "ES")), "there are 1 of real")])
def test_why_there_is_no_ejection_fraction(layout, reason):
    label = np.ones((4, 4), np.uint8) if layout.label_classes else None
    cases = [Case(str(i), np.zeros((1, 4, 4)), label, name, group="a") for i, name in enumerate(("End-diastole", "ES"))]
    context = Comparison(layout=layout, provenance={}, real=None, generated=None)
    section = Ejection(NUMBERS[:1])
    found = walk([section], context, {"real": cases, "generated": cases}).found[0]
    report = section.compute(found, context)
    assert reason in report["ejection"]["reason"] and reason in section.page(report, {})
    assert reason in section.lines(report)[0] and section.figures(found, context, report) == {}


# ---- what was asked for ----


def test_agreement_by_hand():
    asked, measured = np.array([1.0, 2, 3, 4]), np.array([3.0, 2, 5, 6])
    found = agreement(asked, measured, "abcd")
    assert found.values == pytest.approx([stats.pearsonr(asked, measured)[0], stats.spearmanr(asked, measured)[0], 1.5,
                                          1.5])
    assert (found.low <= found.values).all() and (found.values <= found.high).all()
    assert np.isnan(agreement(np.ones(4), measured, "abcd").values[:2]).all()
    r, error = by_chance(np.arange(50.0), np.arange(50.0))
    assert 0.2 < r < 0.5 and error == pytest.approx(50 / 3, rel=0.1)


def test_ranks_of_a_resample_are_those_of_scipy():
    values, weights = np.array([3.0, 1, 3, 2]), np.array([[1, 2, 0, 1], [1, 1, 1, 1]])
    for found, times in zip(ranks(values, weights), weights):
        repeated = np.repeat(values, times)
        assert np.repeat(found, times) == pytest.approx(stats.rankdata(repeated))


@pytest.mark.parametrize(("name", "unit", "measured_by", "reason"), [
    ("LV volume", "ml", "lv_volume", ""), ("lv_volume", "cm3", "lv_volume", ""), ("lv_volume", "", "lv_volume", ""),
    ("lv_volume", "L", None, "it is in L, what is measured in mL"), ("tilt", "deg", None, "no number of this name")])
def test_attributes_are_held_against_numbers_of_their_name_and_unit(name, unit, measured_by, reason):
    found = match(0, name, unit, {"lv_volume": "mL", "wall_thickness": "mm"})
    assert found.number == measured_by and reason in found.reason


def test_samples_asked_for_by_nothing_are_said_to_be():
    layout = Layout(("e",), (), (1.0, 1.0), 0.0, 1.0, "")
    context, cases = Comparison(layout=layout, provenance={}, real=None, generated=None), [Case("a", np.ones((1, 4, 4)),
                                                                                               None)]
    section = AttributesFollowed(NUMBERS)
    found = walk([section], context, {"real": cases, "generated": cases}).found[0]
    report = section.compute(found, context)
    assert "not asked for by attributes" in section.page(report, {}) and section.columns(found, context, "real") == {}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """The report of phantoms at both phases that pass for samples, asked for by rows of the real file; page and csv."""
    folder = tmp_path_factory.mktemp("anatomy")
    path, size, num = folder / "echo.h5", 28, 12
    succeed(dataset_tool.main, "phantom", "--dest", str(path), "--num", "24", "--size", str(size), "--pairs")
    file = VolumesFile(path)
    phantoms = [echo_phantom(i, seed=9, size=size, pairs=True) for i in range(num)]
    asked = np.array([p.attributes for p in phantoms], np.float32)
    asked[:, 2] = np.nan  # no atrium was asked for
    asked[0, 0] = np.nan
    arrays = {"images": np.stack([p.image[None] for p in phantoms]), "labels": np.stack([p.label for p in phantoms]),
              "classes": np.arange(num) % 2, "attributes": asked}
    ids = [f"phantom-{i:06d}" for i in range(num)]
    meta = SampleMeta(volume_facts(file, "train"), "gone.pt", "0", {
        "conditions": {"source": "echo.h5", "hash": "0", "ids": ids}})
    Samples(list(range(num)), arrays, meta).save(folder / "samples.h5")
    found = evaluate.evaluate(path, folder / "samples.h5", folder / "report", ComparisonOptions(num_noise=0))
    return found, (folder / "report/report.html").read_text(), (folder / "report/cases.csv").read_text().splitlines()


def test_asked_attributes_of_samples_are_compared_with_what_is_measured(result):
    found, page, cases = result
    asked = found["asked"]
    assert set(asked["attributes"]) == {"lv_volume", "wall_thickness"} and set(asked["unmeasured"]) == {"la_volume",
                                                                                                      "tilt"}
    row = asked["attributes"]["lv_volume"]
    assert row["generated"]["num"] == 11 and row["real"]["num"] == 12 and row["measured_by"] == "lv_volume"
    assert min(row["generated"]["r"], row["real"]["r"], row["generated"]["rho"]) > 0.97 > row["chance_r"]
    assert row["generated"]["mae"] < 2 < row["chance_mae"]
    assert ">Asked and measured</h2>" in page and "tilt: not measured: no number of this name" in page
    head, first = cases[0].split(","), cases[1].split(",")
    assert float(dict(zip(head, first))["lv_volume (attribute)"]) == pytest.approx(
        float(dict(zip(head, first))["lv_volume"]), rel=0.1)


def test_pairs_of_phases_have_the_ejection_fraction_of_phantoms(result):
    found, page, cases = result
    row = found["ejection"]["ventricles"]["cavity"]
    assert found["ejection"]["pairs"] == {"real": 6, "generated": 6} and 50 < row["generated_mean"] < 70
    assert row["unit"] == "%" and row["ks"] <= row["floor_p99"] and row["p_holm"] > 0.01
    assert ">Ejection fraction</h2>" in page and "cavity_ejection_fraction" in cases[0]


def test_true_phantoms_are_not_told_apart(result):
    found, page, _ = result
    assert found["tests"]["told_apart"] == [] and found["tests"]["num"] > 20
    assert ">Distances and tests</h2>" in page and "none of" in page
