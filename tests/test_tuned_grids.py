"""Noise levels tuned on a network, by an ODE whose end is known: found, stored in a copy, drawn by."""

from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import torch

import dataset_tool
import edm3d
import generate
from edm3d.formats.facts import Facts
from edm3d.formats.samples import SamplesFile
from edm3d.inference.snapshot import Snapshot
from edm3d.samplers import ImageGenerators, ddim_sampler, edm_grid
from edm3d.samplers.tuning import levels_of, logarithms, tune
from edm3d.utils import checkpoint
from edm3d.utils.config import build
from tests.commands import refused, succeed
from tests.denoisers import F64, Denoiser
from tests.test_solvers import NODE, SIGMA_DATA

SEEDS = "sampling.seeds=0-3"
DRAW = ("-cn=voxels_edm", "sampling.network=tuned.pt", SEEDS, "sampling.montage=0", "sampling.nifti=false",
        "sampler=ipndm", "sampling.sampler.num_steps=6", "sampling.device=cpu")


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A folder with an untrained network, which knows data of N(0, 0.25), and a copy with levels tuned on it."""
    folder = tmp_path_factory.mktemp("tuned")
    with chdir(folder):
        facts = Facts("", "", spatial_shape=(6,))
        Snapshot("diffusion", NODE, facts, (1, 6), weights=build(NODE).state_dict()).save(Path("net.pt"))
        said = succeed(dataset_tool.main, "tune-grid", "net.pt", "--dest", "tuned.pt", "--device", "cpu", "--steps",
                       "6", "--seeds", "0-3", "--held-out", "4-7")
        assert said.startswith("levels tuned for multistep_sampler num_steps=6 coefficients=fixed: "), said
    return folder


# ---- the search ----


def test_levels_are_those_of_the_least_error():
    """Euler's steps on Gaussian data of three widths scale noise by products, so all triples of levels can be tried."""
    sd, high, low = torch.tensor([0.2, 0.5, 1.0], dtype=F64), 10.0, 0.1
    net = Denoiser(lambda x, sigma: x * sd ** 2 / (sd ** 2 + sigma ** 2))
    latents, exact = torch.ones(1, 1, 3, dtype=F64), (high * sd / (sd ** 2 + high ** 2).sqrt())[None, None]

    def end(a, b, c):
        square = sd.numpy().reshape(3, *[1] * np.ndim(a)) ** 2
        first, second = (1 + (after - before) * before / (square + before ** 2) for before, after in ((a, b), (b, c)))
        return a * first * second * square / (square + c ** 2)

    def error(a, b, c):
        off = end(a, b, c) - exact.numpy().reshape(3, *[1] * np.ndim(a))
        return np.sqrt((off ** 2).sum(0)) / float(exact.norm())

    levels = np.geomspace(high, low, 100)
    a, b, c = np.meshgrid(levels, levels, levels, indexing="ij")
    least = np.where((a > b) & (b > c), error(a, b, c), np.inf).min()
    found = tune(lambda sigmas: ddim_sampler(net, latents, sigmas=sigmas), exact,
                 [torch.tensor([high, 1.0, low, 0], dtype=F64)])
    assert found.error < found.start_error and found.error == pytest.approx(least, rel=0.02)
    assert error(*found.sigmas[:-1].numpy()) == pytest.approx(found.error, rel=1e-9)


def test_places_lead_to_levels_within_the_range_and_back():
    grid = edm_grid(6, 0.002, 80, 7)
    ends = np.log(0.001), np.log(200)
    torch.testing.assert_close(levels_of(logarithms(grid, *ends), *ends), grid, rtol=1e-9, atol=0)
    wild = levels_of(torch.tensor([9.0, -2.0, 3.0, 1.0], dtype=F64), *ends)
    assert wild[0] <= 200 and wild[-2] >= 0.001 and wild[-1] == 0 and (wild.diff() < 0).all()


# ---- the command ----


def test_a_copy_draws_nearer_to_the_exact_solution(at):
    snapshot = Snapshot.read(Path("tuned.pt"))
    grid = snapshot.grids[0]
    assert snapshot.network_hash == Snapshot.read(Path("net.pt")).network_hash and grid.num_steps == 6
    assert grid.held_out_error < grid.held_out_named_error / 3, grid
    noise = ImageGenerators(range(4), purpose="sample").randn((1, 6)).numpy()
    exact = 80 * noise * SIGMA_DATA / np.hypot(80, SIGMA_DATA)

    def off(name: str) -> float:
        model = edm3d.load("tuned.pt", device="cpu")
        x = model.sample("0-3", sampler="ipndm", num_steps=6, grid=name).arrays["images"]
        return np.sqrt(np.mean((x - model.facts.intensity.from_network(exact)) ** 2))

    assert any(line.strip() == grid.line() for line in succeed(dataset_tool.main, "info", "tuned.pt").splitlines())
    assert off("tuned") < min(off("focused"), off("exponential")) / 3


def test_generate_takes_the_levels_and_samples_say_them(at):
    succeed(generate.main, *DRAW, "sampling.sampler.grid=tuned", "sampling.outdir=out")
    grid = Snapshot.read(Path("tuned.pt")).grids[0]
    file = SamplesFile(Path("out/samples.h5"))
    assert file.meta.sampling["sampler"]["sigmas"] == grid.sigmas
    mine = edm3d.load("tuned.pt", device="cpu").sample("0-3", sampler="ipndm", num_steps=6, sigmas=grid.sigmas)
    np.testing.assert_array_equal(file.array("images"), mine.arrays["images"])


@pytest.mark.parametrize("change", ["sampling.network=net.pt", "sampling.sampler.num_steps=5",
                                    "sampling.sampler.order=4"])
def test_levels_that_are_not_there_are_named_with_the_command_that_makes_them(at, change):
    said = refused(at, generate.main, *DRAW, "sampling.sampler.grid=tuned", change, "sampling.outdir=none")
    assert "sampling.sampler.grid=tuned: " in said and "has no levels for multistep_sampler num_steps=" in said
    assert "tune-grid" in said and "--steps" in said and not Path("none").exists()


def test_levels_are_kept_beside_others(at):
    succeed(dataset_tool.main, "tune-grid", "tuned.pt", "--dest", "more.pt", "--device", "cpu", "--steps", "2", "4",
            "--seeds", "0", "--held-out", "1", "--rounds", "1", "--sampler", "edm_ode")
    assert [(g.sampler, g.num_steps) for g in Snapshot.read(Path("more.pt")).grids] == [
        ("multistep_sampler", 6), ("edm_sampler", 2), ("edm_sampler", 4)]


@pytest.mark.parametrize(("arguments", "message"), [
    (("--sampler", "edm_sde"), "--sampler edm_sde: adds noise"), (("--sampler", "ablation"), "takes no levels"),
    (("--held-out", "0-3"), "seed 0 is one of --seeds"), (("--dest", "tuned.pt"), "is there already"),
    (("--dest", "net.pt"), "--dest net.pt is SNAPSHOT")])
def test_what_cannot_be_tuned_is_refused(at, arguments, message):
    assert message in refused(at, dataset_tool.main, "tune-grid", "net.pt", "--dest", "no.pt", "--device", "cpu",
                              *arguments)
    assert not Path("no.pt").exists()


@pytest.mark.parametrize(("change", "message"), [
    ({"sigmas": [6.0, 5.0, 4.0, 4.0, 2.0, 1.0, 0.0]}, "levels that fall to 0"), ({"sigmas": "x"}, "grids[0].sigmas"),
    ({"num_steps": 3}, "grids[0].num_steps is 3")])
def test_damaged_levels_are_refused_by_file_and_key(at, change, message):
    content = checkpoint.load(Path("tuned.pt"), "snapshot").content
    content["grids"][0] |= change
    checkpoint.save(Path("odd.pt"), "snapshot", content)
    with pytest.raises(ValueError) as e:
        Snapshot.read(Path("odd.pt"))
    assert message in str(e.value) and "odd.pt" in str(e.value)
