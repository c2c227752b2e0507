"""Networks of the EDM paper against the reference numbers of its code release.

Numbers are compared per sample: the largest difference over the largest value.
"""

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch

from edm3d.networks.conditioning import Condition
from edm3d.networks.edm_import import build as build_node
from edm3d.networks.edm_import import build_from_edm, edm_network_node, edm_weights, inflate_kernel, inflate_weights
from edm3d.networks.precond import iDDPMPrecond
from edm3d.networks.unet import ADMUNet, SongUNet
from edm3d.networks.unet_blocks import ADM, SONG, UNetBlock
from tests.reference import DATA, config_of, group_of, read_full, stored, weights_of

CASES = ["adm_edm", "adm_edm_lab_aug", "adm_iddpm", "ddpmpp_edm", "ddpmpp_edm_lab", "ddpmpp_vp", "ncsnpp_edm_aug",
         "ncsnpp_ve"]
BLOCKS = ["adm_heads", "adm_down", "adm_up", "song_heads", "song_down", "song_up"]
HERE = ["adm_edm_lab_aug", "adm_iddpm", "ddpmpp_edm", "ddpmpp_edm_lab", "ncsnpp_ve", "adm_heads"]  # in tests/data
DTYPES = pytest.mark.parametrize(("dtype", "suffix", "tolerance"), [(torch.float32, "", 1e-5),
                                                                   (torch.float64, "_f64", 1e-9)])


def everywhere(names: list[str]) -> pytest.MarkDecorator:
    """The reference numbers of these names: of those in tests/data, and of all of the full set."""
    return pytest.mark.parametrize(("place", "name"), [("here", name) for name in names if name in HERE]
                                   + [("full", name) for name in names])


@pytest.fixture
def vectors(request: pytest.FixtureRequest) -> Callable[[str, str], dict[str, np.ndarray]]:
    """Reference numbers of a group, from tests/data (place "here") or the full set."""
    def find(place: str, group: str) -> dict[str, np.ndarray]:
        if place == "here":
            return group_of(stored("edm_networks"), group)
        return read_full(request.getfixturevalue("shared"), group)
    return find


def worst(got: torch.Tensor, wanted: np.ndarray) -> float:
    """Largest difference of a sample over its largest value, the worst of the samples."""
    difference = (got.detach().double() - torch.from_numpy(wanted).double()).flatten(1).abs().amax(1)
    return float((difference / torch.from_numpy(wanted).double().flatten(1).abs().amax(1)).max())


def wanted(data: dict[str, np.ndarray], name: str, suffix: str) -> np.ndarray:
    """A result of the reference; tests/data has it in float64 only, which is 5e-6 or less off its float32."""
    return data.get(name + suffix, data[f"{name}_f64"])


def test_the_numbers_in_here_are_few_enough():
    names = {key.split("/")[1] for key in stored("edm_networks") if key.startswith(("case/", "block/"))}
    assert names == set(HERE) and sum(path.stat().st_size for path in DATA.glob("*.xz")) < 1e6


def test_the_numbers_in_here_are_those_of_the_full_set(shared):
    for name in HERE:
        group = f"{'block' if name in BLOCKS else 'case'}/{name}"
        here, full = group_of(stored("edm_networks"), group), read_full(shared, group)
        ours, theirs = weights_of(here), weights_of(full)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)
        row, = (here["x"] == full["x"]).all((1, 2, 3)).nonzero()[0]
        assert here["config"] == full["config"] and len(here["x"]) == 1
        for key in ("y_f64",) if name in BLOCKS else ("D_x_f64", "F_x_f64"):
            np.testing.assert_allclose(here[key][0], full[key][row], rtol=1e-11)


# ---- blocks and whole networks ----


@everywhere(BLOCKS)
@DTYPES
def test_block_gives_the_reference_numbers(vectors, place, name, dtype, suffix, tolerance):
    data = vectors(place, f"block/{name}")
    config = config_of(data)
    style = SONG if name.startswith("song") else ADM
    assert (style.scale_shift, style.eps, style.skip_scale) == (
        config["adaptive_scale"], config["eps"], config.get("skip_scale", 1))
    block = UNetBlock(style, 2, config["in_channels"], config["out_channels"], config["emb_channels"], kernel=(3, 3),
                      stride=(2, 2), way="down" if config.get("down") else "up" if config.get("up") else "same",
                      filter=config.get("resample_filter", [1, 1]), heads=int(data["num_heads"]))
    block.load_state_dict({k: v for k, v in weights_of(data).items() if not k.endswith("resample_filter")})
    y = block.to(dtype).eval()(*(torch.from_numpy(data[k]).to(dtype) for k in ("x", "emb")))
    assert worst(y, wanted(data, "y", suffix)) < tolerance


class Observed:
    """A network run on a group's inputs: what its inner network was told and gave, and the denoised images."""

    def __init__(self, net: torch.nn.Module, data: dict[str, np.ndarray], dtype: torch.dtype):
        self.net = net
        self.x, self.sigma = (torch.from_numpy(data[k]).to(dtype) for k in ("x", "sigma"))
        self.labels, self.augment = (torch.from_numpy(data[k]).to(dtype) if k in data else None
                                     for k in ("class_labels", "augment_labels"))
        handle = net.model.register_forward_hook(self.look)
        self.D_x = self.run(self.labels, self.augment)
        handle.remove()

    def look(self, model: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        self.noise_labels, self.F_x = inputs[1], output

    @torch.no_grad()
    def run(self, labels: torch.Tensor | None, augment: torch.Tensor | None) -> torch.Tensor:
        return self.net(self.x, self.sigma, None if labels is None else Condition(class_labels=labels), augment)


@everywhere(CASES)
@DTYPES
def test_whole_network_gives_the_reference_numbers(vectors, place, name, dtype, suffix, tolerance):
    data = vectors(place, f"case/{name}")
    net = build_from_edm(config_of(data), weights_of(data))
    assert not net.training and (net.sigma_min, net.sigma_max) == (data["sigma_min"], data["sigma_max"])
    seen = Observed(net.to(dtype), data, dtype)
    if dtype == torch.float32:  # as the reference's; in double they are finer
        np.testing.assert_allclose(seen.noise_labels.numpy(), data["noise_labels"], rtol=1e-6, atol=1e-6)
    assert worst(seen.F_x, wanted(data, "F_x", suffix)) < tolerance
    assert worst(seen.D_x, wanted(data, "D_x", suffix)) < tolerance
    if "D_x_nolabel" in data:
        assert worst(seen.run(None, seen.augment), data["D_x_nolabel"]) < 1e-5
    if "D_x_noaug" in data:
        assert worst(seen.run(seen.labels, None), data["D_x_noaug"]) < 1e-5


@everywhere(CASES)
def test_attention_is_where_the_reference_has_it(vectors, place, name):
    data = vectors(place, f"case/{name}")
    with torch.device("meta"):
        net = build_node(edm_network_node(config_of(data)))
    size = config_of(data)["kwargs"]["img_resolution"]
    heads = {}
    for path, module in net.named_modules():
        if isinstance(module, UNetBlock) and module.heads:
            half, block = path.removeprefix("model.").split(".level")
            level, block = block.split("_", 1)
            heads[f"model.{half}.{size >> int(level)}x{size >> int(level)}_{block}"] = module.heads
    assert heads == json.loads(str(data["num_heads"]))


# ---- the table of iDDPM ----


@pytest.mark.parametrize("number", [0, 1])
def test_iddpm_rounds_to_the_reference_levels(vectors, number):
    data = vectors("here", f"iddpm/{number}")
    net = iDDPMPrecond(torch.nn.Identity(), **config_of(data))
    np.testing.assert_allclose(net.u.numpy(), data["u"], rtol=2e-5)
    sigma = torch.from_numpy(data["sigma_in"])
    assert net.index(sigma).tolist() == data["index"].tolist()
    assert net.index(sigma.double()).tolist() == data["index"].tolist()
    np.testing.assert_allclose(net.round_sigma(sigma).numpy(), data["sigma_out"], rtol=2e-5)
    assert net.round_sigma(sigma.reshape(2, -1)).shape == (2, len(sigma) // 2)
    assert net.noise_table.dtype == torch.float64 and len(net.noise_table) == len(data["u"]) - 1
    assert (net.noise_table.diff() < 0).all() and net.sigma_min == net.noise_table[-1] > 0


# ---- configuration and weights of the release ----


@pytest.fixture
def tiny() -> tuple[dict, dict[str, torch.Tensor]]:
    """A network of the release with weights by its names, made from ours."""
    config = {"class_name": "VEPrecond", "kwargs": {
        "img_resolution": 8, "img_channels": 1, "model_type": "SongUNet", "model_channels": 4, "channel_mult": (1, 2),
        "num_blocks": 1, "attn_resolutions": [4], "encoder_type": "skip", "decoder_type": "skip", "use_fp16": True}}
    own = build_node(edm_network_node(config)).state_dict()
    weights = {k.replace("level0", "8x8").replace("level1", "4x4"): v for k, v in own.items()}
    return config, {**weights, "model.enc.4x4_down.skip.resample_filter": torch.ones(1, 1, 2, 2) / 4}


def test_arguments_that_are_left_out_are_those_of_the_release():
    base = {"img_resolution": 32, "img_channels": 3}
    song = edm_network_node({"class_name": "EDMPrecond", "kwargs": {**base, "model_type": "SongUNet"}})
    assert song["_target_"] == "networks.precond.EDMPrecond" and song["label_dropout"] == 0
    assert song["model"] == {
        "_target_": "networks.unet.SongUNet", "in_channels": 3, "out_channels": 3, "spatial_dims": 2, "label_dim": 0,
        "augment_dim": 0, "model_channels": 128, "channel_mult": [1, 2, 2, 2], "channel_mult_emb": 4, "num_blocks": 4,
        "attention_levels": [1], "dropout": 0.1, "embedding": "positional", "channel_mult_noise": 1,
        "encoder": "standard", "decoder": "standard", "resample_filter": [1, 1]}
    adm = edm_network_node({"class_name": "iDDPMPrecond", "kwargs": {
        "img_resolution": 64, "img_channels": 3, "label_dim": 10, "label_dropout": 0.1, "model_type": "DhariwalUNet",
        "M": 500}})
    assert (adm["M"], adm["label_dropout"]) == (500, 0.1)
    assert adm["model"] == {
        "_target_": "networks.unet.ADMUNet", "in_channels": 3, "out_channels": 6, "spatial_dims": 2, "label_dim": 10,
        "augment_dim": 0, "model_channels": 192, "channel_mult": [1, 2, 3, 4], "channel_mult_emb": 4, "num_blocks": 3,
        "attention_levels": [1, 2, 3], "dropout": 0.1}


def test_levels_narrower_than_a_head_of_the_release_have_no_attention():
    arguments = {"img_resolution": 32, "img_channels": 3, "model_channels": 32, "attn_resolutions": [32, 16, 4]}
    for model_type, wanted in (("DhariwalUNet", [1, 3]), ("SongUNet", [0, 1, 3])):  # 32, 64, 96 and 128 channels
        model = edm_network_node({"class_name": "EDMPrecond", "kwargs": {
            **arguments, "channel_mult": [1, 2, 3, 4], "model_type": model_type}})["model"]
        assert model["attention_levels"] == wanted
        with torch.device("meta"):
            build_node(model)


def test_weights_get_our_names_and_dtypes_and_lose_the_filters(tiny):
    config, weights = tiny
    got = edm_weights(config, {k: v.half() for k, v in weights.items()})
    assert all(v.dtype == torch.float32 for v in got.values()) and "model.dec.level0_aux_conv.weight" in got
    assert len(got) == len(weights) - 1 and not any("resample" in k for k in got)
    net = build_from_edm(config, weights)
    assert isinstance(net.model, SongUNet) and not net.training
    assert torch.equal(net.model.enc["level1_aux_skip"].weight, weights["model.enc.4x4_aux_skip.weight"])


@pytest.mark.parametrize(("change", "message"), [
    ({"class_name": "VPrecond"}, "class_name='VPrecond'.*EDMPrecond"),
    ({"model_type": "UNet"}, "model_type='UNet'.*SongUNet"),
    ({"sigma_dat": 1, "beta_d": 2}, "VEPrecond of a SongUNet.*beta_d, sigma_dat"),
    ({"img_channels": None}, "img_channels=None"),
    ({"img_resolution": 8.5}, "img_resolution=8.5"),
    ({"sigma_max": "1"}, "sigma_max='1'"),
    ({"channel_mult": 2}, "channel_mult=2"),
    ({"channel_mult": ["a"]}, "channel_mult=.'a'.*"),
    ({"encoder_type": "sideways"}, "encoder='sideways'.*residual"),
    ({"model_type": ["SongUNet"]}, r"model_type=\['SongUNet'\]: wanted one of"),
    ({"class_name": ["VEPrecond"]}, r"class_name=\['VEPrecond'\]: wanted one of"),
    ({"img_resolution": 8.0}, "img_resolution=8.0: wanted"), ({"img_resolution": -8}, "img_resolution=-8: wanted"),
])
def test_unknown_configurations_are_refused(tiny, change, message):
    config, weights = tiny
    config = {"class_name": change.pop("class_name", config["class_name"]), "kwargs": {**config["kwargs"], **change}}
    with pytest.raises(ValueError, match=message):
        build_from_edm(config, weights)


def test_weights_that_do_not_fit_are_refused_by_name(tiny):
    config, weights = tiny
    key = "model.enc.8x8_block0.conv0.weight"
    for change, message in [
        ({"model.enc.8x8_block7.conv0.weight": weights[key]}, "left over: model.enc.8x8_block7.conv0.weight"),
        ({key: weights[key][:1]}, r"another shape: model.enc.8x8_block0.conv0.weight \[1, 4, 3, 3\] wanted \[4, 4, 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            build_from_edm(config, {**weights, **change})
    with pytest.raises(ValueError, match="missing: model.enc.8x8_block0.conv0.weight$"):
        build_from_edm(config, {k: v for k, v in weights.items() if k != key})
    with pytest.raises(ValueError, match="missing: model.dec.4x4_in0.conv1.bias, model.dec.8x8_up.norm0.weight, "
                                         "model.map_layer1.bias$"):
        gone = ("model.map_layer1.bias", "model.dec.4x4_in0.conv1.bias", "model.dec.8x8_up.norm0.weight")
        build_from_edm(config, {k: v for k, v in weights.items() if k not in gone})
    for part in ("class_name", "kwargs"):
        with pytest.raises(ValueError, match=f"config: no {part}; wanted class_name and kwargs"):
            build_from_edm({k: v for k, v in config.items() if k != part}, weights)
    with pytest.raises(ValueError, match="arguments missing: img_channels"):
        edm_network_node({"class_name": "VEPrecond", "kwargs": {"img_resolution": 8}})


# ---- from 2D to 3D ----


def flat_network(**arguments: object) -> tuple[dict, torch.nn.Module]:
    """Node and module of a small 2D network with random weights."""
    node = {"_target_": "networks.unet.SongUNet", "in_channels": 2, "out_channels": 1, "spatial_dims": 2,
            "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attention_levels": [1], **arguments}
    net = build_node(node).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return node, net


@pytest.mark.parametrize(("arguments", "depth"), [
    ({}, 6), ({"encoder": "residual", "decoder": "skip", "resample_filter": [1, 3, 3, 1], "strides": [[1, 2]]}, 5),
    ({"_target_": "networks.unet.ADMUNet", "channels_per_head": 4, "kernel_size": [[3, 5], 3]}, 4)])
def test_centre_inflation_gives_the_2d_result_in_every_slice_of_a_constant_volume(arguments, depth):
    node, flat = flat_network(**arguments)
    node3d, weights = inflate_weights({"_target_": "networks.precond.EDMPrecond", "model": node},
                                      {f"model.{k}": v for k, v in flat.state_dict().items()}, "centre")
    deep = build_node(node3d).eval()
    deep.load_state_dict(weights)
    x, noise = torch.randn(2, 2, 4, 8), torch.tensor([0.3, -1.0])
    wanted = flat(x, noise).unsqueeze(2).expand(-1, -1, depth, -1, -1)
    got = deep.model(x.unsqueeze(2).expand(-1, -1, depth, -1, -1), noise)
    assert wanted.std() > 0.1
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert "spatial_dims" in node and node["spatial_dims"] == 2  # the 2D node is left alone


@pytest.mark.parametrize(("mode", "away"), [("centre", 0), ("mean", 2)])
def test_an_inflated_convolution_of_a_constant_volume_is_the_2d_one_away_from_borders(mode, away):
    x, kernel = torch.randn(1, 2, 6, 6, dtype=torch.float64), torch.randn(3, 2, 5, 3, dtype=torch.float64)
    wanted = torch.nn.functional.conv2d(x, kernel, padding=(2, 1)).unsqueeze(2).expand(-1, -1, 8, -1, -1)
    inflated = inflate_kernel(kernel, mode)
    assert inflated.shape == (3, 2, 5, 5, 3)
    got = torch.nn.functional.conv3d(x.unsqueeze(2).expand(-1, -1, 8, -1, -1), inflated, padding=(2, 2, 1))
    torch.testing.assert_close(got[:, :, away:8 - away], wanted[:, :, away:8 - away])
    if mode == "mean":  # two of five slices of the kernel lie outside
        torch.testing.assert_close(got[:, :, 0], wanted[:, :, 0] * 3 / 5)
    changing = torch.randn(1, 2, 8, 6, 6, dtype=torch.float64)
    got = torch.nn.functional.conv3d(changing, inflated, padding=(2, 2, 1))[:, :, 3]
    by_slice = torch.nn.functional.conv2d(changing[:, :, 3], kernel, padding=(2, 1))
    assert torch.allclose(got, by_slice) == (mode == "centre")


def test_inflation_carries_strides_and_kernels_and_refuses_what_is_not_2d():
    node, flat = flat_network(strides=[[1, 2]], kernel_size=[3, [1, 3]], image_size=[4, 8])
    node3d, weights = inflate_weights(node, flat.state_dict(), "mean")
    assert node3d["strides"] == [[1, 1, 2]] and node3d["kernel_size"] == [3, [1, 1, 3]]
    assert node3d["image_size"] == [4, 4, 8] and node3d["spatial_dims"] == 3
    assert isinstance(build_node(node3d), SongUNet) and not isinstance(build_node(node3d), ADMUNet)
    assert weights["enc.level1_block0.conv0.weight"].shape == (16, 8, 1, 1, 3)
    assert weights["map_layer0.weight"].data_ptr() != flat.map_layer0.weight.data_ptr()
    with pytest.raises(ValueError, match="spatial_dims=3"):
        inflate_weights(node3d, weights)
    with pytest.raises(ValueError, match="mode='center'.*centre, mean"):
        inflate_weights(node, flat.state_dict(), "center")
