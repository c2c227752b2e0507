"""First stages that are masked by semantic maps: what lies outside, what is learnt, and files that they go through."""

from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import torch

import dataset_tool
import train
from edm3d.formats.facts import Facts, LatentScaling, volume_facts
from edm3d.formats.intensity import Intensity
from edm3d.formats.latents import LatentsFile
from edm3d.formats.volumes import Item, VolumesFile, VolumesMeta, VolumesWriter, full_box
from edm3d.inference.batch import collate
from edm3d.inference.conditions import Conditions
from edm3d.inference.drawing import Drawer, draw
from edm3d.inference.first_stage import FirstStage
from edm3d.inference.snapshot import Snapshot
from edm3d.networks.autoencoder import Autoencoder, AutoencoderKL
from edm3d.networks.conditioning import Condition
from edm3d.networks.gamma import AutoencoderGamma
from edm3d.networks.parts.base import Part
from edm3d.networks.vq import AutoencoderVQ
from edm3d.samplers.noise import ImageGenerators
from edm3d.training.augment import AugmentPipe
from edm3d.training.batch_transforms import EncodeImages
from edm3d.training.datasets.volumes import VolumesDataset
from edm3d.utils.config import build
from tests.commands import refused, succeed

KINDS = {"kl": (AutoencoderKL, {}), "gamma": (AutoencoderGamma, {}), "bare gamma": (AutoencoderGamma, {"mask": False}),
         "vq before": (AutoencoderVQ, {"codebook_size": 8}),
         "vq after": (AutoencoderVQ, {"codebook_size": 8, "latent": "after"})}
NODE = {"_target_": "networks.autoencoder.AutoencoderKL", "in_channels": 1, "latent_channels": 2, "spatial_dims": 2,
        "channels": [4, 8], "num_blocks": 1, "num_blocks_decoder": 1, "masked": True}


def make(kind: str, dims: int = 2, masked: bool = True) -> Autoencoder:
    torch.manual_seed(0)
    cls, more = KINDS[kind]
    net = cls(1, latent_channels=2, spatial_dims=dims, channels=(4, 4), num_blocks=1, num_blocks_decoder=1,
              masked=masked, **more)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    return net


def pictures(dims: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Three images with something everywhere, and maps: a blob of class 2 and one voxel of 1, nothing, the null 3."""
    image = torch.rand(3, 1, *[8] * dims, generator=torch.Generator().manual_seed(1)) - 0.5
    semantic = torch.zeros(3, *[8] * dims, dtype=torch.int16)
    semantic[0, 2:5], semantic[2] = 2, 3
    semantic[0].view(-1)[-1] = 1
    return image, semantic


def blocks(inside: torch.Tensor) -> torch.Tensor:
    """Cells of two voxels per axis with any inside, by max pooling."""
    pool = {1: torch.nn.functional.max_pool1d, 2: torch.nn.functional.max_pool2d, 3: torch.nn.functional.max_pool3d}
    return pool[inside.ndim - 2](inside.float(), 2) > 0


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_latents_are_zero_and_images_background_outside_the_map(kind, dims):
    net, (image, semantic) = make(kind, dims), pictures(dims)
    inside = (semantic > 0)[:, None]
    cells = blocks(inside)
    out = net(image, noise=ImageGenerators(range(3)), semantic=semantic)
    assert 0 < cells[0].sum() < cells[0].numel() and not cells[1].any() and cells[2].all()
    assert torch.equal(out.z != 0, cells.expand_as(out.z)) and torch.equal(out.image != -1, inside)
    posterior = net.encode(image, None, semantic)
    for part in (posterior.mean, posterior.std):
        assert not part.masked_select(~cells).any()
    drawn = torch.rand(out.z.shape) + 0.1
    decoded, _ = net.decode(drawn, semantic)
    assert torch.equal(decoded != -1, inside)
    assert torch.equal(decoded, net.decode(torch.where(cells, drawn, 0), semantic)[0])  # what lies outside says nothing


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_gives_what_training_saw(kind):
    net, (image, semantic) = make(kind), pictures()
    out = net(image, semantic=semantic)
    torch.testing.assert_close(net.decode(out.z, semantic)[0], out.image)


@pytest.mark.parametrize("kind", KINDS)
def test_the_null_map_masks_nothing_and_without_the_switch_no_map_does(kind):
    image, semantic = pictures()
    with_map, without = (make(kind)(image, semantic=given) for given in (semantic, None))
    assert torch.equal(with_map.image[2], without.image[2]) and torch.equal(with_map.z[2], without.z[2])
    plain = make(kind, masked=False)
    assert torch.equal(plain(image, semantic=semantic).image, without.image)
    assert torch.equal(plain.decode(without.z, semantic)[0], plain.decode(without.z)[0])


def test_kl_counts_inside_alone():
    image, semantic = pictures()
    net = make("kl")
    whole, masked = net.encode(image), net.encode(image, None, semantic)
    each = 0.5 * (whole.mean ** 2 + whole.logvar.exp() - 1 - whole.logvar)
    torch.testing.assert_close(masked.kl(), (each * blocks((semantic > 0)[:, None])).flatten(1).sum(1))
    assert masked.kl()[1] == 0 and masked.kl()[2] == whole.kl()[2] > 0


def test_a_map_stands_in_for_the_sector_of_the_image():
    image, semantic = pictures()
    image[0, :, :4] = -1  # background by itself, half of it in the map
    net = make("gamma")
    cells = blocks((semantic > 0)[:, None])
    assert torch.equal(net.encode(image, None, semantic).inside[:2], cells[:2])
    assert torch.equal(net.encode(image).inside[0], net.sector(image)[0]) and not net.sector(image)[0, 0, :2].any()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_come_from_inside(kind):
    net, (image, semantic) = make(kind), pictures()
    image.requires_grad_()
    out = net(image[:1], noise=ImageGenerators([0]), semantic=semantic[:1])
    (out.image.square().sum() + out.posterior.kl().sum() + (out.codes.commitment.sum() if out.codes else 0)).backward()
    own = [p for name, p in net.named_parameters() if "codebook" not in name]
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in own)
    nothing = net(image[1:2], noise=ImageGenerators([1]), semantic=semantic[1:2])
    assert not torch.autograd.grad(nothing.image.sum(), own[-1])[0].any()


# ---- through files ----


def write(path: Path, maps: bool = True, size: int = 8) -> Path:
    """Eight images with something everywhere, and maps of a block that wanders, class 1, with 2 in it."""
    meta = VolumesMeta(2, ("echo",), ("target",), (), (), (), (), Intensity(0.0, 1.0, True, "a.u."),
                       ("outside", "sector", "heart") if maps else ())
    rng = np.random.default_rng(0)
    with VolumesWriter(path, meta, {"kind": "prepare"}) as writer:
        for i in range(8):
            map_ = np.zeros((size, size), np.uint8)
            map_[i % 4:i % 4 + 5, 1:7] = 1
            map_[i % 4 + 2, 3] = 2
            image = rng.uniform(0.3, 0.7, (1, size, size)).astype(np.float32)
            writer.add("train" if i < 6 else "val", Item(image, None, None, None, f"item{i}", f"item{i}", np.eye(4),
                                                         full_box((size, size)), map_ if maps else None))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """vols.h5 with maps, bare.h5 without, stage.pt of a masked first stage, and lat.h5 by it."""
    folder = tmp_path_factory.mktemp("masked")
    write(folder / "vols.h5"), write(folder / "bare.h5", maps=False)
    torch.manual_seed(0)
    facts = volume_facts(VolumesFile(folder / "vols.h5"), "train")
    Snapshot("autoencoder", NODE, facts, (1, 8, 8), weights=build(NODE).state_dict(), config={}).save(
        folder / "stage.pt")
    with chdir(folder):
        succeed(dataset_tool.main, "encode", "--autoencoder", "stage.pt", "--source", "vols.h5", "--dest", "lat.h5")
    return folder


@pytest.fixture
def at(place: Path):
    with chdir(place):
        yield place


def test_encoded_latents_are_zero_outside_and_decode_to_the_lowest(at):
    file, volumes = LatentsFile("lat.h5"), VolumesFile("vols.h5")
    part = file.read("train")
    maps = torch.from_numpy(np.stack([volumes.read("train", i).map for i in range(6)]))
    cells = blocks((maps > 0)[:, None]).expand(-1, 2, -1, -1).numpy()
    assert np.array_equal(part.mean != 0, cells) and np.array_equal(part.std != 0, cells)
    succeed(dataset_tool.main, "decode", "--latents", "lat.h5", "--dest", "back.h5", "--montage", "0")
    back = VolumesFile("back.h5")
    for i in range(6):
        image = back.read("train", i).image
        assert np.array_equal(image[0] != 0, maps[i].numpy() > 0)
    first = FirstStage(Snapshot.read(Path("stage.pt")).build(), file.facts)
    again = first.round_trip(torch.from_numpy(volumes.read("train", 0).image)[None], None, maps[:1])
    np.testing.assert_allclose(again.image[0].numpy(), back.read("train", 0).image, atol=1e-5)
    assert file.round_trip["num"] == 2


def test_encoding_while_training_masks_by_the_moved_map(at):
    data = VolumesDataset("vols.h5")
    transform = EncodeImages("stage.pt", num=6)
    transform.open(data, data, "train", torch.device("cpu"))
    batch = collate([data[0], data[1], data[2]])
    null = batch.condition.semantic.clone()
    null[2] = 3
    batch = batch._replace(condition=Condition(semantic=null))
    moved, _ = AugmentPipe(2, 1, semantic_dim=3)(batch, ImageGenerators(range(3)))
    assert not torch.equal(moved.condition.semantic[:2], null[:2]) and (moved.condition.semantic[2] == 3).all()
    z, _ = transform(moved, ImageGenerators(range(3)))
    background = transform.stage.scaled(torch.zeros_like(z))
    assert torch.equal(z != background, blocks((moved.condition.semantic > 0)[:, None]).expand_as(z))


def test_drawn_images_lie_within_the_map_that_was_asked_for(at):
    stage = FirstStage(Snapshot.read(Path("stage.pt")).build(), volume_facts(VolumesFile("vols.h5"), "train"),
                       LatentScaling([0.2, -0.3], [1.0, 2.0]))
    asked = VolumesFile("vols.h5").read("train", 1).map

    def drawn(maps: dict) -> np.ndarray:
        drawer = Drawer(lambda seeds: None, Conditions({"semantic": Part(3)}, maps, (8, 8)), True, stage,
                        lambda net, noise, **_: noise, (2, 4, 4), stage.facts.intensity, torch.device("cpu"), "fp32")
        return draw(drawer, [0, 1])["images"]

    assert np.array_equal(drawn({"semantic": [asked]})[0, 0] != 0, asked > 0)
    assert (drawn({}) != 0).mean() > 0.4  # some of what it draws is clipped to 0


TRAIN = ["-cn=echo_vae", "training.dataset.path=vols.h5", "training.network.channels=[4,4]",
         "training.network.masked=true", "training.options.total_kimg=0.016", "training.options.kimg_per_tick=0.008",
         "training.options.num_threads=1", "training.options.device=cpu", "training.validation.every_ticks=1",
         "training.validation.preview_ticks=1", "training.options.precision=fp32"]


def test_a_masked_first_stage_trains_on_moved_maps(at):
    said = succeed(train.main, *TRAIN, "autoencoder=gamma", "training.network.attention_levels=[]", "augment=mild",
                   "training.options.run_root=runs")
    assert "validation" in said
    net = Snapshot.read(next(Path("runs").rglob("network-snapshot-*.pt"))).build()
    assert net.masked and isinstance(net, AutoencoderGamma)


def test_patches_crop_the_map_along(at):
    succeed(train.main, *TRAIN, "augment=patches", "training.augment.size=4", "training.options.run_root=cropped",
            "training.validation.preview_ticks=null")


def test_data_without_maps_are_refused(at):
    said = refused(at, train.main, *TRAIN, "training.dataset.path=bare.h5")
    assert "training.network.masked: bare.h5 has no maps or label maps to mask its images by" in said
    said = refused(at, dataset_tool.main, "encode", "--autoencoder", "stage.pt", "--source", "bare.h5", "--dest",
                   "bad.h5")
    assert "bare.h5: has no maps or label maps, the first stage is masked by maps of outside, sector, heart" in said
    with pytest.raises(ValueError, match="is masked by maps of outside, sector, heart"):
        EncodeImages("stage.pt").open(VolumesDataset("bare.h5"), [], "val", torch.device("cpu"))


def test_maps_that_are_missing_or_of_another_size_are_refused():
    stage = FirstStage(make("kl"), Facts("", ""))
    with pytest.raises(ValueError, match="encoding wants the semantic maps of the images, too"):
        stage.encode(torch.zeros(1, 1, 8, 8))
    for call in (lambda semantic: stage.encode(torch.zeros(1, 1, 8, 8), None, semantic),
                 lambda semantic: stage.decode(torch.zeros(1, 2, 4, 4), semantic)):
        with pytest.raises(ValueError, match=r"semantic maps are \[4, 4\], their images \[8, 8\]"):
            call(torch.zeros(1, 4, 4))
