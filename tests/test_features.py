"""Features of volumes and planes, the files they are kept in, and what the report says of their distances."""

import json

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from edm3d.formats.facts import Facts, LatentScaling
from edm3d.formats.feature_cache import FeatureCache
from edm3d.inference.extractors import autoencoder_extractor, pooled
from edm3d.inference.features import FeatureOptions, feature_pass, planes_asked, slices_of
from edm3d.inference.first_stage import FirstStage
from edm3d.networks.autoencoder import AutoencoderKL
from edm3d.networks.tiles import Tiles
from edm3d.reporting import feature_measures
from edm3d.reporting.cases import Case, Layout
from edm3d.reporting.comparison import Comparison
from edm3d.reporting.feature_measures import METRICS, compare_view
from edm3d.reporting.features import SLICES, VOLUME
from edm3d.reporting.sections.feature_distances import FeatureDistances
from edm3d.utils.command_line import Words, WordsCommand

CPU = torch.device("cpu")
GREY = Layout(("mr",), (), (1.0, 1.0, 1.0), 0.0, 1.0, "")
RAS = Layout(("mr",), (), (2.0, 1.0, 1.0), 0.0, 1.0, "", tuple(map(tuple, np.diag([2.0, 1, 1, 1]))))
SIZE = (8, 8, 8)


def cases(count, seed=0, size=SIZE):
    """Volumes of noise."""
    rng = np.random.default_rng(seed)
    return [Case(f"v{i}", rng.random((1, *size), dtype=np.float32), None) for i in range(count)]


def passing(*words, planes=("none",), folder=None, layout=GREY, size=SIZE, no_stage="no first stage"):
    return feature_pass(FeatureOptions(words, planes, folder), layout, size, None, no_stage, CPU)


def save(path, net):
    """A TorchScript file."""
    torch.jit.script(net).save(str(path))
    return f"torchscript:{path}"


class Colours(nn.Module):
    """Three channels of slices in, two maps out: twice the mean of the channels, and a constant."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() != 4 or x.shape[1] != 3:
            raise ValueError("wanted [N,3,h,w]")
        return torch.stack([2 * x.mean(1), torch.ones_like(x[:, 0])], dim=1)


class Whatever(nn.Module):
    """The mean of a volume, spoilt in some way."""

    def __init__(self, way: str):
        super().__init__()
        self.way = way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means = x.flatten(1).mean(1, keepdim=True)
        if self.way == "nan":
            return means / 0 * 0
        if self.way == "batch":
            return means - means.mean()
        if self.way == "chance":
            return means + torch.rand(1)
        if self.way == "width" and bool(x.mean() > 0.1):
            return means.repeat(1, 2)
        return means[:, 0] if self.way == "flat" else means


# ---- what extractors see ----


def test_slices_are_spaced_evenly_through_what_has_content():
    image = torch.zeros(1, 20, 4, 4)
    image[:, 4:12] = torch.arange(16.0).reshape(4, 4)
    image[:, 4:12] *= torch.arange(1, 9).reshape(8, 1, 1) / 8
    assert slices_of(image, 0).amax((1, 2, 3)).tolist() == pytest.approx([15 * i / 8 for i in range(1, 9)])
    assert slices_of(image.movedim(1, 2), 1).shape == (SLICES, 1, 4, 4)
    assert len(slices_of(torch.zeros(1, 3, 4, 4), 0)) == SLICES


def test_planes_are_named_by_anatomy_where_it_is_known():
    assert planes_asked((), RAS, 3) == {"axial": 2, "coronal": 1, "sagittal": 0}
    assert planes_asked(("sagittal",), RAS, 3) == {"sagittal": 0}
    assert planes_asked(("02",), GREY, 3) == {"axes 0, 2": 1}
    assert planes_asked((), GREY, 2) == planes_asked(("none",), RAS, 3) == {}


@pytest.mark.parametrize(("words", "layout", "dims", "said"), [
    (("axial",), GREY, 3, "01"), (("oblique",), RAS, 3, "oblique.*axial"), (("axial", "axial"), RAS, 3, "twice"),
    (("axial",), RAS, 2, "2D")])
def test_planes_that_are_not_there_are_refused(words, layout, dims, said):
    with pytest.raises(ValueError, match=f"--planes.*{said}"):
        planes_asked(words, layout, dims)


def test_latents_are_pooled_to_moments_and_a_grid():
    latents = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert pooled(latents, 2)[0].tolist() == pytest.approx([7.5, np.std(np.arange(16)), 2.5, 4.5, 10.5, 12.5])


# ---- TorchScript files ----


def test_script_of_colour_slices_serves_planes_alone(tmp_path):
    word = save(tmp_path / "net.pt", Colours())
    through = passing(word, "random", planes=())
    list(through.over("real", volumes := cases(2), 2))
    found = through.features()
    planes = found.found["torchscript-net"]
    assert set(planes) == {"axes 0, 1", "axes 0, 2", "axes 1, 2"} and VOLUME in found.found["random"]
    first = slices_of(torch.from_numpy(volumes[0].image) * 2 - 1, 2)
    wanted = np.stack([2 * first.mean((1, 2, 3)), np.ones(SLICES)], axis=1)
    np.testing.assert_allclose(planes["axes 0, 1"]["real"][:SLICES], wanted, atol=1e-5)
    assert "3 times" in found.records["torchscript-net"].preprocessing and not found.missing


@pytest.mark.parametrize(("way", "said"), [
    ("batch", "eval mode"), ("chance", "eval mode"), ("flat", "wanted features"), ("nan", "NaN"),
    ("width", "one width")])
def test_spoilt_extractor_is_one_line(tmp_path, way, said):
    word = save(tmp_path / "net.pt", Whatever(way))
    bright = [Case("bright", np.full((1, *SIZE), 0.9, np.float32), None)]
    with pytest.raises(ValueError, match=f"--features torchscript.*{said}") as error:
        list(passing(word).over("real", bright, 1))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("words", "said"), [
    (("randon",), "randon: wanted"), (("random", "random"), "twice"), (("torchscript:",), "wanted"),
    ((), "one or more"),
    (("torchscript:gone.pt",), "no such file"), (("torchscript:.",), "a folder")])
def test_words_that_name_no_extractor_are_refused(words, said):
    with pytest.raises(ValueError, match=f"--features.*{said}"):
        passing(*words)


def test_file_that_is_no_script_is_refused(tmp_path):
    (tmp_path / "net.pt").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="cannot be read as TorchScript"):
        passing(f"torchscript:{tmp_path / 'net.pt'}")


def test_why_there_is_one_extractor_is_said():
    assert passing("random").missing == {"second extractor": "only one was asked for (--features)"}
    found = passing("autoencoder", "random").missing
    assert found["autoencoder"] == "no first stage" and "alone" in found["second extractor"]


# ---- features on disk ----


def test_kept_features_are_read_and_damaged_ones_made_anew(tmp_path, monkeypatch):
    def made(key="a", volumes=None):
        through = passing("random", folder=tmp_path / "features")
        seen = []
        through.alone("train", (seen.append(case) or case for case in volumes or cases(3)), 3, key)
        return len(seen), through.features().found["random"][VOLUME]["train"]

    count, first = made()
    again, second = made()
    assert (count, again) == (3, 0) and np.array_equal(first, second)
    assert made("b")[0] == 3 and len(list((tmp_path / "features").iterdir())) == 2
    for path in (tmp_path / "features").iterdir():
        path.write_bytes(path.read_bytes()[:-200])
    assert made()[0] == 3 and made()[0] == 0


def test_features_that_cannot_be_kept_are_made_and_noted(tmp_path, capsys):
    (tmp_path / "features").write_text("in the way")
    cache = FeatureCache(tmp_path / "features")
    cache.write("a" * 64, np.zeros((2, 3), np.float32))
    cache.write("b" * 64, np.zeros((2, 3), np.float32))
    assert capsys.readouterr().err.count("not kept") == 1 and cache.read("a" * 64, 2, 3) is None


# ---- what is said of them ----


def features(count, shift=0.0, seed=0, width=6, group=1):
    return (np.random.default_rng(seed).normal(size=(count * group, width)) + shift).astype(np.float32)


def test_equal_laws_are_within_the_floor_and_others_beyond():
    near = compare_view({"real": features(80), "generated": features(60, seed=1)}, 1, 50, 0)
    far = compare_view({"real": features(80), "generated": features(60, 1.5, 1), "noise": features(9, 9.0)}, 1, 50, 0)
    assert near["at"] == 40 and far["at_noise"] == 9 and near["at_noise"] is None
    for metric in ("frechet", "kid", "mmd"):
        assert near[metric]["matched"] < near[metric]["floor_p99"] < far[metric]["matched"] < far[metric]["noise"] * 2
    for metric in ("frechet_extrapolated", "kid", "mmd"):
        assert near[metric]["low"] <= near[metric]["value"] <= near[metric]["high"]
    for metric in ("precision", "coverage"):
        assert near[metric]["matched"] >= near[metric]["floor_p99"] > far[metric]["matched"]
    json.dumps([near, far], allow_nan=False)


def test_intervals_of_the_frechet_distance_hold_the_true_one_of_two_normals():
    truth, held = 6 * 0.4 ** 2, 0  # one law is that of the other moved by 0.4 in each of 6 directions
    for seed in range(20):
        sets = {"real": features(64, seed=seed), "generated": features(64, 0.4, seed + 100)}
        found = compare_view(sets, 1, 50, 0)
        held += found["frechet_extrapolated"]["low"] <= truth <= found["frechet_extrapolated"]["high"]
        assert found["frechet"]["value"] > found["frechet_extrapolated"]["value"] and found["frechet"]["low"] is None
    assert held >= 18
    three = compare_view({"real": features(9), "generated": features(3, seed=1)}, 1, 3, 0)
    assert three["frechet"]["available"] and "6 features: wanted 9 or more" in three["frechet_extrapolated"]["reason"]


def test_the_frechet_distance_is_not_extrapolated_where_features_outnumber_volumes(monkeypatch):
    """There it and its interval lie far above the truth, 0 for equal laws, and nothing on the page would say so."""
    def found(num: int) -> dict:
        sets = {"real": features(num, width=48), "generated": features(num, seed=1, width=48)}
        return compare_view(sets, 1, 2, 0)["frechet_extrapolated"]

    assert "60 real volumes of 48 features: wanted 72 or more" in found(60)["reason"]
    assert found(72)["low"] < 0 < found(72)["high"]
    monkeypatch.setattr(feature_measures, "PER_FEATURE", 0)
    assert found(36)["low"] > 5  # what is spared


def test_slices_of_one_volume_are_drawn_together():
    found = compare_view({"real": features(20, group=SLICES), "generated": features(30, seed=1, group=SLICES)}, SLICES,
                         10, 0)
    assert found["num"] == {"real": 20, "generated": 30} and found["at"] == 10 and found["frechet"]["available"]


@pytest.mark.parametrize("count", [1, 2, 4, 30])
def test_few_volumes_have_no_bare_frechet_distance(count):
    found = compare_view({"real": features(40), "generated": features(count, seed=1)}, 1, 256, 0)
    reason = "two or more" if count < 2 else "--min-samples"
    assert not found["frechet"]["available"] and reason in found["frechet"]["reason"]
    assert found["kid"]["available"] is (count > 1) and found["recall"]["available"] is (count > 5)
    json.dumps(found, allow_nan=False)


def test_section_says_what_there_is_and_what_not():
    through = passing("autoencoder", "random", planes=())
    for name, count in (("real", 14), ("generated", 12)):
        list(through.over(name, cases(count, count), count))
    context = Comparison(layout=GREY, provenance={}, real=None, generated=None, features=through.features(),
                         min_samples=256)
    section = FeatureDistances()
    report = section.compute(found := section.gather({}, context), context)
    json.dumps(report, allow_nan=False)
    views = report["feature_distances"]["extractors"]["random"]["views"]
    assert set(views) == {VOLUME, "axes 0, 1", "axes 0, 2", "axes 1, 2"} and set(METRICS) < set(views[VOLUME])
    lines = "\n".join(section.lines(report))
    assert "relative only" in lines and "autoencoder: not available: no first stage" in lines and "Warning" in lines
    figures = {name: b"" for name in section.figures(found, context, report)}
    page = section.page(report, figures)
    assert len(figures) == 4 and page.count("<img") == 4 and "no first stage" in page and "--min-samples" in page
    nothing = Comparison(layout=GREY, provenance={}, real=None, generated=None)
    assert not section.compute(section.gather({}, nothing), nothing)["feature_distances"]["available"]


def test_features_of_a_stage_are_kept_apart_by_all_that_they_depend_on():
    net = AutoencoderKL(1, latent_channels=2, channels=(4, 8))
    facts = Facts("", "", ("mr",), spatial_shape=SIZE)
    plain, other = (LatentScaling([0.0, 0.0], [1.0, std]) for std in (1.0, 2.0))
    stages = [FirstStage(net, facts, plain), FirstStage(net, facts, other), FirstStage(net, facts, plain, "bf16"),
              FirstStage(net, facts, plain).in_parts(Tiles((8, 8, 8), 0.25, "blend"))]
    hashes = {autoencoder_extractor(stage, GREY, SIZE).record.hash for stage in stages}
    assert len(hashes) == 4
    assert autoencoder_extractor(FirstStage(net, facts, plain), GREY, SIZE).record.hash in hashes


def test_words_of_an_option_that_is_given_twice_do_not_vanish():
    @click.command(cls=WordsCommand)
    @click.option("--features", type=Words(str))
    def command(features: tuple[str, ...]) -> None:
        click.echo(features)

    assert CliRunner().invoke(command, ["--features", "a", "b"]).output == "('a', 'b')\n"
    for again in (["--features", "b"], ["--features=b"]):
        answer = CliRunner().invoke(command, ["--features", "a", *again])
        assert answer.exit_code == 2 and "--features: given twice" in answer.output
