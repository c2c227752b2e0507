"""Networks that are told attributes, a semantic map and images: by hand, by image, and against what they replace."""

from math import nan, sqrt
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from edm3d.formats.facts import AttributeStatistics, Facts, LatentScaling
from edm3d.inference.snapshot import CarriedStage, Snapshot
from edm3d.networks.attribute_embedding import AttributeTokens, CrossAttention
from edm3d.networks.codecs import fold
from edm3d.networks.conditioning import Condition, Part, blank, takes_of
from edm3d.networks.grids import fold_map, image_channels, nearest_map
from edm3d.networks.precond import EDMPrecond
from edm3d.networks.spade import MapFeatures, modulate, modulation
from edm3d.networks.unet import ADMUNet, SongUNet
from edm3d.samplers.noise import ImageGenerators
from edm3d.training.plan import imagined_batch
from edm3d.training.tasks.base import PlannedData, fill_network
from edm3d.training.tasks.diffusion import check_conditions, drop_parts, tell_only
from edm3d.utils.config import build
from edm3d.utils.precision import autocast
from edm3d.utils.sharding import checkpoint_blocks
from tests.test_networks import randomise

SMALL = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attention_levels": [1],
         "channels_per_head": None, "dropout": 0}
ALL = {"label_dim": 2, "attribute_dim": 3, "attribute_mean": [10.0, 0.0, -1.0], "attribute_std": [5.0, 1.0, 0.1],
       "semantic_dim": 2, "semantic_hidden": 4, "image_dim": 1}
GRIDS = {1: ((8,), (2,), [[2]]), 2: ((4, 6), (1, 2), [[1, 2]]), 3: ((2, 4, 4), (3, 1, 2), [[1, 2, 2]])}


def network(family: type = ADMUNet, dims: int = 2, **keys: object) -> torch.nn.Module:
    """A small network with random weights everywhere that takes all parts, on an uneven grid."""
    torch.manual_seed(0)
    _, factor, strides = GRIDS[dims]
    return randomise(family(1, 1, dims, **{**SMALL, "strides": strides, "grid_factor": list(factor), **ALL, **keys}))


def told(dims: int = 2, images: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, Condition]:
    """x [N,1,*s], sigma [N] and a condition of random values on the full grid, some attributes missing."""
    g = torch.Generator().manual_seed(seed)
    size, factor, _ = GRIDS[dims]
    full = [s * f for s, f in zip(size, factor)]
    attributes = torch.randn(images, 3, generator=g) * torch.tensor(ALL["attribute_std"])
    attributes[0, 1] = attributes[-1, :] = nan
    return torch.randn(images, 1, *size, generator=g), torch.rand(images, generator=g) + 0.5, Condition(
        class_labels=torch.eye(2)[torch.arange(images) % 2], attributes=attributes,
        semantic=torch.randint(3, (images, *full), generator=g, dtype=torch.int16),
        images=torch.randn(images, 1, *full, generator=g))


def moved(a: torch.Tensor, b: torch.Tensor) -> list[bool]:
    """Which images are apart by more than rounding."""
    return ((a - b).flatten(1).abs().amax(1) > 1e-5 * a.abs().amax()).tolist()


EVERY = pytest.mark.parametrize(("family", "keys"), [
    (ADMUNet, {}), (SongUNet, {"encoder": "residual", "decoder": "skip", "attribute_mode": "tokens"}),
    (ADMUNet, {"attribute_mode": "tokens", "semantic_grid": "nearest", "semantic_everywhere": True,
               "image_grid": "mean"}),
    (SongUNet, {"encoder": "skip", "semantic_everywhere": True, "self_condition": True})])


# ---- onto the network's grid ----


def test_folding_keeps_every_voxel_of_a_map_and_says_the_shares_of_its_cell():
    semantic = torch.tensor([[[0, 1, 2, 2], [1, 1, 2, 0], [2, 2, 2, 2]]])  # cells of 3 x 2 voxels
    shares, voxels = fold_map(semantic, 3, (3, 2), torch.float32)
    np.testing.assert_allclose(shares[0].numpy(), np.array([[1, 3, 2], [1, 0, 5]]) / 6, rtol=1e-6)
    assert voxels.shape == (1, 2, 3, 6) and (voxels.sum(2) == 1).all()
    assert voxels.argmax(2)[0].tolist() == [[0, 1, 1, 1, 2, 2], [2, 2, 2, 0, 2, 2]]


def test_cells_of_one_voxel_are_not_told_twice():
    assert MapFeatures(1, 2, 5, "fold", (1,), [], [(3,)]).levels[0].weight.shape == (5, 3, 3)
    assert image_channels(torch.ones(1, 2, 3), (3,), True, torch.float32).shape == (1, 3, 3)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_folding_goes_back_to_the_volume(dims):
    size, factor, _ = GRIDS[dims]
    full = [s * f for s, f in zip(size, factor)]
    x = torch.randn(2, 3, *full)
    cells = fold(x, factor)
    for place in np.ndindex(*full):
        cell, voxel = zip(*(divmod(p, f) for p, f in zip(place, factor)))
        assert torch.equal(cells[(..., np.ravel_multi_index(voxel, factor), *cell)], x[(..., *place)])


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_nearest_is_that_of_interpolate(dims):
    size, factor, _ = GRIDS[dims]
    semantic = told(dims)[2].semantic
    wanted = interpolate(semantic[:, None].float(), size, mode="nearest")[:, 0]
    assert torch.equal(nearest_map(semantic, 3, factor, torch.float32).argmax(1), wanted.long())


def test_images_come_as_means_voxels_and_whether_there_are_any():
    images = torch.tensor([[[1.0, 3, -2, 2]], [[0, 0, 0, 0]]])
    mean = image_channels(images, (2,), False, torch.float32)
    assert mean.tolist() == [[[2, 0], [1, 1]], [[0, 0], [0, 0]]]
    folded = image_channels(images, (2,), True, torch.float32)
    assert folded[0].tolist() == [[2, 0], [1, -2], [3, 2], [1, 1]] and not folded[1].any()
    assert image_channels(images[..., :2], (2,), False, torch.float32).tolist() == [[[1, 3], [1, 1]], [[0, 0], [0, 0]]]


# ---- layers ----


def test_spade_by_hand():
    features = MapFeatures(1, 1, 1, "fold", (1,), [(2,)], [(3,), (1,)])  # classes 0, and 1 for none known
    with torch.no_grad():
        features.levels[0].weight.copy_(torch.tensor([[[1.0, 2, 4], [0, -8, 0]]]))
        features.levels[0].bias.fill_(0.5)
        features.levels[1].weight.copy_(torch.tensor([[[2.0], [-1]]]))
        features.levels[1].bias.zero_()
    level0, level1 = features(torch.tensor([[0, 0, 1, 0]]), torch.float32)
    assert level0[0, 0].tolist() == [2 + 4 + 0.5, 1 + 2 + 0.5, 0, 2 + 0.5]  # 1 - 8 + 4 + 0.5 < 0
    assert level1[0, 0].tolist() == [2, 0.5]  # shares 1 and 0, then half and half
    layer, x = modulation(1, 1, 2), torch.tensor([[[1.0, 2], [3, 4]]])
    assert torch.equal(modulate(x, layer, level1), x)  # zeros at the start
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 2, 3, 4]).reshape(4, 1, 1))
        layer.bias.copy_(torch.tensor([0.0, 0, 0.5, 0]))
    wanted = [[1 * (1 + 2) + 6.5, 2 * (1 + 0.5) + 2], [3 * (1 + 4) + 8, 4 * (1 + 1) + 2]]
    assert modulate(x, layer, level1)[0].tolist() == wanted


def test_many_folded_channels_are_brought_down_to_the_hidden_width_first():
    features = MapFeatures(2, 2, 4, "fold", (2, 3), [(2, 2)], [(3, 3), (1, 1)])
    assert features.from_voxels.weight.shape == (4, 18) and features.levels[1].weight.shape == (4, 4, 1, 1)
    semantic = torch.randint(3, (2, 8, 12))
    shares, voxels = fold_map(semantic, 3, (2, 3), torch.float32)
    inner = features.from_shares(shares) + features.from_voxels(voxels.flatten(2))
    wanted = features.levels[1](torch.nn.functional.avg_pool2d(inner.transpose(1, 2).reshape(2, 4, 4, 4), 2))
    torch.testing.assert_close(features(semantic, torch.float32)[1], torch.relu(wanted))


def test_few_folded_channels_are_convolved_as_they_are():
    features = MapFeatures(1, 2, 9, "fold", (2,), [], [(1,)])
    semantic = torch.tensor([[0, 1, 2, 2]])
    channels = torch.tensor([[0.5, 0.5, 0, 1, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0, 0, 1, 1]])
    torch.testing.assert_close(features(semantic, torch.float32)[0], torch.relu(features.levels[0](channels.T[None])))


def test_deeper_levels_see_the_nearest_voxels_of_the_full_map():
    features = MapFeatures(1, 2, 3, "nearest", (2,), [(2,)], [(1,), (1,)])
    semantic = torch.tensor([[0, 1, 2, 2, 1, 0, 0, 0]])
    wanted = torch.nn.functional.one_hot(torch.tensor([[0, 1]]), 3).transpose(1, 2).float()
    torch.testing.assert_close(features(semantic, torch.float32)[1], torch.relu(features.levels[1](wanted)))


def test_attributes_are_normalised_and_missing_ones_have_a_token_of_their_own():
    tokens = AttributeTokens(2, 4, [10, 0], [5, 1])
    with torch.no_grad():
        tokens.out.weight.copy_(torch.eye(4))
        tokens.out.bias.zero_()
    got = tokens(torch.tensor([[20.0, nan]]))[0]
    silu = torch.nn.functional.silu
    torch.testing.assert_close(got[0], silu(tokens.names.weight[0] + 2 * tokens.directions.weight[0]))
    torch.testing.assert_close(got[1], silu(tokens.names.weight[3]))
    assert set(tokens.state_dict()) == {"names.weight", "directions.weight", "out.weight", "out.bias"}


def test_cross_attention_adds_the_mean_of_values_by_the_softmax_of_queries_and_keys():
    cross = randomise(CrossAttention(1, 4, 3, 2))
    x, tokens = torch.randn(2, 4, 5), torch.randn(2, 6, 3)
    q = cross.query(cross.norm(x))
    k, v = cross.key_value(tokens).chunk(2, dim=2)
    found = torch.empty_like(x)
    for head in (slice(0, 2), slice(2, 4)):
        weights = (torch.einsum("ncp,ntc->npt", q[:, head], k[..., head]) / sqrt(2)).softmax(-1)
        found[:, head] = torch.einsum("npt,ntc->ncp", weights, v[..., head])
    torch.testing.assert_close(cross(x, tokens), x + cross.proj(found))
    torch.testing.assert_close(cross(x, tokens.flip(1)), cross(x, tokens))  # tokens have no order


# ---- whole networks ----


@EVERY
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_each_part_of_an_image_changes_its_own_output_only(family, keys, dims):
    net, (x, sigma, condition) = network(family, dims, **keys), told(dims)
    out, other = net(x, sigma, condition), told(dims, seed=1)[2]
    assert out.shape == x.shape and out.isfinite().all()
    for name in condition:
        value = condition[name].clone()
        value[1] = 1 - value[1] if name == "class_labels" else other[name][1]
        assert moved(out, net(x, sigma, condition.replace(**{name: value}))) == [False, True, False], name


@EVERY
def test_a_missing_part_is_its_null(family, keys):
    net, (x, sigma, condition) = network(family, **keys), told()
    for name, part in net.takes.items():
        if name != "class_labels":
            null, out = condition.null(name, part.width), net(x, sigma, condition.replace(**{name: None}))
            assert torch.equal(out, net(x, sigma, null)) and any(moved(out, net(x, sigma, condition)))
            one = null.replace(**{name: null[name][:1]})
            torch.testing.assert_close(net(x, sigma, one), out)
    assert torch.equal(net(x, sigma, condition.only(["class_labels"])), net(
        x, sigma, blank(net.takes, condition.semantic.shape[1:], 3).replace(**{
            "class_labels": condition.class_labels, "attributes": torch.full((3, 3), nan),
            "semantic": torch.full_like(condition.semantic, 2)})))


@EVERY
def test_gradients_reach_every_weight(family, keys):
    net, (x, sigma, condition) = network(family, **keys), told()
    net(x, sigma, condition).square().sum().backward()
    for name, weight in net.named_parameters():
        assert weight.grad is not None and weight.grad.abs().max() > 0, name


@pytest.mark.parametrize("family", [ADMUNet, SongUNet])
@pytest.mark.parametrize("mode", ["embedding", "tokens"])
def test_fresh_networks_are_not_told_by_map_or_tokens_yet(family, mode):
    torch.manual_seed(0)
    net = family(1, 1, 2, **{**SMALL, **ALL, "grid_factor": [1, 2], "attribute_mode": mode, "label_dim": 0}).eval()
    for name, weight in net.named_parameters():  # all zeros but those of what is new
        if not weight.any() and "spade" not in name and "cross" not in name:
            torch.nn.init.normal_(weight)
    x, sigma, condition = told()
    condition = condition.replace(class_labels=None)
    out, other = net(x, sigma, condition), told(seed=1)[2]
    assert torch.equal(out, net(x, sigma, condition.replace(semantic=other.semantic)))
    assert torch.equal(out, net(x, sigma, condition.replace(attributes=other.attributes))) == (mode == "tokens")
    assert any(moved(out, net(x, sigma, condition.replace(images=other.images))))


@pytest.mark.parametrize("family", [ADMUNet, SongUNet])
def test_networks_that_are_told_nothing_have_the_weights_that_they_had(family):
    torch.manual_seed(0)
    net = family(1, 1, 2, **SMALL)
    torch.manual_seed(0)
    same = family(1, 1, 2, **SMALL, attribute_mode="tokens", semantic_hidden=3, semantic_everywhere=True, grid_factor=4)
    assert not [name for name in net.state_dict() if any(word in name for word in ("spade", "cross", "attr", "feat"))]
    for (name, weight), (other, value) in zip(net.state_dict().items(), same.state_dict().items(), strict=True):
        assert name == other and torch.equal(weight, value)
    assert net.takes == same.takes == {}


def test_the_encoder_sees_the_map_only_if_asked():
    for everywhere in (False, True):
        net = network(semantic_everywhere=everywhere)
        assert all((block.spade0 is not None) == everywhere for name, block in net.enc.items() if "conv" not in name)
        assert all(block.spade0 is not None and (block.spade2 is not None) == (block.heads > 0)
                   for block in net.dec.values())
    blocks = [*net.enc.values(), *net.dec.values()]
    attending = [block for block in network(attribute_mode="tokens").modules() if getattr(block, "heads", 0)]
    assert len(blocks) > 3 and sum(hasattr(block, "qkv") and block.cross is not None for block in attending) == 4


def test_values_of_missing_attributes_are_not_seen_and_means_follow_the_units():
    net, (x, sigma, condition) = network(), told()
    scaled = network(attribute_mean=[20.0, 0.0, -1.0], attribute_std=[10.0, 1.0, 0.1])
    twice = condition.attributes * torch.tensor([2, 1, 1])
    torch.testing.assert_close(scaled(x, sigma, condition.replace(attributes=twice)), net(x, sigma, condition))


@EVERY
def test_precision_layout_and_checkpointing_serve_conditions(family, keys):
    net, (x, sigma, condition) = network(family, **keys), told()
    out = net(x, sigma, condition)
    for change in (lambda: net.to(memory_format=torch.channels_last), lambda: checkpoint_blocks(net)):
        change()
        again = net(x, sigma, condition)
        torch.testing.assert_close(again, out, rtol=1e-4, atol=1e-4)
    again.sum().backward()
    with autocast("bf16", torch.device("cpu")):
        rough = net(x, sigma, condition)
    assert (rough - out).abs().mean() < 0.1 * out.abs().mean()
    assert EDMPrecond(net.to("meta"))(x.to("meta"), sigma.to("meta"), condition.to("meta")).shape == x.shape


@pytest.mark.slow
@EVERY
def test_conditioned_networks_compile_into_one_graph(family, keys):
    net, (x, sigma, condition) = EDMPrecond(network(family, **keys)), told()
    torch.compiler.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, sigma, condition), net(x, sigma, condition))
    torch.compiler.reset()


# ---- what is refused ----


@pytest.mark.parametrize(("keys", "message"), [
    ({"semantic_dim": 257}, "semantic_dim=257: maps are uint8 in all files, so that there are 256 classes at most"),
    ({"semantic_dim": "auto"}, "semantic_dim='auto': training finds the width in its data"),
    ({"attribute_dim": -1}, "attribute_dim=-1: wanted a whole number of 0"),
    ({"attribute_dim": 2}, r"attribute_mean=\[10.0, 0.0, -1.0\]: wanted 2 numbers, as attribute_dim is 2"),
    ({"attribute_std": [1, 0, 1]}, r"attribute_std\[1\]=0: wanted more than 0"),
    ({"attribute_mode": "token"}, "attribute_mode='token': wanted one of embedding, tokens"),
    ({"attribute_gaps": 1}, "attribute_gaps=1: wanted a probability"),
    ({"attribute_dim": 0, "attribute_gaps": 0.1}, "attribute_gaps=0.1: there is no attribute to hide"),
    ({"semantic_dim": 0, "semantic_dropout": 0.1}, "semantic_dropout=0.1: there is no semantic map to drop"),
    ({"image_dropout": 1}, "image_dropout=1: wanted a probability"),
    ({"semantic_grid": "linear"}, "semantic_grid='linear': wanted one of fold, nearest"),
    ({"image_grid": "nearest"}, "image_grid='nearest': wanted one of fold, mean"),
    ({"semantic_hidden": 0}, "semantic_hidden=0"), ({"grid_factor": [1, 0]}, r"grid_factor=\[1, 0\]"),
])
def test_arguments_that_make_no_sense_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        ADMUNet(1, 1, 2, **{**SMALL, "strides": [[1, 2]], **ALL, **keys})


@pytest.mark.parametrize(("part", "change", "message"), [
    ("semantic", lambda v: v[:, :, ::2], r"semantic map of \[4, 6\], wanted \[4, 12\]: grid_factor=\[1, 2\] times the "
                                         r"network's \[4, 6\]"),
    ("semantic", lambda v: v + 1, "map of classes 1 to 3, wanted 0 to 1, as semantic_dim is 2, and 2 for none known"),
    ("semantic", lambda v: v - 1, "map of classes -1 to 1"), ("semantic", lambda v: v.float(), "whole numbers"),
    ("semantic", lambda v: v[:2], "2 rows of the condition 'semantic' for 3 images"),
    ("attributes", lambda v: v[:, :2], r"attributes of shape \(3, 2\), wanted \(3, 3\), as attribute_dim is 3"),
    ("images", lambda v: v.expand(-1, 2, -1, -1), "wanted 1 channels, as image_dim is"),
    ("images", lambda v: v[..., ::2], r"images of \[4, 6\], wanted \[4, 12\].*image_grid=fold needs the voxels"),
    ("images", lambda v: v[..., :3], r"images of \[4, 3\], wanted \[4, 12\]"),
])
def test_conditions_that_do_not_fit_are_refused(part, change, message):
    net, (x, sigma, condition) = network(), told()
    with pytest.raises(ValueError, match=f"ADMUNet: got .*{message}"):
        net(x, sigma, condition.replace(**{part: change(condition[part])}))


def test_images_on_the_networks_grid_are_their_own_means():
    net, (x, sigma, condition) = network(image_grid="mean"), told()
    small = condition.images.unflatten(-1, (-1, 2)).mean(-1)
    torch.testing.assert_close(net(x, sigma, condition.replace(images=small)), net(x, sigma, condition))


# ---- training ----


FACTS = Facts("v.h5", "", label_classes=("air", "wall"), class_names=("ED", "ES"), spatial_shape=(16, 24),
              condition_channels=("low",), attribute_names=("age", "ef"),
              attribute_statistics=AttributeStatistics([50.0, 0.5], [9.0, 0.1], [1, 0], [99, 1], [0, 3]))
AUTO = {"label_dim": "auto", "attribute_dim": "auto", "semantic_dim": "auto", "image_dim": "auto"}


def node(**keys: object) -> dict:
    """A training half with a network alone."""
    model = {"_target_": "networks.unet.ADMUNet", **SMALL, **keys}
    return {"network": {"_target_": "networks.precond.EDMPrecond", "model": model}}


def test_the_data_say_how_wide_the_parts_are_and_how_many_voxels_a_cell_has():
    latents = Facts.from_plain({**FACTS.plain(), "latents": "l.h5", "latents_hash": ""}, "")
    data = PlannedData((4, 8, 6), latents, {})
    model = fill_network(node(**AUTO), data)["model"]
    assert [model[key] for key in AUTO] == [2, 2, 2, 1]
    assert model["attribute_mean"] == [50.0, 0.5] and model["attribute_std"] == [9.0, 0.1]
    assert model["grid_factor"] == [2, 4]
    larger = data.resized((4, 16, 12))
    assert larger.shape == (4, 16, 12) and fill_network(node(**AUTO), larger)["model"]["grid_factor"] == [2, 4]
    assert "grid_factor" not in fill_network(node(label_dim=2), data)["model"]
    given = fill_network(node(attribute_dim=2, attribute_mean=[0, 0], semantic_dim=3, grid_factor=1), data)["model"]
    assert (given["attribute_mean"], given["semantic_dim"], given["grid_factor"]) == ([0, 0], 3, 1)
    for size in ((16, 24), (32, 48)):  # as they are, or as a plan resizes them
        assert fill_network(node(**AUTO), PlannedData((1, *size), FACTS, {}))["model"]["grid_factor"] == [1, 1]
    stage = fill_network(node(**AUTO), PlannedData((1, 16, 24), FACTS, {}), shape=(4, 8, 8))  # encoded on the fly
    assert stage["model"]["grid_factor"] == [2, 3] and stage["model"]["in_channels"] == 4


@pytest.mark.parametrize(("key", "shape", "facts", "message"), [
    ("semantic_dim", (4, 7, 6), FACTS, r"grid_factor: l\.h5 has volumes of \[16, 24\], the network sees \[7, 6\]"),
    ("image_dim", (4, 7, 6), Facts("v.h5", "", condition_channels=("a",)), "does not say how large its volumes are"),
    ("attribute_dim", (4, 8, 6), Facts("v.h5", ""), r"model\.attribute_dim=auto: l\.h5 names no attributes; choose"),
    ("label_dim", (4, 8, 6), Facts("v.h5", ""), r"model\.label_dim=auto: l\.h5 names no classes"),
])
def test_data_that_do_not_say_what_is_asked_of_them_are_refused(key, shape, facts, message):
    facts = Facts.from_plain({**facts.plain(), "latents": "l.h5", "latents_hash": ""}, "")
    with pytest.raises(ValueError, match=message):
        fill_network(node(**{key: "auto"}), PlannedData(shape, facts, {}))


def test_a_plan_without_data_is_told_the_number_of_classes():
    with pytest.raises(ValueError, match="names no map classes; say how many classes maps have by --classes, or write"):
        fill_network(node(semantic_dim="auto"), PlannedData((4, 8, 8), Facts("", ""), {}))


def test_a_plan_imagines_maps_and_images_at_full_size():
    net = EDMPrecond(network(label_dim=0))
    assert net.grid_factor == (1, 2)
    task = SimpleNamespace(net=net, snapshot=SimpleNamespace(facts=Facts("", "")))
    batch = imagined_batch(task, (1, 4, 6), 2)
    assert batch.condition.semantic.shape == (2, 4, 12) and batch.condition.images.shape == (2, 1, 4, 12)
    assert batch.condition.semantic.dtype == torch.int16
    assert net(batch.images, 1.0, batch.condition).shape == (2, 1, 4, 6)


def test_a_snapshot_tries_its_network_on_maps_of_its_volumes():
    filled = fill_network(node(**AUTO), PlannedData((1, 16, 24), FACTS, {}))
    with torch.device("meta"):
        net = build(filled)
        Snapshot("diffusion", filled, FACTS, (1, 16, 24)).try_network(net)
        latents = CarriedStage(LatentScaling([0.0], [1.0]))
        with pytest.raises(ValueError, match=r"semantic map of \[16, 24\], wanted \[8, 24\]"):
            Snapshot("diffusion", filled, FACTS, (1, 8, 24), latents).try_network(net)


def test_gaps_hide_single_values_by_each_images_own_generator():
    takes = network(attribute_gaps=0.3, attribute_dropout=0.2).takes
    assert takes["attributes"] == Part(3, 0.2, 0.3)
    keys = list(range(2000))
    condition = Condition(attributes=torch.ones(len(keys), 3))
    hidden = drop_parts(condition, {"attributes": Part(3, 0.2, 0.3)}, ImageGenerators(keys)).attributes.isnan()
    assert hidden.all(1).float().mean() == pytest.approx(0.2 + 0.8 * 0.3 ** 3, abs=0.03)
    single = drop_parts(condition, {"attributes": Part(3, 0, 0.3)}, ImageGenerators(keys)).attributes.isnan()
    assert single.float().mean(0).tolist() == pytest.approx([0.3] * 3, abs=0.04)
    some = drop_parts(Condition(attributes=torch.ones(2, 3)), {"attributes": Part(3, 0, 0.3)}, ImageGenerators([7, 3]))
    assert torch.equal(some.attributes.isnan(), single[[7, 3]])


def test_a_part_that_no_item_has_is_refused():
    net = EDMPrecond(network(label_dim=0, attribute_dim=0, attribute_mean=None, attribute_std=None, semantic_dim=0))
    facts = Facts("v.h5", "")
    check_conditions(net, facts, Condition(images=np.zeros((1, 4, 4))))
    with pytest.raises(ValueError, match=r"model\.image_dim=1: v\.h5 holds no condition channels; wanted 0, or data"):
        check_conditions(net, facts, Condition())


def test_data_sets_read_no_more_than_the_network_takes():
    dataset = SimpleNamespace(conditions=SimpleNamespace(told=None), cache={0: "an item with all parts"})
    tell_only({"attributes": Part(3)}, dataset, SimpleNamespace())
    assert dataset.conditions.told == {"attributes": Part(3)} and dataset.cache == {}


def test_takes_pass_through_preconditioners_with_the_shares_that_each_part_is_dropped():
    net = EDMPrecond(network(semantic_dropout=0.1, image_dropout=0.2, attribute_gaps=0.3), label_dropout=0.4)
    assert takes_of(net) == {"class_labels": Part(2, 0.4), "attributes": Part(3, 0, 0.3), "semantic": Part(2, 0.1),
                             "images": Part(1, 0.2)}
