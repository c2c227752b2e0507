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
