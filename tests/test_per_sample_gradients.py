"""Gradients of each image of a batch, by Opacus and functorch, against those of the images one by one.

Private training clips them image by image, so that each must be that image's own, of every weight.
"""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from opacus import GradSampleModule

from edm3d.networks.autoencoder import AutoencoderKL
from edm3d.networks.conditioning import Condition
from edm3d.networks.gamma import AutoencoderGamma
from edm3d.networks.monai_unet import MonaiUNet
from edm3d.networks.precond import EDMPrecond
from edm3d.networks.unet import ADMUNet, SongUNet
from edm3d.networks.vq import AutoencoderVQ
from edm3d.samplers.noise import ImageGenerators
from edm3d.training.autoencoder_loss import AutoencoderLoss
from edm3d.training.trainable import adapt, choose
from tests.test_networks import randomise

pytestmark = [pytest.mark.filterwarnings("ignore:Full backward hook"), pytest.mark.filterwarnings("ignore:In CPU auto")]
IMAGES = 3
SIZES = {2: (4, 6), 3: (3, 4, 2)}
Losses = Callable[[torch.nn.Module, list[int]], torch.Tensor]  # of the images of these numbers, one each

SMALL = {"model_channels": 4, "channel_mult": [1, 2], "channel_mult_emb": 1, "num_blocks": 1, "attention_levels": [1],
         "channels_per_head": 4, "dropout": 0}
NCSNPP = {"embedding": "fourier", "channel_mult_noise": 2, "encoder": "residual", "resample_filter": [1, 3, 3, 1]}
SKIP = {"encoder": "skip", "decoder": "skip"}
FAMILIES = {"adm": (ADMUNet, {}), "ddpmpp": (SongUNet, {}), "ncsnpp": (SongUNet, NCSNPP), "skip": (SongUNet, SKIP)}
TOLD = {"label_dim": 2, "augment_dim": 3, "attribute_dim": 3, "attribute_mean": [0, 1, 2], "attribute_std": [1, 2, 3],
        "semantic_dim": 2, "semantic_hidden": 4, "image_dim": 1, "self_condition": True}
TOKENS = {**TOLD, "attribute_mode": "tokens", "semantic_everywhere": True, "attention": "slices_depth"}
ON_LATENTS = {**TOKENS, "grid_factor": 2, "attention": "slices", "semantic_hidden": 2}
UNETS = {"alone": {}, "told": TOLD, "tokens, depth": TOKENS, "on latents": ON_LATENTS,
         "voxel norm, cells": {**TOLD, "norm": "voxel", "codec": "haar"}}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check_gradients(net: torch.nn.Module, losses: Losses, tolerance: float = 1e-9) -> None:
    """Every weight that learns has a gradient for each image, which is that of the image alone, and is not always 0.

    tolerance: of the largest gradient of the weight, or a millionth of it of the largest of all.
    """
    wrapped = GradSampleModule(net, force_functorch=True, batch_first=True, loss_reduction="sum")
    losses(wrapped, list(range(IMAGES))).sum().backward()
    found = {name: p.grad_sample for name, p in net.named_parameters() if p.requires_grad}
    alone = [torch.autograd.grad(losses(net, [i]).sum(), [p for p in net.parameters() if p.requires_grad])
             for i in range(IMAGES)]
    largest = max(gradient.abs().max() for gradients in alone for gradient in gradients)
    for number, (name, gradients) in enumerate(found.items()):
        wanted = torch.stack([gradient[number] for gradient in alone])
        assert wanted.any(), f"{name}: learns nothing here"
        assert gradients is not None and gradients.shape == wanted.shape, name
        error = (gradients - wanted).abs().max()  # keys' biases have none but for rounding
        allowed = tolerance * wanted.abs().max() + 1e-6 * tolerance * largest
        assert error <= allowed, (name, error, wanted.abs().max(), largest)


def condition(net: torch.nn.Module, size: tuple[int, ...]) -> Condition:
    """Something of everything that a UNet takes of images of a size, other for each image."""
    full = tuple(s * f for s, f in zip(size, net.grid_factor))
    parts = {"class_labels": torch.eye(3, 2, dtype=torch.float64), "attributes": draw(IMAGES, 3),
             "semantic": torch.randint(0, 3, (IMAGES, *full), generator=torch.Generator().manual_seed(0)),
             "images": draw(IMAGES, 1, *full)}
    parts["attributes"][1, 2] = torch.nan
    parts["attributes"][2] = torch.nan
    return Condition(**{name: parts[name] for name in net.takes})


def denoising(net: EDMPrecond, size: tuple[int, ...]) -> Losses:
    """Squared errors of a denoiser with all that it may be told."""
    told, target, x = condition(net.model, size), draw(IMAGES, 1, *size, seed=2), draw(IMAGES, 1, *size)
    augment, estimate = draw(IMAGES, 3, seed=3), draw(IMAGES, 1, *size, seed=4)
    sigma = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)

    def losses(module: torch.nn.Module, rows: list[int]) -> torch.Tensor:
        part = Condition(**{name: value[rows] for name, value in told.items()})
        out = module(x[rows], sigma[rows], part, augment[rows] if net.model.augment_dim else None,
                     *([estimate[rows]] if net.model.self_condition else []))
        return (out - target[rows]).square().flatten(1).sum(1)

    return losses


def small_unet(family: str, options: str, dims: int) -> tuple[EDMPrecond, tuple[int, ...]]:
    """A denoiser, and the size of what it sees."""
    target, keys = FAMILIES[family]
    strides = [[1, 2, 2]] if dims == 3 else 2
    size = tuple(s * 2 if "cells" in options else s for s in SIZES[dims])
    net = randomise(target(1, 1, dims, **{**SMALL, **keys, "strides": strides, **UNETS[options]})).double().train()
    return EDMPrecond(net, 0.5), size


@pytest.mark.parametrize(("family", "options", "dims"), [
    *[(family, options, dims) for family in ("adm", "ddpmpp", "ncsnpp") for options in ("told", "tokens, depth")
      for dims in (2, 3)],
    ("skip", "alone", 2), ("skip", "told", 3), ("adm", "on latents", 2), ("adm", "on latents", 3),
    ("adm", "voxel norm, cells", 3), ("ncsnpp", "voxel norm, cells", 2)])
def test_unets(family, options, dims):
    net, size = small_unet(family, options, dims)
    check_gradients(net, denoising(net, size))


@pytest.mark.parametrize(("family", "options", "dims"), [("adm", "tokens, depth", 3), ("ncsnpp", "told", 2)])
def test_gradients_in_single_precision_are_those_in_double(family, options, dims):
    """Held against the images one by one in float64."""
    net, size = small_unet(family, options, dims)
    losses, single = denoising(net, size), deepcopy(net).float()
    weights = [p for p in net.parameters() if p.requires_grad]
    wanted = [torch.autograd.grad(losses(net, [i]).sum(), weights) for i in range(IMAGES)]
    largest = max(float(gradient.abs().max()) for gradients in wanted for gradient in gradients)
    wrapped = GradSampleModule(single, force_functorch=True, batch_first=True, loss_reduction="sum")
    in_single(losses)(wrapped, list(range(IMAGES))).sum().backward()
    for number, (name, p) in enumerate(single.named_parameters()):
        rows = torch.stack([gradients[number] for gradients in wanted])
        error = float((p.grad_sample - rows).abs().max())
        assert p.grad_sample.dtype == torch.float32
        assert error <= 1e-4 * float(rows.abs().max()) + 1e-6 * largest, (name, error)


def in_single(losses: Losses) -> Losses:
    """Losses of a network in float32, told and shown what `losses` tells and shows one in float64."""
    def lowered(module: torch.nn.Module, rows: list[int]) -> torch.Tensor:
        def call(*given: object) -> torch.Tensor:
            return module(*(lower(value) for value in given))
        return losses(call, rows)

    def lower(value: object) -> object:
        if isinstance(value, Condition):
            return Condition(**{name: lower(part) for name, part in value.items()})
        return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return lowered


@pytest.mark.parametrize(("options", "dims"), [("told", 2), ("tokens, depth", 3)])
def test_adapters_of_low_rank(options, dims):
    """Of every layer that takes one, their own weights and none of those that they stand beside."""
    net, size = small_unet("adm", options, dims)
    part = choose(net, "lora:2")
    net.requires_grad_(False)
    adapt(net, part, 0)
    net = net.double()
    generator = torch.Generator().manual_seed(1)
    for name, p in net.named_parameters():
        if ".up." in name:
            p.data.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert trained and all(".up." in name or ".down." in name for name in trained)
    check_gradients(net, denoising(net, size))


VQ = {"codebook_size": 5, "code_dim": 3}
AUTOENCODERS = {"kl": (AutoencoderKL, {}), "gamma": (AutoencoderGamma, {}),
                "vq, running means": (AutoencoderVQ, {**VQ, "codebook": "ema"}),
                "vq, learning codes": (AutoencoderVQ, {**VQ, "codebook": "loss", "latent": "after"}),
                "vq, frozen codes": (AutoencoderVQ, {**VQ, "codebook": "loss"})}


@pytest.mark.parametrize(("kind", "layout", "dims"), [
    *[(kind, "compact", dims) for kind in AUTOENCODERS for dims in (2, 3)], ("kl", "ldm", 3),
    ("vq, running means", "monai", 3)])
def test_autoencoders_of_images_and_label_maps(kind, layout, dims):
    target, keys = AUTOENCODERS[kind]
    size = SIZES[dims]
    net = randomise(target(1, num_classes=3, latent_channels=2, spatial_dims=dims, channels=(4, 8),
                           strides=[[1, 2, 2]] if dims == 3 else 2, kernel_size=[[1, 3, 3]] * 2 if dims == 3 else 3,
                           num_blocks=1, num_blocks_decoder=1, attention_levels=(1,), bottleneck_attention=True,
                           layout=layout, masked=kind == "gamma", **keys)).double().train()
    if kind == "vq, frozen codes":
        net.codebook.requires_grad_(False)
    if kind == "vq, running means":
        net.codebook.copy_(draw(5, 3))
    loss = AutoencoderLoss(l1_weight=1, l2_weight=1, dice_weight=1, kl_weight=0.1, kl_reduction="voxel", kl_capacity=1,
                           latent_mse_weight=0.1)
    image, label = draw(IMAGES, 1, *size).tanh(), torch.randint(0, 3, (IMAGES, *size))
    sector = torch.ones(IMAGES, *size, dtype=torch.uint8)
    sector[:, 0] = 0

    def losses(module: torch.nn.Module, rows: list[int]) -> torch.Tensor:
        masks = {"semantic": sector[rows]} if net.masked else {}
        out = module(image[rows], label[rows], ImageGenerators(rows), **masks)
        return torch.stack(list(loss(out, image[rows], label[rows]).values())).sum(0)

    check_gradients(net, losses)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_unet_of_monai(dims):
    from monai.networks.nets import DiffusionModelUNet
    unet = DiffusionModelUNet(dims, 1, 1, channels=(8, 16), num_res_blocks=1, attention_levels=(False, True),
                              num_head_channels=(0, 8), norm_num_groups=4, num_class_embeds=3)
    net, x = randomise(MonaiUNet(unet, label_dim=2)).double().train(), draw(IMAGES, 1, *[4] * dims)
    c, classes = draw(IMAGES, seed=1), torch.eye(3, 2, dtype=torch.float64)
    check_gradients(net, lambda module, rows: module(x[rows], c[rows], Condition(class_labels=classes[rows])).square()
                    .flatten(1).sum(1))


def test_a_weight_used_past_its_layer_is_found():
    class Shared(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) + torch.nn.functional.conv2d(x, self.layer.weight, padding=1)

    x = draw(IMAGES, 1, 4, 4)
    with pytest.raises(AssertionError, match=r"layer\.weight"):
        check_gradients(Shared().double(), lambda module, rows: module(x[rows]).square().flatten(1).sum(1))
