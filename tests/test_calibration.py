"""Ranks, coverage, CRPS and spread of draws: right for exchangeable ones, and wrong for others in the way known."""

import numpy as np
import pytest
from scipy.stats import norm

from edm3d.metrics.calibration import (
    coverage,
    crps,
    flatness,
    interval_weights,
    rank_histogram,
    ranks,
    spread_skill,
)

PIXELS = 100_000


def simulated(draws: int, spread: float = 1, shift: float = 0, pixels: int = PIXELS) -> tuple[np.ndarray, np.ndarray]:
    """Draws [K,pixels] and the truth [pixels], all about a mean of their own with a deviation of their own."""
    rng = np.random.default_rng(draws)
    mean, sd = rng.normal(size=pixels), rng.gamma(2, size=pixels)
    return mean + shift * sd + spread * sd * rng.normal(size=(draws, pixels)), mean + sd * rng.normal(size=pixels)


def histogram_of(draws: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return rank_histogram(ranks(draws, truth, np.random.default_rng(0)), len(draws))


@pytest.mark.parametrize("draws", [8, 32])
@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95])
def test_exchangeable_draws_cover_what_the_interval_says(draws, level):
    """Within 4 standard errors of 100,000 independent pixels; numpy's own quantiles of 32 draws cover 85 % at 90 %."""
    found = histogram_of(*simulated(draws))
    assert coverage(found, level) == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / PIXELS))
    assert flatness(found) < 2.5


@pytest.mark.parametrize("draws", [1, 2, 8, 19, 32])
@pytest.mark.parametrize("level", [0.1, 0.5, 0.9, 0.99])
def test_flat_ranks_cover_exactly(draws, level):
    weights = interval_weights(draws, level)
    assert weights.mean() == pytest.approx(level) and weights.min() >= 0 and weights.max() <= 1
    assert np.array_equal(weights, weights[::-1])


def test_weights_by_hand():
    """19 draws, 20 cells: 90 % is from the smallest to the largest; of 32 draws the second cell counts to 35 %."""
    assert interval_weights(19, 0.9) == pytest.approx([0, *[1] * 18, 0])
    assert interval_weights(32, 0.9)[:3] == pytest.approx([0, 0.35, 1])
    assert interval_weights(32, 0.95)[:2] == pytest.approx([0.175, 1])


def test_draws_that_are_too_alike_cover_too_little():
    """A spread of half: the 90 % interval of many draws is that of 1.645 / 2 standard deviations, 58.9 %."""
    draws, truth = simulated(256, 0.5, pixels=20_000)
    assert coverage(histogram_of(draws, truth), 0.9) == pytest.approx(2 * norm.cdf(norm.ppf(0.95) / 2) - 1, abs=0.02)
    assert coverage(histogram_of(*simulated(32, 2, pixels=20_000)), 0.9) > 0.97
    assert np.isnan(coverage(np.zeros(9), 0.9))


def test_ranks_by_hand_and_ties_at_random():
    draws = np.array([[1.0, 0, 5], [2, 0, 5], [3, 0, 6]])
    assert ranks(draws, np.array([2.5, -1, 7]), np.random.default_rng(0)).tolist() == [2, 0, 3]
    tied = ranks(np.zeros((3, 40_000)), np.zeros(40_000), np.random.default_rng(0))
    assert rank_histogram(tied, 3) / 40_000 == pytest.approx([0.25] * 4, abs=0.01)
    again = ranks(np.zeros((3, 40_000)), np.zeros(40_000), np.random.default_rng(0))
    assert np.array_equal(tied, again)


def test_flatness_by_hand():
    assert flatness(np.array([5.0, 5, 5, 5])) == 0
    assert flatness(np.array([8.0, 2, 5, 5])) == pytest.approx(1.2)  # (9 + 9) / 5 / 3
    assert np.isnan(flatness(np.zeros(4)))


def test_crps_of_two_draws_by_hand_and_of_many_in_closed_form():
    assert crps(np.array([[0.0], [2.0]]), np.array([5.0])).tolist() == [3]  # (5 + 3) / 2 - 2 / 2
    rng = np.random.default_rng(0)
    for draws in (2, 32):  # its mean is that of the law, E|X - y| - E|X - X'| / 2 = 1 / sqrt(pi), of any number
        found = crps(rng.normal(size=(draws, 200_000)), rng.normal(size=200_000)).mean()
        assert found == pytest.approx(1 / np.sqrt(np.pi), abs=0.01)
    with pytest.raises(ValueError, match="2 or more"):
        crps(np.zeros((1, 3)), np.zeros(3))


@pytest.mark.parametrize(("spread", "ratio"), [(1, 1), (0.5, np.sqrt((1 + 0.25 / 8) / (0.25 * (1 + 1 / 8))))])
def test_spread_skill_is_1_for_exchangeable_draws(spread, ratio):
    draws, truth = simulated(8, spread)
    found = spread_skill(draws.var(0, ddof=1).mean(), ((draws.mean(0) - truth) ** 2).mean(), 8)
    assert found == pytest.approx(ratio, rel=0.02)
    assert np.isnan(spread_skill(0, 1, 8))
