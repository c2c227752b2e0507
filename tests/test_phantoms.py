import numpy as np
import pytest
from scipy import ndimage

from edm3d.metrics.clinical import cavity_enclosed, wall_thickness
from edm3d.physics import phantoms
from edm3d.physics.phantoms import ATTRIBUTES, LABEL_CLASSES, echo_phantom, phantom_affine

FINE = 96


@pytest.fixture(scope="module")
def fine():
    return [echo_phantom(i, seed=11, size=FINE) for i in range(3)]


@pytest.fixture(scope="module")
def many():
    return [echo_phantom(i, seed=3, size=32) for i in range(200)]


def points(size: int) -> list[np.ndarray]:
    """Voxel centres in mm from the probe's face (axis 0) and from the axis of the sector (axes 1 and 2)."""
    centres = (np.arange(size) + 0.5) * (128 / size)
    return np.meshgrid(centres, centres - 64, centres - 64, indexing="ij", sparse=True)


def test_volumes_are_those_of_the_voxels(fine):
    for phantom in fine:
        counted = np.bincount(phantom.label.ravel()) * (128 / FINE) ** 3 / 1e3
        assert counted[[1, 3]] == pytest.approx(phantom.attributes[[0, 2]], rel=0.015)


def test_volume_of_a_half_ellipsoid_of_revolution():
    # A unit ball cut through its centre is 2/3 pi, a whole one 4/3 pi.
    assert phantoms._cut_ball(0.0) == pytest.approx(2 / 3)
    assert phantoms._cut_ball(1.0) == pytest.approx(4 / 3)


def test_wall_thickness_is_that_of_the_label_map(fine):
    for phantom in fine:
        assert wall_thickness(phantom.label, [128 / FINE] * 3) == pytest.approx(phantom.attributes[1], abs=0.25)


def test_wall_thickness_is_the_mean_over_the_endocardium_along_its_normal():
    heart = phantoms._draw_heart(np.random.default_rng([11, 1, phantoms.ANATOMY]), "ED", pairs=False)
    phantom = echo_phantom(1, seed=11, size=FINE)
    axes = heart.shape.axes
    u = np.random.default_rng(0).standard_normal((20000, 3))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    normal = u / axes
    area = np.linalg.norm(normal, axis=1)
    normal /= area[:, None]
    # The ring where the wall is cut by the mitral plane before its normals end cannot be measured: stay off it.
    kept = u[:, 0] < 0.1
    steps = np.arange(-3.9, 25, 0.2)  # from inside the cavity: voxels of the wall reach over its surface too
    inside = np.zeros((kept.sum(), len(steps)), dtype=bool)
    for i, step in enumerate(steps):
        at = (axes * u[kept] + step * normal[kept]) @ heart.rotation.T + heart.centre
        inside[:, i] = phantom.label[tuple(np.round((at + 64) * FINE / 128 - 0.5).astype(int).T)] == 2
    measured = 0.2 * inside.sum(axis=1)
    expected = heart.shape.wall.mean * (1 + phantoms._variation(heart.shape.wall, u.T))
    wall = u[:, 0] < phantoms.MITRAL
    expected = (expected + heart.shape.wall.mean - np.average(expected[wall], weights=area[wall]))[kept]
    thin, thick = (sign * expected > np.quantile(sign * expected, 0.75) for sign in (-1, 1))
    for region in (slice(None), thin, thick):
        assert measured[region].mean() == pytest.approx(expected[region].mean(), abs=0.08)
    assert expected[thick].mean() - expected[thin].mean() > 0.5
    assert phantom.attributes[1] == heart.shape.wall.mean


def test_wall_varies_smoothly_and_by_a_known_share():
    rng = np.random.default_rng(2)
    u = rng.standard_normal((3, 5000))
    u /= np.linalg.norm(u, axis=0)
    for _ in range(20):
        wall = phantoms.Wall(10.0, rng.standard_normal(5))
        variation = phantoms._variation(wall, u)
        assert np.abs(variation).max() <= phantoms.VARIATION
        assert np.ptp(variation) > 0.05


def test_tilt_is_the_signed_angle_of_the_long_axis(fine):
    for phantom in fine:
        label = phantom.label
        apex_to_base = np.array(ndimage.center_of_mass(label == 3)) - ndimage.center_of_mass(label == 1)
        angle = np.degrees(np.arctan2(apex_to_base[1], apex_to_base[0]))
        assert angle == pytest.approx(phantom.attributes[3], abs=0.5)
        assert abs(apex_to_base[2]) < 0.5


def test_attributes_span_their_ranges(many):
    values = np.array([phantom.attributes for phantom in many])
    assert [name for name, _ in ATTRIBUTES] == ["lv_volume", "wall_thickness", "la_volume", "tilt"]
    # Cavities: pi a b c 9/8 with semi-axes of 35 to 50 and twice 18 to 28 mm.
    low, high = [40.0, 7, 30, -15], [138.6, 13, 80, 15]
    assert (values >= low).all() and (values <= high).all()
    assert (values[:, 1:].min(axis=0) < [7.2, 31.5, -14]).all() and (values[:, 1:].max(axis=0) > [12.8, 78.5, 14]).all()


def test_organs_stay_in_the_cube_and_the_centre_in_its_jitter():
    for i in range(150):
        for phase, pairs in (("ED", False), ("ED", True), ("ES", True)):
            heart = phantoms._draw_heart(np.random.default_rng([i, 0, phantoms.ANATOMY]), phase, pairs)
            if phase == "ED":
                assert np.abs(heart.centre).max() <= 8
            low, high = phantoms._limits(heart.shape, heart.rotation)
            assert (low <= heart.centre + 1e-9).all() and (heart.centre - 1e-9 <= high).all()


def test_labels_keep_off_the_sides_and_hold_all_classes(many):
    for phantom in many:
        assert set(np.unique(phantom.label)) == set(range(len(LABEL_CLASSES)))
        assert not phantom.label[:, [0, -1]].any() and not phantom.label[:, :, [0, -1]].any()
        assert cavity_enclosed(phantom.label)


def test_images_span_zero_to_one_without_being_clipped(many):
    images = np.stack([phantom.image for phantom in many])
    assert images.dtype == np.float32 and many[0].label.dtype == np.uint8
    assert images.min() == 0 and images.max() <= 1
    assert (images == 1).mean() < 1e-5
    assert np.median(images.max(axis=(1, 2, 3))) > 0.4


def test_zero_outside_the_sector_and_nowhere_in_it(fine):
    depth, y, z = points(FINE)
    ahead = depth + phantoms.PROBE
    angle, length = np.degrees(np.arctan2(np.hypot(y, z), ahead)), np.sqrt(ahead**2 + y**2 + z**2)
    inside = (angle <= 42) & (length <= 140)
    for phantom in fine:
        assert not phantom.image[~inside].any() and not phantom.clean[~inside].any()
        assert (phantom.clean[inside] > 0).all()
        assert (phantom.clean[phantom.label > 0] > 0).mean() > 0.95  # the sector holds the heart mostly


def test_speckle_contrast_of_every_phantom(many):
    for phantom in many:
        tissue = (phantom.label == 0) & (phantom.clean > 0)
        speckle = phantom.image[tissue] / phantom.clean[tissue]
        assert speckle.mean() == pytest.approx(1, abs=0.02)
        assert 0.25 <= speckle.std() / speckle.mean() <= 0.35


def test_speckle_is_as_strong_near_as_far_and_longer_along_the_beam(fine):
    depth, y, z = points(FINE)
    middle = (np.hypot(y, z) < 10) & (depth > 60) & (depth < 115)  # here beams run along axis 0
    for phantom in fine:
        ratio = np.full_like(phantom.image, np.nan)
        np.divide(phantom.image, phantom.clean, out=ratio, where=phantom.clean > 0)
        lengths = np.broadcast_to(depth, ratio.shape)
        contrasts = [np.nanstd(ratio[(lengths >= a) & (lengths < a + 32)]) for a in (0, 32, 64, 96)]
        assert max(contrasts) < 1.1 * min(contrasts)
        # 4 mm along the beam; white noise through a Gaussian of 3 mm: exp(-16 / (4 * 9)) = 0.64.
        assert _correlation(ratio[middle], np.roll(ratio, -3, axis=0)[middle]) == pytest.approx(0.64, abs=0.1)
        # 8 mm across is two beams or more, and beams are independent.
        assert abs(_correlation(ratio[middle], np.roll(ratio, -6, axis=1)[middle])) < 0.15


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    kept = np.isfinite(a) & np.isfinite(b)
    return float(np.corrcoef(a[kept], b[kept])[0, 1])


def test_attenuation_halves_the_echo_over_the_depth_of_the_cube(fine):
    for phantom in fine:
        muscle = (phantom.label == 2) & (phantom.clean > 0)
        path = [np.broadcast_to(c, muscle.shape)[muscle] for c in points(FINE)]
        path = np.sqrt((path[0] + phantoms.PROBE) ** 2 + path[1] ** 2 + path[2] ** 2) - phantoms.PROBE
        slope, _ = np.polyfit(path, np.log2(phantom.clean[muscle]), 1)
        assert slope * 128 == pytest.approx(-1, abs=1e-3)


def test_the_same_item_whatever_is_asked_before_or_beside():
    first = echo_phantom(7, seed=5, size=24)
    echo_phantom(8, seed=5, size=24)
    again = echo_phantom(7, seed=5, size=24)
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    for other in (echo_phantom(8, seed=5, size=24), echo_phantom(7, seed=6, size=24)):
        assert not np.allclose(other.attributes, first.attributes)
    assert (first.group, first.phase) == (7, "ED")


def test_plane_is_the_middle_of_the_volume():
    # An odd size has a voxel plane through the centre.
    volume, plane = echo_phantom(4, seed=2, size=33), echo_phantom(4, seed=2, size=33, spatial_dims=2)
    assert np.array_equal(volume.label[:, :, 16], plane.label)
    assert np.allclose(volume.image[:, :, 16], plane.image, atol=1e-6)
    assert np.array_equal(volume.attributes, plane.attributes)
    assert {1, 2, 3} <= set(np.unique(plane.label))


def test_size_samples_one_field_more_or_less_finely():
    # Every third voxel centre of 99 is a voxel centre of 33.
    coarse, fine = (echo_phantom(4, seed=2, size=size, spatial_dims=2) for size in (33, 99))
    assert np.array_equal(coarse.label, fine.label[1::3, 1::3])
    assert np.allclose(coarse.image, fine.image[1::3, 1::3], atol=1e-5)


def test_pairs_are_one_patient_at_two_phases():
    for k in range(20):
        ed, es = (echo_phantom(2 * k + i, seed=9, size=24, pairs=True) for i in (0, 1))
        assert (ed.group, ed.phase, es.group, es.phase) == (k, "ED", k, "ES")
        ejected = 1 - es.attributes[0] / ed.attributes[0]
        assert 0.5 <= ejected <= 0.7
        assert ed.attributes[1] < es.attributes[1] < 22
        assert 30 <= ed.attributes[2] < es.attributes[2] <= 80
        assert ed.attributes[3] == es.attributes[3]
        assert np.count_nonzero(es.label == 2) == pytest.approx(np.count_nonzero(ed.label == 2), rel=0.12)
        apexes = [np.argmax((phantom.label == 2).any(axis=(1, 2))) for phantom in (ed, es)]
        assert abs(apexes[0] - apexes[1]) <= 1
        assert cavity_enclosed(es.label)


def test_affine_centres_the_cube():
    affine = phantom_affine(32)
    assert affine @ [0, 0, 0, 1] == pytest.approx([-62, -62, -62, 1])
    assert affine @ [15.5, 15.5, 15.5, 1] == pytest.approx([0, 0, 0, 1])
    assert phantom_affine(32, spatial_dims=2) @ [15.5, 15.5, 0, 1] == pytest.approx([0, 0, 0, 1])


@pytest.mark.parametrize("wrong", [{"index": -1}, {"seed": -1}, {"size": 4}, {"spatial_dims": 1}])
def test_refuses_impossible_arguments_by_name(wrong):
    (name, value), = wrong.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        echo_phantom(**({"index": 0, "seed": 0, "size": 16} | wrong))
