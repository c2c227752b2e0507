"""The recipes of DIFF-3 and MONAI: every one at full size without memory, and the whole road of each at toy size."""

import json
from contextlib import chdir
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet

import dataset_tool
import evaluate
import generate
import train
from edm3d.formats.facts import Facts
from edm3d.formats.intensity import Intensity
from edm3d.formats.latents import LatentsFile
from edm3d.formats.nifti import write_nifti
from edm3d.formats.samples import SamplesFile
from edm3d.formats.volumes import VolumesFile
from edm3d.networks.conditioning import Condition
from edm3d.networks.monai_unet import MonaiUNet
from edm3d.networks.precond import DDPMPrecond
from edm3d.training.tasks.base import fill_network
from edm3d.utils.config import build
from tests.commands import succeed
from tests.test_config import checked

BRATS_VAE, BRATS_LATENTS = (1, 168, 192, 144), (8, 36, 44, 28)
ECHO, ECHO_LATENTS = (1, 160, 160, 128), (4, 20, 20, 16)

# recipe (the others have the network of one of these): shape of an item, label classes, millions of weights as counted
# by hand or in MONAI, shape of its latents
FULL = {
    "diff3_vae_100": (ECHO, 3, 15.421, ECHO_LATENTS),
    "brats_vae_32g": (BRATS_VAE, 0, 21.000, (8, 42, 48, 36)),
    "brats_ldm_32g": (BRATS_LATENTS, 0, 191.230, None),
    "brats_edm_32g": (BRATS_LATENTS, 0, 191.230, None),
    "diff3_ldm": (ECHO_LATENTS, 0, 45.421, None),  # ADM; DIFF-3's own UNet has 25.96
    "diff3_edm": (ECHO_LATENTS, 0, 45.421, None),
}


@cache
def composed(name: str) -> dict:
    """The training half of a recipe."""
    return checked(name)["training"]


def on_meta(name: str) -> torch.nn.Module:
    """The network of a recipe at full size, without memory."""
    shape, labels, *_ = FULL[name]
    data = SimpleNamespace(shape=shape, facts=Facts("", "", label_classes=tuple(f"x{i}" for i in range(labels))))
    with torch.device("meta"):
        return build(fill_network(composed(name), data))


def weights(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


# ---- at full size ----


@pytest.mark.parametrize("name", FULL)
def test_full_size_networks_have_the_published_number_of_weights(name):
    net, (shape, _, millions, latents) = on_meta(name), FULL[name]  # tests/test_config.py runs them
    assert weights(net) / 1e6 == pytest.approx(millions, abs=5e-4)
    assert latents is None or net.latent_shape(shape[1:]) == latents


def test_weights_are_as_many_as_in_monai():
    with torch.device("meta"):
        vae = AutoencoderKL(3, 1, 1, num_res_blocks=(2, 2, 2), channels=(64, 128, 256), attention_levels=(False,) * 3,
                            latent_channels=8, with_encoder_nonlocal_attn=False, with_decoder_nonlocal_attn=False)
        unet = DiffusionModelUNet(3, 8, 8, num_res_blocks=2, channels=(256, 256, 512),
                                  attention_levels=(False, True, True), num_head_channels=(0, 64, 64))
    assert weights(on_meta("brats_vae_32g")) == weights(vae)
    assert weights(on_meta("brats_ldm_32g")) == weights(unet)


def test_a_crop_of_brats_becomes_the_latents_that_the_unet_halves_twice():
    assert on_meta("brats_vae_32g").latent_shape((144, 176, 112)) == BRATS_LATENTS
    assert composed("brats_vae_32g")["augment"]["size"] == [112, 128, 80]


@pytest.mark.parametrize(("small", "large"), [("brats_vae_16g", "brats_vae_32g"), ("brats_ldm_16g", "brats_ldm_32g")])
def test_the_16_gb_recipes_differ_in_batch_and_learning_rate_alone(small, large):
    small, large = (deepcopy(composed(name)) for name in (small, large))
    assert small["options"].pop("batch_size") == large["options"].pop("batch_size") - 1
    assert small["optimizer"].pop("lr") * 2 == large["optimizer"].pop("lr")
    for training in (small, large):
        training["discriminator"].get("optimizer", {}).pop("lr", None)
    assert small == large


def test_the_phases_of_diff3_differ_as_published():
    first, second, single = (composed(f"diff3_vae_{name}") for name in ("100", "200", "xent"))
    assert [t["loss"]["kl_weight"] for t in (first, second, single)] == [1e-6, 1, 1e-6]
    assert [t["options"]["batch_size"] for t in (first, second, single)] == [2, 1, 1]
    assert second["options"]["init_from"] == "diff3_vae_100" and not first["options"]["init_from"]
    assert first["network"] == second["network"] == single["network"]


def test_nothing_is_read_or_fetched_for_a_perceptual_term_of_weight_0():
    for name in ("diff3_vae_100", "diff3_vae_200", "diff3_vae_xent", "brats_vae_32g", "brats_vae_16g"):
        assert "perceptual" not in build(composed(name)["loss"]).weights


# ---- MONAI's UNet behind our preconditioners ----

SMALL = {"channels": (8, 16), "num_res_blocks": 1, "attention_levels": (False, True), "num_head_channels": (0, 8),
         "norm_num_groups": 4}


def random_unet(**options) -> DiffusionModelUNet:
    """A small 2D one whose last layers, which start at 0, are random too."""
    unet, generator = DiffusionModelUNet(2, 2, 2, **{**SMALL, **options}), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in unet.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    return unet.eval()


def test_the_unet_sees_the_step_of_ddpm_and_its_scaled_image():
    unet, x = random_unet(), torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    net = DDPMPrecond(MonaiUNet(unet), "scaled_linear", 1000, 0.0015, 0.0195).eval()
    t = torch.tensor([0, 400, 999])
    sigma = net.noise_table.flip(0)[t].float()
    column = sigma.reshape(-1, 1, 1, 1)
    betas = torch.linspace(0.0015 ** 0.5, 0.0195 ** 0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = (1 - betas).cumprod(0)[t].float().reshape(-1, 1, 1, 1)
    x_t = alpha_bar.sqrt() * x
    torch.testing.assert_close(net(x, sigma), x - column * unet(x_t, t), rtol=1e-4, atol=1e-4)


def test_fractional_noise_labels_are_told_apart():
    net, x = MonaiUNet(random_unet()), torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    outs = [net(x, torch.tensor([c])) for c in (-1.5, -0.25, 0.0, 0.25, 1.1)]
    for i, first in enumerate(outs):
        assert all((first - second).abs().max() > 1e-3 for second in outs[i + 1:])


def test_classes_are_numbers_and_none_is_the_last():
    unet, x = random_unet(num_class_embeds=3), torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    net, c = MonaiUNet(unet, label_dim=2), torch.zeros(3)
    one_hot = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    wanted = unet(x, c, class_labels=torch.tensor([1, 0, 2]))
    torch.testing.assert_close(net(x, c, Condition(class_labels=one_hot)), wanted)
    torch.testing.assert_close(net(x, c), unet(x, c, class_labels=torch.tensor([2, 2, 2])))


@pytest.mark.parametrize(("options", "arguments", "wanted"), [
    ({}, {"image_size": [6, 9]}, r"size \(6, 9\) must divide by \(2, 2\); nearest that do: \(6, 8\) and \(6, 10\)"),
    ({}, {"label_dim": 2}, r"num_class_embeds=null, label_dim=2: wanted unet\.num_class_embeds=3"),
    ({"num_class_embeds": 2}, {}, r"num_class_embeds=2, label_dim=0: wanted unet\.num_class_embeds=null"),
    ({"with_conditioning": True, "cross_attention_dim": 4}, {}, "with_conditioning=true"),
    ({"channels": (8, 8), "norm_num_groups": 8}, {}, "lower unet.norm_num_groups"),
])
def test_a_unet_that_does_not_fit_is_refused(options, arguments, wanted):
    with pytest.raises(ValueError, match=wanted):
        MonaiUNet(random_unet(**options), **arguments)


@pytest.mark.parametrize(("x", "arguments", "wanted"), [
    ((3, 2, 7, 8), (), r"size \(7, 8\) must divide by \(2, 2\)"), ((3, 1, 8, 8), (), "1 channels, in_channels is 2"),
    ((3, 2, 8), (), "1 spatial axes, spatial_dims is 2"), ((3, 2, 8, 8, 8), (), "3 spatial axes, spatial_dims is 2"),
    ((3, 2, 8, 8), (None, torch.ones(3, 9)), "augment labels, augment_dim is 0 .*choose augment=none"),
    ((3, 2, 8, 8), (torch.eye(3)[:, :2],), "got a Tensor as condition, wanted a Condition"),
    ((3, 2, 8, 8), (Condition(attributes=torch.ones(3, 2)),), "'attributes'"),
    ((3, 2, 8, 8), (Condition(class_labels=torch.zeros(2, 2)),), r"class labels of shape \(2, 2\), wanted \(3, 2\)"),
    ((3, 2, 8, 8), (Condition(class_labels=torch.zeros(2)),), r"class labels of shape \(2,\), wanted \(3, 2\)"),
    ((3, 2, 8, 8), (Condition(class_labels=torch.zeros(3, 4)),), "4 class labels, label_dim is 2"),
    ((3, 2, 8, 8), (Condition(class_labels=torch.tensor([[0, 1.0], [0.5, 0.5], [0, 0]])),),
     r"labels \[0.5, 0.5\], wanted one-hot"),
    ((3, 2, 8, 8), (Condition(class_labels=torch.ones(1, 2)),), r"class labels \[1.0, 1.0\], wanted one-hot"),
    ((3, 2, 8, 8), (Condition(class_labels=torch.tensor([[float("nan"), 1]])),),
     r"class labels \[nan, 1.0\], wanted one-hot"),
])
def test_the_unet_refuses_what_it_was_not_built_for(x, arguments, wanted):
    with pytest.raises(ValueError, match=f"MonaiUNet: .*{wanted}"):
        MonaiUNet(random_unet(num_class_embeds=3), label_dim=2)(torch.zeros(x), torch.zeros(3), *arguments)


@pytest.mark.parametrize("width", [0, 2])
def test_the_unet_without_classes_refuses_them(width):
    with pytest.raises(ValueError, match="MonaiUNet: got class labels, label_dim is 0 and it takes none"):
        MonaiUNet(random_unet())(torch.zeros(1, 2, 8, 8), torch.zeros(1), Condition(class_labels=torch.zeros(1, width)))


# ---- the whole road at toy size ----

OPTIONS = [f"training.options.{key}" for key in (
    "batch_size=2", "total_kimg=0.008", "kimg_per_tick=0.004", "num_threads=1", "device=cpu", "precision=fp32")]
DRAW = ["sampling.seeds=0-1", "sampling.num_threads=1", "sampling.device=cpu", "sampling.sampler.num_steps=3",
        "sampling.montage=0"]
UNET = ["training.network.model.unet.channels=[8,8,16]", "training.network.model.unet.num_head_channels=[0,8,8]",
        "training.network.model.unet.norm_num_groups=4", "training.network.model.unet.num_res_blocks=1",
        "training.options.min_psnr=null"]
ADM = ["training.network.model.model_channels=8", "training.network.model.channel_mult=[1,2]",
       "training.network.model.attention_levels=[1]", "training.network.model.num_blocks=1",
       "training.network.model.channels_per_head=8", "training.options.min_psnr=null"]
LPS = np.diag([-1.1, -1.1, 1.1, 1.0])


def tool(*words: object) -> str:
    return succeed(dataset_tool.main, *map(str, words))


def fit(name: str, *overrides: str) -> dict:
    """Train a recipe at toy size; its last tick."""
    succeed(train.main, f"-cn={name}", "training.validation.max_items=1", "training.validation.preview_ticks=null",
            *OPTIONS, *overrides)
    run = sorted(Path("results").glob(f"*-{name}"))[-1]
    return json.loads((run / "stats.jsonl").read_text().splitlines()[-1])


def drawn(name: str, outdir: str, *overrides: str) -> SamplesFile:
    """Two volumes of the newest run of a recipe."""
    succeed(generate.main, f"-cn={name}", *DRAW, f"sampling.outdir={outdir}", *overrides)
    return SamplesFile(Path(outdir) / "samples.h5")


@pytest.fixture(scope="module")
def brats(tmp_path_factory):
    """A task of eight cases of four channels, its volumes file, a first stage and latents of crops."""
    folder, threads = tmp_path_factory.mktemp("brats"), torch.get_num_threads()
    with chdir(folder):
        task = Path("Task01_BrainTumour")
        names = [f"BRATS_{n:03d}" for n in range(8)]
        grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (22, 20, 16)], indexing="ij"))
        for n, name in enumerate(names):
            head = np.exp(-3 * ((grid - 0.03 * n) ** 2).sum(0)) * 1000
            write_nifti(task / "imagesTr" / f"{name}.nii.gz", np.stack([head * k for k in (1, 2, 3, 4)]), LPS)
            write_nifti(task / "labelsTr" / f"{name}.nii.gz", (head > 500).astype(np.uint8), LPS)
        listed = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names]
        (task / "dataset.json").write_text(json.dumps({
            "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}, "training": listed,
            "labels": {"0": "background", "1": "tumour"}, "test": ["./imagesTs/BRATS_900.nii.gz"]}))
        tool("prepare", "--decathlon", task, "--channel", "FLAIR", "--images-only", "--dest", "data/brats.h5",
             "--orientation", "RAS", "--spacing", 1.1, 1.1, 1.1, "--percentiles", 0, 99.5, "--no-clip",
             "--size", 20, 20, 16, "--split", 0.75, 0.25)
        tick = fit("brats_vae_32g", "training.network.channels=[8,8,8]", "training.network.num_blocks=1",
                   "training.network.num_blocks_decoder=1", "training.augment.size=[16,16,8]",
                   "training.discriminator.start_kimg=0.004", "training.discriminator.network.channels=4",
                   "training.discriminator.network.num_layers_d=1")
        (folder / "tick.json").write_text(json.dumps(tick))
        tool("encode", "--autoencoder", "brats_vae_32g", "--source", "data/brats.h5", "--dest", "data/brats_latents.h5",
             "--size", 16, 16, 16, "--num-threads", 1)
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    """Six pairs of other sizes in nnU-Net's naming, their volumes file, both phases of a first stage, latents, and
    DIFF-3's diffusion."""
    folder, threads = tmp_path_factory.mktemp("echo"), torch.get_num_threads()
    with chdir(folder):
        for n in range(6):
            shape = (20 + 2 * n, 15, 14)
            grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, s) for s in shape], indexing="ij"))
            radius = np.linalg.norm(grid, axis=0)
            image = (255 * np.exp(-((radius - 0.6) ** 2) * 8)).astype(np.uint8)
            for role, suffix, values in (("images", "_0000", image),
                                         ("labels", "", ((radius < 0.7) + 1 * (radius < 0.5)).astype(np.uint8))):
                Path("mitea", role).mkdir(parents=True, exist_ok=True)
                nibabel.save(nibabel.Nifti1Image(values, np.diag([0.7, 0.7, 0.7, 1])),
                             f"mitea/{role}/MITEA_{n:03d}{suffix}.nii.gz")
        tool("prepare", "--images", "mitea/images", "--labels", "mitea/labels", "--dest", "data/mitea.h5", "--fit",
             16, 16, 16, "--no-antialias", "--range", 0, 255, "--classes", "background", "myocardium", "cavity",
             "--split", 0.75, 0.25)
        small = ["training.network.channels=[8,8,8,8]", "training.network.num_blocks=1"]
        ticks = [fit("diff3_vae_100", *small), fit("diff3_vae_200", *small)]
        (folder / "ticks.json").write_text(json.dumps(ticks))
        tool("encode", "--autoencoder", "diff3_vae_200", "--source", "data/mitea.h5", "--dest", "data/diff3_latents.h5",
             "--num-threads", 1)
        fit("diff3_ldm", *ADM)
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def road(request):
    """Work in the folder of a road."""
    with chdir(request.getfixturevalue(request.param)):
        yield Path.cwd()


on = lambda name: pytest.mark.parametrize("road", [name], indirect=True)  # noqa: E731

@on("brats")
def test_brats_first_stage_trains_on_crops_and_its_adversary_starts_late(road):
    file, tick = VolumesFile(Path("data/brats.h5")), json.loads(Path("tick.json").read_text())
    assert file.meta.channels == ("FLAIR",) and file.meta.label_classes == ()
    assert file.spatial_shape("train") == (20, 20, 16)
    assert file.meta.intensity == Intensity(0.0, 1.0, False, "percentile 0-99.5")
    assert max(file.read("train", i).image.max() for i in range(file.length("train"))) > 1
    assert tick["loss/adversarial"] > 0 and tick["loss/l1"] > 0


@on("brats")
@pytest.mark.parametrize(("name", "scaling"), [("brats_ldm_32g", "scale_factor"), ("brats_edm_32g", "standardize")])
def test_brats_diffusion_draws_volumes_that_lie_where_the_crops_do(road, name, scaling):
    latents = LatentsFile(Path("data/brats_latents.h5"))
    assert latents.read("train").mean.shape == (6, 8, 4, 4, 4)
    fit(name, *UNET)
    samples = drawn(name, f"out/{name}")
    assert samples.array("images").shape == (2, 1, 16, 16, 16) and np.isfinite(samples.array("images")[:]).all()
    assert samples.array("latents").shape == (2, 8, 4, 4, 4) and "labels" not in samples.names
    np.testing.assert_allclose(np.abs(np.diag(samples.affine)[:3]), 1.1, rtol=1e-5)
    tool("export", f"out/{name}/samples.h5", "--format", "nifti", "--dest", f"out/{name}/nii")
    assert nibabel.load(f"out/{name}/nii/images/seed000001.nii.gz").shape == (16, 16, 16)
    if name == "brats_ldm_32g":
        said = succeed(evaluate.main, "--real", "data/brats.h5", "--generated", f"out/{name}/samples.h5", "--dest",
                       f"out/{name}", "--num-noise", "2")
        assert "centrally to 16 x 16 x 16" in said and Path(f"out/{name}/report.html").is_file()


@on("echo")
def test_the_second_phase_of_diff3_starts_from_the_first_with_another_kl(road):
    first, second = json.loads(Path("ticks.json").read_text())
    runs = sorted(Path("results").glob("*-diff3_vae_*"))
    assert "Weights     from results/" in (runs[-1] / "log.txt").read_text()
    assert second["loss/kl"] > 1000 * first["loss/kl"] > 0  # a million times the weight


@on("echo")
@pytest.mark.parametrize("name", ["diff3_ldm", "diff3_edm"])
def test_diff3_draws_pairs_by_its_own_diffusion_and_by_edm(road, name):
    if name == "diff3_edm":
        fit(name, *ADM)
    out = f"out/{name}"
    samples = drawn(name, out, "sampling.nifti=false")
    images, labels, latents = map(samples.array, ("images", "labels", "latents"))
    assert latents.shape == (2, 4, 2, 2, 2) and images.shape == (2, 1, 16, 16, 16) and labels.shape == (2, 16, 16, 16)
    assert labels.max() < 3 and images.min() >= 0 and images.max() <= 255 and not np.array_equal(images[0], images[1])
    if name == "diff3_ldm":  # clipped to what minmax calls -1 and 1
        assert np.abs(latents).max() <= 1 + 1e-6
        # bugs of old: a second run doubled the rows, and the folder that was asked for was ignored
        np.testing.assert_array_equal(drawn(name, out, "sampling.nifti=false").array("images"), images)
    assert not Path(f"results/{name}").exists()
    succeed(evaluate.main, "--real", "data/mitea.h5", "--generated", f"{out}/samples.h5", "--dest", out, "--num-noise",
            "2", "--ignore-spacing")
    assert json.loads(Path(out, "report.json").read_text())["generated"]["num"] == 2


@on("echo")
def test_a_second_encoding_doubles_no_rows(road):
    before = LatentsFile(Path("data/diff3_latents.h5")).read("train")
    tool("encode", "--autoencoder", "diff3_vae_200", "--source", "data/mitea.h5", "--dest", "data/diff3_latents.h5",
         "--num-threads", 1)
    after = LatentsFile(Path("data/diff3_latents.h5")).read("train")
    assert after.ids == before.ids
    np.testing.assert_array_equal(after.mean, before.mean)


@on("echo")
def test_latents_are_decoded_alone_as_when_they_were_drawn(road):
    samples = drawn("diff3_ldm", "out/alone", "sampling.nifti=false")
    for _ in range(2):
        tool("decode", "--latents", "out/alone/samples.h5", "--dest", "out/alone/volumes.h5", "--num-threads", 1)
    file = VolumesFile(Path("out/alone/volumes.h5"))
    assert sum(file.length(split) for split in file.splits) == 2
    for row in range(2):
        item = file.read(file.splits[0], row)
        np.testing.assert_allclose(item.image, samples.row("images", row), atol=0.05)  # of 255
        assert (item.label == samples.row("labels", row)).mean() > 0.999


def test_negative_voxels_are_clipped_and_darken_nothing(tmp_path):
    image = np.full((8, 8, 8), 100, np.float32)
    image[0], image[1, 0, 0] = 200, -50
    write_nifti(tmp_path / "images" / "a.nii.gz", image, np.eye(4))
    said = tool("prepare", "--images", tmp_path / "images", "--dest", tmp_path / "v.h5", "--range", 0, 255, "--split",
                1)
    file = VolumesFile(tmp_path / "v.h5")
    assert "1 of 1 images have values outside --range 0 255, which were clipped" in said
    np.testing.assert_array_equal(file.read("train", 0).image[0], image.clip(0))
    decoded = torch.tensor([-1.5, -1.0, 0.0, 1.0])  # what a network gives, one voxel below black
    assert file.meta.intensity.from_network(decoded).tolist() == [0, 0, 127.5, 255]
