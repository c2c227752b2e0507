"""Distances beside their floor at the same size."""

import numpy as np
import pytest

from edm3d.metrics.frechet import frechet_distance
from edm3d.metrics.same_size import at_same_size


def test_sets_are_of_one_size_and_real_ones_share_no_item():
    real, generated, seen = np.arange(9.0)[:, None], np.arange(100.0, 107.0)[:, None], []

    def distance(a, b):
        seen.append((a, b))
        return float(abs(a.mean() - b.mean()))

    found = at_same_size(distance, real, generated)
    assert found.size == 4 and all(len(a) == len(b) == len(set(a.ravel()) | set(b.ravel())) / 2 == 4 for a, b in seen)
    assert 94 < found.distance < 104 and found.floor < found.floor_p95 < 6
    assert at_same_size(distance, real, generated) == found
    assert at_same_size(distance, real, generated[:3]).size == 3
    for few, some in ((real[:3], generated), (real, generated[:1])):
        with pytest.raises(ValueError, match="wanted 4 and 2 or more"):
            at_same_size(distance, few, some)


def test_samples_of_the_same_law_lie_at_the_floor_and_others_above():
    rng = np.random.default_rng(0)
    real, same = rng.normal(size=(60, 3)), rng.normal(size=(30, 3))
    alike, apart = (at_same_size(frechet_distance, real, x) for x in (same, same * 2 + 1))
    assert alike.distance < 1.5 * alike.floor_p95 < apart.distance
