"""The recipes of EDMLX and the semantic one in 3D: as published where they say so, and the whole road at toy size."""

from contextlib import chdir
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edm3d.formats.latents import LatentsFile
from edm3d.formats.volumes import VolumesFile
from edm3d.networks.conditioning import takes_of
from edm3d.networks.unet_blocks import UNetBlock
from edm3d.training.tasks.base import fill_network
from edm3d.utils.config import build
from tests.test_config import dataset_like
from tests.test_downstream_runs import write_discs
from tests.test_recipes import ADM, composed, drawn, fit, tool, weights

PIXELS, LATENTS = ("echo2d_edm", "echo2d_ve", "echo2d_vp"), ("echo2d_edm_l64", "echo2d_edm_l128")
SPLITS = {"training": 4, "validation": 1, "testing": 2}


@cache
def on_meta(name: str) -> torch.nn.Module:
    """The network of a recipe at full size, without memory."""
    with torch.device("meta"):
        return build(fill_network(composed(name), dataset_like(name)))


# ---- at full size ----


@pytest.mark.parametrize(("name", "millions", "latents"), [("echo2d_vae64", 8.35, (1, 64, 64)),
                                                           ("echo2d_vae128", 3.23, (1, 128, 128))])
def test_first_stages_are_of_the_published_size(name, millions, latents):
    data = dataset_like(name)
    data.facts = type(data.facts)("", "", map_classes=data.facts.map_classes)  # EDMLX codes images alone
    with torch.device("meta"):
        net = build(fill_network(composed(name), data))
    assert weights(net) / 1e6 == pytest.approx(millions, abs=0.01) and net.latent_shape((256, 256)) == latents
    assert net.masked


@pytest.mark.parametrize(("name", "classes", "millions"), [
    ("echo2d_segmentation", 4, 34.163), ("echo2d_classification", 2, 5.288548 - 998 * 1281e-6 - 2 * 288e-6),
    ("echo3d_segmentation", 4, 1.412)])
def test_downstream_networks_are_as_large_as_monai_makes_them(name, classes, millions):
    """EfficientNet-B0 has 5,288,548 weights of 1000 classes and 3 channels, 1281 of each class and 288 of each channel.
    """
    with torch.device("meta"):
        net = build(fill_network(composed(name), dataset_like(name), outputs=classes))
    assert weights(net) / 1e6 == pytest.approx(millions, abs=5e-4)
    assert not any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in net.modules())


def test_downstream_recipes_are_as_edmlx_has_them():
    segmenter, classifier = (composed(f"echo2d_{name}") for name in ("segmentation", "classification"))
    assert [t["optimizer"]["lr"] for t in (segmenter, classifier)] == [1e-4, 1e-4]
    assert [t["options"]["batch_size"] for t in (segmenter, classifier)] == [128, 32]
    assert segmenter["network"]["strides"] == [1, 2, 2, 2, 2, 2, 2] and segmenter["network"]["dropout"] == 0.1
    assert (segmenter["augment"]["rotate_max"], segmenter["augment"]["translate_int_max"]) == (10, 0.2)
    assert (classifier["augment"]["ops"], classifier["augment"]["magnitude"]) == (2, 9)


def attends(name: str) -> list[str]:
    """Blocks of a recipe's network that attend, in the encoder and at the bottleneck."""
    net = on_meta(name).model
    blocks = [*net.enc.items(), *((key, block) for key, block in net.dec.items() if key.endswith(("in0", "in1")))]
    return [key for key, block in blocks if isinstance(block, UNetBlock) and block.heads]


@pytest.mark.parametrize(("name", "levels"), [("echo2d_edm", [3]), ("echo2d_edm_l128", [2, 3]),
                                              ("echo2d_edm_l64", [1, 2, 3]), ("echo2d_ve", []), ("echo2d_vp", [])])
def test_attention_is_where_edmlx_has_it(name, levels):
    """At 32, 16 and 8 pixels for ADM; at 16, which is never reached, for the others; and in the first middle block."""
    count, last = (3, 3) if "edm" in name else (4, 2)
    wanted = [f"level{level}_block{i}" for level in levels for i in range(count)]
    assert attends(name) == [*wanted, f"level{last}_in0"]


@pytest.mark.parametrize("name", [*PIXELS, *LATENTS, "echo3d_semantic_edm"])
def test_every_recipe_is_told_the_map_and_may_do_without(name):
    part = takes_of(on_meta(name))["semantic"]
    assert part.width == (4 if "3d" in name else 10) and part.dropout == 0.1
    hidden = composed(name)["network"]["model"]["semantic_hidden"]
    assert hidden == (64 if "3d" in name else 128)


def test_the_recipes_differ_as_their_names_say():
    training = {name: composed(name) for name in (*PIXELS, *LATENTS)}
    assert {t["optimizer"]["lr"] for t in training.values()} == {1e-4}
    assert {t["options"]["batch_size"] for t in training.values()} == {2}
    assert {t["options"]["total_kimg"] for t in training.values()} == {500}
    kinds = {name: t["network"]["_target_"].split(".")[-1] for name, t in training.items()}
    assert kinds == {"echo2d_ve": "VEPrecond", "echo2d_vp": "VPPrecond", **dict.fromkeys(
        ("echo2d_edm", *LATENTS), "EDMPrecond")}
    widths = {name: (t["network"]["model"]["model_channels"], t["network"]["model"]["channel_mult"],
                     t["network"]["model"]["num_blocks"]) for name, t in training.items()}
    assert widths == {**dict.fromkeys(("echo2d_edm", *LATENTS), (192, [1, 2, 3, 4], 3)),
                      **dict.fromkeys(("echo2d_ve", "echo2d_vp"), (128, [2, 2, 2], 4))}
    assert [bool(training[name]["augment"]) for name in (*PIXELS, *LATENTS)] == [True] * 3 + [False] * 2


# ---- the whole road at toy size ----

SONG = ["training.network.model.model_channels=8", "training.network.model.channel_mult=[1,2]",
        "training.network.model.num_blocks=1"]
TOLD = ["training.network.model.semantic_hidden=4"]
SMALL = {"echo2d_edm": [*ADM[:2], "training.network.model.attention_resolutions=[16]", *ADM[3:], *TOLD],
         "echo2d_edm_l64": [*ADM[:2], "training.network.model.attention_resolutions=[4]", *ADM[3:], *TOLD],
         "echo2d_ve": [*SONG, *TOLD], "echo2d_vp": [*SONG, *TOLD]}


def write_pngs(root: Path) -> None:
    """Sectors of 32x32 with a bright ring, in the layout of echo data: images, sector maps and organ labels."""
    rows, columns = np.mgrid[:32, :32]
    for folder, count in SPLITS.items():
        for i in range(count):
            sector = np.abs(columns - 16) < rows / 2 + 1
            distance = np.hypot(rows - 20 - i % 3, columns - 16)
            organs = np.select([distance < 4, distance < 6], [1, 2], 0).astype(np.uint8)
            sectors = np.where(organs > 0, organs + 1, sector).astype(np.uint8) * sector
            image = (np.array([0, 90, 20, 220])[sectors]).astype(np.uint8)
            for name, array in (("images", image), ("annotations", organs * sector), ("sector_annotations", sectors)):
                path = root / name / folder / f"{folder}_{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array.astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """PNG folders, their volumes, the first stage of them and its latents."""
    folder, threads = tmp_path_factory.mktemp("echo2d"), torch.get_num_threads()
    with chdir(folder):
        write_pngs(Path("camus"))
        tool("prepare", "--images", "camus/images", "--labels", "camus/annotations", "--maps",
             "camus/sector_annotations", "--range", 0, 255, "--dest", "data/echo2d.h5")
        fit("echo2d_vae64", "training.network.channels=[8,8,8]", "training.network.num_blocks=1",
            "training.network.num_blocks_decoder=1")
        tool("encode", "--autoencoder", "echo2d_vae64", "--source", "data/echo2d.h5", "--dest",
             "data/echo2d_latents64.h5", "--num-threads", 1)
    torch.set_num_threads(threads)
    return folder


def test_pngs_become_volumes_and_latents_with_maps(at):
    volumes, latents = VolumesFile(Path("data/echo2d.h5")), LatentsFile(Path("data/echo2d_latents64.h5"))
    assert [volumes.length(split) for split in ("train", "val", "test")] == [4, 1, 2]
    item, encoded = volumes.read("train", 1), latents.read("train")
    assert item.image.shape == (1, 32, 32) and item.map.max() == 3 and item.label.max() == 2
    assert encoded.mean.shape == (4, 1, 8, 8)
    assert (encoded.mean[:, :, 0, 0] == 0).all() and (encoded.mean > 0).any()  # outside and inside the sector
    np.testing.assert_array_equal(encoded.grids["maps"][1], item.map)


@pytest.mark.parametrize("name", SMALL)
def test_images_are_drawn_to_the_maps_that_are_held_out(at, name):
    fit(name, *SMALL[name])
    samples = drawn(name, f"out/{name}", "sampling.conditions=data/echo2d.h5", "sampling.nifti=false")
    assert samples.array("images").shape == (2, 1, 32, 32) and np.isfinite(samples.array("images")[:]).all()
    wanted = [VolumesFile(Path("data/echo2d.h5")).read("test", i).map for i in range(2)]
    np.testing.assert_array_equal(samples.array("maps")[:], wanted)


DOWN = {"echo2d_segmentation": [f"training.network.{key}" for key in (
            "kernel_size=[3,3,3]", "strides=[1,2,2]", "upsample_kernel_size=[2,2]", "filters=[4,8,8]")],
        "echo2d_classification": ["training.dataset.path=views.h5", "training.network.blocks_args_str="
                                  "[r1_k3_s11_e1_i32_o16_se0.25,r1_k3_s22_e6_i16_o24_se0.25]"]}


@pytest.mark.parametrize("name", DOWN)
def test_downstream_recipes_run_at_toy_size(at, name):
    if not Path("views.h5").exists():
        write_discs(Path("views.h5"), size=32)
    tick = fit(name, *DOWN[name], "training.options.batch_gpu=null", "training.validation.every_ticks=1")
    number = "val/dice" if "segmentation" in name else "val/accuracy"
    assert 0 <= tick[number] <= 1 and np.isfinite(tick["loss/" + name.split("_")[1]])
