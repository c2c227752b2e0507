"""PET phantoms: the same for the same arguments, within the law that they state, their regions exact."""

import numpy as np
import pytest

from edm3d.physics.pet_phantoms import BRAIN_REGIONS, KINDS, pet_phantom, pet_stack

MANY = [pet_phantom(i, seed=3) for i in range(100)]


@pytest.mark.parametrize("kind", KINDS)
def test_same_arguments_same_phantom_and_others_another(kind):
    first, again = pet_phantom(4, seed=1, size=48, kind=kind), pet_phantom(4, seed=1, size=48, kind=kind)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (pet_phantom(5, seed=1, size=48, kind=kind), pet_phantom(4, seed=2, size=48, kind=kind)):
        assert not np.array_equal(first.activity, other.activity)
    assert first.activity.dtype == np.float32
    assert first.regions.dtype == np.uint8
    assert first.activity.shape == first.regions.shape == (48, 48)


@pytest.mark.parametrize("kind", KINDS)
def test_a_region_has_one_activity_and_outside_there_is_none(kind):
    for phantom in (pet_phantom(i, kind=kind) for i in range(20)):
        for region in np.unique(phantom.regions):
            assert len(np.unique(phantom.activity[phantom.regions == region])) == 1
        assert (phantom.activity[phantom.regions == 0] == 0).all()
        assert 0 <= phantom.activity.min() < phantom.activity.max() <= 12
        edge = np.concatenate([phantom.regions[[0, -1]].ravel(), phantom.regions[:, [0, -1]].ravel()])
        assert (edge == 0).all()


def test_brains_are_within_their_law():
    assert len(BRAIN_REGIONS) == 10
    seen = set()
    for phantom in MANY:
        value = {BRAIN_REGIONS[r]: phantom.activity[phantom.regions == r][0] for r in np.unique(phantom.regions)}
        seen |= set(value)
        assert 1.5 <= value["white"] <= 2.75
        assert 3.49 * value["white"] <= value["grey"] <= 4.31 * value["white"]
        assert value["skull"] <= 0.6 < 1.5 >= value["scalp"] >= 0.5
        assert value.get("hot lesion", 12) >= min(1.2 * value["grey"], 12) - 1e-5
        assert value.get("cold lesion", 0) <= 0.5 * value["white"]
    assert seen == set(BRAIN_REGIONS)
    assert 0.55 < np.mean([phantom.regions == 0 for phantom in MANY]) < 0.75


def test_shapes_and_activities_vary():
    areas = [(phantom.regions > 0).sum() for phantom in MANY]
    assert max(areas) > 1.5 * min(areas)
    assert len({phantom.activity.max() for phantom in MANY}) > 50
    heights = [float(phantom.heights) for phantom in MANY]
    assert -0.7 <= min(heights) < -0.4 < 0.4 < max(heights) <= 0.7


@pytest.mark.parametrize("kind", KINDS)
def test_size_is_the_number_of_points_and_no_more(kind):
    """Centres of 3 x 3 pixels: the middle one is that of the coarse pixel."""
    fine, coarse = pet_phantom(7, size=96, kind=kind), pet_phantom(7, size=32, kind=kind)
    assert np.mean(fine.regions[1::3, 1::3] != coarse.regions) < 0.002


@pytest.mark.parametrize("kind", KINDS)
def test_stack_is_an_ellipsoid_in_slices(kind):
    stack = pet_stack(2, seed=1, size=64, depth=9, kind=kind)
    assert stack.activity.shape == stack.regions.shape == (9, 64, 64)
    assert stack.heights == pytest.approx((np.arange(9) - 4) * 2 / 9)
    areas = (stack.regions > 0).sum((1, 2))
    assert areas / areas[4] == pytest.approx(1 - stack.heights**2, abs=0.06)
    assert pet_stack(2, seed=1, size=64, depth=1, kind=kind).heights.tolist() == [0]
    for region in np.unique(stack.regions):
        assert len(np.unique(stack.activity[stack.regions == region])) == 1


@pytest.mark.parametrize(("work", "said"), [
    (lambda: pet_phantom(0, kind="heart"), "kind='heart': wanted one of brain, ellipses"),
    (lambda: pet_phantom(-1), "index=-1"), (lambda: pet_phantom(0, seed=-1), "seed=-1"),
    (lambda: pet_phantom(0, size=0), "size=0"), (lambda: pet_stack(0, depth=0), "depth=0"),
])
def test_wrong_arguments_are_named(work, said):
    with pytest.raises(ValueError, match=said):
        work()
