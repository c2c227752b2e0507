"""RandAugment and chains of augmentations: what operations do, known by hand, and that images draw for themselves."""

import pytest
import torch

from edm3d.inference.batch import Batch
from edm3d.networks.conditioning import Condition
from edm3d.samplers.noise import ImageGenerators
from edm3d.training.augment import AugmentPipe
from edm3d.training.chain import AugmentChain, parts_of, patches_of
from edm3d.training.patches import PatchAugment
from edm3d.training.rand_augment import INTENSITY, OPERATIONS, RandAugment


def batch_of(count: int, *size: int) -> Batch:
    """Images with a bright block, which is labelled."""
    labels = torch.zeros(count, *size, dtype=torch.uint8)
    labels[(slice(None), *(slice(s // 4, s // 2) for s in size))] = 1
    noise = torch.rand(count, 1, *size, generator=torch.Generator().manual_seed(0))
    return Batch(labels[:, None] * 1.5 - 0.75 + 0.2 * noise, labels, Condition())


def keys(*numbers: int) -> ImageGenerators:
    return ImageGenerators(numbers, seed=3)


def only(name: str, dims: int = 2, magnitude: float = 30, **more) -> RandAugment:
    return RandAugment(dims, 1, magnitude, [name], **more)


@pytest.mark.parametrize(("name", "s", "wanted"), [
    ("brightness", 0.5, [0.0, 0.29, 0.725, 1.45]), ("brightness", -1, [0.0, 0.02, 0.05, 0.1]),
    ("contrast", 0.5, [-0.19125, 0.09875, 0.53375, 1.25875]), ("gamma", 1, [0.0, 0.04, 0.25, 1.0]),
    ("solarize", 0.5, [0.0, 0.2, 0.5, 0.0]), ("posterize", 1, [0.0, 3 / 15, 8 / 15, 1.0]),
    ("auto_contrast", 0.0, [0.0, 0.2, 0.5, 1.0]), ("noise", -0.5, [0.1, 0.3, 0.6, 1.1]),
    ("sharpness", -1 / 0.9, [0.2 / 3, 0.7 / 3, 1.7 / 3, 2.5 / 3])])
def test_operations_do_to_heights_what_is_said(name, s, wanted):
    h = torch.tensor([[0.0, 0.2, 0.5, 1.0]])
    torch.testing.assert_close(INTENSITY[name](h, s, torch.ones_like(h)), torch.tensor([wanted]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_moves_take_labels_along_and_changes_of_intensity_leave_them(name, dims):
    batch = batch_of(4, *[16] * dims)
    out, told = only(name, dims)(batch, keys(0, 1, 2, 3))
    moves = name in ("rotate", "shear", "translate", "scale")
    assert told.shape == (4, 0) and out.labels.dtype == torch.uint8
    assert torch.equal(out.labels, batch.labels) is not moves
    assert torch.equal(out.images, batch.images) is (name == "identity")
    assert out.images.min() >= -1 and out.images.max() <= 1
    if moves:  # where the label says so the image is bright
        inside = out.images[:, 0][out.labels > 0]
        assert (inside > 0).float().mean() > 0.8


@pytest.mark.parametrize("name", ["brightness", "noise", "posterize", "rotate", "translate"])
def test_magnitude_0_leaves_images_alone(name):
    batch = batch_of(3, 8, 8)
    assert torch.equal(only(name, magnitude=0)(batch, keys(0, 1, 2))[0].images, batch.images)


def test_a_shift_is_of_whole_voxels_and_background_comes_in():
    batch = batch_of(8, 20, 20)
    out, _ = only("translate")(batch, keys(*range(8)))
    for image, label, before in zip(out.images[:, 0], out.labels, batch.labels):
        rows, columns = (label.any(1).nonzero().flatten(), label.any(0).nonzero().flatten())
        place = int(before.any(1).nonzero()[0])
        moved = sorted([int(rows[0]) - place if len(rows) else 99, int(columns[0]) - place if len(columns) else 99])
        assert moved in ([-5, 0], [0, 9], [99, 99])  # 0.45 of 20 either way, cut off at the border
        assert (image == -1).any()


def test_each_image_draws_by_itself_and_the_same_in_any_batch():
    augment, batch = RandAugment(3), batch_of(6, 8, 8, 8)
    whole = augment(batch, keys(*range(6)))[0]
    later = augment(Batch(batch.images[2:], batch.labels[2:], Condition()), keys(2, 3, 4, 5))[0]
    assert torch.equal(whole.images[2:], later.images) and torch.equal(whole.labels[2:], later.labels)
    changes = whole.images - batch.images
    assert all(not torch.equal(changes[0], change) for change in changes[1:])


def test_two_operations_are_drawn_evenly_with_the_sign():
    augment = RandAugment(2, 1, 30, ["identity", "brightness"])
    batch = Batch(torch.zeros(600, 1, 2, 2), None, Condition())
    found = augment(batch, keys(*range(600)))[0].images[:, 0, 0, 0]
    shares = [float(((found - value).abs() < 1e-5).float().mean()) for value in (0, 0.9, -0.9)]
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.06)


@pytest.mark.parametrize(("arguments", "wanted"), [
    ({"ops": 0}, "ops=0: wanted 1 or more"), ({"magnitude": 31}, "magnitude=31: wanted 0 .. 30"),
    ({"operations": ["rotat"]}, "operations=rotat: wanted some of identity, rotate"),
    ({"operations": []}, r"operations=\[\]: wanted some"), ({"spatial_dims": 4}, "spatial_dims=4")])
def test_what_no_augmentation_could_be_is_refused(arguments, wanted):
    with pytest.raises(ValueError, match=wanted):
        RandAugment(**{"spatial_dims": 2, **arguments})


def test_a_line_knows_no_rotation():
    assert not {"rotate", "shear"} & set(RandAugment(1).operations)


# ---- chains, and changes without crops ----


def test_a_chain_moves_first_and_crops_then():
    moves, patches = AugmentPipe(2, p=1, flip=1), PatchAugment(2, 6)
    chain, batch = AugmentChain({"moves": moves, "gone": None, "patches": patches}), batch_of(5, 12, 12)
    out, told = chain(batch, keys(*range(5)))
    moved, labels = moves(batch, keys(*range(5)))
    wanted, _ = patches(moved, keys(*range(5)))
    assert torch.equal(out.images, wanted.images) and torch.equal(out.labels, wanted.labels)
    assert torch.equal(told, labels) and chain.label_dim == moves.label_dim
    assert patches_of(chain) == ("training.augment.steps.patches", patches)
    assert [key for key, _ in parts_of(chain)] == ["training.augment.steps.moves", "training.augment.steps.patches"]


@pytest.mark.parametrize(("steps", "wanted"), [
    ({}, "wanted augmentations by name"), ({"a": None}, "wanted augmentations by name"), ({"a": 3}, "wanted augm"),
    ({"a": PatchAugment(2, 4), "b": PatchAugment(2, 2)}, "one of each, since two of one class draw the same numbers")])
def test_a_chain_of_nothing_and_of_the_same_twice_is_refused(steps, wanted):
    with pytest.raises(ValueError, match=wanted):
        AugmentChain(steps)


def test_intensities_change_without_a_crop():
    augment, batch = PatchAugment(2, None, flip=[1, 0], intensity=1), batch_of(4, 10, 8)
    out, _ = augment(batch, keys(0, 1, 2, 3))
    assert out.images.shape == batch.images.shape and patches_of(augment) is None
    assert torch.equal(out.labels, batch.labels.flip(1)) and not torch.equal(out.images, batch.images.flip(2))
    still, _ = PatchAugment(2, None, flip=0, intensity=0)(batch, keys(0, 1, 2, 3))
    torch.testing.assert_close(still.images, batch.images)
    assert type(still.images) is torch.Tensor
