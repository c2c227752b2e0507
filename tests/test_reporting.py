"""Features, tables, pictures and the page, against answers known by hand."""

import csv
import io
import json
import re

import matplotlib.image
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scipy import ndimage

from edm3d.formats.png import COLOURS
from edm3d.reporting import charts, comparison, distances, montages, report
from edm3d.reporting.cases import Case, DecodedCase, Layout
from edm3d.reporting.comparison import FRAME, Comparison
from edm3d.reporting.distances import radial_log_power
from edm3d.reporting.hearts import volume_names
from edm3d.reporting.html import html_cell, html_strips, html_table, width_of
from edm3d.reporting.reference import Cases
from edm3d.reporting.report import check_report
from edm3d.reporting.section import Section, missing, walk
from edm3d.reporting.sections import COMPARISON, NUMBERS
from edm3d.reporting.sections.held_out import HeldOut
from edm3d.reporting.sections.intensities import Intensities
from edm3d.reporting.sections.scalars import MeasuredOnce, Scalars
from edm3d.reporting.sections.structures import Structures
from edm3d.reporting.sections.texture import Texture
from edm3d.reporting.sections.variety import ms_ssim_row
from edm3d.reporting.strips import pictures_of, strips
from edm3d.reporting.words import shown_lines, shown_word

HEART = ("background", "cavity", "myocardium", "atrium")
GREY_3D = Layout(("echo",), (), (1.0, 1.0, 1.0), 0.0, 1.0, "")


def blank(shape, value=0.0):
    return np.full((1, *shape), value, np.float32)


def pixels(figure) -> np.ndarray:
    """RGB [h, w, 3] in [0, 1] of a figure as it is written."""
    return matplotlib.image.imread(io.BytesIO(montages.png_bytes(figure)))[..., :3]


def compared(section: Section, layout: Layout, **sets: list[Case]) -> dict:
    """What a section says of sets of cases: real, generated, noise."""
    context = Comparison(layout=layout, provenance={}, real=None, generated=None)
    return section.compute(walk([section], context, sets).found[0], context)


def measured(case: Case, layout: Layout) -> dict:
    """The numbers of a volume."""
    return Scalars(NUMBERS).measure(case, Comparison(layout=layout, provenance={}, real=None, generated=None))


# ---- what is measured ----


def test_volume_of_a_box_and_its_name():
    label = np.zeros((16, 16, 16), np.uint8)
    label[2:12, 2:12, 2:12] = 1
    layout = Layout(("mr",), ("background", "liver"), (2.0, 2.0, 1.0), 0.0, 1.0, "")
    assert measured(Case("a", blank(label.shape), label), layout)["liver_volume"] == pytest.approx(4.0)  # 1000 of 4 mm3
    assert Structures().units(layout) == {"liver_volume": "mL"}
    assert Intensities().units(layout) == {"intensity_mean": "", "intensity_std": ""}


def test_heart_has_its_own_names_and_an_undefined_wall_is_nan():
    layout = Layout(("echo",), HEART, (4.0, 4.0, 4.0), 0.0, 1.0, "")
    found = measured(Case("empty", blank((16, 16, 16)), np.zeros((16, 16, 16), np.uint8)), layout)
    units = MeasuredOnce(NUMBERS).units(layout)
    assert set(units) == set(found) and [name for name, unit in units.items() if unit is None] == ["cavity_enclosed"]
    assert found["lv_volume"] == 0 and found["la_volume"] == 0
    assert np.isnan(found["wall_thickness"]) and found["cavity_enclosed"] is False


def test_several_channels_are_told_apart_by_name():
    layout = Layout(("t1", "t2"), (), (1.0, 1.0), 0.0, 4.0, "a.u.")
    image = np.stack([np.full((8, 8), 1.0), np.full((8, 8), 3.0)]).astype(np.float32)
    found = Intensities().measure(Case("a", image, None), layout)
    assert found == {"t1_intensity_mean": 1, "t1_intensity_std": 0, "t2_intensity_mean": 3, "t2_intensity_std": 0}


def test_nothing_to_measure_is_an_error():
    with pytest.raises(ValueError, match="no volumes to measure.*generated"):
        compared(Texture(), GREY_3D, real=[Case("a", blank((8, 8, 8)), None)], generated=[])


@pytest.mark.parametrize("shape", [(32, 32), (32, 32, 32), (32, 48)])
def test_spectrum_of_a_wave_peaks_at_its_frequency(shape):
    wave = np.sin(2 * np.pi * 5 * np.arange(32) / 32).reshape(-1, *[1] * (len(shape) - 1)) * np.ones(shape)
    power = radial_log_power(wave)
    assert len(power) == 16
    assert power.argmax() == 4  # the first shell is 1 cycle
    assert radial_log_power(wave / 10)[4] == pytest.approx(power[4] - 2)


def test_spectrum_of_white_noise_is_flat_and_of_known_height():
    noise = np.random.default_rng(0).normal(size=(64, 64, 64))
    window = np.mean(np.hanning(66)[1:-1] ** 2) ** 3  # what the window leaves of the power
    assert radial_log_power(noise)[8:] == pytest.approx(np.log10(window), abs=0.08)


# ---- distances ----


def test_undefined_values_count_as_beyond_all_others():
    real = np.arange(10.0)
    assert distances.ks(real, real) == 0
    assert distances.ks(real, np.full(10, np.nan)) == 1
    assert distances.ks(real, np.where(real < 5, real, np.nan)) == pytest.approx(0.5)
    assert distances.ks(np.full(3, np.nan), np.full(4, np.nan)) == 0


def test_wilson_interval_of_none_in_ten():
    low, high = distances.wilson_interval(0, 10)
    assert low == pytest.approx(0) and high == pytest.approx(3.8415 / 13.8415, abs=1e-4)  # z^2 / (n + z^2)


def test_histogram_distance_is_the_shift_as_a_share_of_the_range():
    layout = Layout(("echo",), (), (1.0, 1.0), 0.0, 200.0, "HU")
    low, high = ([Case(str(i), blank((8, 8), v), None) for i in range(4)] for v in (51.0, 151.0))
    row = compared(Texture(), layout, real=low, generated=high)["intensity"]["echo"]
    assert row["distance"] == pytest.approx(0.5)
    assert row["floor_p99"] == 0 and row["noise"] is None
    assert compared(Texture(), layout, real=high, generated=low, noise=high)["intensity"]["echo"]["noise"] == 0


def test_spectrum_distance_is_the_change_of_amplitude_in_db():
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(1, 16, 16)).astype(np.float32) for _ in range(3)]
    layout = Layout(("echo",), (), (1.0, 1.0), -5.0, 5.0, "")
    real, loud = ([Case(str(i), image * gain, None) for i, image in enumerate(images)] for gain in (1, 10))
    assert compared(Texture(), layout, real=real, generated=loud)["spectrum"]["echo"]["distance"] == pytest.approx(
        20, abs=1e-3)


def test_resampled_floor_of_a_mean():
    values = np.random.default_rng(0).normal(size=400)
    floor = distances.resampled_floor(lambda a, b: abs(values[a].mean() - values[b].mean()), 400, 100, seed=0)
    expected = values.std() * np.sqrt(1 / 400 + 1 / 100)
    assert floor["floor_median"] == pytest.approx(0.674 * expected, rel=0.15)  # |normal|: 50 % and 99 % points
    assert floor["floor_p99"] == pytest.approx(2.576 * expected, rel=0.15)
    assert floor["floor_median"] < floor["floor_p95"] < floor["floor_p99"]


def test_ms_ssim_of_copies_is_one_and_of_one_volume_is_not_available():
    rng = np.random.default_rng(0)
    real, copies = rng.uniform(size=(6, 1, 32, 32)), np.repeat(rng.uniform(size=(1, 1, 32, 32)), 6, axis=0)
    row, values = ms_ssim_row(real.astype(np.float32), copies.astype(np.float32))
    assert row["available"] and row["generated_mean"] == pytest.approx(1, abs=1e-4)
    assert row["real_mean"] < 0.5 and len(values["generated"]) == row["pairs"]
    row, values = ms_ssim_row(real[:1], copies)
    assert not row["available"] and "fewer than two" in row["reason"] and not values


# ---- tables ----


SCALARS = next(section for section in COMPARISON if isinstance(section, Scalars))
LAYOUT = Layout(("echo",), HEART, (4.0, 4.0, 4.0), 0.0, 1.0, "")


@pytest.fixture(scope="module")
def sets():
    """Real: labelled cubes of 6 to 9 voxels; generated: the same, one without any label; noise: nothing labelled."""
    rng = np.random.default_rng(0)

    def cases(name, sizes):
        for i, size in enumerate(sizes):
            label = np.zeros((16, 16, 16), np.uint8)
            label[2:2 + size, 2:2 + size, 2:2 + size] = 2
            label[3:1 + size, 3:1 + size, 3:1 + size] = 1 if size else 0
            yield Case(f"{name}-{i}", rng.uniform(size=(1, 16, 16, 16)).astype(np.float32), label)

    return {name: list(cases(name, sizes)) for name, sizes in
            (("real", [6, 7, 8, 9]), ("generated", [6, 7, 8, 0]), ("noise", [0, 0, 0, 0]))}


def walked(sets, **more):
    """All sections' measurements of these sets."""
    real, generated = (Cases(name, len(sets[name]), sets[name].__getitem__) for name in ("real", "generated"))
    context = Comparison(layout=LAYOUT, provenance={}, real=real, generated=generated, seeds=[3, 4, 5, 9], **more)
    return walk(COMPARISON, context, sets)


def test_undefined_values_and_shares_are_counted(sets):
    found = compared(SCALARS, LAYOUT, **sets)
    wall = found["metrics"]["wall_thickness"]
    assert (wall["real_undefined"], wall["generated_undefined"], wall["noise_undefined"]) == (0, 1, 4)
    assert wall["ks"] >= 0.25 and wall["noise"] == 1 and wall["noise_mean"] is None
    volume = found["metrics"]["lv_volume"]
    assert volume["real_mean"] == pytest.approx(np.mean([4**3, 5**3, 6**3, 7**3]) * 0.064)
    assert volume["ks"] == pytest.approx(0.25)
    share = found["shares"]["cavity_enclosed"]
    assert (share["real"], share["generated"], share["noise"]) == (1, 0.75, 0)
    json.dumps(found, allow_nan=False)


def test_cases_csv_has_one_row_per_case_and_seeds_for_generated_only(sets):
    lines = report.cases_csv(COMPARISON, FRAME, walked(sets, missing={"decoded": "x"})).splitlines()
    head = lines[0].split(",")
    assert head[:4] == ["set", "id", "seed", "lv_volume"] and head[-1] == "contrast_atrium_echo"
    assert len(lines) == 1 + 12
    assert lines[1].startswith("real,real-0,,4.096,")  # 4^3 voxels of 64 mm3
    assert lines[8].startswith("generated,generated-3,9,0,")
    assert dict(zip(head, lines[8].split(",")))["cavity_enclosed"] == "0"


def test_text_is_aligned_and_complete(sets):
    found = {"real": {"reference": "4 cubes"}, "noise": {"available": True},
             **compared(SCALARS, LAYOUT, **sets), **compared(Texture(), LAYOUT, **sets)}
    first, blank_line, *lines = comparison.text([SCALARS, Texture()], found).splitlines()
    assert first == "Real      4 cubes" and not blank_line
    assert len({len(line) for line in lines}) == 1
    assert [line.split("  ")[0] for line in lines[2:5]] == ["lv_volume [mL]", "myocardium_volume [mL]",
                                                            "la_volume [mL]"]
    assert "75.0 %" in lines[-3] and "0.250" in lines[2]
    assert [line.split("  ")[0] for line in lines[-2:]] == ["histogram distance, echo", "spectrum distance [dB], echo"]


# ---- pictures ----


def test_montage_shows_the_slice_through_the_label_and_its_colours():
    image, label = blank((16, 16, 16)), np.zeros((16, 16, 16), np.uint8)
    label[10:14, 4:12, 4:12] = 1  # not in the middle of axis 0
    figure = montages.montage([("Real", [(image, label)]), ("Generated", [(image, None)])], (1, 1, 1),
                              windows=(0, 1), label_classes=("background", "cavity"))
    rgb = pixels(figure)
    is_outline = (np.abs(rgb - np.array([1.0, 0.364, 0.451])) < 0.08).all(-1)
    starts = [40 + i * (montages.TILE + montages.GAP) for i in range(4)]
    outlined = [np.flatnonzero(is_outline[top:top + montages.TILE, 18:18 + montages.TILE].any(axis=1))
                for top in starts]
    assert (rgb[starts[0]:starts[0] + montages.TILE, 18:18 + montages.TILE] == 0).all()  # first the image alone
    assert all(len(rows) for rows in outlined[1:])  # all three planes pass through the label
    assert outlined[1].min() > montages.TILE / 2  # depth runs down, the label lies in the lower half


def test_blocks_without_labels_show_every_plane_once_and_the_legend_what_is_seen(monkeypatch):
    label = np.zeros((16, 16, 16), np.uint8)
    label[4:12, 4:12, 4:12] = 2
    legends = []
    monkeypatch.setattr(montages, "_draw_legend", lambda figure, legend, *_: legends.append(legend))
    ramp = np.broadcast_to(np.linspace(0, 1, 16, dtype=np.float32), (1, 16, 16, 16))  # along the last axis
    blocks = [("Real", [(ramp, label)]), ("Generated", [(ramp, None)])]
    rgb = pixels(montages.montage(blocks, (1, 1, 1), label_classes=HEART))
    assert legends == [{2: "myocardium"}]
    step = montages.TILE + montages.GAP
    below = 40 + 4 * step - montages.GAP + 40
    assert len(rgb) == below + 3 * step - montages.GAP + 40 + 9  # four rows of the real, three of the generated
    ranges = [np.ptp(rgb[below + i * step:below + i * step + montages.TILE, 18:18 + montages.TILE]) for i in range(3)]
    assert ranges[0] < 0.1 and ranges[1] > 0.9 and ranges[2] > 0.9  # the first is normal to the ramp
    montages.montage(blocks[1:], (1, 1, 1), label_classes=HEART)
    assert legends[1] == {}


@pytest.mark.parametrize(("channels", "wanted"), [
    (("red", "green", "blue"), [1, 0.5, 0]), (("t1", "t2", "flair"), [1, 1, 1]), ((), [1, 1, 1])])
def test_colour_images_are_shown_in_colour(channels, wanted):
    image = np.stack([np.full((8, 8), value, np.float32) for value in (1, 0.5, 0)])
    rgb = pixels(montages.montage([("Generated", [(image, None)])], (1, 1), windows=(0, 1), channels=channels))
    assert rgb[40 + montages.TILE // 2, 18 + montages.TILE // 2] == pytest.approx(wanted, abs=0.01)


def test_channels_are_shown_one_after_another_each_in_its_own_window():
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    real, drawn = np.stack([ramp, 100 * ramp]), np.stack([0 * ramp, 50 * ramp])
    figure = montages.montage([("Real", [(real, None)]), ("", []), ("Generated", [(drawn, None)])], (1, 1),
                              channels=("t1", "flair"))
    assert [text.get_text() for text in figure.texts] == ["Real, t1", "Generated, t1", "Real, flair",
                                                          "Generated, flair"]
    rgb, step = pixels(figure), 40 + montages.TILE
    tiles = [rgb[40 + i * step:40 + i * step + montages.TILE, 18:18 + montages.TILE] for i in range(4)]
    assert [tile.max() > 0.95 for tile in tiles] == [True, False, True, False]
    assert tiles[1].max() == 0 and 0.45 < tiles[3].max() < 0.55  # as bright as the real of its channel has it
    figure = montages.montage([("Real", [(real, None)])], (1, 1))
    assert [text.get_text() for text in figure.texts] == ["Real, channel 1", "Real, channel 2"]


@pytest.mark.parametrize("real", [2, 3])
def test_unlike_numbers_of_channels_are_refused(real):
    blocks = [(title, [(np.zeros((count, 8, 8), np.float32), None)]) for title, count in (("Real", real), ("Mine", 1))]
    with pytest.raises(ValueError, match=f"unlike numbers of channels: Real {real}, Mine 1"):
        montages.montage(blocks, (1, 1), channels=COLOURS[:real])


def test_captions_stand_below_their_columns():
    pictures = [(blank((8, 8)), None)] * 3
    rgb = pixels(montages.montage([("Real", pictures), ("Generated", pictures)], (1, 1), windows=(0, 1),
                                  captions=["class ED\nseed 0", "", "seed 2"]))
    step = montages.TILE + montages.GAP
    foot = rgb[-18 - 2 * montages.LINE:].max(-1) > 0.5
    assert [foot[:, 18 + i * step:18 + i * step + montages.TILE].any() for i in range(3)] == [True, False, True]
    lines = np.concatenate([[0], foot[:, 18:18 + step].any(1)])
    assert (np.diff(lines) == 1).sum() == 2


def test_montage_of_the_real_alone_and_of_flat_images(tmp_path):
    path = tmp_path / "deep" / "samples.png"
    blocks = [("Real", []), ("Generated", [(np.full((1, 12, 20), 0.5, np.float32), None)])]
    montages.save_png(montages.montage(blocks, (1.0, 1.0), windows=(0, 1)), path)
    rgb = matplotlib.image.imread(path)[..., :3]
    tile = (np.abs(rgb - 0.5) < 0.01).all(-1)
    assert np.ptp(np.flatnonzero(tile.any(axis=1))) + 1 == round(montages.TILE * 12 / 20)  # true to scale
    assert np.ptp(np.flatnonzero(tile.any(axis=0))) + 1 == montages.TILE
    assert [p.name for p in path.parent.iterdir()] == ["samples.png"]


def test_window_clips_and_keeps_values():
    image = np.zeros((1, 8, 8), np.float32)
    image[0, :, :4], image[0, :, 4:] = -7.0, 30.0
    rgb = pixels(montages.planes_figure(image, None, (1.0, 1.0), window=(0.0, 10.0)))
    assert rgb.max() == 1 and (rgb == 0).all(-1).mean() > 0.3


@pytest.mark.parametrize(("affine", "place"), [
    (np.eye(4), (0, 0)),                      # RAS: far right, superior -> top left
    (np.diag([-1.0, 1, 1, 1]), (0, 1)),       # first axis runs to the left -> top right
    (np.diag([1.0, 1, -1, 1]), (1, 0)),       # last axis runs down -> bottom left
])
def test_planes_hang_as_in_a_viewer(affine, place):
    image = np.zeros((16, 16, 16), np.float32)
    image[12:, :, 12:] = 1  # coronal view: the end of the first and of the last axis
    rgb = pixels(montages.planes_figure(image, None, (1, 1, 1), affine=affine))
    left = 18 + montages.TILE + montages.GAP
    coronal = rgb[18:18 + montages.TILE, left:left + montages.TILE].mean(-1)
    half = montages.TILE // 2
    means = [[coronal[:half, :half].mean(), coronal[:half, half:].mean()],
             [coronal[half:, :half].mean(), coronal[half:, half:].mean()]]
    assert np.unravel_index(np.argmax(means), (2, 2)) == place


@pytest.mark.parametrize(("affine", "place"), [
    (np.diag([2.0, 2, 2, 1]), (0, 0)), (np.diag([-2.0, 2, 2, 1]), (0, 1)), (np.diag([2.0, 2, -2, 1]), (1, 0)),
    (np.eye(4), (1, 1)), (None, (1, 1))])  # nothing is known of the axes: the first runs down, the last to the right
def test_montages_hang_as_single_volumes_do(affine, place):
    image = np.zeros((16, 16, 16), np.float32)
    image[12:, :, 12:] = 1
    rgb = pixels(montages.montage([("", [(image, None)])], (2, 2, 2), windows=(0, 1), affine=affine))
    top, half = 18 + montages.TILE + montages.GAP, montages.TILE // 2
    coronal = rgb[top:top + montages.TILE, 18 + 8:18 + montages.TILE].mean(-1)  # names of planes stand on the left
    means = [[coronal[:half, :half].mean(), coronal[:half, half:].mean()],
             [coronal[half:, :half].mean(), coronal[half:, half:].mean()]]
    assert np.unravel_index(np.argmax(means), (2, 2)) == place


@pytest.mark.parametrize(("codes", "names"), [
    ("RAS", ["axial", "coronal", "sagittal"]), ("LPI", ["axial", "coronal", "sagittal"]),
    ("SPR", ["sagittal", "coronal", "axial"]), ("ASL", ["sagittal", "axial", "coronal"])])
def test_planes_are_named_by_where_their_normals_point(codes, names):
    directions = dict(zip("RLAPSI", np.stack([np.eye(3), -np.eye(3)], 1).reshape(6, 3)))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = 2 * np.stack([directions[code] for code in codes], 1), 5
    assert [name for name, _ in montages.plane_names(3, affine)] == names  # normal to the last axis first


def test_planes_without_geometry_are_named_by_their_axes_and_those_of_2d_not_at_all():
    wanted = [("axes 0, 1", "0, 1"), ("axes 0, 2", "0, 2"), ("axes 1, 2", "1, 2")]
    assert montages.plane_names(3, None) == montages.plane_names(3, np.eye(4).tolist()) == wanted
    assert montages.plane_names(2, np.diag([2, 2, 2, 1])) == []


def words_of(figure) -> list[str]:
    """Texts of a figure, as they were added."""
    return [text.get_text() for text in figure.texts]


def test_rows_of_a_montage_have_the_names_of_their_planes():
    affine, label = np.diag([2.0, 2, 2, 1]), np.ones((16, 16, 16), np.uint8)
    blocks = [("Real", [(blank((16, 16, 16)), label)]), ("Generated", [(blank((16, 16, 16)), None)])]
    figure = montages.montage(blocks, (2, 2, 2), windows=(0, 1), affine=affine)
    assert words_of(figure) == ["Real", "axial", "axial", "coronal", "sagittal", "Generated", "axial", "coronal",
                                "sagittal"]
    height = figure.get_size_inches()[1] * montages.DPI
    tops = [40 + i * (montages.TILE + montages.GAP) for i in range(4)]
    assert [height * (1 - text.get_position()[1]) for text in figure.texts[1:5]] == pytest.approx(
        [top + montages.TILE / 2 for top in tops])
    thin = montages.montage([("Real", [(blank((64, 64, 4)), None)])], (1, 1, 1), windows=(0, 1), affine=affine)
    assert words_of(thin) == ["Real", "axial", "cor", "sag"]  # rows of 168, 10 and 10 pixels


def test_legend_takes_as_many_lines_as_it_needs_and_stays_inside(monkeypatch):
    label = (np.arange(64) % 6).reshape(8, 8).astype(np.uint8)
    classes = ["background", *(f"structure {i}" for i in range(4)), "a structure with a name that is long"]
    drawn = []
    monkeypatch.setattr(montages, "_draw_legend", lambda figure, legend, places: drawn.append((figure, places)))
    montages.montage([("Real", [(blank((8, 8)), label)])], (1, 1), windows=(0, 1), label_classes=classes)
    (figure, places), = drawn
    width = 2 * 18 + 18 + 9 * 36  # of the long name, which is wider than the pictures
    assert figure.get_size_inches()[0] * montages.DPI == pytest.approx(width)
    step = 18 + 9 * 11 + 24
    assert places == {1: (0, 18), 2: (0, 18 + step), 3: (1, 18), 4: (1, 18 + step), 5: (2, 18)}


def disc(shape, centre, value=1) -> np.ndarray:
    """A label map with a ball of radius 4."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    return (((grid - np.reshape(centre, (-1, *[1] * len(shape)))) ** 2).sum(0) < 16).astype(np.uint8) * value


def test_what_was_asked_stands_above_what_was_drawn_and_its_outlines_over_it():
    """Real, condition, map, and generated without and with the outlines: five rows of pictures in 2D."""
    map_, step = disc((16, 16), (4, 10)), montages.TILE + 40
    asked = montages.Asked([map_], ("outside", "heart"), [10 * blank((16, 16), 0.5) * map_], ("low",))
    pictures = [(blank((16, 16), 0.5), None)]
    figure = montages.montage([("Real", pictures), ("Generated", pictures)], (1, 1), windows=(0, 1), asked=asked)
    assert words_of(figure) == ["Real", "Condition", "Map asked for", "Generated, outlines asked for", "●", "heart"]
    tops = [40 + i * step for i in range(4)]
    tops.append(tops[-1] + montages.TILE + montages.GAP)
    real, condition, solid, plain, lines = (pixels(figure)[top:top + montages.TILE, 18:18 + montages.TILE]
                                            for top in tops)
    assert len(np.unique(real)) == 1 and (real == plain).all()
    inside = np.abs(solid - [1, 0.365, 0.451]).max(-1) < 0.01
    assert (solid[~inside] == 0).all() and ndimage.center_of_mass(inside) == pytest.approx((47, 110), abs=2)
    assert condition[inside].min() > 0.45 and condition[~inside].mean() < 0.1  # in a window of its own
    coloured = np.ptp(lines, axis=-1) > 0.2
    np.testing.assert_array_equal(coloured & ~inside, False)
    assert 50 < coloured.sum() < 0.2 * inside.sum()


def test_label_maps_and_maps_that_were_asked_for_have_colours_of_their_own_and_one_place(monkeypatch):
    legends, cuts = [], []
    monkeypatch.setattr(montages, "_draw_legend", lambda figure, legend, *_: legends.append(legend))
    taken = montages.planes_of
    monkeypatch.setattr(montages, "planes_of", lambda *given: cuts.append(given[4]) or taken(*given))
    label, map_ = disc((16, 16, 16), (4, 4, 4)), disc((16, 16, 16), (10, 11, 12))
    blocks = [("Real", [(blank((16, 16, 16)), label)]), ("Generated", [(blank((16, 16, 16)), label)])]
    figure = montages.montage(blocks, (1, 1, 1), windows=(0, 1), label_classes=("background", "heart"),
                              asked=montages.Asked([map_], ("outside", "sector")))
    assert legends == [{1: "heart", 2: "sector"}] and cuts == [None, *[[10, 11, 12]] * 3]
    assert [word for word in words_of(figure) if " " in word and "axes" not in word] == [
        "Map asked for", "Generated, outlines asked for"]
    montages.montage(blocks, (1, 1, 1), windows=(0, 1), label_classes=("background", "heart"),
                     asked=montages.Asked([map_], ("background", "heart")))
    assert legends[1] == {1: "heart"}
    rows = montages.planes_figure(blank((16, 16, 16)), map_, (1, 1, 1), label_classes=("background", "heart"),
                                  asked=montages.Asked([map_], ("outside", "sector"), [blank((16, 16, 16))]))
    assert legends[2] == {1: "heart", 2: "sector"}
    assert rows.get_size_inches()[1] * montages.DPI > 4 * montages.TILE


def test_classes_of_one_name_have_one_colour_whatever_their_numbers():
    map_ = np.uint8([[0, 1, 2, 3]])
    asked, names = montages.Asked([map_], ("outside", "sector", "heart", "background")).in_legend_of(("background",
                                                                                                    "heart"))
    assert names == ["background", "heart", "sector", "background"] and asked.maps[0].tolist() == [[0, 2, 1, 3]]


def test_captions_of_narrow_columns_stand_beside_each_other():
    pictures = [(blank((16, 16)), None)] * 2
    figure = montages.montage([("Generated", pictures)], (1, 0.53), captions=["spacing_0 2.2 mm"] * 2)
    renderer = FigureCanvasAgg(figure).get_renderer()
    left, right = (text.get_window_extent(renderer) for text in figure.texts if "spacing" in text.get_text())
    assert left.x1 < right.x0


def test_signals_have_their_condition_above_them():
    figure = montages.montage([("Real", []), ("Generated", [(blank((8,)), None)])], (1.0,),
                              asked=montages.Asked(images=[blank((8,))]))
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["Condition", "Generated"]


def test_exported_planes_are_shown_without_and_with_the_label_map_and_its_classes():
    label = np.zeros((8, 8, 8), np.uint8)
    label[2:6, 2:6, 2:6] = 2
    figure = montages.planes_figure(blank((8, 8, 8), 0.5), label, (1, 1, 1), window=(0, 1), label_classes=HEART)
    rgb = pixels(figure)
    first, second = (rgb[18 + i * (montages.TILE + montages.GAP):][:montages.TILE, 18:-18] for i in range(2))
    coloured = [[(np.ptp(tile[:, i * 174:i * 174 + 168], axis=-1) > 0.2).any() for i in range(3)]
                for tile in (first, second)]
    assert coloured == [[False] * 3, [True] * 3]
    assert words_of(figure) == ["axes 0, 1", "axes 0, 2", "axes 1, 2", "●", "myocardium"]


def test_strips_are_alike_in_size_and_window_and_one_after_another_by_channel():
    layout = Layout(("t1", "t2"), (), (1.0, 1.0), 0.0, 1.0, "")
    cases = [Case(str(i), np.stack([np.full((8, 8), i), np.full((8, 8), 10 - i)]).astype(np.float32), None)
             for i in range(6)]
    found = strips("samples", [("Real", pictures_of(cases)), ("Generated", pictures_of(cases[:2]))], layout)
    assert list(found) == ["samples_1", "samples_2"]
    assert [words_of(figure) for figure in found.values()] == [
        ["Real, t1", "Generated, t1", "Real, t2", "Generated, t2"], ["Real, t1", "Real, t2"]]
    step = 40 + montages.TILE
    middles = [[pixels(found[name])[row * step + 40 + 84, 18 + i * 174 + 84, 0] for i in range(3)]
               for name, row in (("samples_1", 0), ("samples_2", 0), ("samples_1", 2), ("samples_2", 1))]
    shades = [[0, 0.2, 0.4], [0.6, 0.8, 1], [1, 0.8, 0.6], [0.4, 0.2, 0]]  # of 0 to 5, and of 10 to 5
    np.testing.assert_allclose(middles, shades, atol=0.01)
    pictures = {name: montages.png_bytes(figure) for name, figure in found.items()}
    pictures |= {"samples": b"", "samples_x": b"", "other_1": b""}
    page = html_strips("samples", pictures)
    assert page.count('<div class="dark">') == 1 and page.count("<figure>") == 2 and html_strips("s", {}) == ""
    assert "style" not in page  # as wide as each other
    narrow = montages.png_bytes(strips("samples", [("Real", pictures_of(cases[:1]))], layout)["samples_1"])
    share = width_of(narrow) / width_of(pictures["samples_1"])
    assert 0.3 < share < 0.5  # one column of three, and the margin
    assert html_strips("samples", {**pictures, "samples_3": narrow}).count(f'style="max-width: {share:.1%}"') == 1


def test_a_single_channel_and_colours_are_strips_without_names():
    grey, colour = Layout(("t1",), (), (1.0, 1.0), 0.0, 1.0, ""), Layout(COLOURS, (), (1.0, 1.0), 0.0, 1.0, "")
    case = Case("a", np.stack([np.full((8, 8), value) for value in (1, 0, 0)]).astype(np.float32), None)
    found = strips("real", [("Real", [(case.image[:1], None)] * 5)], grey)
    assert [words_of(figure) for figure in found.values()] == [["Real"], ["Real"]]
    figure, = strips("real", [("Real", pictures_of([case]))], colour).values()
    assert pixels(figure)[40 + 84, 18 + 84] == pytest.approx([1, 0, 0], abs=0.01) and words_of(figure) == ["Real"]


def test_picture_of_a_label_on_another_grid_is_refused():
    with pytest.raises(ValueError, match="wanted"):
        montages.planes_figure(blank((8, 8, 8)), np.zeros((8, 8, 4), np.uint8), (1, 1, 1))


def test_the_same_picture_is_the_same_file():
    figures = [montages.planes_figure(blank((8, 8, 8), 0.5), None, (1, 1, 1), window=(0, 1)) for _ in range(2)]
    assert montages.png_bytes(figures[0]) == montages.png_bytes(figures[1])


# ---- page ----


MISSING = missing("the snapshot <old.pt> is not there")
ABOUT = {
    "title": "results/<demo>", "date": "2030-01-01", "command": "python evaluate.py", "versions": {"torch": "2"},
    "definitions": {}, "real": {"path": "data/echo.h5", "content_hash": "ab", "reference": "4 cubes", "num": 4},
    "generated": {"path": "samples.h5", "sha256": "cd", "num": 4, "seeds": "3-5,9", "snapshot": "old.pt",
                  "snapshot_hash": "ef", "sampling": {}, "labels": {"available": True},
                  "quality": {"available": False, "reason": "the samples are kept as they came"}},
}


@pytest.fixture(scope="module")
def page(sets, tmp_path_factory):
    """The folder of a report without noise, first stage and MS-SSIM, which 16 voxels are too few for at 3 scales."""
    dest = tmp_path_factory.mktemp("report")
    found = walked({name: sets[name] for name in ("real", "generated")}, missing={"decoded": MISSING["reason"]})
    report.write_report(dest, COMPARISON, FRAME, found, {**ABOUT, "noise": MISSING})
    return dest


def test_page_stands_alone_and_says_what_is_missing(page):
    text = (page / "report.html").read_text(encoding="utf-8")
    figures = {path.stem for path in (page / "figures").iterdir()}
    assert not re.search(r"""(?:src|href)=["'](?!data:|#part-)""", text)
    assert "http" not in text and "@import" not in text
    assert text.count("data:image/png;base64,") == len(figures)
    assert text.count("not available: the snapshot &lt;old.pt&gt; is not there") == 2
    assert "results/&lt;demo&gt;" in text and "<demo>" not in text and "width=device-width" in text and "$" not in text
    found = json.loads((page / "report.json").read_text())
    shown = {name.removeprefix("distribution_") for name in figures if name.startswith("distribution_")}
    assert found["metrics"].keys() - shown == {  # what is the same in all volumes has no curve
        "la_volume", "atrium_components", "atrium_euler", "atrium_roughness"}
    assert {"overview", "histogram_echo", "spectrum_echo", "samples_1"} < figures


def test_number_that_does_not_exist_is_refused_before_anything_is_written(sets, tmp_path):
    about = {**ABOUT, "title": float("nan"), "noise": {"available": True}}
    with pytest.raises(ValueError, match="JSON"):
        report.write_report(tmp_path / "out", COMPARISON, FRAME, walked(sets, missing={"decoded": "x"}), about)
    assert not (tmp_path / "out").exists()


def test_two_sections_cannot_give_one_key():
    with pytest.raises(AssertionError, match="'b'"):
        report.add({"a": 1, "b": 2}, {"b": 3})


@pytest.mark.parametrize(("atrium", "least"), [(None, "0.750"), (0.5, "0.500")])
def test_class_without_a_dice_has_a_dash(atrium, least):
    dice = {"cavity": 0.75, "atrium": atrium}
    part = {"available": True, "split": "test", "num": 2, "psnr_db": 20.0, "dice": dice, "dice_min": dice,
            "ceiling": missing("no phantoms")}
    text = report.html_page([HeldOut()], FRAME, {**ABOUT, "citations": {}, "first_stage": part}, {})
    assert f"<b>{least}</b><span>least Dice" in text
    row = '<td>atrium</td><td class="main" data-head="mean">-</td><td data-head="worst case">-</td>'
    assert (row in text) is (atrium is None)


def test_first_stage_that_loses_nothing_has_a_number():
    case = Case("a", blank((8, 8, 8), 0.5), None)
    part = compared(HeldOut(), GREY_3D, decoded=[DecodedCase(case, case)])["first_stage"]
    assert part["psnr_db"] == 200 and part["num"] == 1


def test_pairs_chart_of_equal_values_shows_them_all_in_one_bin():
    figure = charts.pairs_chart({"real": np.ones(5), "generated": np.ones(4)})
    axes, = figure.axes
    for patch in axes.patches:
        values, edges, _ = patch.get_data()
        assert np.all(np.diff(edges) > 0) and edges[0] <= 1 <= edges[-1]
        assert sorted(values) == [0] * 23 + [1]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["real (n = 5)", "generated (n = 4)"]


CURVES = {"bins": [0, 1, 2], **{f"{name}_curve": [0.5, 0.5] for name in ("real", "generated", "noise")}}


@pytest.mark.parametrize("figure", [
    charts.distribution_chart({name: np.arange(5.0) for name in ("real", "generated", "noise")}, "volume", "mL"),
    charts.histogram_chart(CURVES, "intensity", ""), charts.spectrum_chart(CURVES),
    charts.bands_chart({"real": [1.0, 2.0], "generated": [1.0, None], "noise": [0.0, 0.0]}, [0, 0.5, 0.8]),
    charts.neighbours_chart({name: [[1.0, 0.5, None]] * 3 for name in ("real", "generated", "noise")}),
    charts.pairs_chart({name: np.arange(5.0) for name in ("real", "generated")}),
    charts.overview_chart({"a": {"floor_p99": 0.2, "floor_median": 0.1, "noise": 0.9, "ks": 0.3}}, {"a": "volume"})])
def test_legends_lie_below_the_axes_and_within_the_picture(figure):
    figure.draw_without_rendering()
    axes, = figure.axes
    legend = figure.legends[0].get_window_extent()
    assert axes.get_legend() is None and legend.y1 <= axes.get_tightbbox().y0
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.x1 and legend.y0 >= 0


# ---- what the page says ----


def test_cells_say_which_column_they_are_of():
    assert html_table(["<a>", "b & c", "d"], [["x", "<1>", "2"]], main=1) == (
        '<table class=""><tr><th>&lt;a&gt;</th><th>b &amp; c</th><th>d</th></tr><tr><td>x</td>'
        '<td class="main" data-head="b &amp; c">&lt;1&gt;</td><td data-head="d">2</td></tr></table>')
    assert html_table(None, [["x", "1"]], kind="plain") == (
        '<table class="plain"><tr><td>x</td><td>1</td></tr></table>')


ROW = {"ks": 0.15, "floor_median": 0.1, "floor_p99": 0.29, "noise": 0.84}


@pytest.mark.parametrize(("found", "said"), [
    ([(0.2, 0.3), (0.1, 0.3)], ("2 of 2", "scalars within the 99 % floor")),
    ([(0.2, 0.6), (0.1, 0.3)], ("too few", "volumes to tell the sets apart by a scalar")),
    ([(1.0, 0.667), (0.3, 0.667)], ("1 of 2", "scalars within the 99 % floor"))])  # far apart is told by a few
def test_first_fact_is_what_the_numbers_allow(found, said):
    metrics = {str(i): {"ks": ks, "floor_p99": floor} for i, (ks, floor) in enumerate(found)}
    assert Scalars(NUMBERS).facts({"metrics": metrics, "shares": {}}) == [said]


def test_pictures_smaller_than_their_slices_show_no_pattern_that_is_not_there():
    board = (np.indices((3 * montages.TILE, 3 * montages.TILE)).sum(0) % 2)[None]
    sheet = montages.montage([("Real", [(board, None)])], (1, 1), windows=(0, 1))
    tile = pixels(sheet)[50:30 + montages.TILE, 30:10 + montages.TILE]
    np.testing.assert_allclose(tile, 0.5, atol=0.01)  # grey, where samples of points would be black and white


@pytest.mark.parametrize(("row", "said", "unsaid"), [
    (ROW, "decoded noise, which a model that learned nothing would draw, is 0.840 away. So generated volumes cannot be "
          "told from real ones by this number.", "chance"),
    ({**ROW, "ks": 0.3, "noise": None}, "(the floor). So generated volumes differ in this number from real ones by "
                                        "more than chance.", "noise"),
    ({**ROW, "ks": 1.0, "floor_p99": 0.667}, "So generated volumes differ in this number from real ones by more than "
                                             "chance.", "too few"),
    ({**ROW, "floor_p99": 0.5}, "So there are too few volumes to tell the sets apart by it.", "cannot")])
def test_page_explains_its_scalars_by_the_first_of_them(row, said, unsaid):
    metrics = {name: {"unit": "mL", "real_undefined": 0, "generated_undefined": 0, **row,
                      **{f"{key}_{part}": 1.0 for key in ("real", "generated", "noise") for part in ("mean", "std")}}
               for name in ("la_volume", "other")}
    available = {"available": True}
    text = Scalars(NUMBERS).page({"metrics": metrics, "shares": {}, "noise": available,
                                  "generated": {"labels": available}}, {})
    example, = re.findall("<p>(How to read it, by the example of LA volume: .*?)</p>", text)
    assert f"is {row['ks']:.3f}, where 0 is alike" in example and f"below {row['floor_p99']:.3f} in 99 of" in example
    assert example.endswith(said) and unsaid not in example


def test_a_report_takes_the_place_of_one_of_the_same_volumes_and_of_no_other_file(tmp_path):
    inputs = {"real": {"content_hash": "ab"}, "generated": {"sha256": "cd"}}
    check_report(tmp_path, inputs, overwrite=False)
    head = {"title": "samples.h5", "date": "", "command": "", "definitions": {}, **inputs, "more": 1}
    path = tmp_path / "report.json"
    path.write_text(json.dumps(head))
    check_report(tmp_path, inputs, overwrite=False)
    other = inputs | {"generated": {"sha256": "ef"}}
    with pytest.raises(ValueError, match=r"holds a report of other volumes .*samples.h5.*--overwrite"):
        check_report(tmp_path, other, overwrite=False)
    check_report(tmp_path, other, overwrite=True)
    for text in ("mine", "[]", "{}", json.dumps(head | {"real": 3})):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"report.json: .*; nothing but a report is overwritten"):
            check_report(tmp_path, inputs, overwrite=True)
    path.unlink()
    (tmp_path / "cases.csv").write_text("mine")
    with pytest.raises(ValueError, match=r"holds cases.csv, and no report.json that says that evaluate wrote it"):
        check_report(tmp_path, inputs, overwrite=True)


# ---- words out of files ----

HOSTILE = ("=HYPERLINK(0)", "../../up", "$\\frac{", "a$b$c", "</script><script>x()</script>", "心臓\u202e",
           "\x1b[31mred", "line\nfeed", "x" * 300, "\\$", "é\u0301%s{0}", "lv", "cavity", "\ud800")


@pytest.mark.parametrize("name", HOSTILE)
def test_any_word_can_stand_on_a_picture(name, capfd, recwarn):
    label = np.ones((8, 8), np.uint8)
    figures = [montages.montage([(name, [(blank((8, 8)), label)])], (1.0, 1.0), label_classes=["", name],
                                captions=[f"class {name}\n{name}"]),
               montages.montage([(name, [(blank((8,)), None)])], (1.0,), captions=[name]),
               charts.distribution_chart({"real": np.arange(4.0)}, name, name),
               charts.histogram_chart({"real_curve": [0.1], "bins": [0.0, 1.0]}, name, name)]
    assert all(pixels(figure).size for figure in figures)
    assert capfd.readouterr() == ("", "") and not recwarn.list
    assert max(figures[0].get_size_inches() * montages.DPI) < 900


def test_a_word_on_a_picture_is_the_name_that_was_given_and_not_mathematics():
    assert shown_word("a$b$c\n\x1b") == r"a\$b\$c \x1b" and shown_word("MR T1") == "MR T1"
    assert shown_word("0123456789" * 3, 13) == "012345...6789"
    assert shown_lines("\n".join("abcdefghijkl")) == "\n".join("abcdefghij")
    assert shown_lines("wall thickness 9.88 mm\nseed 0", 16) == "wall thickness\n9.88 mm\nseed 0"
    assert shown_lines("x" * 90, 16) == "x" * 16 + "\nxxx..." + "x" * 10
    assert shown_lines("left ventricular wall thickness 9.88 mm", 16).endswith("9.88 mm")
    assert shown_lines("$" * 20, 16) == r"\$" * 16 + "\n" + r"\$" * 4
    dots = pixels(charts.distribution_chart({"real": np.arange(4.0)}, "a$_b$", ""))
    assert (dots != pixels(charts.distribution_chart({"real": np.arange(4.0)}, "a_b", ""))).any()


def test_classes_never_share_a_name_of_their_volumes():
    assert volume_names(("cavity", "atrium", "wall")) == ["lv_volume", "la_volume", "wall_volume"]
    assert volume_names(("cavity", "lv")) == ["cavity_volume", "lv_volume"]


def test_report_of_hostile_names_keeps_to_its_folder_and_is_text(tmp_path, capsys):
    words = HOSTILE[1:3], HOSTILE[:1] + HOSTILE[4:6]
    layout = Layout(words[0], ("", *words[1]), (1.0, 1.0), 0.0, 1.0, "</b>$x$")
    rng = np.random.default_rng(0)
    sets = {name: [Case(f"{odd}{i}", rng.random((2, 16, 16), dtype=np.float32), rng.integers(4, size=(16, 16)))
                   for i, odd in enumerate((*words[1], "\x1b[31mred"))] for name in ("real", "generated")}
    cases = {name: Cases(name, len(kept), kept.__getitem__) for name, kept in sets.items()}
    absent = {"decoded": "<i>", "noise": "n"}
    context = Comparison(layout=layout, provenance={}, seeds=range(4), missing=absent, **cases)
    about = {**ABOUT, "title": "</title><script>", "noise": missing("<u>")}
    found = report.write_report(tmp_path / "out/rep", COMPARISON, FRAME, walk(COMPARISON, context, sets), about)
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and [p.name for p in (tmp_path / "out").iterdir()] == ["rep"]
    figures = [p.name for p in (tmp_path / "out/rep/figures").rglob("*")]
    assert len(figures) == 5 * 2 + len(found["metrics"]) + 2  # the overview, and one montage
    assert all(len(name.encode()) < 255 and not re.search(r"[\x00-\x1f/<>]", name) for name in figures)
    said = capsys.readouterr().err
    assert said.startswith("Note: figures of names that no file can have: ")
    assert "'histogram_../../up' as histogram_.._" in said
    rows = list(csv.reader(io.StringIO((tmp_path / "out/rep/cases.csv").read_text(encoding="utf-8"))))
    assert len(rows) == 1 + 2 * 4 and rows[1][1] == "'=HYPERLINK(0)0" and "'=HYPERLINK(0)_volume" in rows[0]
    assert not any(text.startswith(("=", "+", "@", "\t", "\r")) for row in rows for text in row)
    page = (tmp_path / "out/rep/report.html").read_text(encoding="utf-8")
    assert page.count("<script") == 2 == page.count("</script")  # of the viewer
    assert not re.search(r"<i>|<u>|</b>\$|[\x1b\u202e]", page) and page.count("&lt;script&gt;") > 3


def test_numbers_of_a_cell_stay_in_one_line():
    assert html_cell("-1e-06 to 2e-05") == '<span class="whole">-1e-06</span> to <span class="whole">2e-05</span>'
    assert html_cell("< 0.0001") == '<span class="whole">&lt; 0.0001</span>'
    assert html_cell("78.2 ± 16.2, a<b, name-e-5") == "78.2 ± 16.2, a&lt;b, name-e-5"
