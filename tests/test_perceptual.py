"""The perceptual distance: by hand, on slices, its gradient, and what is said of files that are no such thing."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from benchmarks.plan_memory import NoiseItems
from edm3d.formats.facts import Facts
from edm3d.samplers.noise import ImageGenerators
from edm3d.training.autoencoder_loss import AutoencoderLoss
from edm3d.training.perceptual import PerceptualDistance, unit
from edm3d.training.tasks import TASKS
from edm3d.training.tasks.base import PlannedData
from edm3d.training.validation import Held
from edm3d.utils.compose import compose

KEYS = ImageGenerators([3, 8], seed=1)


class Pair(torch.nn.Module):
    """Features: value and 1, and one layer of it at half the size."""

    def forward(self, x):
        one = torch.cat([x[:, :1], torch.ones_like(x[:, :1])], dim=1)
        return [one, torch.nn.functional.avg_pool2d(one, 2)]


class Single(torch.nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = torch.nn.Conv2d(channels, 5, 3)

    def forward(self, x):
        return torch.relu(self.conv(x))


class Two(torch.nn.Module):
    def forward(self, x, y):
        return x - y


class Number(torch.nn.Module):
    def forward(self, x):
        return x.mean()


def saved(folder: Path, net: torch.nn.Module, *inputs: torch.Tensor) -> str:
    """A TorchScript file of a network."""
    path = folder / "features.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(net, inputs or (torch.zeros(1, 3, 8, 8),)).save(str(path))
    return str(path)


def opened(path: str, size=(8, 8), **settings) -> PerceptualDistance:
    distance = PerceptualDistance(path, **settings)
    distance.open(size)
    return distance


# ---- the distance ----


def test_distance_by_hand(tmp_path):
    distance = opened(saved(tmp_path, Pair()))
    ones, zeros = torch.ones(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)
    ones[1] = 0  # the second pair is alike
    # directions (1,1)/sqrt(2) and (0,1): squared distance 2 - sqrt(2), in both layers
    assert distance(ones, zeros, KEYS).tolist() == pytest.approx([2 - 2 ** 0.5, 0], abs=1e-5)


def test_distance_is_the_mean_over_space_and_layers(tmp_path):
    distance, image = opened(saved(tmp_path, Pair())), torch.zeros(1, 1, 8, 8)
    image[0, 0, 0, 0] = 1
    first, second = (2 - 2 ** 0.5) / 64, (2 - 2 / (1 + 1 / 16) ** 0.5) / 16  # 1/4 beside 1 in the second layer
    wanted = (first + second) / 2
    assert distance(image, torch.zeros_like(image), KEYS).item() == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize(("channels", "theirs"), [(1, 1), (1, 3), (3, 3), (2, 3), (2, 1)])
def test_channels_that_differ_are_grey_images_of_their_own(tmp_path, channels, theirs):
    torch.manual_seed(0)
    net = Single(theirs)
    distance = opened(saved(tmp_path, net, torch.zeros(1, theirs, 8, 8)), channels=theirs)
    a, b = torch.rand(2, channels, 8, 8), torch.rand(2, channels, 8, 8)

    def plain(x, y):
        return (unit(net(x)) - unit(net(y))).square().sum(1).flatten(1).mean(1)

    if channels == theirs:
        wanted = plain(a, b)
    else:
        wanted = torch.stack([plain(a[:, c:c + 1].expand(-1, theirs, -1, -1), b[:, c:c + 1].expand(-1, theirs, -1, -1))
                              for c in range(channels)]).mean(0)
    assert torch.allclose(distance(a, b, KEYS), wanted, atol=1e-6) and wanted.min() > 1e-3


def test_all_slices_of_a_volume_are_its_slices_one_by_one(tmp_path):
    distance = opened(saved(tmp_path, Pair()), (4, 6, 8), share=1)
    a, b = torch.rand(2, 1, 4, 6, 8), torch.rand(2, 1, 4, 6, 8)
    per_axis = [torch.stack([distance(x, y, KEYS) for x, y in zip(a.unbind(axis), b.unbind(axis))]).mean(0)
                for axis in (2, 3, 4)]
    assert torch.allclose(distance(a, b, KEYS), torch.stack(per_axis).mean(0), atol=1e-6)
    one_axis = opened(distance.path, (4, 6, 8), share=1, axes=[1])
    assert torch.allclose(one_axis(a, b, KEYS), per_axis[1], atol=1e-6)


def test_slices_of_an_image_do_not_depend_on_its_neighbours(tmp_path):
    distance = opened(saved(tmp_path, Pair()), (8, 8, 8))
    a, b = torch.rand(2, 1, 8, 8, 8), torch.rand(2, 1, 8, 8, 8)
    both = distance(a, b, KEYS)
    assert torch.equal(both[1:], distance(a[1:], b[1:], ImageGenerators([8], seed=1)))
    assert not torch.equal(both[1:], distance(a[1:], b[1:], ImageGenerators([9], seed=1)))


def test_gradient_goes_to_the_image_alone_and_stays_finite(tmp_path):
    distance = opened(saved(tmp_path, Single(3)))
    image, target = torch.zeros(2, 1, 8, 8, requires_grad=True), torch.rand(2, 1, 8, 8, requires_grad=True)
    distance(image, target, KEYS).sum().backward()
    assert image.grad.isfinite().all() and image.grad.any() and target.grad is None
    assert not any(p.requires_grad for p in distance.network.parameters()) and not distance.network.training
    nothing = torch.zeros(1, 4, 2, 2, requires_grad=True)  # features that are all 0, as behind a ReLU
    (unit(nothing) - 1).square().sum().backward()
    assert nothing.grad.abs().max() < 1e4


def test_distance_is_in_float32_under_autocast(tmp_path):
    distance = opened(saved(tmp_path, Single(3)))
    a, b = torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 8)
    wanted = distance(a, b, KEYS)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(distance(a, b, KEYS), wanted)


# ---- files ----


def test_loss_opens_the_file_when_it_is_to_be_weighed_and_only_then(tmp_path):
    missing = PerceptualDistance(str(tmp_path / "none.pt"))
    AutoencoderLoss(perceptual=missing).open((8, 8))
    loss = AutoencoderLoss(perceptual_weight=[[0, 0], [5, 1]], perceptual=missing)
    with pytest.raises(ValueError) as error:
        loss.open((8, 8))
    words = f"training.loss.perceptual.path={tmp_path}/none.pt", "no such file", "training.loss.perceptual_weight=0"
    for word in words:
        assert word in str(error.value)


def test_no_path_is_said_too():
    with pytest.raises(ValueError, match=r"perceptual\.path=None: .*perceptual_weight=0"):
        opened(None)


@pytest.mark.parametrize(("net", "inputs", "size", "settings", "words"), [
    (Two(), [torch.zeros(1, 3, 8, 8)] * 2, (8, 8), {}, ["takes 2 inputs (x, y)", "not supported"]),
    (Number(), [], (8, 8), {}, ["wanted features [M,F,h,w]"]),
    (Single(1), [torch.zeros(1, 1, 8, 8)], (8, 8), {}, ["[1,3,8,8]", "perceptual.channels"]),
    (Single(3), [], (8, 8, 2), {}, ["[1,3,8,2]"]),
    (Single(3), [], (8,), {}, ["lines have no slices"]),
])
def test_networks_that_will_not_do_are_refused_at_the_start(tmp_path, net, inputs, size, settings, words):
    path = saved(tmp_path, net, *inputs)
    with pytest.raises(ValueError) as error:
        opened(path, size, **settings)
    assert all(word in str(error.value) for word in [*words, "training.loss.perceptual_weight=0"]), error.value


class FixedSize(torch.nn.Module):
    """Features of 8x8 images and of no others."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3 * 8 * 8, 4)

    def forward(self, x):
        return self.linear(x.flatten(1))[:, :, None, None]


def test_a_network_of_patches_must_take_the_whole_volumes_of_validation_too(tmp_path):
    training = compose("echo_vae", [
        "augment=patches", "training.augment.size=8", "training.loss.perceptual_weight=1",
        f"training.loss.perceptual.path={saved(tmp_path, FixedSize())}", "training.network.channels=[4,4]"])["training"]
    data = NoiseItems(PlannedData((1, 16, 16, 16), Facts("", "", label_classes=("a", "b")), {}))
    task = TASKS["autoencoder"]
    task.assemble(training, data)
    with pytest.raises(ValueError, match=r"does not take an image \[1,3,16,16\]"):
        task.assemble(training, data, Held(data, 1))


def test_a_file_that_is_no_script_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "features.pt")
    with pytest.raises(ValueError, match=r"features\.pt: cannot be read as TorchScript.*perceptual_weight=0"):
        opened(str(tmp_path / "features.pt"))


@pytest.mark.parametrize(("settings", "words"), [({"share": 0}, "share=0"), ({"axes": []}, r"axes=\[\]"),
                                                 ({"axes": [3]}, r"axes=\[3\]"), ({"channels": 0}, "channels=0")])
def test_wrong_settings_are_refused_by_name(settings, words):
    with pytest.raises(ValueError, match=words):
        PerceptualDistance("x", **settings)


def test_the_recipe_of_the_docs_makes_such_a_file(tmp_path):
    page = (Path(__file__).resolve().parents[1] / "docs/first_stages.md").read_text(encoding="utf-8")
    recipe = page.partition("```python\n")[2].partition("```")[0].replace("features.pt", str(tmp_path / "features.pt"))
    conv = torch.nn.Conv2d
    layers = torch.nn.Sequential(conv(3, 4, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2), conv(4, 6, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(recipe, {"layers": layers, "taps": [1, 3], "__name__": "recipe"})
    distance = opened(str(tmp_path / "features.pt"), (16, 12))
    assert [f.shape[1:] for f in distance.features(torch.zeros(1, 3, 16, 12))] == [(4, 14, 10), (6, 5, 3)]
    assert distance(torch.ones(1, 1, 16, 12), torch.zeros(1, 1, 16, 12), KEYS).item() > 0


def test_nothing_is_said_of_deprecated_things(tmp_path):
    path = saved(tmp_path, Pair())
    code = ("import torch; from edm3d.samplers.noise import ImageGenerators; from edm3d.training.perceptual import *\n"
            f"d = PerceptualDistance({path!r}); d.open((8, 8)); x = torch.zeros(1, 1, 8, 8); "
            "d(x, x, ImageGenerators([0]))")
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).resolve().parents[1])
    assert "jit" not in done.stderr.lower()
