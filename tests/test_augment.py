"""Augmentation against arrays and matrices worked out by hand, against scipy and numpy, and against its own labels."""

from math import cos, log, pi, sin, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy import ndimage

from edm3d.inference.batch import Batch
from edm3d.networks.conditioning import Condition
from edm3d.physics.phantoms import echo_phantom
from edm3d.samplers import ImageGenerators
from edm3d.training.augment import (
    AugmentPipe,
    log_stretch,
    resample,
    rotation,
    rotation_label,
    shift_voxels,
    signed_turns,
    stretch_label,
    turn_voxels,
)
from edm3d.utils.config import build

F64 = torch.float64
NONE = {"scale": 0, "rotate_frac": 0, "aniso": 0, "translate_frac": 0}
ALL = {"rotate_int": 1, "translate_int": 1}


def tensor(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


def one_image(values, matrix, offset, fill=-1.0, mode="bilinear") -> torch.Tensor:
    """An array [*S] after x -> matrix x + offset."""
    values = torch.as_tensor(values, dtype=F64)[None, None]
    matrix, offset = (torch.as_tensor(t, dtype=F64)[None] for t in (matrix, offset))
    return resample(values, matrix, offset, tensor(fill), mode)[0, 0]


def noise_batch(n: int, *size: int) -> Batch:
    return Batch(torch.rand(n, 1, *size, generator=torch.Generator().manual_seed(0)), None, Condition())


def dice(a, b) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


# ---- whole voxels: exact ----


def test_turns_of_an_image_are_those_of_numpy():
    image = torch.arange(12.0).reshape(1, 3, 4)[:, :, :3]
    quarter = tensor([0, -1], [1, 0])  # what is on the right, point (0, 1), goes up, to (-1, 0)
    for k in range(4):
        assert torch.equal(turn_voxels(image, torch.linalg.matrix_power(quarter, k)), torch.rot90(image, k, (1, 2)))
    assert torch.equal(turn_voxels(image, tensor([1, 0], [0, -1])), image.flip(2))
    assert torch.equal(turn_voxels(image, tensor([-1, 0], [0, 1])), image.flip(1))


def test_turns_of_a_volume_move_every_voxel_where_the_matrix_says():
    volume = torch.arange(27.0).reshape(1, 3, 3, 3)
    turns = signed_turns(3)
    assert len({tuple(t.flatten().tolist()) for t in turns}) == 24
    for turn in turns:
        moved = turn_voxels(volume, turn)
        for point in np.ndindex(3, 3, 3):
            to = (turn @ (tensor(*point) - 1) + 1).long().tolist()
            assert moved[0, *to] == volume[0, *point]
    about_last_axis = tensor([0, -1, 0], [1, 0, 0], [0, 0, 1])
    assert torch.equal(turn_voxels(volume, about_last_axis), torch.rot90(volume, 1, (1, 2)))


@pytest.mark.parametrize("size, count", [((7,), 1), ((4, 4), 4), ((4, 6), 2), ((4, 4, 4), 24), ((6, 4, 4), 8),
                                         ((2, 3, 4), 4)])
def test_turns_keep_the_shape_and_are_equally_likely(size, count):
    pipe = AugmentPipe(len(size), 1, flip=[0] * len(size), rotate_int=1, **NONE)
    n = 100 * count
    move, _ = pipe.draw(ImageGenerators(range(n)), size)
    found, times = np.unique(move.turn.flatten(1).numpy(), axis=0, return_counts=True)
    assert len(found) == count and (abs(times - 100) < 50).all()  # 5 standard deviations
    batch, _ = pipe(noise_batch(24, *size), ImageGenerators(range(24)))
    assert batch.images.shape == (24, 1, *size)


def test_turns_keep_the_spacing():
    move, _ = AugmentPipe(3, 1, rotate_int=1, spacing=(10, 1, 1)).draw(ImageGenerators(range(100)), (4, 4, 4))
    assert (move.turn[:, 0, 1:] == 0).all() and len(np.unique(move.turn[:, 1:, 1:].flatten(1), axis=0)) == 8


def test_shift_by_hand():
    image = torch.tensor([[[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 5, 6]]])
    moved = shift_voxels(image, tensor(1, -1), tensor(-1, 9))
    assert moved.tolist() == [[[-1, -1, -1], [2, 3, -1]], [[9, 9, 9], [2, 3, 9]]]
    assert shift_voxels(image, tensor(0, 3), tensor(0, 0)).count_nonzero() == 0
    volume = torch.arange(8.0).reshape(1, 2, 2, 2)
    assert shift_voxels(volume, tensor(0, -1, 1), tensor(-1)).flatten().tolist() == [-1, 2, -1, -1, -1, 6, -1, -1]


@pytest.mark.parametrize("d", [1, 2, 3])
def test_each_axis_flips_by_its_own_multiplier(d):
    batch = noise_batch(32, *range(4, 4 + d))
    for axis in range(d):
        flip = [1e8 if a == axis else 0 for a in range(d)]
        moved, labels = AugmentPipe(d, 0.12, flip, **NONE)(batch, ImageGenerators(range(32)))
        assert labels.shape == (32, 1) and 6 < labels.sum() < 26
        for before, after, label in zip(batch.images, moved.images, labels, strict=True):
            assert torch.equal(after, before.flip(1 + axis) if label else before)


def test_one_multiplier_of_flip_is_for_every_axis():
    assert AugmentPipe(3, flip=0, scale=1).label_widths["flip"] == 0
    assert AugmentPipe(3, flip=2).flip == [2, 2, 2]


def test_whole_shift_of_a_pipe_and_its_label():
    batch = noise_batch(16, 8, 16)
    moved, labels = AugmentPipe(2, 1, [0, 0], translate_int=1, translate_int_max=0.25, **NONE)(
        batch, ImageGenerators(range(16)))
    shifts = (labels.flip(1) * 0.25 * torch.tensor([8, 16])).round()  # labels are x, y
    assert shifts.abs().amax(0).tolist() == [2, 4] and (shifts.min(0).values < 0).all()
    for before, after, shift in zip(batch.images, moved.images, shifts, strict=True):
        assert torch.equal(after, shift_voxels(before, shift, tensor(-1)))


# ---- one interpolation ----


def test_scale_of_a_ramp_by_hand():
    ramp = torch.arange(8.0) - 3.5
    torch.testing.assert_close(one_image(ramp, [[2.0]], [0.0]), ramp.to(F64) / 2)
    assert one_image(ramp, [[0.25]], [0.0])[[0, 1, 6, 7]].tolist() == [-1] * 4  # shrunk into the middle, fill around
    image = ramp[:, None] + 10 * ramp
    torch.testing.assert_close(one_image(image, 2 * torch.eye(2), [0, 0]), image.to(F64) / 2)
    volume = image[:, :, None] + 100 * ramp
    torch.testing.assert_close(one_image(volume, 2 * torch.eye(3), [0, 0, 0]), volume.to(F64) / 2)


def test_edge_is_linear_over_one_voxel_and_nearest_is_sharp():
    assert one_image([1.0, 2.0, 3.0], [[1.0]], [0.5]).tolist() == pytest.approx([0, 1.5, 2.5])
    assert one_image([1.0, 2.0, 3.0], [[1.0]], [-0.75]).tolist() == pytest.approx([1.75, 2.75, 0])
    assert one_image([1, 2, 3], [[1.0]], [0.75], fill=0, mode="nearest").tolist() == [0, 1, 2]


@pytest.mark.parametrize("shift", [(1, -2), (2, 0, -1)])
def test_fractional_shift_by_whole_voxels_is_the_whole_shift(shift):
    image = torch.rand(5, 6, 7)[:, :, :][tuple([slice(None)] * len(shift) + [0] * (3 - len(shift)))]
    moved = one_image(image, torch.eye(len(shift)), shift)
    torch.testing.assert_close(moved, shift_voxels(image[None].to(F64), tensor(*shift), tensor(-1))[0])


def test_rotation_by_a_quarter_is_rot90():
    image, volume = torch.rand(6, 6, dtype=F64), torch.rand(4, 4, 4, dtype=F64)
    quarter = rotation(tensor(pi / 2), tensor([[0, 1], [-1, 0]]))  # from right to up
    torch.testing.assert_close(one_image(image, quarter[0], [0, 0]), torch.rot90(image, 1, (0, 1)))
    quarter = rotation(tensor(pi / 2), tensor([[0, 0, 2], [-3, 0, 5]]))  # lengths and what is not normal do not count
    torch.testing.assert_close(one_image(volume, quarter[0], [0, 0, 0]), torch.rot90(volume, 1, (0, 2)))
    assert rotation(tensor(1.0), tensor([[1], [2]])).tolist() == [[[1]]]


def test_stretch_by_hand():
    c, s = cos(0.8), sin(0.8)
    torch.testing.assert_close(log_stretch(tensor([sin(0.4), cos(0.4)])), tensor([[-c, s], [s, c]]))
    torch.testing.assert_close(log_stretch(tensor([0, 2, 0])), torch.diag(tensor(-0.5, 1, -0.5))[None])
    assert log_stretch(tensor([3])).tolist() == [[[0]]]


@pytest.mark.parametrize("d, size", [(2, 128), (3, 48)])
def test_stretched_ball_is_the_ellipsoid_of_the_same_volume(d, size):
    axes = np.indices((size,) * d) - (size - 1) / 2
    radius, power = size / 4, 0.5
    u = tensor(1, 2, -1)[:d]
    matrix = torch.linalg.matrix_exp(power * log_stretch(u[None]))[0]
    ball = (axes ** 2).sum(0) <= radius ** 2
    moved = one_image(np.sqrt((axes ** 2).sum(0)), matrix, [0] * d, fill=size).numpy() <= radius
    along = np.tensordot(u / u.norm(), axes, 1)
    across = np.sqrt((axes ** 2).sum(0) - along ** 2)
    long, short = radius * np.exp(power), radius * np.exp(-power / (d - 1))
    ellipsoid = (along / long) ** 2 + (across / short) ** 2 <= 1
    assert dice(moved, ellipsoid) > 0.99
    assert moved.sum() == pytest.approx(float(ball.sum()), rel=0.01)


@pytest.mark.parametrize("size", [(9, 12), (7, 8, 10)])
def test_all_transforms_together_agree_with_scipy(size):
    d = len(size)
    batch = noise_batch(12, *size)
    pipe = AugmentPipe(d, 1, flip=[1] * d, spacing=[3, 1, 1][:d], **ALL)
    moved, _ = pipe(batch, ImageGenerators(range(12)))
    move, _ = pipe.draw(ImageGenerators(range(12)), size)
    centre = (np.array(size) - 1) / 2
    for i in range(12):
        exact = shift_voxels(turn_voxels(batch.images[i], move.turn[i]), move.shift[i], tensor(-1))
        inverse = np.linalg.inv(move.matrix[i].numpy())
        offset = centre - inverse @ (centre + move.offset[i].numpy())
        wanted = ndimage.affine_transform(exact[0].numpy(), inverse, offset, order=1, mode="grid-constant", cval=-1)
        np.testing.assert_allclose(moved.images[i, 0], wanted, atol=1e-5)


def test_large_class_numbers_survive_nearest():
    labels = torch.tensor([0, 255, 16_777_213])
    moved = resample(labels[None, None], torch.ones(1, 1, 1, dtype=F64), tensor([0.2]), tensor(0), "nearest")
    assert torch.equal(moved[0, 0], labels)


# ---- labels ----


def test_label_widths_of_the_table():
    assert [AugmentPipe(d).label_dim for d in (1, 2, 3)] == [3, 9, 18]
    assert AugmentPipe(2).label_widths == {"flip": 2, "scale": 1, "rotate_frac": 2, "aniso": 2, "translate_frac": 2}
    everything = {"flip": 3, "rotate_int": 6, "translate_int": 3, "scale": 1, "rotate_frac": 6, "aniso": 5,
                  "translate_frac": 3}
    assert AugmentPipe(3, **ALL).label_widths == everything
    assert AugmentPipe(3, flip=[0, 1, 0], **NONE).label_dim == 1
    _, labels = AugmentPipe(3, **ALL)(noise_batch(2, 4, 4, 4), ImageGenerators(range(2)))
    assert labels.shape == (2, 27) and labels.dtype == torch.float32


def test_labels_by_hand():
    turn = tensor([[cos(0.3), sin(0.3)], [-sin(0.3), cos(0.3)]])  # rows y, x: +x turns towards +y by -0.3
    torch.testing.assert_close(rotation_label(turn), tensor([cos(0.3) - 1, -sin(0.3)]))
    about_z = tensor([[1, 0, 0], [0, 0, 1], [0, -1, 0]])
    assert rotation_label(about_z).tolist() == [[-1, -1, 0, 1, -1, 0]]
    stretch = tensor([[-5, 1, 2], [1, 2, 3], [2, 3, 3]])
    assert stretch_label(stretch).tolist() == [[3, 3, 2, 2, 1]]  # xx, xy, xz, yy, yz


@pytest.mark.parametrize("d", [2, 3])
def test_labels_determine_the_transform(d):
    """Move is rebuilt from the labels alone."""
    size, spacing = tensor(*[10, 10, 12][:d]), tensor(*[2, 2, 1][:d])
    pipe = AugmentPipe(d, 1, flip=[1] * d, spacing=spacing.tolist(), **ALL)
    move, labels = pipe.draw(ImageGenerators(range(50)), size.tolist())
    flip, turn, shift, scale, rotate, aniso, translate = labels.split(list(pipe.label_widths.values()), 1)

    def to_rotation(label):  # the last row is at right angles to the others
        rows = label.reshape(-1, d - 1, d) + torch.eye(d, dtype=F64)[:d - 1]
        last = torch.linalg.cross(rows[:, 0], rows[:, 1]) if d == 3 else rows[:, 0].flip(1) * tensor(-1, 1)
        return torch.cat([rows, last[:, None]], 1).flip(1, 2)

    def to_stretch(label):
        upper = torch.zeros(len(label), d, d, dtype=F64)
        upper[:, *torch.triu_indices(d, d)[:, :-1]] = label
        upper[:, -1, -1] = -upper.diagonal(dim1=1, dim2=2).sum(1)
        full = upper + upper.triu(1).mT
        return torch.linalg.matrix_exp(0.2 * log(2) * full).flip(1, 2)

    matrix = to_stretch(aniso) @ to_rotation(rotate) * 2 ** (0.2 * scale[:, :, None])
    torch.testing.assert_close(move.matrix, torch.diag(1 / spacing) @ matrix @ torch.diag(spacing))
    torch.testing.assert_close(move.offset, 0.125 * size * translate.flip(1))
    torch.testing.assert_close(move.turn, to_rotation(turn) @ torch.diag_embed(1 - 2 * flip.flip(1)))
    torch.testing.assert_close(move.shift, 0.125 * size * shift.flip(1))


def test_one_stretch_has_one_label():
    """A direction and its opposite are one axis; in 2D, stretching along it is shrinking across it."""
    u, across = tensor([0.6, 0.8]), tensor([-0.8, 0.6])
    torch.testing.assert_close(stretch_label(log_stretch(u)), stretch_label(log_stretch(-u)))
    torch.testing.assert_close(stretch_label(log_stretch(u)), stretch_label(-log_stretch(across)))


def test_strengths_have_the_laws_of_the_paper():
    n = 2000
    _, labels = AugmentPipe(2, 1).draw(ImageGenerators(range(n)), (8, 8))
    a = labels[:, [2, 7, 8]]  # unit normal: scale, translation
    assert (a.mean(0).abs() < 5 / sqrt(n)).all() and ((a.var(0) - 1).abs() < 5 * sqrt(2 / n)).all()
    angle = torch.atan2(labels[:, 4], labels[:, 3] + 1) / pi
    assert angle.abs().max() <= 1 and angle.square().mean() == pytest.approx(1 / 3, abs=0.04)
    assert angle.mean().abs() < 5 / sqrt(3 * n)
    strength = labels[:, 5:7].square().sum(1)  # square of a unit normal
    assert strength.mean() == pytest.approx(1, abs=5 * sqrt(2 / n))
    move, _ = AugmentPipe(3, 1, rotate_max=10, scale=0, aniso=0).draw(ImageGenerators(range(200)), (8, 8, 8))
    angles = torch.arccos((move.matrix.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2) * 180 / pi
    assert 9 < angles.max() <= 10


# ---- the pipe ----


@pytest.mark.parametrize("size", [(9,), (6, 8), (4, 5, 6)])
def test_p_0_changes_no_bit_and_labels_are_zero(size):
    batch = noise_batch(8, *size)
    batch = batch._replace(labels=torch.randint(0, 4, (8, *size), dtype=torch.uint8))
    moved, labels = AugmentPipe(len(size), 0, **ALL)(batch, ImageGenerators(range(8)))
    assert torch.equal(moved.images, batch.images) and torch.equal(moved.labels, batch.labels)
    assert moved.condition == Condition()
    assert (labels == 0).all()


def test_an_image_with_zero_labels_keeps_its_bits_beside_others_that_move():
    batch = noise_batch(64, 6, 6)
    moved, labels = AugmentPipe(2, 0.12, [1, 1])(batch, ImageGenerators(range(64)))
    same = torch.tensor([torch.equal(a, b) for a, b in zip(batch.images, moved.images, strict=True)])
    assert torch.equal(same, (labels == 0).all(1)) and 10 < same.sum() < 60


def test_each_transform_is_tried_with_p_times_its_multiplier():
    n, p = 2000, 0.2
    pipe = AugmentPipe(3, p, flip=[0.5, 1, 1e8], rotate_int=1, translate_int=2, scale=0.25, aniso=1e8)
    _, labels = pipe.draw(ImageGenerators(range(n)), (64, 64, 64))
    parts = labels.split(list(pipe.label_widths.values()), 1)
    wanted = {"rotate_int": p * 23 / 24, "translate_int": 2 * p, "scale": 0.25 * p, "rotate_frac": p, "aniso": 1,
              "translate_frac": p}
    flips = dict(zip(("x", "y", "z"), parts[0].unbind(1), strict=True))
    seen = flips | {k: v.any(1).to(F64) for k, v in zip(wanted, parts[1:], strict=True)}
    for name, probability in ({"x": 0.5, "y": p / 2, "z": p / 4} | wanted).items():
        assert seen[name].mean() == pytest.approx(probability, abs=4.5 * sqrt(probability * (1 - probability) / n))
    tried = torch.stack([seen[k] for k in ("scale", "rotate_frac", "translate_frac")])
    assert tried.prod(0).mean() < 0.02  # one does not bring the other: 0.05 * 0.2 * 0.2


def test_an_image_is_moved_alike_in_any_batch_and_differently_by_seed():
    images = noise_batch(3, 8, 8).images
    pipe = AugmentPipe(2, 0.6, **ALL)
    together, labels = pipe(Batch(images, None, Condition()), ImageGenerators([5, 70, 6], seed=1))
    for i, key in enumerate([5, 70, 6]):
        alone, label = pipe(Batch(images[i:i + 1], None, Condition()), ImageGenerators([key], seed=1))
        torch.testing.assert_close(alone.images[0], together.images[i])
        assert torch.equal(label[0], labels[i])
    assert not torch.equal(labels, pipe.draw(ImageGenerators([5, 70, 6], seed=2), (8, 8))[1].float())


def test_leaving_one_transform_out_changes_no_other():
    generators = ImageGenerators(range(20))
    _, full = AugmentPipe(2, 0.5).draw(generators, (8, 8))
    _, fewer = AugmentPipe(2, 0.5, [0, 1e8], rotate_frac=0).draw(generators, (8, 8))
    assert torch.equal(fewer, full[:, [0, 2, 5, 6, 7, 8]])


@pytest.mark.parametrize("d, size", [(2, 96), (3, 64)])
def test_image_labels_and_conditions_move_together(d, size):
    """One-hot channels, interpolated, say what the label map says but for the rims, of a ball and its lower half."""
    axes = np.indices((size,) * d) - size / 2
    classes = ((axes ** 2).sum(0) < (size / 2.7) ** 2) * (1 + (axes[0] > 0))
    labels = torch.as_tensor(np.stack([np.roll(classes, 4, 0)] * 6))
    one_hot = torch.nn.functional.one_hot(labels).movedim(-1, 1).float()
    batch = Batch(one_hot, labels.to(torch.uint8), Condition(semantic=labels, images=2 * one_hot[:, 1:] - 1))
    pipe = AugmentPipe(d, 1, fill=[1, 0, 0], **ALL)
    moved, _ = pipe(batch, ImageGenerators(range(6)))
    assert moved.labels.dtype == torch.uint8 and moved.condition.semantic.dtype == torch.int64
    assert torch.equal(moved.labels.long(), moved.condition.semantic) and not torch.equal(moved.labels, batch.labels)
    assert dice(moved.images[:, 0] < 0.5, moved.labels > 0) > 0.99
    for k in range(3):
        assert dice(moved.images[:, k] > 0.5, moved.labels == k) > 0.985
    torch.testing.assert_close(moved.condition.images, 2 * moved.images[:, 1:] - 1)


def mild(d: int) -> AugmentPipe:
    """The pipe of augment=mild."""
    node = yaml.safe_load((Path(__file__).parents[1] / "configs/augment/mild.yaml").read_text())
    return build({**node, "spatial_dims": d, "semantic_dim": 4})


@pytest.mark.parametrize("size", [(24,), (24, 20), (14, 16, 12)])
def test_a_moved_map_is_a_partition_with_background_outside(size):
    """Of a map that is class 2 but for a block of 3 all over, so that all that is 0 came in from outside."""
    semantic = torch.full((12, *size), 2, dtype=torch.int16)
    semantic[:, 4:9] = 3
    batch = noise_batch(12, *size)._replace(condition=Condition(semantic=semantic))
    moved = mild(len(size))(batch, ImageGenerators(range(12)))[0].condition.semantic
    one_hot = torch.nn.functional.one_hot(moved.long(), 4)
    assert moved.dtype == torch.int16 and (one_hot.sum(-1) == 1).all()
    assert set(moved.unique().tolist()) == {0, 2, 3}
    scale = torch.ones(12, *size, dtype=torch.int16)
    inside = mild(len(size))(batch._replace(condition=Condition(semantic=scale)), ImageGenerators(range(12)))[0]
    assert torch.equal(inside.condition.semantic > 0, moved > 0)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_what_is_missing_stays_missing_when_others_move(d):
    """Maps that are the null class, and condition images of zeros, wholly; an image keeps its move beside them."""
    size = (8,) * d
    semantic, images = torch.ones(6, *size, dtype=torch.int16), torch.ones(6, 2, *size)
    semantic[::2], images[1::3] = 4, 0
    batch = noise_batch(6, *size)._replace(condition=Condition(semantic=semantic, images=images))
    pipe = AugmentPipe(d, 1, flip=0, translate_int=1, translate_int_max=1, semantic_dim=4)
    moved, _ = pipe(batch, ImageGenerators(range(6)))
    assert torch.equal(moved.condition.semantic[::2], semantic[::2])
    assert not moved.condition.images[1::3].any()
    for i in range(6):
        assert i % 2 == 0 or set(moved.condition.semantic[i].unique().tolist()) <= {0, 1}
        assert i % 3 == 1 or moved.condition.images[i].min() == -1
        alone, _ = pipe(Batch(batch.images[i:i + 1], None, Condition(semantic=semantic[i:i + 1])), ImageGenerators([i]))
        torch.testing.assert_close(alone.images[0], moved.images[i])
        assert torch.equal(alone.condition.semantic[0], moved.condition.semantic[i])


@pytest.mark.parametrize("d", [2, 3])
def test_a_bright_blob_and_its_label_stay_together(d):
    size = (24,) * d
    label = torch.zeros(8, *size, dtype=torch.uint8)
    label[:, *[slice(6, 13)] * d] = 1
    image = 2 * label[:, None].float() - 1
    batch = Batch(image, label, Condition(semantic=label.to(torch.int16), images=image))
    moved, told = mild(d)(batch, ImageGenerators(range(8)))
    assert torch.equal(moved.labels.to(torch.int16), moved.condition.semantic)
    for i in range(8):
        assert dice(moved.images[i, 0] > 0, moved.labels[i] > 0) > 0.95
        assert dice(moved.labels[i] > 0, label[i] > 0) < 0.95
    assert torch.equal(moved.images, moved.condition.images) and len(told.unique(dim=0)) == 8


def test_mild_moves_have_their_widths_and_each_image_its_own():
    n = 2000
    move, labels = mild(2).draw(ImageGenerators(range(n)), (100, 50))
    assert len(labels.unique(dim=0)) == n and not move.offset.any()
    flips = labels[:, :2]
    assert flips.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=5 / sqrt(4 * n))
    assert move.shift.abs().amax(0).tolist() == [10, 5]
    assert (move.shift.std(0) / torch.tensor([100, 50])).tolist() == pytest.approx([0.2 / sqrt(12)] * 2, rel=0.1)
    scale = torch.linalg.det(move.matrix).sqrt()
    assert ((scale > 0.8) & (scale < 1.2)).double().mean() == pytest.approx(0.91, abs=0.02)
    angle = torch.atan2(move.matrix[:, 0, 1], move.matrix[:, 0, 0]) * 180 / pi
    assert angle.abs().max() <= 10 and angle.std() == pytest.approx(20 / sqrt(12), rel=0.05)


def test_parts_that_do_not_lie_on_the_grid_stay():
    condition = Condition(class_labels=torch.eye(3), attributes=torch.ones(3, 2))
    moved, _ = AugmentPipe(2, 1, **ALL)(noise_batch(3, 8, 8)._replace(condition=condition), ImageGenerators(range(3)))
    assert list(moved.condition) == list(condition)
    assert all(moved.condition[name] is condition[name] for name in condition)


def test_background_comes_in_from_outside():
    label = torch.full((4, 16, 16), 3)
    batch = Batch(torch.zeros(4, 2, 16, 16), label, Condition(semantic=label, images=torch.ones(4, 1, 16, 16)))
    pipe = AugmentPipe(2, 1, [0, 0], translate_int=1, translate_int_max=1, fill=[-1, 5], label_fill=7,
                       condition_fill=-2)
    moved, _ = pipe(batch, ImageGenerators(range(4)))
    for part, inside, outside in [(moved.images[:, 0], 0, -1), (moved.images[:, 1], 0, 5), (moved.labels, 3, 7),
                                  (moved.condition.semantic, 3, 7), (moved.condition.images, 1, -2)]:
        assert [float(part.min()), float(part.max())] == pytest.approx(sorted([inside, outside]), abs=1e-6)
    assert set(moved.labels.unique().tolist()) == {3, 7}


def test_phantom_keeps_its_background_and_classes():
    phantom = echo_phantom(0, seed=0, size=32)
    image, label = torch.from_numpy(2 * phantom.image - 1)[None, None], torch.from_numpy(phantom.label)[None]
    batch = Batch(image.expand(8, -1, -1, -1, -1), label.expand(8, -1, -1, -1), Condition())
    moved, _ = AugmentPipe(3, 1)(batch, ImageGenerators(range(8)))
    assert moved.images.min() == -1 and moved.images.max() <= image.max()
    assert set(moved.labels.unique().tolist()) <= set(label.unique().tolist())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_is_kept(dtype):
    batch = noise_batch(3, 6, 6)
    wanted, _ = AugmentPipe(2, 1)(batch, ImageGenerators(range(3)))
    moved, _ = AugmentPipe(2, 1)(batch._replace(images=batch.images.to(dtype)), ImageGenerators(range(3)))
    assert moved.images.dtype == dtype
    torch.testing.assert_close(moved.images.float(), wanted.images, atol=1e-2, rtol=0)


def test_data_may_lie_on_another_device_than_the_draws():
    batch, label = noise_batch(3, 6, 6), torch.zeros(3, 6, 6, dtype=torch.uint8)
    batch = Batch(batch.images, label, Condition(semantic=label, images=batch.images)).to(torch.device("meta"))
    moved, labels = AugmentPipe(2, 1, **ALL)(batch, ImageGenerators(range(3)))
    assert labels.is_meta and labels.shape == (3, 13)
    for part in (moved.images, moved.labels, moved.condition.semantic, moved.condition.images):
        assert part.is_meta and part.shape[-2:] == (6, 6)


@pytest.mark.parametrize("arguments, message", [
    ({"spatial_dims": 4}, "spatial_dims=4, wanted 1, 2 or 3"),
    ({"p": 1.5}, "p=1.5, wanted a probability"),
    ({"p": -0.1}, "p=-0.1, wanted a probability"),
    ({"scale": -1}, "scale=-1, wanted a multiplier"),
    ({"flip": [1, -2]}, "flip=-2, wanted a multiplier"),
    ({"flip": -1}, "flip=-1, wanted a multiplier"),
    ({"flip": [1, 1, 1]}, r"flip=\[1, 1, 1\], wanted 2 values"),
    ({"spacing": [1]}, r"spacing=\[1\], wanted 2 values"),
    ({"spacing": [1, 0]}, r"spacing=\[1, 0\], wanted positive"),
    ({"translate_int_max": 1.5}, "translate_int_max=1.5, wanted more than 0 and at most 1"),
    ({"rotate_max": 0}, "rotate_max=0, wanted more than 0 and at most 180"),
    ({"aniso_std": -0.2}, "aniso_std=-0.2, wanted more than 0"),
])
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        AugmentPipe(**{"spatial_dims": 2, **arguments})


def test_batches_that_do_not_fit_are_refused():
    generators = ImageGenerators(range(2))
    with pytest.raises(ValueError, match="images have 3 spatial dimensions, spatial_dims is 2"):
        AugmentPipe(2)(noise_batch(2, 4, 4, 4), generators)
    with pytest.raises(ValueError, match="fill has 2 values, wanted 1 or 1, one per channel"):
        AugmentPipe(2, fill=[-1, 0])(noise_batch(2, 4, 4), generators)
    condition = Condition(images=torch.zeros(2, 2, 4, 4))
    with pytest.raises(ValueError, match="condition_fill has 3 values, wanted 1 or 2"):
        AugmentPipe(2, condition_fill=[0, 0, 0])(noise_batch(2, 4, 4)._replace(condition=condition), generators)
