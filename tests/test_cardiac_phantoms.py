"""Short-axis phantoms: exact attributes, what is measured on their labels, their file, and their report."""

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.spatial import cKDTree

import dataset_tool
from edm3d.formats.facts import volume_facts
from edm3d.formats.sample_meta import SampleMeta
from edm3d.formats.samples import Samples
from edm3d.formats.volumes import VolumesFile
from edm3d.inference import evaluate
from edm3d.inference.evaluate import ComparisonOptions
from edm3d.metrics import clinical
from edm3d.physics import cardiac_anatomy as anatomy
from edm3d.physics.cardiac_phantoms import cardiac_affine, cardiac_phantom
from edm3d.physics.phantom_kinds import CardiacPhantoms
from edm3d.reporting import reference
from edm3d.reporting.cases import Case, Layout
from edm3d.reporting.comparison import Comparison
from edm3d.reporting.hearts import phase_of
from edm3d.reporting.section import walk
from edm3d.reporting.sections.asked_attributes import AttributesFollowed
from edm3d.reporting.sections.ejection import Ejection
from edm3d.reporting.sections.heart import StackedHeart, stacked
from edm3d.reporting.sections.scalars import MeasuredOnce
from edm3d.reporting.sections.structures import Structures

SMALL = (13, 32, 32)
NAMES = [name for name, _ in anatomy.ATTRIBUTES]


@pytest.fixture(scope="module")
def items():
    return [cardiac_phantom(i, seed=5, size=SMALL) for i in range(20)]


@pytest.fixture(scope="module")
def hearts():
    """Patients with their borders at ED and ES, in 13 slices."""
    patients = [anatomy.draw_patient(5, group, 13) for group in range(30)]
    return [(patient, [anatomy.cut(patient, phase, 13) for phase in (0, 1)]) for patient in patients]


def points(border: np.ndarray) -> np.ndarray:
    """Points [K, 2] of a border [K] about its centre."""
    return border[:, None] * np.stack([np.cos(anatomy.THETA), np.sin(anatomy.THETA)], axis=1)


def shoelace(border: np.ndarray) -> float:
    x, y = points(border).T
    return abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


# ---- anatomy ----


def test_volumes_are_the_sums_of_discs(hearts):
    for patient, phases in hearts[:20]:
        for phase, borders in enumerate(phases):
            inner, outer, right = (sum(map(shoelace, each)) * 10 / 1e3
                                   for each in (borders.inner, borders.outer, borders.right))
            assert inner == pytest.approx(patient.lv[phase], rel=1e-3)
            assert right - outer == pytest.approx(patient.rv[phase], rel=2e-3)


def test_thickness_is_the_mean_distance_of_the_borders(hearts):
    """The way along the normal is at least the way to the nearest point, and no longer by much where borders are near
    to parallel.
    """
    for patient, phases in hearts[:20]:
        for phase, borders in enumerate(phases):
            ways, lengths = [], []
            for inner, outer in zip(borders.inner, borders.outer):
                if inner.any():
                    at = points(inner)
                    lengths.append(np.linalg.norm(np.roll(at, -1, 0) - np.roll(at, 1, 0), axis=1))
                    ways.append(cKDTree(points(outer)).query(at)[0])
            mean = np.average(np.concatenate(ways), weights=np.concatenate(lengths))
            assert 0.97 * patient.thickness[phase] < mean <= patient.thickness[phase] * 1.001


def test_an_even_wall_on_a_round_cavity_is_a_larger_circle():
    inner = np.full((3, len(anatomy.THETA)), 20.0)
    inner[2] = 0
    outer = anatomy.offset(inner, np.zeros(4), np.ones(3), 8.0)
    assert outer[:2] == pytest.approx(28) and not outer[2].any()
    thinner = anatomy.offset(inner, np.zeros(4), np.array([1, 0.4, 0]), 8.0)[:, 0]  # from base to apex by a sixth
    assert thinner[1] - 20 == pytest.approx(0.9 * (thinner[0] - 20)) and thinner[:2].mean() == pytest.approx(28)


def test_an_even_wall_on_an_oblong_cavity_is_as_thick_everywhere():
    inner = 20 * (1 + 0.2 * np.cos(2 * anatomy.THETA))[None]
    outer = anatomy.offset(inner, np.zeros(4), np.ones(1), 8.0)
    assert cKDTree(points(outer[0])).query(points(inner[0]))[0] == pytest.approx(8, abs=0.02)


def test_from_ed_to_es_the_wall_thickens_and_keeps_its_volume(hearts):
    moved = []
    for patient, (diastole, systole) in hearts:
        assert (patient.lv[1] < patient.lv[0]) and (patient.rv[1] < patient.rv[0])
        assert patient.thickness[1] > 1.2 * patient.thickness[0]
        assert systole.volumes(10)[1] == pytest.approx(diastole.volumes(10)[1], rel=0.12)
        first, last = (np.array([np.flatnonzero(each.outer[:, 0])[end] for each in (diastole, systole)])
                       for end in (0, -1))
        moved.append((first[1] - first[0], last[1] - last[0]))
        assert 0.84 <= patient.length[1] / patient.length[0] <= 0.9
    base, apex = np.array(moved).T
    assert base.min() >= 0 and base.max() <= 2 and 0.5 < base.mean() < 1.5  # comes nearer by about a slice
    assert np.abs(apex).max() <= 1 and np.abs(apex).mean() < 0.2  # stays


def test_attributes_span_their_ranges():
    patients = [anatomy.draw_patient(1, group, 13) for group in range(300)]
    table = np.array([anatomy.attributes(patient, 0) for patient in patients])
    of = dict(zip(NAMES, table.T))
    for name, low, high in (("LVEDV", 80, 220), ("LVEF", 45, 75), ("RVEDV", 80, 220), ("RVEF", 45, 75),
                            ("MYOEDTHICK", 5, 11), ("AGE", 45, 80), ("BMI", 18, 40), ("ANGLE", -45, 45),
                            ("DEPTH", 7, 13)):
        assert low <= of[name].min() < low + 0.2 * (high - low) and high - 0.2 * (high - low) < of[name].max() <= high
    assert of["LVEF"] == pytest.approx(100 * (of["LVEDV"] - of["LVESV"]) / of["LVEDV"])
    assert of["RVEF"] == pytest.approx(100 * (of["RVEDV"] - of["RVESV"]) / of["RVEDV"])
    assert set(of["SEX"]) == {0, 1} and set(of["DEPTH"]) == set(range(7, 14))
    assert 0.1 < np.corrcoef(of["SEX"], of["LVEDV"])[0, 1] < 0.5
    assert 0.1 < np.corrcoef(of["AGE"], of["MYOEDTHICK"])[0, 1] < 0.5


def test_hearts_stay_in_the_image_however_it_is_turned(hearts):
    for _, phases in hearts:
        for borders in phases:
            at = np.concatenate([points(right) + centre for right, centre in zip(borders.right, borders.centre)])
            assert np.hypot(*at.T).max() < anatomy.EXTENT[1] / 2 - 5


# ---- labels and images ----


@pytest.mark.parametrize("size", [SMALL, (13, 48, 40)])
def test_label_maps_measure_the_attributes(size):
    spacing = anatomy.spacing_of(size)
    for i in range(10):
        found, phase = cardiac_phantom(i, seed=2, size=size), i % 2
        of = dict(zip(NAMES, found.attributes))
        _, left, _, right = clinical.structure_volumes(found.label, spacing, 4)
        assert (left, right) == pytest.approx((of[f"LV{found.phase}V"], of[f"RV{found.phase}V"]), rel=0.02)
        thickness = clinical.stack_thickness(found.label, spacing)
        assert abs(thickness - of[f"MYO{found.phase}THICK"]) < 0.05 * spacing[2]
        assert clinical.ventricle_angle(found.label, spacing) == pytest.approx(of["ANGLE"], abs=5)
        assert of["ESED"] == 1 - phase


def test_slices_that_hold_no_image_are_constant_and_empty(items):
    for item in items:
        first, last = item.held
        assert last - first == item.attributes[NAMES.index("DEPTH")] and abs(first - (13 - last)) <= 1
        empty = np.ones(13, bool)
        empty[first:last] = False
        deviations = item.image.std(axis=(1, 2))
        assert (deviations[empty] < 0.003).all() and (deviations[~empty] > 0.05).all()
        assert not item.label[empty].any() and set(np.unique(item.label)) == {0, 1, 2, 3}


def test_blood_is_brighter_than_muscle_in_both_styles(items):
    for style in ("public", "private"):
        found = cardiac_phantom(4, seed=5, size=SMALL, style=style)
        blood, muscle = (np.median(found.image[found.label == value]) for value in (1, 2))
        assert blood > 1.4 * muscle and found.image.min() >= 0 and found.image.max() <= 1
        np.testing.assert_array_equal(found.label, items[4].label)  # one anatomy
    assert not np.allclose(found.clean, items[4].clean, atol=0.05)


def test_items_depend_on_their_number_alone(items):
    again = cardiac_phantom(7, seed=5, size=SMALL)
    np.testing.assert_array_equal(again.image, items[7].image)
    assert (again.group, again.phase) == (3, "ES") and items[6].phase == "ED"
    same = [name not in ("ESED",) for name in NAMES]
    np.testing.assert_array_equal(again.attributes[same], items[6].attributes[same])  # those of both phases
    empty = slice(items[6].held[1], None)
    np.testing.assert_array_equal(items[6].clean[empty], again.clean[empty])
    assert not np.array_equal(cardiac_phantom(7, seed=6, size=SMALL).label, again.label)


def test_one_anatomy_whatever_the_pixels():
    fine, coarse = (cardiac_phantom(3, seed=1, size=size) for size in ((13, 96, 96), SMALL))
    np.testing.assert_array_equal(fine.attributes, coarse.attributes)
    averaged = fine.clean.reshape(13, 32, 3, 32, 3).mean(axis=(2, 4))
    assert np.abs(averaged - coarse.clean).mean() < 0.02 and np.corrcoef(averaged.ravel(), coarse.clean.ravel())[0, 1] \
        > 0.98
    assert cardiac_affine(fine.image.shape)[1, 1] == pytest.approx(1.8269) and cardiac_affine(SMALL)[0, 0] == 10


@pytest.mark.parametrize(("index", "options", "said"), [
    (-1, {}, "index=-1"), (0, {"seed": -2}, "seed=-2"), (0, {"size": (6, 32, 32)}, "size=6 32 32"),
    (0, {"size": (13, 32)}, "size=13 32"), (0, {"style": "x"}, "style='x': wanted one of public, private")])
def test_what_cannot_be_drawn_is_refused(index, options, said):
    with pytest.raises(ValueError, match=said):
        cardiac_phantom(index, **{"seed": 0, **options})


# ---- measures ----


def ring(inner: float = 8, outer: float = 14, size: int = 40) -> np.ndarray:
    """A slice with a round cavity, 1, in a ring of muscle, 2."""
    y, x = np.indices((size, size)) - (size - 1) / 2
    r = np.hypot(x, y)
    return np.where(r <= inner, 1, np.where(r <= outer, 2, 0)).astype(np.uint8)


def test_thickness_of_a_round_ring_by_hand():
    spacing, whole = (10.0, 0.4, 0.4), ring(40, 70, 160)
    assert clinical.stack_thickness(np.stack([whole]), spacing) == pytest.approx(12, abs=0.03)
    assert clinical.stack_thickness(np.stack([whole] * 2, axis=2), (0.4, 0.4, 10.0)) == pytest.approx(12, abs=0.03)
    # Longer borders count for more: (40 x 30 + 20 x 15) / 60 = 25 pixels.
    assert clinical.stack_thickness(np.stack([whole, ring(20, 35, 160)]), spacing) == pytest.approx(10, abs=0.03)


def test_what_lies_in_the_cavity_or_far_off_does_not_matter_and_open_rings_are_left_out():
    spacing, whole = (10.0, 2.0, 2.0), ring()
    papillary, speck, opened = whole.copy(), whole.copy(), whole.copy()
    papillary[18:21, 17:20] = 2
    papillary[22:24, 20:22] = 0
    speck[:2, :2] = 2
    opened[:, 20:][opened[:, 20:] == 2] = 0  # half of the ring is gone
    expected = clinical.stack_thickness(np.stack([whole]), spacing)
    for changed in (papillary, speck):
        assert clinical.stack_thickness(np.stack([changed]), spacing) == expected
    assert clinical.stack_thickness(np.stack([opened, whole]), spacing) == expected
    for none in (opened, np.where(whole == 1, 0, whole), np.where(whole == 2, 0, whole), np.zeros_like(whole)):
        assert np.isnan(clinical.stack_thickness(np.stack([none]), spacing))
    with pytest.raises(ValueError, match="wanted a stack"):
        clinical.stack_thickness(np.stack([whole]), (2.0, 2.0, 2.0))


def test_angle_by_hand():
    label = np.zeros((2, 21, 21), np.uint8)
    label[0, 10, 10], label[0, 10, 2] = 1, 3
    assert clinical.ventricle_angle(label, (10, 2, 2)) == 0
    label[:] = 0
    label[1, 10, 10], label[1, 14, 8] = 1, 3  # 4 rows below, 2 columns to the left, of twice their length
    assert clinical.ventricle_angle(label, (10, 2, 4)) == pytest.approx(45)
    assert np.isnan(clinical.ventricle_angle(np.roll(label * (label == 1), 1, 0), (10, 2, 2)))


@pytest.mark.parametrize(("spacing", "axis"), [((10, 2, 2), 0), ((2, 2, 8), 2), ((1, 1, 1), None), ((3, 3, 2), None),
                                               ((2, 4), None), ((10, 7.3, 7.3), 0)])
def test_stacks_are_known_by_their_voxels(spacing, axis):
    assert clinical.slice_axis(spacing) == axis


@pytest.mark.parametrize(("classes", "spacing", "found"), [
    (("background", "lv", "myocardium", "rv"), (10, 2, 2), {"left": 1, "myocardium": 2, "right": 3}),
    (("background", "RV", "Myo", "LV cavity"), (2, 2, 8), {"left": 3, "myocardium": 2, "right": 1}),
    (("background", "lv", "myocardium"), (10, 2, 2), {"left": 1, "myocardium": 2}),
    (("background", "lv", "rv"), (10, 2, 2), {}), (("background", "lv", "myocardium", "rv"), (2, 2, 2), {}),
    (("background", "cavity", "myocardium", "atrium"), (10, 2, 2), {})])
def test_which_volumes_are_stacks_of_hearts(classes, spacing, found):
    layout = Layout(("mr",), classes, spacing, 0.0, 1.0, "")
    assert stacked(layout) == found and bool(StackedHeart().units(layout)) == bool(found)


@pytest.mark.parametrize(("name", "esed", "phase"), [("ED", 0.0, 0), ("end-systole", 1.0, 1), (None, 1.0, 0),
                                                     (None, 0.0, 1), (None, np.nan, None), ("other", 0.0, 1)])
def test_phases_by_class_or_attribute(name, esed, phase):
    layout = Layout(("mr",), (), (1.0, 1.0), 0.0, 1.0, "", attributes=(("AGE", "y"), ("ESED", "")))
    assert phase_of(Case("a", np.zeros((1, 2, 2)), None, name, attributes=np.array([60.0, esed])), layout) == phase


def test_attributes_of_phases_find_their_numbers():
    layout = Layout(("mr",), ("background", "LV", "Myo", "RV cavity"), (10, 2, 2), 0.0, 1.0, "", None, ("ED", "ES"),
                    anatomy.ATTRIBUTES)
    found = {each.name: each for each in AttributesFollowed([Structures(), StackedHeart()]).matches(layout)}
    numbers = {name: (each.number, each.phase) for name, each in found.items() if each.number}
    assert numbers == {"LVEDV": ("LV_volume", 0), "LVESV": ("LV_volume", 1), "RVEDV": ("RV cavity_volume", 0),
                       "RVESV": ("RV cavity_volume", 1), "MYOEDTHICK": ("wall_thickness", 0),
                       "MYOESTHICK": ("wall_thickness", 1), "ANGLE": ("angle", None)}
    assert "see the ejection fraction" in found["LVEF"].reason and "no number" in found["AGE"].reason


# ---- the file ----


def call(*args, code: int = 0) -> str:
    result = CliRunner().invoke(dataset_tool.main, ["phantom", *map(str, args)])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("cardiac") / "hearts.h5"
    call("--kind", "cardiac", "--dest", path, "--num", 20, "--size", *SMALL, "--seed", 3)
    return path


def test_the_file_has_both_phases_of_patients_and_says_which_slices_hold_image(path):
    file = VolumesFile(path)
    assert file.meta.class_names == ("ED", "ES") and file.meta.label_classes == ("background", "lv", "myocardium", "rv")
    assert file.meta.attribute_names == tuple(NAMES) and file.spatial_shape("train") == SMALL
    item = file.read("val", 1)
    number = int(item.id.removeprefix("phantom-"))
    drawn = cardiac_phantom(number, seed=3, size=SMALL)
    assert item.group == f"patient-{number // 2:06d}" and item.class_index == number % 2
    assert tuple(item.box[:, 0]) == drawn.held and item.box[:, 1:].tolist() == [[0, 0], [32, 32]]
    np.testing.assert_array_equal(item.image[0], drawn.image)
    np.testing.assert_allclose(item.attributes, drawn.attributes, rtol=1e-6)
    assert np.diag(item.affine)[:3] == pytest.approx([10, 3 * 1.8269, 3 * 1.8269])


def test_the_same_call_finds_its_file_and_another_does_not(path):
    options = ["--dest", path, "--num", 20, "--seed", 3, "--size", *SMALL]
    assert "there already" in call("--kind", "cardiac", *options, "--style", "public", "--missing", 0)
    for other in (["--kind", "cardiac", "--style", "private"], ["--kind", "cardiac", "--missing", 0.1]):
        assert "--overwrite" in call(*other, *options, code=1)


@pytest.mark.parametrize(("options", "said"), [
    (["--kind", "pig"], "--kind='pig': wanted one of echo, cardiac"), (["--missing", 1], "--missing 1: wanted a share"),
    (["--kind", "cardiac", "--pairs"], "--pairs: cardiac phantoms have no such option; they have size, style"),
    (["--style", "private"], "--style: echo phantoms have no such option"),
    (["--size", 13, 96, 96], "wanted one number"), (["--kind", "cardiac", "--size", 32], "size=32: wanted slices")])
def test_options_of_another_kind_are_refused(tmp_path, options, said):
    assert said in call("--dest", tmp_path / "x.h5", *options, code=1)
    assert not list(tmp_path.iterdir())


def test_a_share_of_the_attributes_is_hidden_the_same_way_each_time(path, tmp_path):
    call("--kind", "cardiac", "--dest", tmp_path / "gaps.h5", "--num", 20, "--size", *SMALL, "--seed", 3, "--missing",
         0.3)
    files = [VolumesFile(each) for each in (path, tmp_path / "gaps.h5")]
    whole, gaps = (np.concatenate([file.table(split, "attributes") for split in file.splits]) for file in files)
    hidden = np.isnan(gaps)
    assert not np.isnan(whole).any() and not hidden[:, NAMES.index("ESED")].any()
    assert 0.2 < hidden.mean() * 14 / 13 < 0.4 and len(np.unique(hidden, axis=0)) > 10
    np.testing.assert_array_equal(whole[~hidden], gaps[~hidden])
    assert reference.Origin.read(files[1].provenance, SMALL, "x").source == CardiacPhantoms(SMALL)
    with pytest.raises(ValueError, match=r"x: provenance\.phantom is 'pig'"):
        reference.Origin.read({**files[1].provenance, "phantom": "pig"}, SMALL, "x")


def test_what_was_asked_is_held_against_the_phase_that_measures_it():
    """Phantoms of two seeds as real and generated, asked for by their own attributes."""
    layout = Layout(("mr",), anatomy.LABEL_CLASSES, anatomy.spacing_of(SMALL), 0.0, 1.0, "", None, ("ED", "ES"),
                    anatomy.ATTRIBUTES)
    context = Comparison(layout=layout, provenance={}, real=None, generated=None)
    sets = {name: [reference.fresh_phantoms(reference.Origin(CardiacPhantoms(SMALL), seed)).case(i) for i in range(16)]
            for seed, name in enumerate(("real", "generated"))}
    numbers = MeasuredOnce([Structures(), StackedHeart()])
    sections = [AttributesFollowed(numbers), Ejection(numbers)]
    walked = walk(sections, context, sets).found
    found = sections[0].compute(walked[0], context) | sections[1].compute(walked[1], context)
    check_followed(found)
    assert ">lv_volume at ES<" in sections[0].page(found, {})


def check_followed(found: dict) -> None:
    rows = found["asked"]["attributes"]
    assert set(rows) == {"LVEDV", "LVESV", "RVEDV", "RVESV", "MYOEDTHICK", "MYOESTHICK", "ANGLE"}
    for name, row in rows.items():
        assert min(row["generated"]["r"], row["real"]["r"]) > 0.98, name
        assert row["generated"]["num"] == (16 if name == "ANGLE" else 8)
    assert (rows["LVESV"]["phase"], rows["LVESV"]["measured_by"]) == ("ES", "lv_volume")
    assert "phase" not in rows["ANGLE"]
    assert rows["MYOEDTHICK"]["generated"]["mae"] < 0.1 * 5.48 and rows["LVEDV"]["generated"]["mae"] < 2
    assert found["ejection"]["ventricles"].keys() == {"lv", "rv"}
    assert 45 < found["ejection"]["ventricles"]["rv"]["generated_mean"] < 75


@pytest.mark.slow
def test_the_whole_report_of_phantoms(path, tmp_path):
    file, num = VolumesFile(path), 16
    phantoms = [cardiac_phantom(i, seed=9, size=SMALL) for i in range(num)]
    arrays = {"images": np.stack([p.image[None] for p in phantoms]), "labels": np.stack([p.label for p in phantoms]),
              "classes": np.arange(num) % 2, "attributes": np.array([p.attributes for p in phantoms], np.float32)}
    meta = SampleMeta(volume_facts(file, "train"), "gone.pt", "0", {
        "conditions": {"source": "hearts.h5", "hash": "0", "ids": [f"phantom-{i:06d}" for i in range(num)]}})
    Samples(list(range(num)), arrays, meta).save(tmp_path / "samples.h5")
    found = evaluate.evaluate(path, tmp_path / "samples.h5", tmp_path / "report", ComparisonOptions(num_noise=0))
    check_followed(found)
    assert "lv_volume at ES" in (tmp_path / "report/report.html").read_text()
