import numpy as np
import pytest

from edm3d.metrics import clinical, distribution, image, overlap
from edm3d.physics.phantoms import echo_phantom


def ball_heart(size: int = 40, radius: float = 10, wall: float = 4, base: float = 5) -> np.ndarray:
    """A ball of blood in a shell of muscle, both cut at `base` voxels past the centre, with an atrium behind."""
    x, y, z = np.meshgrid(*[np.arange(size) - (size - 1) / 2] * 3, indexing="ij", sparse=True)
    r = np.sqrt(x**2 + y**2 + z**2)
    label = np.where(r <= radius, 1, np.where(r <= radius + wall, 2, 0)).astype(np.uint8)
    label[np.broadcast_to(x > base, label.shape)] = 0
    label[(x > base) & (x <= base + 6) & (y**2 + z**2 <= radius**2)] = 3
    return label


# Overlap


def test_dice_by_hand():
    a, b = np.array([[0, 0, 1], [1, 1, 3]]), np.array([[0, 1, 1], [1, 0, 0]])
    # class 0: 2*1/(2+3), class 1: 2*2/(3+3), class 2: in neither, class 3: in one only
    assert overlap.dice(a, b, 4) == pytest.approx([0.4, 2 / 3, np.nan, 0], nan_ok=True)
    assert overlap.dice(a, a, 2 + 2)[[0, 1, 3]] == pytest.approx([1, 1, 1])


def test_dice_of_nothing_is_undefined():
    nothing = np.zeros((0, 3), dtype=np.uint8)
    assert np.isnan(overlap.dice(nothing, nothing, 2)).all()


def test_dice_refuses_other_shapes_and_labels():
    with pytest.raises(ValueError, match="shapes"):
        overlap.dice(np.zeros((2, 2)), np.zeros((2, 3)), 2)
    with pytest.raises(ValueError, match="0 to 5, wanted 0 to 3"):
        overlap.dice(np.array([0, 5]), np.array([0, 5]), 4)


# Clinical


def test_volumes_in_millilitres():
    label = np.zeros((4, 5, 6), dtype=np.uint8)
    label[:2] = 1
    assert clinical.structure_volumes(label, (1, 2, 10), 3) == pytest.approx([60 * 0.02, 60 * 0.02, 0])
    assert clinical.structure_volumes(label[0], (5, 10), 2) == pytest.approx([0, 30 * 0.5])
    with pytest.raises(ValueError, match="spacing"):
        clinical.structure_volumes(label, (1, 2), 3)


def test_thickness_of_a_flat_wall_along_an_axis():
    label = np.zeros((12, 8, 8), dtype=np.uint8)
    label[:4], label[4:7] = 1, 2
    # Distances 1, 2, 3 to either side, each less half a voxel over the root of it.
    expected = 4 - (1 + 2**-0.5 + 3**-0.5) / 3
    assert clinical.wall_thickness(label, (1, 1, 1)) == pytest.approx(expected)
    assert clinical.wall_thickness(label, (2, 9, 9)) == pytest.approx(2 * expected)


@pytest.mark.parametrize("wall", [2.5, 4, 5.5])
def test_thickness_of_a_ball(wall):
    measured = clinical.wall_thickness(ball_heart(wall=wall), (2, 2, 2))
    assert measured == pytest.approx(2 * wall, abs=0.35)


def test_thickness_does_not_shrink_where_the_wall_ends_at_the_base():
    heights = [clinical.wall_thickness(ball_heart(base=base), (2, 2, 2)) for base in (0, 3, 6)]
    assert heights == pytest.approx([8, 8, 8], abs=0.3)


def test_thickness_of_a_ring_in_2d():
    y, x = np.mgrid[-20:21, -20:21]
    r = np.hypot(x, y)
    label = np.where(r <= 8, 1, np.where(r <= 13, 2, 0))
    assert clinical.wall_thickness(label, (1, 1)) == pytest.approx(5, abs=0.3)


def test_thickness_of_phantoms_follows_the_attribute():
    cases = [echo_phantom(i, seed=21, size=32) for i in range(60)]
    true = np.array([phantom.attributes[1] for phantom in cases])
    measured = np.array([clinical.wall_thickness(phantom.label, (4, 4, 4)) for phantom in cases])
    assert np.corrcoef(true, measured)[0, 1] > 0.99
    assert np.abs(measured - true).max() < 0.6
    assert abs((measured - true).mean()) < 0.3


def test_a_heart_is_the_same_in_a_larger_map():
    """What lies around it is not looked at, but its nearest voxels are, also beyond the mitral plane."""
    label, steps = ball_heart(), (2, 3, 1.5)
    far = np.pad(label, ((0, 9), (12, 3), (5, 20)))
    far[0, 0, 0] = 3
    tight = label[tuple(slice(at.min(), at.max() + 1) for at in np.nonzero(label))]
    assert clinical.wall_thickness(far, steps) == pytest.approx(clinical.wall_thickness(label, steps), abs=1e-9)
    assert clinical.wall_thickness(tight, steps) != pytest.approx(clinical.wall_thickness(label, steps), abs=1e-3)
    assert clinical.cavity_enclosed(far)
    far[2, 12 + 19, 5 + 19] = 1  # a second piece, below the wall
    assert not clinical.cavity_enclosed(far)


@pytest.mark.parametrize("missing", [1, 2, 0])
def test_thickness_without_a_part_is_undefined(missing):
    label = ball_heart()
    label[label == missing] = {1: 0, 2: 0, 0: 2}[missing]
    if missing == 0:
        label[label == 3] = 2
    assert np.isnan(clinical.wall_thickness(label, (1, 1, 1)))


def test_a_heart_is_enclosed_also_where_the_atrium_is_narrower_than_the_base():
    label = ball_heart()
    assert clinical.cavity_enclosed(label)
    label[26:32, :15] = 0
    assert clinical.cavity_enclosed(label)


def test_tissue_all_round_needs_no_atrium():
    assert clinical.cavity_enclosed(np.pad(np.pad(np.ones((3, 3, 3)), 1, constant_values=2), 1))


def test_not_enclosed():
    holed = ball_heart()
    column = (slice(None, 19), 19, 19)
    holed[column][holed[column] == 2] = 0
    atrium_in_hole = holed.copy()
    atrium_in_hole[column][atrium_in_hole[column] == 0] = 3
    satellite = ball_heart()
    satellite[2, 2, 2] = 1
    open_base = ball_heart()
    open_base[open_base == 3] = 0
    little_atrium = open_base.copy()
    little_atrium[25, 19:21, 19:21] = 3
    at_border = np.pad(np.ones((3, 3, 3)), ((0, 1), (1, 1), (1, 1)), constant_values=2)
    for label in (holed, atrium_in_hole, satellite, open_base, little_atrium, at_border, np.zeros((5, 5, 5))):
        assert not clinical.cavity_enclosed(label)


def test_cavity_touching_by_an_edge_is_two_components():
    label = np.full((6, 6, 6), 2)
    label[1, 1, 1] = label[2, 2, 1] = 1
    assert not clinical.cavity_enclosed(label)
    label[2, 1, 1] = 1
    assert clinical.cavity_enclosed(label)


def test_a_hole_in_the_apex_of_a_phantom_is_seen():
    for i in range(10):
        label = echo_phantom(i, seed=4, size=32).label.copy()
        assert clinical.cavity_enclosed(label)
        first, row, column = np.argwhere(label == 1)[0]
        wall = label[:first, row, column]
        wall[wall == 2] = 0
        assert not clinical.cavity_enclosed(label)


@pytest.mark.parametrize("order", [(1, 0, 2), (1, 2, 0), (2, 1, 0)])
def test_the_base_may_face_any_way(order):
    label = np.pad(ball_heart(), ((3, 0), (9, 0), (0, 5)))  # not where the axes could be mistaken for each other
    turned = np.flip(np.transpose(label, order), axis=order.index(0))
    assert clinical.cavity_enclosed(turned)
    spacing = np.array([1.0, 1.5, 2.0])
    assert clinical.wall_thickness(turned, spacing[list(order)]) == pytest.approx(
        clinical.wall_thickness(label, spacing), abs=0.02)


def test_other_label_numbers():
    label = ball_heart()
    renamed = np.array([0, 5, 2, 9])[label]
    assert clinical.cavity_enclosed(renamed, cavity=5, atrium=9)
    assert clinical.wall_thickness(renamed, (1, 1, 1), cavity=5, atrium=9) == clinical.wall_thickness(label, (1, 1, 1))


# Distributions


def test_ks_distance_by_hand():
    assert distribution.ks_distance(np.array([1, 2, 3, 4]), np.array([3, 4, 5, 6])) == pytest.approx(0.5)
    assert distribution.ks_distance(np.arange(5), np.arange(5)) == 0
    assert distribution.ks_distance(np.array([0.0, np.nan]), np.array([1.0])) == 1
    assert np.isnan(distribution.ks_distance(np.array([np.nan]), np.array([1.0])))


def test_ks_floor_of_one_against_one_and_against_the_asymptotic_law():
    assert distribution.ks_floor(1, 1) == 1
    # Kolmogorov: 1.628 sqrt(1/n + 1/m) at the 99 % point, 1.358 at 95 %; finite samples stay a little below.
    root = np.sqrt(1 / 64 + 1 / 512)
    assert distribution.ks_floor(64, 512) == pytest.approx(1.628 * root, rel=0.04)
    assert distribution.ks_floor(64, 512, level=0.95) == pytest.approx(1.358 * root, rel=0.04)
    assert distribution.ks_floor(64, 512) == distribution.ks_floor(64, 512)
    with pytest.raises(ValueError, match="n=0"):
        distribution.ks_floor(0, 5)


def test_ks_floor_holds_what_it_says_for_other_distributions():
    rng, floor = np.random.default_rng(1), distribution.ks_floor(20, 30, level=0.9)
    above = [distribution.ks_distance(rng.standard_normal(20), rng.standard_normal(30)) > floor for _ in range(1000)]
    assert 0.05 < np.mean(above) < 0.13


# Images


def test_psnr_by_hand():
    a = np.zeros((4, 4))
    assert image.psnr(a, a + 0.1, 1.0) == pytest.approx(20)
    assert image.psnr(a, a + 0.1, 10.0) == pytest.approx(40)
    assert image.psnr(a, a, 1.0) == np.inf
    with pytest.raises(ValueError, match="shapes"):
        image.psnr(a, a[0], 1.0)


@pytest.mark.parametrize("ndim", [2, 3])
def test_ms_ssim_of_copies_is_one_and_of_noise_is_low(ndim):
    rng = np.random.default_rng(0)
    one = rng.uniform(size=(1, 1, *[32] * ndim)).astype(np.float32)
    copies = np.repeat(one, 3, axis=0)
    values = image.ms_ssim_pairs(copies, num_pairs=10, data_range=1.0)
    assert values == pytest.approx(np.ones(3), abs=1e-5)  # three items make three pairs
    noise = rng.uniform(size=(3, 1, *[32] * ndim)).astype(np.float32)
    assert image.ms_ssim_pairs(noise, num_pairs=3, data_range=1.0).max() < 0.3


def test_ms_ssim_pairs_are_never_of_an_item_with_itself_and_repeat_with_the_seed():
    rng = np.random.default_rng(0)
    volumes = rng.uniform(size=(1, 1, 32, 32)) + 0.3 * rng.uniform(size=(6, 1, 32, 32))
    values = image.ms_ssim_pairs(volumes, num_pairs=15, data_range=1.0)
    assert len(values) == len(set(values)) == 15 and values.max() < 0.999
    some = [image.ms_ssim_pairs(volumes, num_pairs=4, data_range=1.0, seed=seed) for seed in (0, 0, 1)]
    assert np.array_equal(some[0], some[1]) and not np.array_equal(some[0], some[2])


def test_ms_ssim_refuses_too_few_items_and_too_short_sides():
    with pytest.raises(ValueError, match="at least 2"):
        image.ms_ssim_pairs(np.zeros((1, 1, 32, 32)), num_pairs=1, data_range=1.0)
    with pytest.raises(ValueError, match="sides of at least 28"):
        image.ms_ssim_pairs(np.zeros((2, 1, 27, 32)), num_pairs=1, data_range=1.0)
    image.ms_ssim_pairs(np.zeros((2, 1, 28, 28)), num_pairs=1, data_range=1.0)


@pytest.mark.parametrize(("side", "scales"), [(7, 1), (13, 1), (14, 2), (27, 2), (28, 3)])
def test_ms_ssim_needs_a_window_at_the_coarsest_scale(side, scales):
    """A side halves with each scale and must still hold the window of 7; one scale more is refused."""
    volumes = np.random.default_rng(0).random((2, 1, side, side), np.float32)
    assert np.isfinite(image.ms_ssim_pairs(volumes, num_pairs=1, data_range=1.0, scales=scales)).all()
    with pytest.raises(ValueError, match="wanted sides of at least"):
        image.ms_ssim_pairs(volumes, num_pairs=1, data_range=1.0, scales=scales + 1)
