"""Orientation, resampling and fitting keep every voxel at its place in the world."""

import nibabel
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from edm3d.formats import geometry
from edm3d.formats.nifti import is_same_grid, read_volume, spacing_of, write_nifti

OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", [20, -12, 35], degrees=True).as_matrix() @ np.diag([1.5, 2.0, 4.0])
OBLIQUE[:3, 3] = [-37.0, 12.0, 55.0]


def blob(shape, affine, centre, width=6.0):
    """A Gaussian of `width` mm at a place in the world."""
    indices = np.moveaxis(np.indices(shape), 0, -1)
    world = indices @ affine[:3, :3].T + affine[:3, 3]
    return np.exp(-((world - centre) ** 2).sum(-1) / (2 * width**2)).astype(np.float32)[None]


def centroid(array, affine):
    weights = array[0].astype(np.float64)
    index = [(weights * i).sum() / weights.sum() for i in np.indices(weights.shape)]
    return affine[:3, :3] @ index + affine[:3, 3]


def test_spacing_is_the_column_norm_also_when_oblique():
    np.testing.assert_allclose(spacing_of(OBLIQUE), [1.5, 2, 4])


def test_reorient_moves_known_voxels():
    array = np.arange(24.0).reshape(1, 2, 3, 4)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])  # R, A, S
    turned, new = geometry.reorient(array, affine, "ASL")
    np.testing.assert_array_equal(turned[0], array[0].transpose(1, 2, 0)[:, :, ::-1])
    assert geometry.axis_codes(new) == "ASL"
    np.testing.assert_allclose(new @ [2, 3, 0, 1], affine @ [1, 2, 3, 1])  # the last voxel of all axes


def test_landmark_keeps_its_place_through_all_steps():
    shape = (40, 36, 20)
    landmark = OBLIQUE[:3] @ [22, 16, 9, 1]
    array, affine = blob(shape, OBLIQUE, landmark), OBLIQUE
    np.testing.assert_allclose(centroid(array, affine), landmark, atol=0.05)
    array, affine = geometry.reorient(array, affine, "LPS")
    new_shape, new_affine = geometry.spaced_grid(array.shape[1:], affine, np.array([2.0, 1.6, 3.0]))
    np.testing.assert_allclose(spacing_of(new_affine), [2.0, 1.6, 3.0])
    array = geometry.resample(array, affine, new_shape, new_affine, order=3)
    array, affine, box = geometry.fit_centre(array, new_affine, (36, 40, 24), np.zeros(1))
    assert array.shape == (1, 36, 40, 24)
    np.testing.assert_allclose(centroid(array, affine), landmark, atol=0.1)


def test_resampled_grid_keeps_centre_and_extent():
    shape, affine = geometry.spaced_grid((10, 10, 10), np.diag([1.0, 1, 1, 1]), np.array([2.0, 0.5, 1.00001]))
    assert shape == (5, 20, 10)
    np.testing.assert_allclose(affine[:3] @ [2, 9.5, 4.5, 1], [4.5] * 3)
    np.testing.assert_allclose(np.diag(affine)[:3], [2, 0.5, 1])
    assert geometry.spaced_grid((10, 4, 1), np.eye(4), np.array([1.3, 1.1, 5]))[0] == (8, 4, 1)  # 7.7, 3.6, 0.2


def test_resampling_reproduces_a_ramp_and_stays_within_range():
    ramp = np.broadcast_to(np.arange(12.0, dtype=np.float32)[:, None, None], (12, 4, 4))[None].copy()
    shape, affine = geometry.spaced_grid((12, 4, 4), np.eye(4), np.array([0.5, 1, 1]))
    fine = geometry.resample(ramp, np.eye(4), shape, affine, order=3)
    np.testing.assert_allclose(fine[0, 6:18, 1, 1], np.arange(6, 18) / 2 - 0.25, atol=0.01)
    step = (ramp > 5).astype(np.float32)
    sharp = geometry.resample(step, np.eye(4), shape, affine, order=3)
    assert sharp.min() == 0 and sharp.max() == 1


def test_label_moves_to_another_grid_with_background_outside():
    label = np.ones((1, 4, 4, 4), np.uint8)
    shifted = np.eye(4)
    shifted[0, 3] = 2.4
    moved = geometry.resample(label, shifted, (8, 4, 4), np.eye(4), order=0, outside=0)
    np.testing.assert_array_equal(moved[0, :, 0, 0], [0, 0, 1, 1, 1, 1, 0, 0])
    assert moved.dtype == np.uint8


def test_another_order_and_direction_of_axes_is_turned_voxel_by_voxel():
    array = np.random.default_rng(0).integers(0, 99, (1, 4, 5, 6))
    for turn in ("RAS", "LPI", "SAR", "PIL"):
        turned, affine = geometry.reorient(array, OBLIQUE, turn)
        np.testing.assert_array_equal(geometry.turned_onto(turned, affine, (4, 5, 6), OBLIQUE), array)
    other = OBLIQUE @ np.diag([1, 1, -1, 1])  # flipped in place of around its middle: covers other voxels
    assert geometry.turned_onto(array, other, (4, 5, 6), OBLIQUE) is None
    assert geometry.turned_onto(array, OBLIQUE @ np.diag([1, 1, 1.1, 1]), (4, 5, 6), OBLIQUE) is None
    tilted = np.eye(4)
    tilted[:3, :3] = Rotation.from_euler("x", 5, degrees=True).as_matrix()
    assert geometry.turned_onto(array, tilted, (4, 5, 6), np.eye(4)) is None


def test_voxels_whose_centre_lies_outside_are_counted_by_value():
    label = np.zeros((1, 8, 6, 6), np.uint8)
    label[0, :, :2] = 1  # 8 x 2 x 6
    label[0, 6:, 4] = 7  # 2 x 6
    fine = np.diag([0.5, 0.5, 0.5, 1.0])
    fine[:3, 3] = -0.25  # eight voxels to one: those of the image are 4 x 3 x 3
    assert geometry.counts_outside(label, fine, (4, 3, 3), np.eye(4))[1:].sum() == 0
    counts = geometry.counts_outside(label, fine, (3, 3, 3), np.eye(4))  # the last two of eight slices lie outside
    assert counts[1] == 24 and counts[7] == 12 and counts[1:].sum() == 36
    shifted = OBLIQUE.copy()
    shifted[:3, 3] += OBLIQUE[:3, 0] * 2  # by two voxels
    assert geometry.counts_outside(label, shifted, (8, 6, 6), OBLIQUE)[1] == 24
    assert geometry.counts_outside(label, OBLIQUE, (8, 6, 6), shifted)[1] == 24  # on the other side


def test_blur_widens_what_a_voxel_sees_to_what_a_larger_one_does():
    twice = np.sqrt(3 / (8 * np.log(2)))  # f = 2
    np.testing.assert_allclose(geometry.blur_sigmas(np.diag([2, 1, 0.5])), [twice, 0, 0])
    turned = Rotation.from_euler("xyz", [20, -12, 35], degrees=True).as_matrix()
    np.testing.assert_array_equal(geometry.blur_sigmas(turned), 0)
    np.testing.assert_allclose(geometry.blur_sigmas(2 * turned), twice)
    np.testing.assert_allclose(geometry.blur_sigmas(np.array([[0, 2, 0], [1, 0, 0], [0, 0, 1]])), [twice, 0, 0])


def shrunk(array: np.ndarray, factor: float, antialias: bool = True) -> np.ndarray:
    shape, affine = geometry.spaced_grid(array.shape[1:], np.eye(4), np.full(3, factor))
    return geometry.resample(array, np.eye(4), shape, affine, order=3, antialias=antialias)


def test_shrinking_keeps_means_and_no_pattern_finer_than_the_voxels():
    index = np.indices((48, 24, 12))
    board = (index.sum(0) % 2 * 100).astype(np.float32)[None]
    assert shrunk(board, 3, antialias=False).std() == 50  # one voxel in 27, a checkerboard as before
    assert shrunk(board, 3).mean() == pytest.approx(50, abs=1e-3) and shrunk(board, 3).std() < 0.05
    stripes = (index[0] % 2 * 100).astype(np.float32)[None]
    assert shrunk(stripes, 3).mean() == pytest.approx(50, abs=0.5) and shrunk(stripes, 3).std() < 3
    constant = np.full((1, 9, 8, 7), 0.1, np.float32)
    assert (shrunk(constant, 2.5) == np.float32(0.1)).all()
    smooth = (100 + 50 * np.sin(index[0] * np.pi / 12) + index[2])[None].astype(np.float32)
    assert shrunk(smooth, 2).mean() == pytest.approx(smooth.mean(), rel=1e-4)
    np.testing.assert_array_equal(shrunk(smooth, 0.9), shrunk(smooth, 0.9, antialias=False))  # nothing is larger


def test_blur_keeps_to_the_axes_that_shrink():
    step = np.zeros((1, 12, 12, 12), np.float32)
    step[:, :, 6:] = 1
    shape, affine = geometry.spaced_grid((12, 12, 12), np.eye(4), np.array([3, 1, 1]))
    thick = geometry.resample(step, np.eye(4), shape, affine, order=3, antialias=True)
    np.testing.assert_allclose(thick, step[:, :4], atol=1e-6)


def test_fit_centre_pads_crops_and_says_what_is_valid():
    array = np.arange(1.0, 6).reshape(1, 5, 1, 1) * np.ones((1, 5, 3, 2))
    fitted, affine, box = geometry.fit_centre(array, np.diag([2.0, 3.0, 4.0, 1.0]), (3, 6, 2), np.array([-1.0]))
    np.testing.assert_array_equal(box, [[0, 1, 0], [3, 4, 2]])
    np.testing.assert_array_equal(fitted[0, :, 2, 0], [2, 3, 4])
    np.testing.assert_array_equal(fitted[0, 0, :, 0], [-1, 2, 2, 2, -1, -1])
    np.testing.assert_allclose(affine[:3, 3], [2, -3, 0])


def test_fit_centre_of_a_plane_keeps_its_depth():
    array = np.arange(5.0)[None, :, None] * np.ones((1, 5, 2))
    fitted, affine, box = geometry.fit_centre(array, np.diag([2.0, 3.0, 4.0, 1.0]), (3, 4), np.zeros(1))
    np.testing.assert_array_equal(fitted[0], [[0, 1, 1, 0], [0, 2, 2, 0], [0, 3, 3, 0]])
    np.testing.assert_array_equal(box, [[0, 1, 0], [3, 3, 1]])
    np.testing.assert_allclose(affine[:3, 3], [2, -3, 0])


def test_same_grid_allows_rounding_only():
    near, far = OBLIQUE.copy(), OBLIQUE.copy()
    near[0, 3] += 1e-3
    far[0, 3] += 0.1
    assert is_same_grid(((9, 9, 9), OBLIQUE), ((9, 9, 9), near))
    assert not is_same_grid(((9, 9, 9), OBLIQUE), ((9, 9, 9), far))
    assert not is_same_grid(((9, 9, 9), OBLIQUE), ((9, 9, 8), OBLIQUE))


@pytest.mark.parametrize("shape, dims", [((2, 5, 4, 3), 3), ((5, 4, 3), 3), ((5, 4), 2), ((2, 5, 4), 2)])
def test_nifti_round_trip(tmp_path, shape, dims):
    array = np.random.default_rng(0).random(shape, dtype=np.float32)
    write_nifti(tmp_path / "x.nii.gz", array, OBLIQUE, spatial_dims=dims, unit="HU")
    data, affine = read_volume(tmp_path / "x.nii.gz", dims)
    np.testing.assert_array_equal(data.squeeze(), array.squeeze())
    assert data.ndim == 4 and data.shape[0] == (2 if len(shape) > dims else 1)
    np.testing.assert_allclose(affine, OBLIQUE, atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["x.nii.gz"]


def test_units_other_than_mm_are_converted(tmp_path):
    image = nibabel.Nifti1Image(np.ones((3, 3, 3), np.float32), np.diag([0.002, 0.002, 0.003, 1]))
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "x.nii")
    np.testing.assert_allclose(spacing_of(read_volume(tmp_path / "x.nii").affine), [2, 2, 3], rtol=1e-6)
