"""Surfaces, classes and intervals: by hand, by MONAI, by all pairs, and by how often an interval holds the truth."""

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance
from scipy import ndimage, stats

from edm3d.metrics.bootstrap import bootstrap, weighted_means
from edm3d.metrics.classification import auroc, class_aurocs, confusion, roc_curve
from edm3d.metrics.overlap import dice
from edm3d.metrics.surface import hausdorff

NAN = float("nan")


def blobs(rng: np.random.Generator, shape: tuple[int, ...], classes: int) -> np.ndarray:
    """A label map of smooth random regions."""
    fields = [ndimage.gaussian_filter(rng.standard_normal(shape), 2) for _ in range(classes)]
    return np.argmax(fields, axis=0).astype(np.uint8)


def one_hot(labels: np.ndarray, classes: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([labels == k for k in range(classes)])[None].astype(np.float32))


# ---- overlap and surfaces ----


@pytest.mark.filterwarnings("ignore:the prediction of class:UserWarning")  # MONAI's, of the class that one map lacks
@pytest.mark.parametrize(("shape", "spacing"), [((24, 19), (0.7, 2.0)), ((12, 15, 10), (1.0, 0.5, 3.0))])
def test_dice_and_hausdorff_are_those_of_monai(shape, spacing):
    rng = np.random.default_rng(len(shape))
    for _ in range(4):
        a, b = blobs(rng, shape, 4), blobs(rng, shape, 4)
        a[a == 3] = 0  # one class is in the second map alone
        ours, theirs = hausdorff(a, b, 4, spacing), [one_hot(labels, 4) for labels in (a, b)]
        for row, percentile in zip(ours, (95, None), strict=True):
            wanted = compute_hausdorff_distance(*theirs, percentile=percentile, spacing=list(spacing))[0].numpy()
            wanted[~np.isfinite(wanted)] = NAN
            np.testing.assert_allclose(row, wanted, rtol=1e-5)
        assert np.isfinite(ours[:, :2]).all() and np.isnan(ours[:, 2]).all() and (ours[0, :2] <= ours[1, :2]).all()
        np.testing.assert_allclose(dice(a, b, 4), compute_dice(*theirs, ignore_empty=False)[0].numpy(), rtol=1e-6)


def test_hausdorff_of_two_voxels_is_their_distance_in_mm():
    a, b = np.zeros((2, 6, 6, 6), np.uint8)
    a[1, 2, 3], b[4, 2, 3] = 1, 1
    assert hausdorff(a, b, 2, (2.5, 1, 1)).tolist() == [[7.5], [7.5]]
    b[:] = 0
    b[1, 2, 5] = 1
    assert hausdorff(a, b, 2, (2.5, 1, 4)).tolist() == [[8], [8]]
    flat, moved = np.zeros((2, 5, 5), np.uint8)
    flat[0, 0], moved[3, 4] = 1, 1
    assert hausdorff(flat, moved, 2, (1, 1)).tolist() == [[5], [5]]


def test_the_95_percent_point_leaves_one_voxel_far_away_out_of_account():
    a = np.zeros((40, 40), np.uint8)
    a[5:30, 5:30] = 1
    b = a.copy()
    b[39, 5] = 1  # one of about 100 voxels of the surface, 10 rows below
    near, far = hausdorff(a, b, 2, (1, 1))[:, 0]
    assert (near, far) == (0, 10)


def test_hausdorff_is_undefined_for_a_class_that_one_map_lacks_and_refuses_what_does_not_fit():
    a, b = np.zeros((2, 4, 4), np.uint8)
    a[1, 1] = 1
    assert np.isnan(hausdorff(a, b, 2, (1, 1))).all() and np.isnan(hausdorff(b, b, 2, (1, 1))).all()
    with pytest.raises(ValueError, match=r"shapes \(4, 4\) and \(4, 3\)"):
        hausdorff(a, b[:, :3], 2, (1, 1))
    with pytest.raises(ValueError, match=r"spacing \(1, 0\)"):
        hausdorff(a, b, 2, (1, 0))


# ---- classes ----


def by_pairs(scores: np.ndarray, positive: np.ndarray) -> float:
    """AUROC by looking at every pair."""
    gaps = scores[positive][:, None] - scores[~positive][None]
    return float(((gaps > 0) + (gaps == 0) / 2).mean())


@pytest.mark.parametrize("levels", [3, 10, 10**6])  # many ties, some, none
def test_auroc_is_the_rank_formula(levels):
    rng = np.random.default_rng(levels)
    scores, positive = rng.integers(levels, size=70) / levels, rng.random(70) < 0.3
    found, = auroc(scores, positive)
    u = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
    assert found == pytest.approx(by_pairs(scores, positive)) == pytest.approx(u / positive.sum() / (~positive).sum())


def test_auroc_of_resamples_is_that_of_cases_written_out():
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(6, size=30) / 6, np.arange(30) < 11
    weights = rng.integers(3, size=(5, 30))
    for found, times in zip(auroc(scores, positive, weights), weights, strict=True):
        rows = np.repeat(np.arange(30), times)
        assert found == pytest.approx(by_pairs(scores[rows], positive[rows]))


def test_auroc_by_hand_and_where_it_is_undefined():
    scores, positive = np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])
    assert auroc(scores, positive).tolist() == [0.75] and auroc(-scores, positive).tolist() == [0.25]
    assert auroc(np.ones(4), positive).tolist() == [0.5]
    assert np.isnan(auroc(scores, np.ones(4, bool))).all()
    three = np.eye(3)[[0, 1, 2, 0]]
    assert class_aurocs(three, np.array([0, 1, 2, 1])).tolist() == [[pytest.approx(5 / 6), 0.75, 1]]


def test_roc_curve_goes_through_the_points_of_its_thresholds():
    curve = roc_curve(np.array([0.9, 0.8, 0.8, 0.1]), np.array([True, True, False, False]))
    assert curve.tolist() == [[0, 0, 0.5, 1], [0, 0.5, 1, 1]]
    rng = np.random.default_rng(1)
    scores, positive = rng.integers(9, size=50) / 9, rng.random(50) < 0.5
    assert np.trapezoid(*roc_curve(scores, positive)[::-1]) == pytest.approx(auroc(scores, positive)[0])
    assert np.isnan(roc_curve(scores, np.ones(50, bool))[0]).all()


def test_confusion_has_true_classes_by_row():
    assert confusion(np.array([0, 0, 2]), np.array([0, 1, 0]), 3).tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 0]]


# ---- intervals ----


def test_means_leave_out_what_is_undefined():
    values = np.array([[1, NAN], [3, NAN], [NAN, NAN]])
    assert weighted_means(values)[0] == pytest.approx([2, NAN], nan_ok=True)
    assert weighted_means(values, np.array([[3, 1, 5], [0, 0, 1]]))[:, 0] == pytest.approx([1.5, NAN], nan_ok=True)


def coverage(kind: str, sets: int, resamples: int) -> float:
    """The share of simulated sets whose interval holds the true value."""
    rng, held = np.random.default_rng(7), 0
    truth = {"mean": 1.0, "share": 0.7, "auroc": stats.norm.cdf(1 / np.sqrt(2))}[kind]
    for i in range(sets):
        if kind == "auroc":
            positive = np.arange(120) < 60
            scores = rng.standard_normal(120) + positive
            found = bootstrap(lambda w: auroc(scores, positive, w)[:, None], range(120), i, resamples)  # noqa: B023
        else:
            values = (rng.random((100, 1)) < 0.7) if kind == "share" else 1 + rng.standard_normal((100, 1))
            found = bootstrap(lambda w: weighted_means(values, w), range(100), i, resamples)  # noqa: B023
        held += found.low[0] <= truth <= found.high[0]
    return held / sets


@pytest.mark.parametrize("kind", ["mean", "share", "auroc"])
def test_intervals_hold_the_truth_in_95_of_100_sets(kind):
    assert 0.91 <= coverage(kind, 400, 400) <= 0.98


def test_cases_of_a_group_are_drawn_together():
    values = np.repeat(np.random.default_rng(0).standard_normal(40), 5)[:, None]
    alone, together = (bootstrap(lambda w: weighted_means(values, w), groups) for groups in (
        range(200), [f"p{i // 5}" for i in range(200)]))
    ratio = (together.high - together.low) / (alone.high - alone.low)
    assert ratio[0] == pytest.approx(5 ** 0.5, rel=0.1)
    again = bootstrap(lambda w: weighted_means(values, w), range(200))
    assert again.low == alone.low and again.high == alone.high  # by the seed
    assert bootstrap(lambda w: weighted_means(values, w), range(200), seed=1).low != alone.low


def test_resamples_without_a_value_are_left_out_and_counted():
    positive = np.arange(8) == 0
    found = bootstrap(lambda w: np.stack([auroc(np.arange(8.0), positive, w), np.full(len(w), NAN)], axis=1), range(8))
    assert found.used[0] / 2000 == pytest.approx(1 - (7 / 8) ** 8, abs=0.03) and found.low[0] == 0
    assert found.used[1] == 0 and np.isnan(found.low[1]) and np.isnan(found.high[1])
