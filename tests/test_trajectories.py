"""The way from noise to image: steps known by hand, and pictures and tables that leave the samples as they are."""

import csv
from contextlib import chdir
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import generate
from edm3d.formats.facts import Facts
from edm3d.formats.intensity import Intensity
from edm3d.formats.samples import SamplesFile
from edm3d.formats.volumes import VolumesFile
from edm3d.inference.conditions import Conditions
from edm3d.inference.drawing import Drawer, solve
from edm3d.inference.sample_files import ways_beside
from edm3d.inference.snapshot import Snapshot
from edm3d.inference.trajectories import Step, Watched, as_spread, noised
from edm3d.networks.conditioning import Condition
from edm3d.networks.label_coding import LabelCoding
from edm3d.reporting.cases import Layout
from edm3d.reporting.comparison import Comparison
from edm3d.reporting.noise_levels import noise_levels
from edm3d.reporting.reference import Cases
from edm3d.reporting.sections.way_from_noise import WayFromNoise
from edm3d.samplers import ablation_sampler, ddim_sampler, edm_sampler, multistep_sampler
from edm3d.samplers.noise import ImageGenerators
from edm3d.utils.config import build
from tests.commands import succeed
from tests.denoisers import gaussian
from tests.test_evaluate import write_phantoms

SD, SIZE = 0.5, 28
DRAW = ["-cn=voxels_edm", "sampling.seeds=0-2", "sampling.num_threads=1", "sampling.device=cpu", "sampling.nifti=false",
        "sampling.sampler.num_steps=3", "sampling.montage=0"]
ASK = "sampling.trajectory_montage=2"


def drawer_of(sampler) -> Drawer:
    """Draws latents [2,3] of a Gaussian whose perfect denoiser is known."""
    return Drawer(lambda seeds: gaussian(SD), Conditions({}, {}, (3,)), True, None, sampler, (2, 3),
                  Intensity(0, 1, True, ""), torch.device("cpu"), "fp32")


@pytest.mark.parametrize("sampler", [
    partial(edm_sampler, num_steps=5), partial(edm_sampler, num_steps=5, S_churn=2),
    partial(multistep_sampler, num_steps=5, order=3), partial(ddim_sampler, num_steps=5, eta=1),
    partial(ablation_sampler, num_steps=5, solver="heun", discretization="vp", schedule="vp", scaling="vp")])
def test_steps_are_the_levels_with_x_and_what_it_is_taken_for(sampler):
    seen: list[Watched] = []

    def watch(net):
        seen.append(Watched(net))
        return seen[-1]

    drawer = drawer_of(sampler)
    found = solve(drawer, [3], 0, lambda *step: seen[-1].see(*step), watch)
    steps = seen[-1].steps
    assert torch.equal(found.x, solve(drawer, [3]).x) and len(steps) == 5
    levels = [step.sigma for step in steps]
    assert levels == sorted(levels, reverse=True) and levels[0] > 75
    for step in steps:  # D = x sd^2 / (sd^2 + sigma^2)
        np.testing.assert_allclose(step.denoised, step.x * SD ** 2 / (SD ** 2 + step.sigma ** 2), rtol=1e-5)
    if not {"S_churn", "discretization"} & sampler.keywords.keys():
        x = 80 * ImageGenerators([3], purpose="sample").randn((2, 3))
        np.testing.assert_allclose(steps[0].x, x, rtol=1e-6)


def test_a_volume_under_noise_is_itself_and_so_much_noise():
    clean, noise = torch.full((1, 2, 3), 0.25), torch.arange(6.0).reshape(1, 2, 3)
    step = noised(drawer_of(edm_sampler), clean, noise, 2.0, Condition())
    np.testing.assert_allclose(step.x, 0.25 + 2 * noise)
    np.testing.assert_allclose(step.denoised, step.x * 0.25 / 4.25, rtol=1e-6)


def test_what_is_noisy_is_shown_with_mean_and_spread_of_the_volume():
    noise = ImageGenerators([0]).randn((2, 20_000))
    clean = torch.stack([3 + 0.5 * torch.randn(20_000), -1 + 2 * torch.randn(20_000)])[None]
    for sigma in (80.0, 1.0, 0.0):
        shown = as_spread(Step(sigma, clean + sigma * noise, clean), clean)
        assert shown.mean(2).flatten().tolist() == pytest.approx([3, -1], abs=0.05)
        assert shown.std(2).flatten().tolist() == pytest.approx([0.5, 2], rel=0.03)
    assert torch.allclose(shown, clean, atol=1e-5)


# ---- files ----


def rows_of(path: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(path).read_text().splitlines()))


def write_network(path: Path, real: Path, classes: tuple[str, ...] = (), dims: int = 2) -> None:
    """A small network of phantoms, untrained; with classes it draws label maps, too."""
    coding = LabelCoding("bits", len(classes)) if classes else None
    channels = 1 + (coding.channels if coding else 0)
    node = {"_target_": "networks.precond.EDMPrecond", "model": {
        "_target_": "networks.unet.ADMUNet", "in_channels": channels, "out_channels": channels, "spatial_dims": dims,
        "model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attention_levels": []}}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = build(node).state_dict()
    facts = Facts(str(real), VolumesFile(real).content_hash, ("echo",), classes,
                  intensity=Intensity(0.0, 1.0, True, "echo"), spatial_shape=(SIZE,) * dims)
    Snapshot("diffusion", node, facts, (channels, *[SIZE] * dims), weights=weights, label_coding=coding).save(path)


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """Real phantoms, two networks of them, and what the first drew without and with its ways."""
    folder, threads = tmp_path_factory.mktemp("ways"), torch.get_num_threads()
    with chdir(folder):
        real = write_phantoms(Path("echo.h5"), dims=2, count=4)
        write_network(Path("net.pt"), real)
        write_network(Path("mapped.pt"), real, VolumesFile(real).meta.label_classes)
        succeed(generate.main, *DRAW, "sampling.network=net.pt", "sampling.outdir=plain")
        succeed(generate.main, *DRAW, "sampling.network=net.pt", "sampling.outdir=out", ASK)
    torch.set_num_threads(threads)
    return folder


def test_samples_are_the_same_and_the_table_is_of_their_way(at):
    plain, drawn = (SamplesFile(f"{name}/samples.h5") for name in ("plain", "out"))
    assert np.array_equal(plain.array("images"), drawn.array("images")) and plain.meta == drawn.meta
    assert not Path("plain/trajectories").exists()
    assert sorted(path.name for path in Path("out/trajectories").iterdir()) == [
        f"seed{seed:06d}{ending}" for seed in (0, 1) for ending in (".csv", "_1.png")]
    rows = rows_of("out/trajectories/seed000001.csv")
    assert {row["what"]: sum(other["what"] == row["what"] for other in rows) for row in rows} == dict.fromkeys(
        ("noised", "noised_estimate", "x", "x_estimate"), 3)
    of = {(row["what"], int(row["step"])): row for row in rows}
    assert float(of["x", 0]["sigma"]) == 80 and float(of["x", 0]["std"]) == pytest.approx(80, rel=0.1)
    noise = ImageGenerators([1], purpose="trajectory").randn((1, SIZE, SIZE)).double()
    real = torch.from_numpy(VolumesFile("echo.h5").read("test", 0).image).double() * 2 - 1
    for number in range(3):
        row = of["noised", number]
        x = real + float(row["sigma"]) * noise
        assert float(row["mean"]) == pytest.approx(float(x.mean()), rel=1e-3, abs=1e-5)
        assert float(row["max"]) == pytest.approx(float(x.max()), rel=1e-3)
    last = np.clip((drawn.row("images", 1) * 2 - 1).astype(float), -1, 1)
    assert float(of["x_estimate", 2]["min"]) <= last.min() + 1e-3 and float(of["x_estimate", 2]["sigma"]) < 0.01


def test_what_is_there_is_left_and_what_is_missing_or_changed_is_written(at):
    paths = sorted(Path("out/trajectories").iterdir())
    whole = [path.read_bytes() for path in paths]
    times = [path.stat().st_mtime_ns for path in paths]
    paths[0].write_text("changed")
    said = succeed(generate.main, *DRAW, "sampling.network=net.pt", "sampling.outdir=out", ASK)
    assert "from noise to image, 2 samples" in said and [path.read_bytes() for path in paths] == whole
    assert [path.stat().st_mtime_ns for path in paths][2:] == times[2:]


def test_networks_of_label_maps_and_without_real_volumes(at):
    succeed(generate.main, *DRAW, "sampling.network=mapped.pt", "sampling.outdir=mapped", ASK)
    assert Image.open("mapped/trajectories/seed000000_1.png").size[0] > 3 * 168
    Path("echo.h5").rename("away.h5")
    try:
        succeed(generate.main, *DRAW, "sampling.network=net.pt", "sampling.outdir=alone", ASK)
    finally:
        Path("away.h5").rename("echo.h5")
    of = {(row["what"], row["step"]): row for row in rows_of("alone/trajectories/seed000000.csv")}
    for key in ("mean", "std"):  # of the sample itself under the least noise
        assert float(of["noised", "2"][key]) == pytest.approx(float(of["x_estimate", "2"][key]), rel=1e-2)


def test_pictures_have_a_row_for_each_block_and_signals_are_lines():
    pictures = [(np.full((1, 4, 4, 4), i, np.float32), None) for i in range(5)]
    figures = noise_levels([("a", pictures), ("b", pictures)], Layout(("x",), (), (1.0,) * 3, 0.0, 2.0, ""), "12345")
    assert [[text.get_text() for text in figure.texts] for figure in figures] == [["a", "b", *"123"], ["a", "b", *"45"]]
    assert all(len(figure.images) == 2 for figure in figures)
    lines, = noise_levels([("a", [(np.zeros((1, 9)), None)] * 2)], Layout(("x",), (), (1.0,), 0.0, 2.0, ""), "12")
    assert len(lines.axes) == 2


# ---- in the report ----


def test_a_report_shows_what_lies_beside_its_samples_and_nothing_else(at, tmp_path):
    samples = SamplesFile("out/samples.h5")
    ways, why = ways_beside(samples)
    assert list(ways) == ["seed000000_1", "seed000001_1"] and not why
    assert ways["seed000001_1"] == Path("out/trajectories/seed000001_1.png").read_bytes()
    assert ways_beside(SamplesFile("plain/samples.h5")) == (
        {}, "none lie beside the samples (generate.py sampling.trajectory_montage=3)")
    for name in ("samples.h5", "trajectories.json", "trajectories/seed000000_1.png", "trajectories/seed000001_1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(Path("mapped" if name == "samples.h5" else "out", name).read_bytes())
    assert "is of other samples" in ways_beside(SamplesFile(tmp_path / "samples.h5"))[1]
    (tmp_path / "samples.h5").write_bytes(Path("out/samples.h5").read_bytes())
    (tmp_path / "trajectories/seed000000_1.png").write_bytes(b"another")
    assert list(ways_beside(SamplesFile(tmp_path / "samples.h5"))[0]) == ["seed000001_1"]
    section, none = WayFromNoise(), Cases("", 0, lambda i: None)
    context = Comparison(layout=None, provenance={}, real=none, generated=none, ways=ways)
    report = section.compute(None, context)
    page = section.page(report, section.embedded(None, context, report))
    assert page.count("data:image/png") == 2 and report["trajectories"]["pictures"] == list(ways)
    gone = Comparison(layout=None, provenance={}, real=none, generated=none, missing={"trajectories": "no way"})
    assert "not available: no way" in section.page(section.compute(None, gone), {})
