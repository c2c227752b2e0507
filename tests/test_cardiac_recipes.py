"""The recipes of cardiac stacks: their networks keep to slices at full size, and the whole road of each at toy size."""

from contextlib import chdir
from copy import deepcopy
from functools import cache
from itertools import pairwise
from math import nan
from pathlib import Path

import numpy as np
import pytest
import torch

from edm3d.formats.intensity import Intensity
from edm3d.formats.latents import LatentsFile
from edm3d.formats.volumes import Item, VolumesFile, VolumesMeta, VolumesWriter, full_box
from edm3d.networks.conditioning import takes_of
from edm3d.networks.layers import CONVS
from edm3d.networks.unet_blocks import UNetBlock
from edm3d.training.tasks.base import fill_network
from edm3d.utils.config import build
from tests.test_config import dataset_like
from tests.test_recipes import composed, drawn, fit, tool, weights

LATENTS = {"cardiac_kl2x": (1, 13, 48, 48), "cardiac_kl4x": (1, 13, 24, 24), "cardiac_vq2x": (1, 13, 48, 48),
           "cardiac_vq4x": (1, 13, 24, 24)}
DIFFUSION = ("cardiac_ldm_kl4x", "cardiac_ldm_vq4x")


@cache
def on_meta(name: str, **model: object) -> torch.nn.Module:
    """The network of a recipe at full size, without memory; model: other arguments of its UNet."""
    training = deepcopy(composed(name))
    training["network"].get("model", {}).update(model)
    with torch.device("meta"):
        return build(fill_network(training, dataset_like(name), outputs=2 if "class" in name else None))


# ---- at full size ----


def count(channels: list[int], given: int, drawn: int, moments: int) -> int:
    """Weights of an autoencoder with 2 blocks per level and 9 weights per kernel, by hand."""
    def block(c: int) -> int:
        return 2 * (2 * c + 9 * c * c + c)

    steps = sum(9 * a * b for a, b in pairwise(channels))
    both = 2 * sum(2 * block(c) for c in channels) + 2 * steps + sum(channels[1:]) + sum(channels[:-1])
    first, last = channels[0], channels[-1]
    encoder = 9 * given * first + first + 2 * last + last * moments + moments
    decoder = 9 * last + last + 2 * first + 9 * first * drawn + drawn
    return both + encoder + decoder


@pytest.mark.parametrize("name", LATENTS)
def test_first_stages_are_as_large_as_counted_by_hand(name):
    net = on_meta(name)
    pointwise = 1 * 4 + 4 + 4 * 1 + 1 if "vq" in name else 0  # to codes of 4 numbers and back
    channels = [64, 64] if "2x" in name else [64, 128, 128]
    assert weights(net) == count(channels, 1 + 4, 1 + 4, 1 if "vq" in name else 2) + pointwise
    assert net.latent_shape((13, 96, 96)) == LATENTS[name]
    if "vq" in name:
        assert net.codebook.shape == (4000, 4) and net.latent == "before"


@pytest.mark.parametrize("name", [*LATENTS, *DIFFUSION])
def test_no_convolution_leaves_its_slice(name):
    convolutions = [m for m in on_meta(name).modules() if isinstance(m, CONVS[3])]
    assert len(convolutions) > 20
    assert {(m.kernel_size[0], m.stride[0], m.padding[0]) for m in convolutions} == {(1, 1, 0)}


@pytest.mark.parametrize("name", DIFFUSION)
def test_slices_are_joined_by_depth_attention_in_the_lower_levels_and_the_middle(name):
    net = on_meta(name).model
    attending = [key for half in (net.enc, net.dec) for key, block in half.items()
                 if isinstance(block, UNetBlock) and block.depth is not None]
    assert attending == ["level1_block0", "level2_block0", "level2_in0", "level2_block0", "level2_block1",
                         "level1_block0", "level1_block1"]
    assert all(block.cross is not None for half in (net.enc, net.dec) for block in half.values()
               if getattr(block, "heads", 0))
    own = weights(on_meta(name)) - weights(on_meta(name, attention="slices"))
    assert own == sum(4 * c * c + 6 * c for c in (256, 384, 384, 384, 384, 256, 256))
    assert weights(on_meta(name)) / 1e6 == pytest.approx(36.755, abs=5e-4)  # docs/recipes.md; DAUM has 27.9
    part = takes_of(on_meta(name))["attributes"]
    assert (part.width, part.dropout, part.gaps) == (14, 0.1, 0.05)


def test_the_classifier_is_as_large_as_the_page_says():
    assert weights(on_meta("cardiac_classifier")) / 1e6 == pytest.approx(0.411, abs=5e-4)


def test_the_weights_of_kl_are_the_same_per_latent_element():
    weight = {name: composed(name)["loss"]["kl_weight"] / 4 ** int(name[-2] == "4") for name in LATENTS if "kl" in name}
    assert set(weight.values()) == {0.016}


def test_recipes_that_should_differ_by_their_names_alone_do():
    kl, vq = (deepcopy(composed(name)) for name in DIFFUSION)
    assert (kl["dataset"].pop("path"), vq["dataset"].pop("path")) == ("data/cardiac_latents.h5",
                                                                      "data/cardiac_vq_latents.h5")
    assert kl == vq


# ---- the whole road at toy size ----

STACK = (13, 16, 16)
FIRST = ["training.network.num_blocks=1", "training.network.num_blocks_decoder=1",
         "training.discriminator.start_kimg=0.004", "training.discriminator.warmup_kimg=0",
         "training.discriminator.network.channels=4", "training.discriminator.network.num_layers_d=1"]
UNET = ["training.network.model.model_channels=8", "training.network.model.channels_per_head=8",
        "training.options.min_psnr=null"]
CLASSIFIER = [f"training.network.{key}" for key in ("init_features=8", "growth_rate=8", "block_config=[1,1,1]",
                                               "norm=[group,{num_groups:4}]")]


def write_stacks(path: Path, count: int = 8) -> None:
    """Stacks of 13 slices with a ring that widens from ES to ED, its label map, and three attributes; a quarter of the
    angles are missing."""
    meta = VolumesMeta(3, ("cine",), ("target",), ("background", "cavity", "myocardium"), ("LVEDV", "ESED", "ANGLE"),
                       ("mL", "", "deg"), (), Intensity(0.0, 1.0, True, "a.u."))
    rng = np.random.default_rng(0)
    distance = np.hypot(*(np.mgrid[:16, :16] - 7.5))[None] + np.abs(np.arange(13) - 6)[:, None, None] / 3
    affine = np.diag([10, 1.8, 1.8, 1])
    with VolumesWriter(path, meta, {"kind": "test"}) as writer:
        for i in range(count):
            radius = 3 + i % 2
            label = np.select([distance < radius, distance < radius + 2], [1, 2], 0).astype(np.uint8)
            image = (np.array([0.1, 0.9, 0.4])[label] + 0.05 * rng.random(STACK)).astype(np.float32)[None]
            attributes = np.array([20.0 * radius, i % 2, nan if i % 4 == 0 else 5.0 * i], np.float32)
            writer.add("val" if i >= count - 2 else "train", Item(
                image, label, attributes, None, f"item-{i}", f"patient-{i // 2}", affine, full_box(STACK)))


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """Stacks, the first stages 4x of them, and their latents."""
    folder, threads = tmp_path_factory.mktemp("cardiac"), torch.get_num_threads()
    with chdir(folder):
        write_stacks(Path("data/cardiac.h5"))
        for name, latents in (("cardiac_kl4x", "cardiac_latents"), ("cardiac_vq4x", "cardiac_vq_latents")):
            tick = fit(name, "training.network.channels=[8,8,8]", *FIRST)
            assert tick["loss/adversarial"] > 0 and np.isfinite(tick["loss/fake"])
            tool("encode", "--autoencoder", name, "--source", "data/cardiac.h5", "--dest", f"data/{latents}.h5",
                 "--num-threads", 1)
    torch.set_num_threads(threads)
    return folder


@pytest.mark.parametrize("name", ["cardiac_kl2x", "cardiac_vq2x"])
def test_first_stages_2x_train_on_stacks_of_odd_depth(at, name):
    tick = fit(name, "training.network.channels=[8,8]", *FIRST)
    assert {"loss/l2", "loss/ce", "loss/real", "loss/fake"} <= set(tick) and ("loss/kl" in tick) == ("kl" in name)


@pytest.mark.parametrize("name", ["cardiac_latents", "cardiac_vq_latents"])
def test_latents_keep_every_slice_also_in_tiles(at, name):
    whole = LatentsFile(Path(f"data/{name}.h5")).read("train")
    assert whole.mean.shape == (6, 1, 13, 4, 4) and (whole.std.max() > 0) == (name == "cardiac_latents")
    for mode in ("exact", "blend"):
        tool("encode", "--autoencoder", "cardiac_vq4x" if "vq" in name else "cardiac_kl4x", "--source",
             "data/cardiac.h5", "--dest", f"{name}_{mode}.h5", "--num-threads", 1, "--tile", 5, 8, 8, "--tile-mode",
             mode)
        found = LatentsFile(Path(f"{name}_{mode}.h5")).read("train").mean
        assert found.shape == whole.mean.shape
        if mode == "exact":
            np.testing.assert_allclose(found, whole.mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", DIFFUSION)
def test_stacks_are_drawn_by_their_attributes(at, name):
    fit(name, *UNET)
    samples = drawn(name, f"out/{name}", "sampling.attributes.ESED=1", "sampling.attributes.LVEDV=80",
                    "sampling.guidance.strength=2", "sampling.tile=[13,8,8]", "sampling.tile_mode=exact")
    images, labels = samples.array("images")[:], samples.array("labels")[:]
    assert images.shape == (2, 1, *STACK) and labels.shape == (2, *STACK) and samples.array("latents").shape[2] == 13
    assert np.isfinite(images).all() and labels.max() < 3 and not np.array_equal(images[0], images[1])
    np.testing.assert_allclose(np.abs(np.diag(samples.affine)[:3]), [10, 1.8, 1.8], rtol=1e-6)
    tool("decode", "--latents", f"out/{name}/samples.h5", "--dest", f"out/{name}/volumes.h5", "--num-threads", 1)
    file = VolumesFile(Path(f"out/{name}/volumes.h5"))
    np.testing.assert_allclose(file.read(file.splits[0], 0).image, images[0], atol=1e-3)


def test_the_classifier_tells_end_systole_from_end_diastole(at):
    tick = fit("cardiac_classifier", *CLASSIFIER, "training.validation.every_ticks=1")
    assert 0 <= tick["val/accuracy"] <= 1 and np.isfinite(tick["loss/classification"])
