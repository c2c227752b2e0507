"""Epsilon of noisy steps by Opacus' PRV accountant (Gopi et al. 2021), and the noise and steps that a budget allows."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from math import log

import numpy as np

from edm3d.formats.privacy import Ledger, Spent

ACCOUNTANT = "prv"
STEPS_TRIED = 60  # of a search: more than any number of steps has digits
MOST_NOISE = 1e4
FIRST_NOISE = 20.0


def version() -> str:
    """Of the package that counts."""
    import opacus
    return f"opacus {opacus.__version__}"


def epsilon(history: Sequence[Spent], delta: float) -> float:
    """What steps have spent at a delta, as the upper bound that the accountant gives; 0 for none."""
    return _epsilon(tuple(spent for spent in history if spent.steps), delta)


@cache
def _epsilon(history: tuple[Spent, ...], delta: float) -> float:
    from opacus.accountants import PRVAccountant
    if not history:
        return 0.0
    accountant = PRVAccountant()
    accountant.history = [tuple(spent) for spent in history]
    with quiet():
        return float(accountant.get_epsilon(delta))


def noise_multiplier(target_epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """The least noise, to half a percent of epsilon, with which so many steps stay within a budget.

    The search goes on near the answer alone, from what the faster RDP accountant says: with little noise PRV takes
    long. ValueError where no noise will do.
    """
    def spent(noise: float) -> float:
        return epsilon([Spent(noise, sampling_rate, steps)], delta)

    low = high = rdp_multiplier(target_epsilon, delta, sampling_rate, steps)
    while (at_high := spent(high)) > target_epsilon:
        low, high = high, 1.5 * high
        if high > MOST_NOISE:
            raise too_low(target_epsilon, steps, sampling_rate)
    while (at_low := spent(low)) <= target_epsilon:
        low, high, at_high = low / 1.2, low, at_low
    wanted = target_epsilon - min(0.01, target_epsilon / 200)
    for _ in range(STEPS_TRIED):
        if at_high >= wanted:
            break
        share = log(at_low / (wanted + target_epsilon) * 2) / log(at_low / at_high)  # a line between logarithms
        noise = low * (high / low) ** min(max(share, 0.02), 0.98)
        if (found := spent(noise)) <= target_epsilon:
            high, at_high = noise, found
        else:
            low, at_low = noise, found
    return high


def rdp_multiplier(target_epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """Noise with which the looser RDP accountant finds so many steps within a budget, where it finds any."""
    from opacus.accountants.utils import get_noise_multiplier
    with quiet():
        try:
            return float(get_noise_multiplier(target_epsilon=target_epsilon, target_delta=delta, steps=steps,
                                              sample_rate=sampling_rate, accountant="rdp",
                                              epsilon_tolerance=target_epsilon / 20))
        except ValueError:
            return FIRST_NOISE  # its orders end before small epsilons do


def too_low(target_epsilon: float, steps: int, sampling_rate: float) -> ValueError:
    """The error of a budget that nothing can keep."""
    return ValueError(f"training.privacy.target_epsilon={target_epsilon:g}: no noise keeps {steps} steps at sampling "
                      f"rate {sampling_rate:.4g} below that; wanted a larger one, or fewer steps "
                      "(training.options.total_kimg)")


@contextmanager
def quiet() -> Iterator[None]:
    """Without the accountants' warnings of their own arithmetic: logarithms of 0 at the ends of their grids."""
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        warnings.simplefilter("ignore")
        yield


def steps_within(target_epsilon: float, delta: float, ledger: Ledger, noise: float, sampling_rate: float, most: int
                 ) -> int:
    """How many steps, `most` at most, may follow on a ledger before a budget is spent."""
    def fits(steps: int) -> bool:
        return epsilon(ledger.after(noise, sampling_rate, steps).history, delta) <= target_epsilon

    if most <= 0 or not fits(1):
        return 0
    if fits(most):
        return most
    low, high = 1, most
    for _ in range(STEPS_TRIED):
        if high - low <= 1:
            break
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
