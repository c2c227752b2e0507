"""Training on patches: what a crop holds, that image and label stay together, and what is refused."""

import json
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import torch

import dataset_tool
import train
from edm3d.inference.batch import Batch
from edm3d.networks.conditioning import Condition
from edm3d.samplers.noise import ImageGenerators
from edm3d.training.patches import PatchAugment
from tests.commands import refused, succeed

PLAIN = {"flip": 0, "intensity": 0}


def volumes(count: int, size=(12, 10, 8)) -> Batch:
    """Volumes whose values say where they are, with a label 1 in one voxel, at (9, 2, 3)."""
    place = torch.arange(float(np.prod(size))).reshape(1, 1, *size) / 1000
    labels = torch.zeros(count, *size, dtype=torch.uint8)
    labels[:, size[0] * 3 // 4, 2, 3] = 1
    return Batch(place.expand(count, -1, *[-1] * len(size)), labels, Condition())


def keys(count: int) -> ImageGenerators:
    return ImageGenerators(range(count), seed=5)


def places(images: torch.Tensor, size=(12, 10, 8)) -> np.ndarray:
    """First voxel [N,d] of patches of such volumes."""
    return np.stack(np.unravel_index((images.flatten(1)[:, 0] * 1000).round().long().numpy(), size), axis=1)


def test_patches_are_windows_of_the_volume_that_lie_inside():
    batch, augment = volumes(40), PatchAugment(3, [4, 10, 2], 0, **PLAIN)
    batch = batch._replace(condition=Condition(semantic=3 - batch.labels.to(torch.int16)))
    out, told = augment(batch, keys(40))
    assert type(out.images) is torch.Tensor and out.images.dtype == torch.float32 and told.shape == (40, 0)
    assert out.images.shape == (40, 1, 4, 10, 2) and out.labels.shape == (40, 4, 10, 2)
    assert out.labels.dtype == torch.uint8 and out.condition.semantic.dtype == torch.int16
    assert torch.equal(out.condition.semantic, 3 - out.labels.to(torch.int16))
    for i, (x, y, z) in enumerate(places(out.images)):
        window = (slice(x, x + 4), slice(y, y + 10), slice(z, z + 2))
        assert torch.allclose(out.images[i, 0], batch.images[i, 0][window], atol=1e-6)
        assert torch.equal(out.labels[i], batch.labels[i][window])
    firsts = places(out.images)
    assert firsts[:, 0].min() == 0 and firsts[:, 0].max() == 8 and set(firsts[:, 1]) == {0}  # every part of it is seen


@pytest.mark.parametrize(("foreground", "least", "most"), [(1, 40, 40), (0, 0, 10), (0.5, 12, 32)])
def test_a_share_of_the_patches_is_around_the_label(foreground, least, most):
    out, _ = PatchAugment(3, 3, foreground, **PLAIN)(volumes(40), keys(40))
    assert least <= int(out.labels.flatten(1).any(1).sum()) <= most


def test_without_labels_the_foreground_is_what_is_bright():
    images = torch.full((30, 1, 12, 12), -1.0)
    images[:, :, 2, 9] = 0.5
    batch = Batch(images, None, Condition())
    out, _ = PatchAugment(2, 3, 1, **PLAIN)(batch, keys(30))
    assert out.labels is None and (out.images.flatten(1).max(1).values == 0.5).all()
    dim, _ = PatchAugment(2, 3, 1, background=0.6, **PLAIN)(batch, keys(30))  # nothing is that bright: anywhere
    assert (dim.images.flatten(1).max(1).values == 0.5).sum() < 15


def test_an_item_without_foreground_is_cropped_anywhere(recwarn):
    batch = volumes(20)
    out, _ = PatchAugment(3, 3, 1, **PLAIN)(batch._replace(labels=batch.labels * 0), keys(20))
    assert len({tuple(p) for p in places(out.images)}) > 10 and not [w for w in recwarn if "foreground" in str(w)]


@pytest.mark.parametrize("intensity", [0, 1])
def test_an_image_is_moved_alike_in_any_batch(intensity):
    augment, batch = PatchAugment(3, 5, intensity=intensity), volumes(6)
    whole, _ = augment(batch, keys(6))
    part, _ = augment(Batch(batch.images[4:5], batch.labels[4:5], Condition()), ImageGenerators([4], seed=5))
    assert torch.equal(whole.images[4:5], part.images) and torch.equal(whole.labels[4:5], part.labels)
    other, _ = augment(Batch(batch.images[4:5], batch.labels[4:5], Condition()), ImageGenerators([4], seed=6))
    assert not torch.equal(other.images, part.images)


def test_flips_take_image_and_label_along_each_axis():
    batch = volumes(64, (4, 4, 4))._replace(labels=(volumes(64, (4, 4, 4)).images[:, 0] * 1000).to(torch.uint8))
    out, _ = PatchAugment(3, 4, flip=0.5, intensity=0)(batch, keys(64))
    assert torch.equal((out.images[:, 0] * 1000).round().to(torch.uint8), out.labels)  # still say the same
    seen = {tuple(axis for axis in range(3) if (p >> (4 - 2 * axis)) & 3) for p in
            out.labels.flatten(1)[:, 0].tolist()}  # the first voxel is 16 x + 4 y + z
    assert len(seen) == 8
    out, _ = PatchAugment(3, 4, flip=[0, 1, 0], intensity=0)(batch, keys(64))
    assert torch.equal(out.labels, batch.labels.flip(2))


def change(**settings) -> tuple[torch.Tensor, torch.Tensor]:
    """A ramp of whole images from -1 to 1, and what only this change of intensity makes of them."""
    off = {"scale": 0, "shift": 0, "gamma": None, "noise": 0}
    image = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8).repeat(50, 1, 1, 1)
    augment = PatchAugment(2, 8, flip=0, intensity=1, **off | settings)
    return image, augment(Batch(image, None, Condition()), keys(50))[0].images


def test_changes_of_intensity_by_hand():
    image, scaled = change(scale=0.2)
    factor = (scaled[:, 0, -1, -1] + 1) / 2
    assert torch.allclose(scaled + 1, (image + 1) * factor[:, None, None, None], atol=1e-6)
    assert 0.8 <= factor.min() < 0.85 and 1.15 < factor.max() <= 1.2
    image, shifted = change(shift=0.3)
    offset = (shifted - image).flatten(1)
    assert offset.std(1).max() < 1e-6 and -0.3 <= offset.min() < -0.2 and 0.2 < offset.max() <= 0.3
    image, bent = change(gamma=[0.5, 2])
    power = ((bent[:, 0, 4, 0] + 1) / 2).log() / ((image[:, 0, 4, 0] + 1) / 2).log()
    assert torch.allclose((bent + 1) / 2, ((image + 1) / 2) ** power[:, None, None, None], atol=1e-5)
    assert 0.5 <= power.min() < 0.8 and 1.4 < power.max() <= 2
    image, noisy = change(noise=0.1)
    std = (noisy - image).flatten(1).std(1)
    assert std.min() < 0.03 and 0.07 < std.max() < 0.13


@pytest.mark.parametrize(("settings", "words"), [
    ({"size": 0}, "size=0"), ({"size": [4, 4]}, r"size=\[4, 4\]"), ({"foreground": 1.5}, "foreground=1.5"),
    ({"flip": [0.5]}, r"flip=\[0.5\]"), ({"flip": [0, 0, 2]}, "flip=2"), ({"flip": -0.1}, "flip=-0.1"),
    ({"intensity": -1}, "intensity=-1"), ({"gamma": [2, 1]}, r"gamma=\[2, 1\]"), ({"noise": -1}, "noise=-1")])
def test_wrong_settings_are_refused_by_name(settings, words):
    with pytest.raises(ValueError, match=words):
        PatchAugment(3, **settings)


def test_patch_larger_than_the_volume_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"training\.augment\.size=\[4, 16, 4\].*\[8, 8, 8\].*nearest.*\[4, 8, 4\]"):
        PatchAugment(3, [4, 16, 4]).check((8, 8, 8))


# ---- by command ----


VAE = ["-cn=echo_vae", "training.dataset.path=echo.h5", "training.network.channels=[4,8]",
       "training.options.batch_size=2", "training.options.total_kimg=0.008", "training.options.kimg_per_tick=0.004",
       "training.options.num_threads=1", "training.options.device=cpu", "training.options.precision=fp32",
       "training.validation.max_items=1"]


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    """Work in a folder with phantoms."""
    folder, threads = tmp_path_factory.mktemp("patches"), torch.get_num_threads()
    with chdir(folder):
        succeed(dataset_tool.main, "phantom", "--dest", "echo.h5", "--num", "6", "--size", "16")
        yield folder
    torch.set_num_threads(threads)


def tick(root: str) -> dict:
    return json.loads(next(Path(root).glob("*/stats.jsonl")).read_text().splitlines()[-1])


def test_a_first_stage_trains_on_patches_and_is_validated_whole(at, monkeypatch):
    from edm3d.networks.autoencoder import AutoencoderKL
    seen, encode = [], AutoencoderKL.encode
    monkeypatch.setattr(AutoencoderKL, "encode", lambda self, image, label=None, semantic=None: (
        seen.append((self.training, *image.shape[2:])), encode(self, image, label))[1])
    succeed(train.main, *VAE, "augment=patches", "training.augment.size=[8,4,8]", "training.options.run_root=results")
    assert set(seen) == {(True, 8, 4, 8), (False, 16, 16, 16)}


@pytest.mark.parametrize("choices", [
    ["discriminator=patch", "training.discriminator.network.num_layers_d=1",
     "training.discriminator.criterion=hinge"],
    ["discriminator=slices", "training.discriminator.network.num_layers_d=1", "augment=patches",
     "training.augment.size=12", "training.loss.l2_weight=[[0.004,0],[0.004,1]]", "training.loss.dice_weight=1"],
], ids=lambda c: c[0])
def test_the_choices_of_a_first_stage_train(at, choices):
    root = choices[0].partition("=")[2]
    succeed(train.main, *VAE, *choices, f"training.options.run_root={root}")
    fields = tick(root)
    assert fields["loss/adversarial"] != 0 and fields["loss/discriminator"] > 0 and fields["bad_steps"] == 0
    assert "val/adversarial" not in fields and fields["val/l1"] > 0
    if "l2" in str(choices):
        assert fields["loss/l2"] > 0 and fields["share/dice"] > 0


@pytest.mark.parametrize(("overrides", "words"), [
    (["augment=patches"], ["training.augment.size=[64, 64, 64]", "nearest that fits is [16, 16, 16]"]),
    (["augment=patches", "training.augment.size=[8,7,8]"], ["training.augment.size=[8, 7, 8]", "(8, 6, 8)"]),
    (["discriminator=patch"], ["training.discriminator.network", "num_layers_d"]),
    (["discriminator=patch", "training.discriminator.network.norm=BATCH"],
     ["training.discriminator", "BatchNorm3d", "INSTANCE"]),
    (["discriminator=patch", "training.discriminator.criterion=bce"], ["training.discriminator", "criterion='bce'"]),
    (["training.loss.perceptual_weight=1", "training.loss.perceptual.path=no.pt"],
     ["training.loss.perceptual.path=no.pt", "training.loss.perceptual_weight=0"]),
    (["training.loss.kl_weight=[[1,0],[0,1]]"], ["training.loss", "kl_weight=", "in the order of"]),
])
def test_what_cannot_be_is_refused_before_there_is_a_run(at, overrides, words):
    line = refused(Path("."), train.main, *VAE, *overrides, "training.options.run_root=refused")
    assert all(word in line for word in words), line


@pytest.mark.parametrize(("overrides", "words"), [
    (["augment=patches", "training.augment.size=8"], ["training.augment", "augment=none or augment=edm"]),
    (["+training.discriminator._target_=training.adversarial.Adversary"], ["training.discriminator", "first stage"]),
])
def test_diffusion_has_no_patches_and_no_adversary(at, overrides, words):
    line = refused(Path("."), train.main, "-cn=voxels_edm", "training.dataset.path=echo.h5",
                   "training.options.device=cpu", "training.options.num_threads=1", *overrides)
    assert all(word in line for word in words), line
