"""Networks in tiles against the whole: one call, whole runs of samplers, and what is refused."""

from functools import partial

import pytest
import torch

from edm3d.networks.conditioning import Condition
from edm3d.networks.precond import EDMPrecond
from edm3d.networks.unet import ADMUNet, SongUNet
from edm3d.samplers import Calls, Guided, ImageGenerators, ShownItsEstimate, Tiled, edm_sampler, multistep_sampler
from edm3d.samplers.tiled import cuts
from tests.test_networks import randomise
from tests.test_reach import LOCAL, SMOOTH

SEEN = {"image_dim": 1, "semantic_dim": 2, "semantic_hidden": 4, "label_dim": 2, "attribute_dim": 1}
CASES = [  # a network, steps of its factor that a tile keeps, and those that a volume has beyond tiles, per axis
    (ADMUNet, (2, 1), (5, 2), {"channel_mult": [1], "codec": "fold"}),
    (ADMUNet, (3,), (7,), {"channel_mult": [1], "kernel_size": 5}),
    (ADMUNet, (2, 3), (3, 4), {"channel_mult": [1, 1], "strides": [[2, 1]], "kernel_size": [3, [3, 1]]}),
    (SongUNet, (1, 2), (3, 3), {"channel_mult": [1, 1], "codec": "fold", "encoder": "residual",
                                "kernel_size": [[1, 3], [3, 1]], "resample_filter": SMOOTH}),
    (SongUNet, (3, 1, 2), (0, 3, 1), {"channel_mult": [1, 1], "strides": [[1, 2, 2]], "decoder": "skip",
                                      "kernel_size": [1, [3, 1, 1]], "encoder": "skip"}),
    (ADMUNet, (2, 3, 4), (3, 0, 1), {"channel_mult": [1, 1], "strides": [[1, 1, 2]], "codec": "haar",
                                     "kernel_size": [1, [1, 3, 1]], "grid_factor": [1, 2, 1],
                                     "semantic_everywhere": True}),
    (ADMUNet, (2, 2), (5, 3), {"channel_mult": [1, 1], "kernel_size": [1, [3, 1]], "grid_factor": 2,
                               "image_grid": "mean", "semantic_grid": "nearest", "self_condition": True}),
]


class Counted(torch.nn.Module):
    """A network that keeps the sizes it was called with."""

    def __init__(self, net: torch.nn.Module):
        super().__init__()
        self.net, self.sizes = net, []

    def __getattr__(self, name: str) -> object:
        return super().__getattr__(name) if name in ("net", "sizes", "_modules") else getattr(self.net, name)

    def forward(self, x: torch.Tensor, *told: object) -> torch.Tensor:
        self.sizes.append(tuple(x.shape[2:]))
        return self.net(x, *told)


def denoiser(dims: int, family: type = ADMUNet, dtype: torch.dtype = torch.float32, **keys: object) -> EDMPrecond:
    """A small network that may be tiled, with random weights everywhere, large enough to count beside x."""
    seen = {**SEEN, "attribute_mean": [0.0], "attribute_std": [1.0]} if keys.pop("told", True) else {}
    net = randomise(family(1, 1, dims, **{**LOCAL, **seen, **keys})).to(dtype)
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(3)
    return EDMPrecond(net)


def room(net: torch.nn.Module, kept: tuple[int, ...]) -> tuple[int, ...]:
    """The size of a tile of which so many steps of the factor are kept between its halos."""
    return tuple((2 * -(-field // f) + k) * f for field, f, k in zip(net.receptive_field, net.factor, kept))


def example(net: EDMPrecond, size: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple:
    """x [2,1,*S], sigma [2] and a condition with all parts, of two images."""
    g = torch.Generator().manual_seed(1)
    full = [s * f for s, f in zip(size, net.grid_factor)]
    return torch.randn(2, 1, *size, generator=g, dtype=dtype), torch.tensor([0.4, 2.0], dtype=dtype), Condition(
        class_labels=torch.eye(2), attributes=torch.randn(2, 1, generator=g),
        semantic=torch.randint(3, (2, *full), generator=g, dtype=torch.int16),
        images=torch.randn(2, 1, *full, generator=g))


@pytest.mark.parametrize(("family", "kept", "more", "keys"), CASES)
@torch.no_grad()
def test_tiles_give_what_the_whole_gives(family, kept, more, keys):
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
        net = Counted(denoiser(len(kept), family, dtype, **keys))
        tile = room(net, kept)
        size = tuple(t + m * f for t, m, f in zip(tile, more, net.factor))
        told = example(net, size, dtype)
        told = (*told, None, torch.randn_like(told[0])) if net.self_condition else told
        whole, tiled = net(*told), Tiled(net, tile)(*told)
        assert len(net.sizes) > 2 and {*net.sizes[1:]} == {tile}
        assert (tiled - whole).abs().max() <= tolerance * whole.abs().max()


@torch.no_grad()
def test_halos_that_are_a_step_too_narrow_show():
    net = denoiser(2, channel_mult=[1, 1], kernel_size=1, encoder="skip", family=SongUNet, resample_filter=SMOOTH)
    told = example(net, (24, 24))
    whole, tiled = net(*told), Tiled(net, (14, 14))
    for halo, same in ((tiled.halo, True), (tuple(h - f for h, f in zip(tiled.halo, tiled.factor)), False)):
        tiled.halo = halo
        assert ((tiled(*told) - whole).abs().max() <= 1e-5 * whole.abs().max()) == same, halo


def test_an_axis_is_cut_into_tiles_of_one_size_whose_kept_parts_are_all_of_it():
    assert cuts(10, 10, 4) == cuts(10, 12, 4) and len(cuts(10, 12, 4)) == 1
    for size, tile, halo in ((20, 10, 4), (21, 10, 3), (11, 10, 4), (40, 12, 4), (9, 3, 1)):
        pieces = cuts(size, tile, halo)
        assert [v for p in pieces for v in range(size)[p.kept]] == list(range(size))
        for piece in pieces:
            assert piece.shown.stop - piece.shown.start == tile and 0 <= piece.shown.start <= piece.shown.stop <= size
            assert piece.shown.start == 0 or piece.kept.start - piece.shown.start >= halo
            assert piece.shown.stop == size or piece.shown.stop - piece.kept.stop >= halo
            assert range(size)[piece.shown][piece.inner] == range(size)[piece.kept]
    assert len(cuts(20, 10, 4)) == 6 and len(cuts(12, 10, 4)) == 2


@torch.no_grad()
def test_what_fits_in_one_tile_is_one_call_with_what_was_given():
    net = Counted(denoiser(2, channel_mult=[1], codec="fold"))
    x, sigma, condition = example(net, (12, 8))
    assert torch.equal(Tiled(net, (13, 8))(x, sigma, condition), net(x, sigma, condition))
    assert net.sizes == [(12, 8)] * 2


@torch.no_grad()
def test_an_image_that_is_there_is_there_in_tiles_where_it_is_nought():
    net = denoiser(1, channel_mult=[1], kernel_size=1, image_dim=1)
    x, sigma, condition = example(net, (24,))
    images = condition.images.clone()
    images[0], images[1, :, 3:] = 0, 0
    told = condition.replace(images=images)
    whole = net(x, sigma, told)
    assert (Tiled(net, (6,))(x, sigma, told) - whole).abs().max() <= 1e-6 * whole.abs().max()
    assert torch.equal(images, told.images)  # they stay as they are


@torch.no_grad()
def test_images_may_lie_on_the_grid_of_x_where_their_means_are_taken():
    net = denoiser(2, channel_mult=[1], kernel_size=1, grid_factor=2, image_grid="mean", codec="haar")
    x, sigma, condition = example(net, (12, 8))
    small = condition.replace(images=condition.images[..., ::2, ::2])
    torch.testing.assert_close(Tiled(net, (6, 6))(x, sigma, small), net(x, sigma, small), rtol=1e-5, atol=1e-5)


SAMPLERS = [partial(edm_sampler, num_steps=5, S_churn=3), partial(multistep_sampler, num_steps=6, order=3)]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("codec", ["none", "fold"])
def test_runs_of_samplers_agree(sampler, codec):
    for dtype, tolerance in ((torch.float32, 1e-3), (torch.float64, 1e-11)):
        net = denoiser(2, channel_mult=[1, 1], kernel_size=[1, [1, 3]], dtype=dtype, codec=codec)
        tile, ends = room(net, (1, 3)), []
        size = tuple(t + f for t, f in zip(tile, net.factor))
        _, _, condition = example(net, size)
        for one in (net, Tiled(net, tile)):
            noise = ImageGenerators([3, 4])
            ends.append(sampler(one, noise.randn([1, *size]), condition=condition, randn_like=noise.randn_like))
        assert (ends[0] - ends[1]).abs().max() <= tolerance * ends[0].abs().max()


def test_guidance_and_estimates_go_around_tiles():
    net = denoiser(2, channel_mult=[1], kernel_size=[[3, 1]], semantic_dropout=0.1, image_dropout=0.1)
    _, _, condition = example(net, (40, 6))
    for together in (False, True):
        run = [edm_sampler(Guided(one, strength=2, calls=Calls(together)), ImageGenerators([1, 2]).randn([1, 40, 6]),
                           condition=condition, num_steps=3) for one in (net, Tiled(net, (30, 6)))]
        assert (run[0] - run[1]).abs().max() <= 1e-3 * run[0].abs().max()
    net = denoiser(2, channel_mult=[1], kernel_size=[[3, 1]], self_condition=True, told=False)
    assert Tiled(net, (30, 6)).self_condition
    run = [multistep_sampler(ShownItsEstimate(one), ImageGenerators([1, 2]).randn([1, 40, 6]), num_steps=3)
           for one in (net, Tiled(net, (30, 6)))]
    assert (run[0] - run[1]).abs().max() <= 1e-3 * run[0].abs().max()


# ---- what is refused ----


@pytest.mark.parametrize("keys", [{"norm": "group"}, {"bottleneck_attention": True, "channels_per_head": 4}])
def test_networks_that_see_everything_are_refused(keys):
    net = denoiser(2, channel_mult=[1], **keys)
    with pytest.raises(ValueError, match=r"tiles: the network sees all of a volume at once, by attention or by norms "
                                         r"over.*norm=voxel, attention_levels=\[\] and bottleneck_attention=false"):
        Tiled(net, (8, 8))
    with pytest.raises(ValueError, match="or does not say how far"):
        Tiled(torch.nn.Identity(), (8, 8))


def test_tiles_that_leave_nothing_within_their_halos_are_refused_with_the_smallest_that_do():
    net = denoiser(2, channel_mult=[1, 1], kernel_size=[1, [3, 1]], strides=[[1, 2]])
    assert net.receptive_field == (12, 1)
    x = torch.zeros(1, 1, 40, 8)
    with pytest.raises(ValueError, match=r"tile=\[24, 6\]: the network sees \[12, 2\] voxels to each side \(as "
                                         r"multiples of \[1, 2\].*to be \[25, 6\] or larger for a volume of \[40, 8\]"):
        Tiled(net, [24, 6])(x, 1.0)
    assert Tiled(net, [25, 6])(x, 1.0).shape == Tiled(net, [40, 7])(x, 1.0).shape == x.shape
    with pytest.raises(ValueError, match=r"\[24, 6\] or larger for a volume of \[24, 8\]"):
        Tiled(net, [24, 5])(x[:, :, :24], 1.0)
    with pytest.raises(ValueError, match=r"tile=\[8\]: wanted a positive number or 2 of them"):
        Tiled(net, [8])
    with pytest.raises(ValueError, match=r"tiles: size \(40, 5\) must divide by \(1, 2\)"):
        Tiled(net, [25, 6])(x[..., :5], 1.0)


def test_conditions_of_other_sizes_are_refused_before_they_are_cut():
    net = denoiser(2, channel_mult=[1], kernel_size=1)
    x, sigma, condition = example(net, (12, 12))
    for name in ("semantic", "images"):
        with pytest.raises(ValueError, match=rf"condition.{name} of \[12, 11\] for a volume of \[12, 12\], wanted"):
            Tiled(net, (8, 8))(x, sigma, condition.replace(**{name: condition[name][..., :11]}))
