"""Refiners: what they are trained on, what they make of decoded images, and the road of files through them."""

import json
import shutil
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import dataset_tool
import evaluate
import generate
import train
from edm3d.formats.refinement import Refinement, told_facts
from edm3d.formats.samples import SamplesFile
from edm3d.formats.volumes import VolumesFile
from edm3d.inference.batch import collate
from edm3d.inference.model import Model
from edm3d.inference.refiner import Refiner
from edm3d.inference.snapshot import Snapshot
from edm3d.networks.conditioning import Condition, Part
from edm3d.networks.decorrelation import correlated
from edm3d.networks.tiles import Tiles
from edm3d.samplers import ImageGenerators
from edm3d.training import refining
from edm3d.training.datasets.volumes import VolumesDataset
from edm3d.training.refining import RefineImages, corners_of, cropped, lag1
from edm3d.training.run import known_facts
from edm3d.training.tasks.base import mended
from edm3d.training.tasks.diffusion import ToldData, told_decoded_instead
from edm3d.utils import checkpoint
from tests.commands import refused, succeed
from tests.toy import BLANK

SMALL = ["training.options.num_threads=1", "training.validation.max_items=2", "training.validation.preview_ticks=1",
         "training.options.batch_size=2", "training.options.total_kimg=0.008", "training.options.kimg_per_tick=0.008"]
STAGE = ["-cn=echo_vae", "training.dataset.path=data/echo.h5", "training.network.channels=[4,4]",
         "training.network.latent_channels=2", *SMALL]
TOLD = ["training.network.model.attribute_dim=auto", "training.network.model.attribute_dropout=0.1",
        "training.network.model.attribute_gaps=0.1"]
REFINE = ["-cn=echo_refine", "training.network.model.model_channels=8", "training.network.model.channel_mult=[1]",
          "training.network.model.norm=voxel", "training.network.model.bottleneck_attention=false", *TOLD,
          *SMALL]
DRAW = ["sampling.seeds=0-3", "sampling.batch_size=2", "sampling.nifti=false", "sampling.sampler.num_steps=2",
        "sampling.num_threads=1", "sampling.refiner_sampler.num_steps=2"]


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """First stage, latents, a diffusion network of them that is told attributes, and a refiner."""
    folder = tmp_path_factory.mktemp("refiner")
    with chdir(folder):
        succeed(dataset_tool.main, "phantom", "--dest", "data/echo.h5", "--num", "10", "--size", "16")
        succeed(train.main, *STAGE)
        succeed(dataset_tool.main, "encode", "--autoencoder", "echo_vae", "--source", "data/echo.h5", "--dest",
                "data/echo_latents.h5")
        succeed(train.main, "-cn=echo_edm", "training.network.model.model_channels=8", *TOLD,
                "training.network.model.channel_mult=[1]", "training.network.model.attention_levels=[]",
                "training.options.min_psnr=null", *SMALL)
        succeed(train.main, *REFINE)
    return folder


def snapshot(folder: Path, name: str) -> Snapshot:
    return Snapshot.read(next(folder.glob(f"results/*-{name}/network-snapshot-*.pt")))


# ---- what is learnt ----


def transform(folder: Path, **more) -> tuple[RefineImages, VolumesDataset]:
    made, data = RefineImages("echo_vae", num=4, **more), VolumesDataset("data/echo.h5")
    made.open(data, data, "train", torch.device("cpu"))
    return made, data


def test_what_is_drawn_is_the_residual_and_what_is_told_is_what_the_first_stage_gives_back(here, at):
    made, data = transform(here, latent_noise=0, draw=False, bins=1)
    batch = collate([data[0], data[1]])
    x, told = made(batch, ImageGenerators([0, 1]))
    x = correlated(x, made.correlation)
    back = made.stage.round_trip(data.facts.intensity.from_network(batch.images), batch.labels)
    decoded = data.facts.intensity.to_network(back.image)
    torch.testing.assert_close(told.images, decoded)
    assert torch.equal(told.semantic, back.label.to(torch.int16))
    for k in range(4):  # by the class alone
        known, there = made.refinement, (back.label == k)[:, None]
        wanted = (batch.images - decoded - known.mean[k][0][0]) * known.gain[k][0][0]
        torch.testing.assert_close(x[there], wanted[there])


def test_every_class_and_value_has_the_deviation_that_the_network_is_made_for(here, at):
    made, data = transform(here, bins=8, sigma_data=0.5)
    x, told = made(collate([data[i] for i in (0, 3, 5, 7)]), ImageGenerators(range(4)))  # those that it measures
    assert len(data) == 8
    # what a network sees is its target's scale: a deviation of 0.5, less where there is next to nothing to draw
    assert abs(float(x.mean())) < 0.1 and 0.2 < float(x.std()) < 0.7
    scaled = correlated(x, made.correlation)
    back = made.target_scaling.restored(scaled, told.images, told.semantic) + told.images
    torch.testing.assert_close(back, collate([data[i] for i in (0, 3, 5, 7)]).images, rtol=0, atol=1e-5)


def test_what_the_voxel_before_says_is_that_of_the_texture_of_images(here, at):
    made, data = transform(here)
    wanted = np.mean([lag1(torch.from_numpy(data[i].image[0]), torch.from_numpy(data[i].label)) for i in (0, 2, 4, 7)],
                     axis=0)
    assert made.refinement.correlation == made.correlation == [pytest.approx(wanted)]


def test_correlation_of_neighbours_is_that_of_texture_where_there_is_some():
    noise = torch.randn(1, 1, 64, 64, 64, generator=torch.Generator().manual_seed(0))
    x, ramp = correlated(noise, [[0.4, 0.0, 0.2]])[0, 0] / 10, torch.linspace(-0.5, 0.5, 64).expand(64, 64, 64)
    image = torch.where(torch.arange(64) < 40, ramp + x, -1.0)
    assert lag1(image, None) == pytest.approx([0.4, 0.0, 0.2], abs=0.05)  # the local mean takes some


def test_the_image_itself_is_drawn_where_that_is_asked_for(here, at):
    made, data = transform(here, target="image")
    batch = collate([data[0]])
    x, told = made(batch, ImageGenerators([0]))
    back = made.target_scaling.restored(correlated(x, made.correlation), told.images, told.semantic)
    torch.testing.assert_close(back, batch.images, rtol=0, atol=1e-5)
    assert made.refinement.target == "image" and not torch.equal(told.images, batch.images)


def test_latents_are_disturbed_by_no_more_than_their_share(here, at):
    data = VolumesDataset("data/echo.h5")
    batch = collate([data[i] for i in range(8)])
    plain, _ = transform(here, latent_noise=0, draw=False)
    noisy, _ = transform(here, latent_noise=0.5, draw=False)
    found = {}

    def watch(made: RefineImages):
        decode = made.stage.decode
        made.stage.decode = lambda z, semantic=None: (found.setdefault(made, z), decode(z, semantic))[1]

    for made in (plain, noisy):
        watch(made)
        made.decoded(batch, ImageGenerators(range(8)))
    added = (found[noisy] - found[plain]).flatten(1).std(1)
    assert (added < 0.6).all() and added.max() > 0.2 and added.min() < added.max() / 2  # a level for each image


def test_patches_are_cut_from_all_alike(here, at):
    whole, data = transform(here)
    parts, _ = transform(here, patch=[8, 12, 16])
    batch, generators = collate([data[0], data[1]]), ImageGenerators([5, 6])
    x, told = whole(batch, generators)
    cut, cut_told = parts(batch, generators)
    corners = corners_of(generators, (16, 16, 16), (8, 12, 16))
    assert cut.shape == (2, 1, 8, 12, 16) and parts.shape == (1, 8, 12, 16) and corners[0] != corners[1]
    for got, wanted in ((cut, x), (cut_told.images, told.images), (cut_told.semantic, told.semantic)):
        assert torch.equal(got, cropped(wanted, corners, (8, 12, 16)))


def test_patches_reach_every_corner():
    corners = torch.tensor(corners_of(ImageGenerators(range(200)), (9, 8), (8, 8)))
    assert set(corners[:, 0].tolist()) == {0, 1} and set(corners[:, 1].tolist()) == {0}


def test_large_data_are_scaled_by_some_of_their_voxels(here, at, monkeypatch):
    whole, _ = transform(here, bins=1)
    monkeypatch.setattr(refining, "MOST_VOXELS", 4 * 2000)  # 4 items of 16^3
    some, _ = transform(here, bins=1)
    gains = [torch.tensor(made.refinement.gain).flatten() for made in (whole, some)]
    assert not torch.equal(*gains)
    torch.testing.assert_close(*gains, rtol=0.2, atol=0)
    assert refining.some_places(9, 9) == slice(None) and len(refining.some_places(10, 9)) == 9


def test_what_is_not_told_because_of_what_is_decoded_is_said():
    facts = replace(BLANK.facts, source="a.h5", channels=("t1",), label_classes=("x", "y"),
                    condition_channels=("flair",), map_classes=("a", "b"))
    said = told_decoded_instead(facts, told_facts(facts, 1, True))
    assert "a.h5 holds condition channels (flair) and maps of classes (a, b) that a refiner is not told" in said
    assert "maps" not in told_decoded_instead(facts, told_facts(facts, 1, False))
    assert told_decoded_instead(facts, facts) == ""


def test_a_run_goes_on_with_the_first_stage_that_it_began_with():
    refines = Refinement("f" * 64, "residual", [[[0.0]]], [[[0.0]]], [[[1.0]]])
    task = SimpleNamespace(snapshot=replace(BLANK, refines=refines))
    assert known_facts(task, SimpleNamespace(facts=BLANK.facts)).identity()["first_stage"] == "f" * 64


def test_a_size_that_does_not_divide_is_mended_by_patches_where_it_is_theirs():
    training = {"batch_transform": {"patch": 7}, "augment": {},
                "dataset": {"_target_": "training.datasets.volumes.VolumesDataset"}}
    volumes = ToldData((1, 18, 18, 18), replace(BLANK.facts, source="a.h5"))
    assert mended(training, volumes, (7, 7, 7), (8, 8, 8)).startswith("training.batch_transform.patch=[8,8,8]")
    assert mended(training, volumes, (18, 18, 18), (20, 20, 20)).startswith("training.dataset.size=[20,20,20]")


def test_a_refiner_can_be_planned_without_data(tmp_path):
    small = ["training.network.model.model_channels=8", "training.options.batch_size=1"]
    peaks = []
    for patch in ("null", "16"):
        said = succeed(dataset_tool.main, "plan", "-cn", "echo_refine", *small,
                       f"training.batch_transform.patch={patch}", "--shape", "1", "32", "32", "32", "--classes", "4",
                       "--json")
        peaks.append(json.loads(said)["step"]["peak"])
    assert peaks[0] > 2 * peaks[1]


def test_bad_training_is_refused_by_name(here, at):
    for changed, said in (("training.batch_transform.bins=0", "bins"),
                          ("training.batch_transform.patch=24", "the nearest that fits is [16, 16, 16]"),
                          ("training.batch_transform.target=speckle", "residual"),
                          ("training.batch_transform.latent_noise=-1", "latent_noise"),
                          ("training.batch_transform.patch=[8,8,7]", "training.batch_transform.patch=[8,8,8]"),
                          ("training.dataset.path=data/echo_latents.h5", "training.dataset")):
        assert said in refused(here, train.main, *REFINE, changed)


def test_a_run_goes_on_with_its_own_first_stage_alone_and_to_the_same_bits(here, tmp_path):
    copy = shutil.copytree(here, tmp_path / "copy")
    with chdir(copy):
        refine = [*REFINE, "training.options.lr_schedule=constant"]  # which no length changes
        longer = ["training.options.total_kimg=0.016"]
        for run in copy.glob("results/*-echo_refine"):
            shutil.rmtree(run)
        succeed(train.main, *refine, *longer, "training.options.desc=whole")
        succeed(train.main, *refine, "training.options.desc=parts")
        succeed(train.main, *refine, *longer, "training.options.desc=parts", "training.options.resume=latest")
        whole, parts = (Snapshot.read(max(copy.glob(f"results/*-{name}/network-snapshot-*.pt"))).weights
                        for name in ("whole", "parts"))
        assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
        succeed(train.main, *STAGE, "training.options.seed=1")
        said = refused(copy, train.main, *refine, "training.options.desc=parts", "training.options.total_kimg=0.024",
                       "training.options.resume=latest")
        assert "first_stage" in said


# ---- what it makes of images ----


class Told(torch.nn.Module):
    """A denoiser that always says the same of the residual: a share of the image that it is told."""

    takes = {"images": Part(1)}
    sigma_min, sigma_max, factor, grid_factor, receptive_field = 0.0, float("inf"), (2, 2, 2), (1, 1, 1), (0, 0, 0)

    def __init__(self):
        super().__init__()
        self.model, self.seen = torch.nn.Identity(), []

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma)

    def forward(self, x, sigma, condition=None, augment_labels=None):
        self.seen.append(condition)
        return condition.images.to(x.dtype) * 0.5


def refiner(here: Path, net: torch.nn.Module, target: str = "residual", **more) -> Refiner:
    known = replace(snapshot(here, "echo_refine"), refines=Refinement("abc", target, [[[0.0]]], [[[0.25]]], [[[2.0]]]))
    return Refiner(known, net, {"_target_": "samplers.edm_sampler", "num_steps": 3}, **more)


@pytest.mark.parametrize(("target", "wanted"), [("residual", lambda d: d + d * 0.25 + 0.25),
                                                ("image", lambda d: d * 0.25 + 0.25)])
def test_the_image_is_put_together_as_it_was_taken_apart(here, target, wanted):
    decoded = torch.linspace(-0.5, 0.5, 512).reshape(1, 1, 8, 8, 8)
    made = refiner(here, Told(), target)
    image = made(made.facts.intensity.from_network(decoded), None, [0])
    torch.testing.assert_close(image, made.facts.intensity.from_network(wanted(decoded)), rtol=0, atol=1e-6)


def test_a_row_depends_on_its_own_key_alone(here):
    made = refiner(here, snapshot(here, "echo_refine").build())
    images = torch.rand(3, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(4, (3, 16, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = made(images, labels, [7, 8, 9])
    alone = made(images[1:2], labels[1:2], [8])
    torch.testing.assert_close(whole[1:2], alone, rtol=0, atol=1e-5)
    assert (made(images[1:2], labels[1:2], [9]) - alone).abs().max() > 0.01


def test_tiles_are_tiles_of_the_network(here):
    net = Told()
    image = torch.rand(1, 1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    whole, parts = refiner(here, net)(image, None, [0]), refiner(here, net, tiles=Tiles((8, 8, 8)))(image, None, [0])
    torch.testing.assert_close(whole, parts)
    assert net.seen[0].images.shape[2:] == (16, 8, 8) and net.seen[-1].images.shape[2:] == (8, 8, 8)


def test_what_a_refiner_draws_must_be_finite(here):
    net = Told()
    net.forward = lambda x, sigma, condition, augment_labels=None: x * float("nan")
    with pytest.raises(ValueError, match="what it draws on top of .* is not finite"):
        refiner(here, net)(torch.zeros(1, 1, 8, 8, 8), None, [0])


def test_the_data_are_said_to_have_what_is_decoded_as_condition():
    known = replace(BLANK.facts, channels=("echo",), label_classes=("a", "b"), map_classes=("c", "d", "e"))
    assert told_facts(known, 1, True).condition_channels == ("echo decoded",)
    assert told_facts(known, 1, True).semantic_classes == ("a", "b")
    assert told_facts(known, 1, False).semantic_classes == ("c", "d", "e")
    assert told_facts(replace(known, channels=()), 2, True).condition_channels == ("0 decoded", "1 decoded")


# ---- the road ----


def test_samples_are_refined_and_decode_gives_the_same(here, at):
    succeed(generate.main, "-cn=echo_refine", "sampling.outdir=results/refined", "sampling.sweep.lv_volume=[40,120,2]",
            *DRAW)
    succeed(generate.main, "-cn=echo_refine", "sampling.outdir=results/plain", "sampling.sweep.lv_volume=[40,120,2]",
            "sampling.refiner=null", *DRAW)
    refined, plain = SamplesFile("results/refined/samples.h5"), SamplesFile("results/plain/samples.h5")
    assert refined.meta.sampling["refiner"]["hash"] == snapshot(here, "echo_refine").hash
    assert refined.meta.sampling["refiner"]["sampler"]["num_steps"] == 2
    for i in range(8):
        np.testing.assert_array_equal(refined.row("latents", i), plain.row("latents", i))
        np.testing.assert_array_equal(refined.row("labels", i), plain.row("labels", i))
        assert np.abs(refined.row("images", i) - plain.row("images", i)).max() > 0.01
    for source, name in (("refined", "echo_refine"), ("plain", "echo_refine")):
        succeed(dataset_tool.main, "decode", "--latents", f"results/{source}/samples.h5", "--dest",
                f"results/{source}.h5", "--refiner", name, "--batch-size", "2", "--num-threads", "1")
    decoded = VolumesFile("results/refined.h5")
    # by the steps that the experiment says, not those of the samples
    assert np.abs(decoded.read("generated", 0).image - refined.row("images", 0)).max() > 1e-4
    again = succeed(generate.main, "-cn=echo_refine", "sampling.outdir=results/refined",
                    "sampling.sweep.lv_volume=[40,120,2]", *DRAW)
    assert "8 there already" in again
    assert "refiner" in refused(here, generate.main, "-cn=echo_refine", "sampling.outdir=results/refined",
                                "sampling.sweep.lv_volume=[40,120,2]", *DRAW, "sampling.refiner=null")


def test_decode_refines_by_the_seeds_and_values_that_samples_had(here, at):
    succeed(generate.main, "-cn=echo_refine", "sampling.outdir=results/own", "sampling.sweep.lv_volume=[40,120,2]",
            *DRAW[:-1])  # by the refiner's own steps
    succeed(dataset_tool.main, "decode", "--latents", "results/own/samples.h5", "--dest", "results/own.h5",
            "--refiner", "echo_refine", "--batch-size", "3", "--num-threads", "1")
    samples, decoded = SamplesFile("results/own/samples.h5"), VolumesFile("results/own.h5")
    for i in range(8):
        np.testing.assert_allclose(decoded.read("generated", i).image, samples.row("images", i), atol=1e-4)


def test_first_stages_are_measured_with_what_refines_them(here, at):
    asked = ["--real", "data/echo.h5", "--autoencoder", "echo_vae", "--num", "2", "--dest"]
    succeed(evaluate.main, *asked, "results/bare")
    for _ in range(2):  # a report of the same is written anew
        succeed(evaluate.main, *asked, "results/with_refiner", "--refiner", "echo_refine")
    plain, refined = (json.loads(Path(f"results/{name}/report.json").read_text()) for name in ("bare", "with_refiner"))
    assert refined["refiner"]["hash"] == snapshot(here, "echo_refine").hash and "refiner" not in plain
    assert plain["psnr_db"] != refined["psnr_db"]
    assert "another network" in refused(here, evaluate.main, *asked, "results/with_refiner")
    assert "another network" in refused(here, evaluate.main, *asked, "results/bare", "--refiner", "echo_refine")
    assert "an option of --autoencoder" in refused(
        here, evaluate.main, "--real", "data/echo.h5", "--generated", "results/plain/samples.h5", "--dest", "results/x",
        "--refiner", "echo_refine")


def test_a_model_in_python_refines_as_generate_does(here, at):
    model = Model.load("echo_edm")
    made = model.sample("0,1", refiner="echo_refine", batch_size=2, num_steps=2)
    assert made.meta.sampling["refiner"]["hash"] == snapshot(here, "echo_refine").hash
    with pytest.raises(ValueError, match="refines images of first stage"):
        Model.load("echo_refine").sample("0")


def test_networks_that_cannot_refine_are_refused(here, at):
    assert "refines nothing" in refused(here, generate.main, "-cn=echo_edm", *DRAW, "sampling.outdir=results/x",
                                        "sampling.refiner=echo_edm")
    assert "refines images of first stage" in refused(here, generate.main, "-cn=echo_edm", *DRAW,
                                                      "sampling.outdir=results/x", "sampling.network=echo_refine")
    assert "refines images of first stage" in refused(here, dataset_tool.main, "solvers", "echo_refine", "--steps", "2")
    assert "sampling.decode is false" in refused(here, generate.main, "-cn=echo_refine", *DRAW,
                                                 "sampling.outdir=results/x", "sampling.decode=false")


def test_tiles_that_are_too_small_are_refused_before_anything_is_drawn(here, at):
    said = refused(here, generate.main, "-cn=echo_refine", *DRAW, "sampling.outdir=results/x", "sampling.tile=[8,8,8]",
                   "sampling.attributes.lv_volume=80")
    assert "the network sees" in said and "[16, 16, 16] or larger" in said


def test_a_card_of_a_refiner_says_what_it_refines(here, at):
    succeed(dataset_tool.main, "publish", "echo_refine", "--dest", "published", "--licence", "mit")
    text = Path("published/README.md").read_text()
    assert 'refiner="published"' in text and "draws nothing by itself" in text and "image-to-image" in text
    made = Model.load("echo_edm").sample("0", refiner="published", num_steps=2)
    again = Model.load("echo_edm").sample("0", refiner="echo_refine", num_steps=2)
    np.testing.assert_array_equal(made.images, again.images)


def test_a_refiner_of_another_first_stage_is_refused(here, at):
    path = next(here.glob("results/*-echo_refine/network-snapshot-*.pt"))
    found, _ = checkpoint.load(path, "snapshot")
    other = {**{name: value for name, value in found.items()}, "refines": {**found["refines"], "first_stage": "f" * 64}}
    checkpoint.save(here / "other.pt", "snapshot", other)
    assert "ffffffffffff" in refused(here, generate.main, "-cn=echo_edm", *DRAW, "sampling.outdir=results/x",
                                     "sampling.refiner=other.pt")
    assert "ffffffffffff" in refused(here, evaluate.main, "--real", "data/echo.h5", "--autoencoder", "echo_vae",
                                     "--dest", "results/x", "--refiner", "other.pt")


@pytest.mark.parametrize(("key", "value"), [
    ("target", "speckle"), ("gain", [[[0.0]]]), ("gain", [[[1.0], [1.0]]]), ("gain", [[[1.0, 1.0]]]), ("gain", []),
    ("mean", [[[float("nan")]]]), ("mean", None), ("values", [[[]]]), ("values", [[["a"]]]), ("values", []),
    ("correlation", [[0.1]]), ("correlation", [[0.1, 1.0]]), ("correlation", [[0.1, 0.1], [0.1, 0.1]])])
def test_what_a_snapshot_says_of_itself_is_checked(key, value):
    known = {"first_stage": "a", "target": "residual", "values": [[[0.0]]], "mean": [[[0.0]]], "gain": [[[1.0]]]}
    assert Refinement.from_plain(known, "x.pt", (1, 4, 4)).gain == [[[1.0]]]
    with pytest.raises(ValueError, match=r"x\.pt: refines"):
        Refinement.from_plain({**known, key: value}, "x.pt", (1, 4, 4))


def test_a_snapshot_that_refines_nothing_by_name_is_damaged(here):
    found, _ = checkpoint.load(next(here.glob("results/*-echo_refine/network-snapshot-*.pt")), "snapshot")
    checkpoint.save(here / "odd.pt", "snapshot", {**found, "refines": {}})
    with pytest.raises(ValueError, match=r"odd\.pt: refines: .* missing"):
        Snapshot.read(here / "odd.pt")


def test_values_that_do_not_rise_are_no_table():
    table = {name: [[[0.0, 0.0]]] for name in ("values", "mean")} | {"gain": [[[1.0, 1.0]]]}
    with pytest.raises(ValueError, match="rising values"):
        Refinement.from_plain({"first_stage": "a", "target": "image", **table}, "x.pt", (1, 4, 4))


def test_the_condition_has_what_the_network_takes_and_no_more(here):
    made = refiner(here, Told())
    told = made.condition(torch.zeros(1, 1, 8, 8, 8), torch.zeros(1, 8, 8, 8, dtype=torch.uint8),
                          Condition(attributes=torch.zeros(1, 4)))
    assert list(told) == ["images"]


def test_what_the_network_was_never_trained_without_must_be_known_before_anything_is_drawn(here):
    net = Told()
    net.takes = {"semantic": Part(4), "images": Part(1), "attributes": Part(4, dropout=0.1)}
    made = refiner(here, net)
    labelled, bare = (SimpleNamespace(net=SimpleNamespace(num_classes=count)) for count in (4, 0))
    made.check(labelled, "abc", made.facts, (), "x.h5")  # the first stage gives the map
    made.check(bare, "abc", made.facts, {"semantic"}, "x.h5")
    with pytest.raises(ValueError, match=r"never trained without map classes, and of the images of x\.h5 none"):
        made.check(bare, "abc", made.facts, (), "x.h5")
    with pytest.raises(ValueError, match="is told map classes"):
        made.check(bare, "abc", replace(made.facts, map_classes=("a", "b")), {"semantic"}, "x.h5")


def test_attributes_that_nobody_asked_for_are_refused_where_the_refiner_needs_them(here, at):
    path = next(here.glob("results/*-echo_refine/network-snapshot-*.pt"))
    found, _ = checkpoint.load(path, "snapshot")
    model = {**found["network"]["model"], "attribute_dropout": 0, "attribute_gaps": 0}
    checkpoint.save(here / "needs.pt", "snapshot", {**found, "network": {**found["network"], "model": model}})
    drawing = [generate.main, "-cn=echo_edm", *DRAW[:-1], "sampling.outdir=results/x", "sampling.refiner=needs.pt"]
    assert "was never trained without attributes" in refused(here, *drawing)
    succeed(evaluate.main, "--real", "data/echo.h5", "--autoencoder", "echo_vae", "--dest", "results/needs",
            "--refiner", "needs.pt", "--num", "1")  # told those of the volumes
