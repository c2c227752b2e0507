"""Distances of two sets of features against textbook formulas, other packages and cases known by hand."""

import numpy as np
import pytest
import torch
from monai.metrics import FIDMetric
from scipy import linalg

from edm3d.metrics import frechet, kernel_distance
from edm3d.metrics.frechet import frechet_distance, resampled_frechet
from edm3d.metrics.kernel_distance import cubic_kernel, gaussian_kernel, gram, grams, median_bandwidth, mmd2
from edm3d.metrics.prdc import distances, prdc, prdc_items, radii

# By the package prdc 0.2 (PyPI, with scikit-learn) on `waves`, k = 3 and 5: N, M, d and shift, then what it gives.
PACKAGE = [
    ((60, 45, 8, 0.6), 3, {"precision": 37 / 45, "recall": 24 / 60, "density": 0.5777777777777777, "coverage": 0.45}),
    ((60, 45, 8, 0.6), 5, {"precision": 43 / 45, "recall": 47 / 60, "density": 0.8222222222222222, "coverage": 0.75}),
    ((40, 50, 5, 0.1), 3, {"precision": 0.98, "recall": 0.925, "density": 1.04, "coverage": 0.95}),
    ((40, 50, 5, 0.1), 5, {"precision": 1.0, "recall": 1.0, "density": 1.256, "coverage": 1.0}),
]


def normal(count, width, seed, shift=0.0):
    """Correlated normal features."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) @ np.random.default_rng(9).normal(size=(width, width)) + shift


def waves(count, width, phase):
    """Features that are the same on every machine."""
    i, j = np.meshgrid(np.arange(count), np.arange(width), indexing="ij")
    return np.sin(phase + 12.9898 * i + 78.233 * j + 0.37 * i * j) + 0.5 * np.cos(3.1 * i * (j + 1))


def textbook(a, b):
    """The formula as it stands, its root by scipy."""
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    return np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * np.real(linalg.sqrtm(cov_a @ cov_b)))


@pytest.mark.parametrize(("counts", "width"), [((50, 50), 4), ((80, 40), 12), ((200, 333), 30)])
def test_frechet_distance_is_the_textbook_formula_and_monais(counts, width):
    a, b = normal(counts[0], width, 0), normal(counts[1], width, 1, shift=0.3)
    found = frechet_distance(a, b)
    assert found == pytest.approx(textbook(a, b), rel=1e-6)
    assert found == pytest.approx(float(FIDMetric()(torch.from_numpy(a), torch.from_numpy(b))), rel=1e-6)
    assert resampled_frechet(a, b) == pytest.approx(found, rel=1e-4)


def test_frechet_distance_of_two_normals_by_hand():
    ends = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]]) * np.sqrt(3 / 2)  # variances 1 and 4
    assert np.cov(ends.T) == pytest.approx(np.diag([1.0, 4.0]))
    # |(3, 4)|^2 + (1 - 2)^2 + (2 - 4)^2: a shift, and standard deviations 1 and 2 doubled
    assert frechet_distance(ends, 2 * ends + [3.0, 4.0]) == pytest.approx(25 + 1 + 4)
    assert resampled_frechet(ends, 2 * ends + [3.0, 4.0]) == pytest.approx(30)


@pytest.mark.parametrize("count", [2, 5, 100])
def test_equal_sets_are_0_apart_also_where_they_are_few(count):
    x = normal(count, 40, 2)
    assert abs(frechet_distance(x, x[::-1])) < 1e-6 * max(1.0, np.square(frechet.centred(x)).sum())
    assert abs(frechet_distance(x.astype(np.float32) / 100, x.astype(np.float32) / 100)) < 1e-6


def test_resampled_frechet_bears_channels_without_variance():
    a, b = normal(90, 6, 0), normal(90, 6, 1)
    a[:, 2] = b[:, 2] = a[:, 4] = 0
    assert resampled_frechet(a, b) == pytest.approx(frechet_distance(a, b), rel=1e-4)
    assert resampled_frechet(np.zeros((9, 6)), b) == pytest.approx(frechet_distance(np.zeros((9, 6)), b))


def sums(x, y, kernel):
    """The unbiased estimate, pair by pair."""
    def mean(pairs):
        return np.mean([float(kernel(a[None], b[None])[0, 0]) for a, b in pairs])
    inside = [mean([(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]) for z in (x, y)]
    return sum(inside) - 2 * mean([(a, b) for a in x for b in y])


def test_kernel_distance_is_the_unbiased_formula_whatever_the_blocks(monkeypatch):
    x, y = normal(7, 3, 0), normal(5, 3, 1, shift=0.5)
    wanted = sums(x, y, lambda a, b: (a @ b.T / 3 + 1) ** 3)
    assert kernel_distance.kernel_distance(x, y) == pytest.approx(wanted, rel=1e-12)
    monkeypatch.setattr(kernel_distance, "BLOCK", 8)
    assert kernel_distance.kernel_distance(x, y) == pytest.approx(wanted, rel=1e-12)
    wanted = sums(x, y, lambda a, b: np.exp(-np.square(a - b).sum(-1, keepdims=True) / (2 * 1.5**2)))
    assert kernel_distance.kernel_distance(x, y, gaussian_kernel(1.5)) == pytest.approx(wanted, rel=1e-9)


def test_kernel_distance_by_hand():
    x, y = np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]])
    # k(0,1) = 1, k(1,2) = 27, across: k(0,1), k(0,2) = 1, k(1,1) = 8, k(1,2) = 27
    assert kernel_distance.kernel_distance(x, y) == pytest.approx(1 + 27 - 2 * (1 + 1 + 8 + 27) / 4)


def test_items_that_count_twice_are_no_pair_of_their_own():
    x, y = normal(6, 3, 0), normal(6, 3, 1)
    weights = np.array([[1.0, 1, 1, 1, 1, 1], [2, 0, 1, 1, 1, 1]])
    found = mmd2(grams(x, y, cubic_kernel), weights, np.ones((2, 6)))
    assert found[0] == pytest.approx(kernel_distance.kernel_distance(x, y))
    repeated = x[[0, 0, 2, 3, 4, 5]]
    pairs = [(i, j) for i in range(6) for j in range(6) if i != j and {i, j} != {0, 1}]
    inside = np.mean([cubic_kernel(repeated[i:i + 1], repeated[j:j + 1]) for i, j in pairs])
    across = cubic_kernel(repeated, y).mean()
    own = (cubic_kernel(y, y).sum() - np.trace(cubic_kernel(y, y))) / 30
    assert found[1] == pytest.approx(inside + own - 2 * across)


def test_kernels_of_groups_are_means_over_their_rows():
    x, y = normal(6, 3, 0), normal(4, 3, 1)
    whole = cubic_kernel(x, y)
    np.testing.assert_allclose(gram(x, y, cubic_kernel, group=2)[1, 0], whole[2:4, :2].mean())
    assert gram(x, y, cubic_kernel, group=2).shape == (3, 2)


def test_bandwidth_is_the_median_distance():
    assert median_bandwidth(np.array([[0.0], [1.0], [3.0]])) == 2  # 1, 2 and 3
    assert median_bandwidth(np.zeros((4, 2))) == 0


@pytest.mark.parametrize(("shape", "k", "wanted"), PACKAGE)
def test_precision_recall_density_and_coverage_are_the_packages(shape, k, wanted):
    count, others, width, shift = shape
    found = prdc(waves(count, width, 0.0), waves(others, width, 1.0) * 0.8 + shift, k)
    assert found == pytest.approx(wanted, abs=1e-12)


def test_precision_and_recall_by_hand():
    real, other = np.array([[0.0], [1.0], [2.0], [9.0]]), np.array([[0.5], [20.0], [21.0]])
    # radii of real to the nearest: 1, 1, 1, 7; of others: 19.5, 1, 1; 0.5 lies in the balls of 0 and 1
    found = prdc_items(radii(distances(real, real), 1), distances(real, other), radii(distances(other, other), 1), 1)
    assert found.precision.tolist() == [1, 0, 0] and found.density.tolist() == [2, 0, 0]
    assert found.recall.tolist() == [1, 1, 1, 1] and found.coverage.tolist() == [1, 1, 0, 0]


def test_copies_of_one_item_cover_little():
    real = normal(50, 4, 0)
    found = prdc(real, np.repeat(real[:1], 50, axis=0))
    assert found["precision"] == 1 and found["recall"] == 0 and found["coverage"] < 0.4


@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance.kernel_distance, prdc])
@pytest.mark.parametrize("wrong", [np.zeros((1, 3)), np.zeros((9, 4)), np.full((9, 3), np.nan), np.zeros(9)])
def test_features_that_cannot_be_compared_are_one_line(measure, wrong):
    with pytest.raises(ValueError, match="features|items") as error:
        measure(normal(9, 3, 0), wrong)
    assert "\n" not in str(error.value)
