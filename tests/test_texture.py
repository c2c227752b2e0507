"""Texture by measures whose answers are known by hand, and the section that reports them."""

import json

import numpy as np
import pytest
from scipy import ndimage

from edm3d.metrics.texture import (
    autocorrelation,
    band_edges,
    band_power,
    correlation_length,
    decibels,
    local_residual,
    speckle_contrast,
    texture_parts,
)
from edm3d.reporting.cases import Case, DecodedCase, Layout
from edm3d.reporting.comparison import FRAME, Comparison
from edm3d.reporting.report import cases_csv
from edm3d.reporting.section import walk
from edm3d.reporting.sections.grain import Grain


def white(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


# ---- power by frequency ----


@pytest.mark.parametrize("shape", [(4096,), (96, 128), (32, 24, 40)])
def test_white_noise_has_its_variance_in_every_band(shape):
    power = np.mean([band_power(3 * white(*shape, seed=i) + 7) for i in range(8)], axis=0)
    bands, corners = power[:8], power[8]
    assert bands[1:] == pytest.approx(np.full(7, 9), rel=0.1)
    assert bands[0] == pytest.approx(9, rel=0.2)  # that of the mean is taken off
    assert np.isnan(corners) if len(shape) == 1 else corners == pytest.approx(9, rel=0.05)


@pytest.mark.parametrize(("frequency", "band"), [(0.22, 3), (0.47, 7)])
def test_a_wave_lies_in_the_band_of_its_frequency_and_its_gain_is_exact(frequency, band):
    wave = np.cos(2 * np.pi * frequency * np.arange(64))[:, None] * np.ones([64, 64])
    power = band_power(wave + 5)
    assert band_edges()[band] < frequency < band_edges()[band + 1]
    assert np.nanargmax(power) == band and power[band] > 1e3 * np.delete(power, range(band - 1, band + 2)).max()
    louder = band_power(10 * wave - 2)
    assert decibels(louder[None], power[None])[band] == pytest.approx(20, abs=1e-6)


def test_stripes_and_boards_of_single_voxels_lie_at_nyquist_and_beyond():
    along, across = np.indices((32, 32))
    assert band_power((-1.0) ** along).argmax() == 7
    assert band_power((-1.0) ** (along + across)).argmax() == 8


def test_opposite_faces_that_differ_do_not_leak():
    ramp = np.linspace(0, 1, 64)[:, None] + np.zeros([64, 64])
    power = band_power(ramp)
    assert power[4:].max() < 1e-7 * power[0]
    assert np.nanmax(band_power(np.full((8, 8), 3.7))) < 1e-25


def test_decibels_are_of_mean_power_and_know_nothing():
    real = np.array([[1.0, 4.0, 0.0], [1.0, 4.0, 0.0], [4.0, 4.0, 0.0]])
    found = decibels(np.array([[4.0, 1.0, 0.0]]), real)
    assert found == pytest.approx([10 * np.log10(2), 10 * np.log10(1 / 4), 0])
    images = [white(24, 24, seed=i) for i in range(3)]
    powers = [np.stack([band_power(image * scale) for image in images]) for scale in (1, 50)]
    other = [np.stack([band_power(ndimage.gaussian_filter(image, 1) * scale) for image in images]) for scale in (1, 50)]
    assert decibels(other[1], powers[1]) == pytest.approx(decibels(other[0], powers[0]))  # whatever the unit


def test_small_images_have_bands_without_frequencies():
    found = band_power(white(4, 4))
    assert np.isnan(found[[0, 1, 2]]).all() and np.isfinite(found[[3, 7, 8]]).all()


# ---- speckle ----


def test_contrast_of_speckle_by_class_and_of_what_is_not_there():
    label = np.repeat([0, 1, 2, -1], 40).reshape(-1, 1) * np.ones((1, 1000), int)
    field = np.random.default_rng(0)
    rayleigh = field.rayleigh(3, label.shape)
    image = np.select([label == 1, label == 2], [rayleigh, rayleigh**2], 5.0) + 100 * (label == -1)
    found = speckle_contrast(image, label, 4)
    assert found[0] == 0 and np.isnan(found[3])
    assert found[1] == pytest.approx(np.sqrt(4 / np.pi - 1), rel=0.02)  # 0.5227
    assert found[2] == pytest.approx(1, rel=0.03)
    assert np.isnan(speckle_contrast(-image, label, 4)[1])


def test_what_is_empty_and_its_rim_hold_no_texture_but_holes_do():
    image = np.zeros((24, 24))
    image[6:18, 6:18] = 1
    image[11:13, 11:13] = 0  # a dark hole
    image[0:2, 0:2] = 0.1    # a spot of nothing
    label = np.zeros((24, 24), np.uint8)
    label[2, 2] = 1
    parts = texture_parts(image, label, 0.02)
    wanted = np.full((24, 24), -1)
    wanted[7:17, 7:17] = 0  # the means of 3 voxels reach one farther, two are left out
    wanted[2, 2] = 1
    assert (parts == wanted).all()
    assert (texture_parts(np.ones((5, 6, 7)), None, 0.5) == 0).all()  # the face of a volume is no rim


# ---- neighbours ----


def test_white_noise_has_no_neighbours():
    parts = np.zeros((32, 32, 32), int)
    found = autocorrelation(local_residual(white(32, 32, 32) + 9, parts))
    assert found.shape == (3, 13) and found[:, 0] == pytest.approx(1)
    assert np.abs(found[:, 1:]).max() < 0.03
    assert correlation_length(found, (4, 4, 2)) == pytest.approx(np.array([4, 4, 2]) * (1 - np.exp(-1)), rel=0.03)


def test_correlation_of_a_field_that_was_smoothed_along_one_axis():
    """A Gaussian filter of std s makes exp(-lag^2 / (4 s^2)) along its axis, 1/e at 2 s, and nothing across."""
    smooth = ndimage.gaussian_filter1d(white(400, 200), 1.5, axis=0, truncate=6)
    found = autocorrelation(smooth)
    assert found[0, 1:6] == pytest.approx(np.exp(-np.arange(1, 6) ** 2 / 9), abs=0.03)
    assert found[1, 1:] == pytest.approx(0, abs=0.04)
    assert correlation_length(found, (2.0, 1.0)) == pytest.approx([6, 0.63], rel=0.04)


def test_correlation_of_an_autoregression():
    noise, values = white(100_000), [0.0]
    for step in noise:
        values.append(0.8 * values[-1] + step)
    found = autocorrelation(np.array(values))
    assert found[0, :8] == pytest.approx(0.8 ** np.arange(8), abs=0.02)
    assert correlation_length(found)[0] == pytest.approx(-1 / np.log(0.8), rel=0.03)


def test_the_residual_forgets_anatomy_and_attenuation():
    label = np.zeros((48, 48), int)
    label[16:40, 20:30] = 1
    label[:4] = -1
    noise = white(48, 48)
    image = noise + np.linspace(0, 30, 48)[:, None] + 500 * (label == 1) - 1000 * (label == -1)
    residual, inside = local_residual(image, label), label >= 0
    assert (residual[~inside] == 0).all()
    assert residual[inside].std() == pytest.approx(noise[inside].std(), rel=0.12)
    assert np.abs(autocorrelation(residual, label)[:, 1]).max() < 0.15
    assert autocorrelation(image - image.mean())[:, 1].min() > 0.8  # what anatomy does


def test_pairs_are_of_one_class():
    """Stripes of 2 voxels, each of a class of its own: equal within, opposite across."""
    values = np.tile([1.0, 1.0, -1.0, -1.0], 5)
    classes = np.tile([0, 0, 1, 1], 5)
    assert autocorrelation(values, classes)[0, :4] == pytest.approx([1, 1, np.nan, 1], nan_ok=True)
    assert autocorrelation(values)[0, 1] == pytest.approx(1 / 19) and autocorrelation(values)[0, 2] == -1


def test_nothing_to_compare_is_nan():
    flat = autocorrelation(np.zeros((4, 20)))
    assert np.isnan(flat).all() and np.isnan(correlation_length(flat)).all()
    assert np.isnan(autocorrelation(white(4, 20))[0, 4:]).all()
    lone = np.full((9, 9), -1)
    lone[::3, ::3] = 0
    assert np.isnan(autocorrelation(white(9, 9), lone)[:, 1]).all()
    assert np.isnan(correlation_length(np.array([[1, 0.9, 0.8]])))  # does not fall so far


# ---- the section ----


LAYOUT = Layout(("t1", "t2"), ("background", "organ", "other"), (2.0, 1.0), -1.0, 9.0, "")


def speckled(seed, gain=1.0, blur=0.01):
    """t1: speckle of known contrast in two halves, one of class 1, and a strip of nothing; t2: t1 turned, as bright."""
    label = np.zeros((64, 64), np.uint8)
    label[:, 32:] = 1
    image = 3 * (1 + 0.3 * ndimage.gaussian_filter1d(white(64, 64, seed=seed), blur, axis=0) * (1 + label))
    image[:8] = 0
    label[:8] = 0
    return Case(str(seed), np.stack([gain * image, image.T]).astype(np.float32) - 1, label)


def reported(section, **sets):
    """The section's entries, and its page."""
    seeds = range(len(sets.get("generated", ())))
    context = Comparison(layout=LAYOUT, provenance={}, real=None, generated=None, seeds=seeds)
    walked = walk([section], context, sets)
    return section.compute(walked.found[0], context), walked


def test_generated_volumes_have_the_differences_known_by_hand():
    real, generated = [speckled(i) for i in range(6)], [speckled(i + 9, 2.0, 1.0) for i in range(5)]
    found, walked = reported(Grain("generated"), real=real, generated=generated)
    t1, t2 = found["texture"]["t1"], found["texture"]["t2"]
    assert t1["lag1"]["names"] == ["axis 0", "axis 1"]
    assert t1["lag1"]["real"] == pytest.approx([-0.05, -0.05], abs=0.03)  # white; the local mean's share in 2D
    assert t1["lag1"]["generated"] == pytest.approx([np.exp(-1 / 4), -0.15], abs=0.08)
    assert t2["lag1"]["generated"][1] == pytest.approx(np.exp(-1 / 4), abs=0.08) and t2["lag1"]["generated"][0] < 0
    assert t1["length_mm"]["generated"] == pytest.approx([2 * 2, 0.63], rel=0.2)  # 2 s voxels of 2 mm, less local mean
    assert t1["length_mm"]["real"] == pytest.approx([2 * 0.6, 0.6], rel=0.05)
    contrast, share = t1["contrast"], np.sqrt(1 / (2 * np.sqrt(np.pi)))  # what the filter leaves of a std
    assert contrast["real"][:2] == pytest.approx([0.3, 0.6], rel=0.05) and contrast["real"][2] is None
    assert contrast["generated"][:2] == pytest.approx([0.3 * share, 0.6 * share], rel=0.06)
    assert contrast["difference"][1] == pytest.approx(share - 1, rel=0.1) and contrast["difference"][2] is None
    assert contrast["real_undefined"] == [0, 0, 6] and contrast["generated_undefined"] == [0, 0, 5]
    assert t1["contrast"]["largest"] > 5 * t1["contrast"]["floor_p99"] > 0
    assert t1["bands"]["largest"] > t1["bands"]["floor_p99"] and t1["bands"]["noise"] is None
    head, row = cases_csv([Grain("generated")], FRAME, walked).splitlines()[:2]
    assert head == ("set,id,seed,lag1_axis0_t1,lag1_axis1_t1,contrast_background_t1,contrast_organ_t1,"
                    "contrast_other_t1,lag1_axis0_t2,lag1_axis1_t2,contrast_background_t2,contrast_organ_t2,"
                    "contrast_other_t2") and row.split(",")[7] == ""
    json.dumps(found, allow_nan=False)


def test_a_gain_shifts_all_bands_by_its_decibels():
    real = [speckled(i) for i in range(3)]
    found, _ = reported(Grain("generated"), real=real, generated=[speckled(i, 2.0) for i in range(3)],
                        noise=[speckled(i, 0.5) for i in range(3)])
    t1, t2 = (found["texture"][name]["bands"] for name in ("t1", "t2"))
    assert t1["difference"] == pytest.approx([20 * np.log10(2)] * 9, abs=1e-4) and len(t1["names"]) == 9
    assert t1["noise_difference"] == pytest.approx([-20 * np.log10(2)] * 9, abs=1e-4)
    assert t1["largest"] == pytest.approx(6.02, abs=0.01) and t2["largest"] == 0
    assert t1["names"][0] == "0 to 0.0625 cycles per voxel" and t1["names"][-1] == "beyond 0.5"


def test_what_a_first_stage_loses_and_where_it_is_said():
    real = [speckled(i) for i in range(4)]
    items = [DecodedCase(case, case._replace(image=(case.image + 1) / 2 - 1)) for case in real]
    section = Grain("decoded")
    found, walked = reported(section, decoded=items)
    t1 = found["texture"]["t1"]
    assert t1["bands"]["difference"] == pytest.approx([-20 * np.log10(2)] * 9, abs=1e-4)
    assert t1["intensity_mean_ks"] == t1["intensity_std_ks"] == 1 and t1["contrast"]["largest"] < 1e-3
    assert "floor_p99" not in t1["bands"]
    assert section.lines(found)[0].startswith("t1: power by frequency, decoded less real [dB]: -6.0, -6.0,")
    drawn = section.figures(walked.found[0], walked.context, found)
    assert set(drawn) == {f"{kind}_{name}" for kind in ("bands", "neighbours") for name in ("t1", "t2")}
    page = section.page(found, dict.fromkeys(drawn, b""))
    assert page.count("<img") == 4 and "speckle contrast, other (4 real without, 4 decoded without)" in page


def test_volumes_without_texture_have_none():
    flat = [Case(str(i), np.full((2, 8, 8), -1, np.float32), np.zeros((8, 8), np.uint8)) for i in range(2)]
    found, _ = reported(Grain("generated"), real=flat, generated=flat)
    t1 = found["texture"]["t1"]
    assert t1["lag1"]["real"] == [None, None] == t1["length_mm"]["difference"] and t1["contrast"]["largest"] is None
    assert t1["lag1"]["floor_p99"] is None and t1["bands"]["difference"][-1] == 0
    json.dumps(found, allow_nan=False)
    assert all(len(row) == 6 for row in Grain("generated").rows(found))
