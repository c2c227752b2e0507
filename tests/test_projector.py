"""The projector against chords of discs, lengths that are known by hand, and geometries at their edges."""

import copy
import math
import pickle
import time

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from edm3d.physics.projector import ParallelBeam, Projector, system_matrix

BEAM = ParallelBeam(16)


def disc(size, radius, centre):
    """Share of every pixel that lies in a disc (pixels from the middle, x to the right and y up), by 8 x 8 points."""
    points = (np.arange(size * 8) + 0.5) / 8 - size / 2
    inside = (points[None] - centre[0]) ** 2 + (-points[:, None] - centre[1]) ** 2 < radius**2
    return inside.reshape(size, 8, size, 8).mean((1, 3))


@pytest.mark.parametrize(("geometry", "centre"), [
    (ParallelBeam(64), (0, 0)), (ParallelBeam(64, angles=128, shifts=64), (0.4, 0.1)),
    (ParallelBeam(64), (-7.3, 11.9)), (ParallelBeam(64, angles=45, shifts=91), (9, 4)),
])
def test_sinogram_of_a_disc_is_its_chords(geometry, centre):
    radius = 17.5
    lines = (system_matrix(geometry) @ disc(geometry.size, radius, centre).ravel()).reshape(geometry.sinogram_shape)
    angles = np.arange(geometry.angles)[:, None] * math.pi / geometry.angles
    shifts = (np.arange(geometry.shifts) + 0.5) * geometry.size / geometry.shifts - geometry.size / 2
    distance = shifts - (centre[0] * np.cos(angles) + centre[1] * np.sin(angles))
    chords = 2 * np.sqrt((radius**2 - distance**2).clip(0))
    assert math.sqrt(((lines - chords) ** 2).mean()) < 0.6


def test_sinogram_of_a_gaussian_is_its_line_integrals():
    geometry, std, x, y = ParallelBeam(48, angles=25, shifts=60), 5.0, -4.0, 6.5
    middles = np.arange(48) - 23.5
    image = np.exp(-((middles[None] - x) ** 2 + (-middles[:, None] - y) ** 2) / (2 * std**2))
    lines = (system_matrix(geometry) @ image.ravel()).reshape(geometry.sinogram_shape)
    angles = np.arange(25)[:, None] * math.pi / 25
    distance = ((np.arange(60) + 0.5) * 48 / 60 - 24) - (x * np.cos(angles) + y * np.sin(angles))
    expected = math.sqrt(2 * math.pi) * std * np.exp(-(distance**2) / (2 * std**2))
    assert math.sqrt(((lines - expected) ** 2).mean()) < 0.01 * expected.max()


def test_lines_along_the_grid_cross_whole_pixels():
    matrix = system_matrix(ParallelBeam(4, angles=2)).toarray().reshape(2, 4, 4, 4)
    for line in range(4):
        column, row = np.zeros((4, 4)), np.zeros((4, 4))
        column[:, line], row[3 - line] = 1, 1  # row 0 at the top, where y and so the shift is highest
        assert np.array_equal(matrix[0, line], column)
        assert np.array_equal(matrix[1, line], row)


def test_lines_along_edges_give_half_to_either_side():
    matrix = system_matrix(ParallelBeam(4, angles=2, shifts=3, bin_pixels=1.0)).toarray().reshape(2, 3, 4, 4)
    for line in range(3):
        expected = np.zeros((4, 4))
        expected[:, [line, line + 1]] = 0.5
        assert np.array_equal(matrix[0, line], expected)
        assert np.array_equal(matrix[1, line], expected.T[::-1])


def test_diagonals_through_corners_are_whole():
    matrix = system_matrix(ParallelBeam(5, angles=4, shifts=1)).toarray().reshape(4, 5, 5)
    assert matrix[1] == pytest.approx(np.eye(5) * math.sqrt(2))  # shift 0 at 45 degrees runs from top left
    assert matrix[3] == pytest.approx(np.eye(5)[::-1] * math.sqrt(2))


@pytest.mark.parametrize("geometry", [
    BEAM, ParallelBeam(7, angles=180, shifts=11), ParallelBeam(1), ParallelBeam(2, angles=1, shifts=1),
    ParallelBeam(9, angles=36, shifts=30, bin_pixels=0.5), ParallelBeam(8, angles=8, shifts=9, bin_pixels=1.0),
    ParallelBeam(6, shifts=40, bin_pixels=3.0),
])
def test_lengths_add_to_those_of_lines_in_the_square(geometry):
    lengths = system_matrix(geometry).sum(axis=1).reshape(geometry.sinogram_shape)
    angles, half = np.arange(geometry.angles)[:, None] * math.pi / geometry.angles, geometry.size / 2
    shifts = (np.arange(geometry.shifts) - (geometry.shifts - 1) / 2) * geometry.bin_pixels + 0 * angles
    cosine, sine = abs(np.cos(angles)), abs(np.sin(angles))
    with np.errstate(divide="ignore"):
        corner = half * (cosine + sine) - abs(shifts)  # what is left to the corner that the line cuts off last
        most = np.minimum(geometry.size / np.maximum(cosine, sine), corner / (cosine * sine).clip(1e-300))
    expected = np.where(corner > 0, most, 0)
    along = (np.minimum(cosine, sine) < 1e-12) & (abs(abs(shifts) - half) < 1e-9)  # along the outer edge
    assert np.allclose(np.where(along, 0, lengths), np.where(along, 0, expected), atol=1e-6 * geometry.size)
    assert np.isfinite(lengths).all()


def test_quarter_turn_of_the_image_turns_the_sinogram():
    rng = np.random.default_rng(0)
    image, matrix = rng.random((16, 16)), system_matrix(BEAM)
    lines = (matrix @ image.ravel()).reshape(BEAM.sinogram_shape)
    turned = (matrix @ np.rot90(image).ravel()).reshape(BEAM.sinogram_shape)  # against the clock: angles + pi / 2
    assert turned[16:] == pytest.approx(lines[:16])
    assert turned[:16] == pytest.approx(lines[16:, ::-1])


def test_matrices_are_built_in_time():
    start = time.perf_counter()
    matrix = system_matrix(ParallelBeam(64))
    assert time.perf_counter() - start < 2
    assert matrix.shape == (128 * 64, 64 * 64)
    assert (np.diff(matrix.indptr) > 0).all()
    sums = matrix.sum(axis=0) * 2 / 64  # in units of an image that spans [-1, 1]
    assert (sums.min(), sums.max()) == (pytest.approx(1.96, abs=0.01), pytest.approx(4.20, abs=0.01))


@pytest.mark.slow
def test_large_matrix_is_built_in_time():
    start = time.perf_counter()
    system_matrix(ParallelBeam(128))
    assert time.perf_counter() - start < 20


def test_normalised_columns_sum_to_one_and_pixels_that_no_line_sees_are_zero():
    projector = Projector(BEAM)
    assert abs(projector.lines.matrix.sum(axis=0) - 1).max() < 1e-12
    ones = torch.ones(1, 1, 32, 16, dtype=torch.float64)
    assert (projector.sensitivity(ones) - 1).abs().max() < 1e-12
    narrow = Projector(ParallelBeam(16, angles=4, shifts=3, bin_pixels=1.0))
    assert torch.isfinite(narrow.sensitivity(torch.ones(1, 1, 4, 3))).all()
    assert narrow.A(torch.ones(1, 1, 16, 16)).isfinite().all()
    assert 0.1 < (narrow.sensitivity(torch.ones(1, 1, 4, 3)) == 0).double().mean() < 0.9


def test_attenuation_is_that_of_the_path_in_cm():
    beam = ParallelBeam(16, pixel_mm=5.0)
    projector = Projector(beam, attenuation=torch.full((16, 16), 0.1, dtype=torch.float64), normalised=False)
    x = torch.rand(1, 1, 16, 16, dtype=torch.float64)
    gained = projector.A(x)[0, 0, 0] / Projector(beam, normalised=False).A(x)[0, 0, 0]
    assert torch.allclose(gained, torch.full_like(gained, math.exp(-0.1 * 8)))  # 16 pixels are 8 cm
    assert projector.sensitivity(projector.A(x)).max() < 16 * 2
    normalised = Projector(beam, attenuation=torch.full((16, 16), 0.1))
    assert torch.allclose(normalised.factors.double(), projector.factors, atol=1e-6)


def test_detector_blur_spreads_along_shifts_alone():
    x = torch.zeros(1, 1, 16, 16)
    x[0, 0, 8, 8] = 1
    sharp, blurred = Projector(BEAM).A(x), Projector(BEAM, blur=1.0).A(x)
    assert torch.allclose(blurred.sum(-1), sharp.sum(-1), rtol=1e-3)
    assert blurred.amax() < 0.6 * sharp.amax()


def test_stacks_are_projected_slice_by_slice():
    stack = torch.rand(2, 1, 3, 16, 16)
    lines = Projector(BEAM).A(stack)
    assert lines.shape == (2, 1, 3, 32, 16)
    assert torch.equal(lines[1, :, 2], Projector(BEAM).A(stack[1:, :, 2])[0])


def test_an_image_hangs_on_no_other_of_the_batch():
    projector, x = Projector(BEAM, blur=1.0), torch.rand(9, 1, 16, 16)
    assert torch.equal(projector.A(x)[4:7], projector.A(x[4:7]))


def test_sets_of_angles_make_up_the_whole():
    projector = Projector(BEAM, attenuation=torch.rand(16, 16))
    x = torch.rand(2, 1, 16, 16)
    lines, parts = projector.A(x), projector.subsets(5)
    assert sorted(angles.start for angles, _ in parts) == list(range(5))
    for angles, part in parts:
        assert torch.equal(part.A(x), lines[..., angles, :])
    assert [angles.start for angles, _ in projector.subsets(8)] == [0, 4, 2, 6, 1, 5, 3, 7]


def test_projector_in_use_can_be_copied_and_sent():
    projector, x = Projector(BEAM, blur=0.5), torch.rand(1, 1, 16, 16)
    lines = projector.A(x)
    for other in (copy.deepcopy(projector), pickle.loads(pickle.dumps(projector))):
        assert torch.equal(other.A(x), lines)


def test_key_is_that_of_the_lines():
    keys = {ParallelBeam(16).key(), ParallelBeam(17).key(), ParallelBeam(16, angles=31).key(),
            ParallelBeam(16, shifts=15).key(), ParallelBeam(16, bin_pixels=0.5).key()}
    assert len(keys) == 5
    assert ParallelBeam(16, 32, 16, 9.0, 1.0).key() == ParallelBeam(16).key()


@pytest.mark.parametrize(("work", "said"), [
    (lambda: Projector(BEAM).A(torch.zeros(1, 1, 15, 16)), r"images \[1, 1, 15, 16\] of another geometry.*size=16"),
    (lambda: Projector(BEAM).A(torch.zeros(16, 16)), "images"),
    (lambda: Projector(BEAM).A_adjoint(torch.zeros(1, 1, 16, 32)), r"sinograms .* of another geometry.*32,16"),
    (lambda: Projector(BEAM, matrix=csr_array((4, 4))), r"system matrix \[4, 4\] of another geometry"),
    (lambda: Projector(BEAM, attenuation=torch.zeros(4, 4)), r"attenuation: a map \[4, 4\]"),
    (lambda: Projector(BEAM, attenuation=-torch.ones(16, 16)), "0 or more"),
    (lambda: Projector(BEAM, blur=-1.0), "blur=-1.0"),
    (lambda: Projector(BEAM, blur=1e18), "^blur=1e.18: wanted at most 16, the shifts"),
    (lambda: Projector(BEAM).subsets(33), "subsets=33: wanted a whole number of 1 to 32"),
    (lambda: ParallelBeam(0), "size=0"),
    (lambda: ParallelBeam(16, angles=0), "angles=0"),
    (lambda: ParallelBeam(16, shifts=-1), "shifts=-1"),
    (lambda: ParallelBeam(16, pixel_mm=math.nan), "pixel_mm=nan"),
    (lambda: ParallelBeam(16, bin_pixels=0.0), "bin_pixels=0.0"),
])
def test_wrong_arguments_are_named(work, said):
    with pytest.raises(ValueError, match=said):
        work()
