"""Errors, levels, contrast recovery, noise and the post-filter of PET images, by answers known by hand."""

import numpy as np
import pytest

from edm3d.metrics.pet import (
    bias,
    contrast_recovery,
    even_levels,
    exact_levels,
    nmae,
    noise,
    post_filter,
    recovered,
    relative_l2,
    rmse,
    uniform_regions,
)


def test_errors_by_hand():
    truth, image = np.array([[3.0, 0], [0, 4]]), np.array([[3.0, 0], [3, 0]])
    assert relative_l2(image, truth) == 1  # 5 / 5
    assert rmse(image, truth) == 2.5
    assert nmae(image, truth) == 1  # 7 / 7
    assert np.isnan([relative_l2(image, 0 * truth), nmae(image, 0 * truth)]).all()
    with pytest.raises(ValueError, match="one shape"):
        rmse(image, truth[:1])


def test_errors_are_computed_in_float64():
    truth = np.full((64, 64), 1e-25, np.float32)  # whose square is 0 in float32
    assert relative_l2(2 * truth, truth) == pytest.approx(1)


def test_levels_hold_pixels_by_activity():
    exact = exact_levels(np.array([1.0, 2, 7]))
    assert exact.number(np.array([0, 1, 2, 4, 5, 7, 9])).tolist() == [-1, 0, 1, 1, 2, 2, 2]
    even = even_levels(8.0, 4)
    assert even.number(np.array([0, 0.1, 2, 2.1, 8, 9])).tolist() == [-1, 0, 0, 1, 3, 3]
    assert len(exact_levels(np.empty(0))) == 0


def test_bias_and_contrast_recovery_by_hand():
    """Half of the contrast to a background of 2, and background lifted by 0.5: 4 becomes 3.5 about 2.5."""
    phantom = np.array([[2.0, 2, 2, 4], [0, 0, 1, 4]])
    image = np.array([[2.0, 3, 2.5, 3.5], [9, 9, 0, 3.5]])
    sums = recovered(image, phantom, exact_levels(np.array([1.0, 2, 4])))
    assert sums.count.tolist() == [1, 3, 2]
    assert sums.truth.tolist() == [1, 6, 8] and sums.image.tolist() == [0, 7.5, 7]
    assert bias(sums.truth, sums.image).tolist() == [-1, 0.25, -0.125]
    found = contrast_recovery(sums.truth / sums.count, sums.image / sums.count, 1)
    assert found[2] == pytest.approx(0.4)  # (3.5 / 2.5 - 1) / (4 / 2 - 1)
    assert found[0] == pytest.approx(2)  # (0 / 2.5 - 1) / (1 / 2 - 1): 0 where 1 is true
    assert np.isnan(found[1])


def test_contrast_recovery_is_1_for_any_scale_of_the_truth():
    truth = np.array([1.0, 2, 5])
    assert contrast_recovery(truth, 3 * truth, 1)[[0, 2]] == pytest.approx(1)
    assert contrast_recovery(truth, np.full(3, 3.0), 1)[[0, 2]].tolist() == [0, 0]


@pytest.mark.parametrize("dims", [2, 3])
def test_uniform_regions_lose_their_rim(dims):
    """A cube of 6 with a cube of 6 of another activity beside it: each keeps 4 voxels along every axis."""
    phantom = np.zeros((16,) * dims)
    first, second = (slice(2, 8),) * dims, (slice(2, 8),) * (dims - 1) + (slice(8, 14),)
    phantom[first], phantom[second] = 1, 2
    regions = uniform_regions(phantom)
    assert [(regions == number).sum() for number in (1, 2)] == [4 ** dims] * 2 and regions.max() == 2
    assert set(phantom[regions > 0]) == {1, 2}
    assert uniform_regions(phantom, least=4 ** dims + 1).max() == 0


def test_noise_is_std_over_mean_within_regions():
    """Two regions: 25 % in one of 4 pixels, none in one of 12, and another mean, which is no noise."""
    regions = np.zeros((4, 8), int)
    regions[:, :1], regions[:, 4:7] = 1, 2
    image = np.full((4, 8), 100.0)
    image[:, 0], image[:, 4:7] = [3, 5, 3, 5], 9
    assert noise(image, regions) == pytest.approx(np.std([3, 5, 3, 5], ddof=1) / 4 * 4 / 16)
    assert np.isnan(noise(image, 0 * regions)) and np.isnan(noise(-image, regions))


def test_post_filter_has_the_width_of_a_gaussian_in_mm():
    image = np.zeros((65, 65))
    image[32, 32] = 1
    found = post_filter(image, 6.0, (2.0, 3.0))
    assert found.sum() == pytest.approx(1, abs=1e-4)
    offsets = np.arange(65) - 32
    assert (found.sum(1) * offsets ** 2).sum() * 4 == pytest.approx(36, rel=5e-3)
    assert (found.sum(0) * offsets ** 2).sum() * 9 == pytest.approx(36, rel=5e-3)
    assert np.array_equal(post_filter(image, 0, (1, 1)), image)
    assert post_filter(np.ones((65, 65)), 4.0, (1, 1))[0, 0] == pytest.approx(0.3, abs=0.02)  # half, twice, and a pixel
