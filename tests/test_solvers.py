"""What samplers cost a network and how far they end from the exact solution, on a network whose solution is known."""

import json
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest

import dataset_tool
import edm3d
from edm3d.formats.facts import Facts
from edm3d.inference.snapshot import Snapshot
from edm3d.inference.solvers import drawn, try_solvers
from edm3d.samplers import ImageGenerators
from edm3d.utils.config import build
from tests.commands import refused, succeed

SIGMA_DATA = 0.5
NODE = {"_target_": "networks.precond.EDMPrecond", "sigma_data": SIGMA_DATA, "model": {
    "_target_": "networks.unet.ADMUNet", "in_channels": 1, "out_channels": 1, "spatial_dims": 1, "model_channels": 8,
    "channel_mult": [1], "num_blocks": 1, "attention_levels": []}}


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A folder with an untrained network. Its last layer gives zeros: it knows data of N(0, 0.25), and no others."""
    folder = tmp_path_factory.mktemp("solvers")
    with chdir(folder):
        facts = Facts("", "", spatial_shape=(6,))
        Snapshot("diffusion", NODE, facts, (1, 6), weights=build(NODE).state_dict()).save(Path("net.pt"))
    return folder


def test_the_reference_is_the_exact_solution(at):
    model = edm3d.load("net.pt", device="cpu")
    found, calls, _ = drawn(model, "multistep", 72, [3, 5])
    noise = ImageGenerators([3, 5], purpose="sample").randn((1, 6)).numpy()
    stored = model.facts.intensity.from_network(80 * noise * SIGMA_DATA / np.hypot(80, SIGMA_DATA))
    np.testing.assert_allclose(found, stored, atol=2e-5)
    assert calls == 2 * 72


def test_calls_and_errors_are_those_of_the_methods(at):
    rows = {(row.sampler, row.steps): row for row in try_solvers(
        edm3d.load("net.pt", device="cpu"), ["edm_ode", "multistep", "ddim", "edm_sde"], [8, 16], [0, 1])}
    assert [rows[name, 8].calls for name in ("edm_ode", "multistep", "ddim", "edm_sde")] == [15, 8, 8, 15]
    heun, multistep, ddim = ([rows[name, n].error for n in (8, 16)] for name in ("edm_ode", "multistep", "ddim"))
    assert heun[0] / heun[1] > 3 and 1.6 < ddim[0] / ddim[1] < 2.6  # orders 2 and 1
    assert multistep[0] < heun[0] < 0.2 and rows["edm_sde", 8].error is None
    assert all(row.seconds > 0 for row in rows.values())


def test_what_a_sampler_refuses_is_in_its_row(at):
    said = succeed(dataset_tool.main, "solvers", "net.pt", "--device", "cpu", "--samplers", "multistep", "ddim",
                   "--steps", "1", "4", "--seeds", "0").splitlines()
    assert said[0].split()[:5] == ["sampler", "steps", "calls", "s/volume", "off"]
    assert said[1].startswith("multistep ") and "num_steps=1: wanted" in said[1] and said[2].split()[:3] == [
        "multistep", "4", "4"]
    rows = json.loads(succeed(dataset_tool.main, "solvers", "net.pt", "--device", "cpu", "--steps", "4", "--json"))
    assert [row["sampler"] for row in rows] == ["edm_ode", "multistep", "ddim"]
    assert "did you mean 'multistep'" in refused(at, dataset_tool.main, "solvers", "net.pt", "--samplers", "multistap")
