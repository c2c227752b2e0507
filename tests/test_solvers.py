"""What samplers cost a network and how far they end from the exact solution, on a network whose solution is known."""

import csv
import json
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

import dataset_tool
import edm3d
from edm3d.formats.facts import Facts
from edm3d.formats.intensity import Intensity
from edm3d.formats.volumes import VolumesMeta, VolumesWriter, full_box
from edm3d.inference.snapshot import Snapshot
from edm3d.inference.solvers import drawn, read_real, try_solvers
from edm3d.metrics.frechet import frechet_distance
from edm3d.metrics.kernel_distance import kernel_distance
from edm3d.metrics.same_size import at_same_size
from edm3d.samplers import ImageGenerators
from edm3d.utils.config import build
from tests.commands import refused, succeed
from tests.test_volumes import make_item

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


# ---- against real volumes ----


@pytest.fixture(scope="module")
def flat(here) -> Path:
    """A 2D network whose samples are N(0, 0.25) in its units, and real images: such as these, and others."""
    node = {**NODE, "model": {**NODE["model"], "spatial_dims": 2}}
    intensity = Intensity(-1.0, 1.0, False, "")
    facts = Facts("", "", ("t1",), intensity=intensity, spatial_shape=(8, 8))
    with chdir(here):
        Snapshot("diffusion", node, facts, (1, 8, 8), weights=build(node).state_dict()).save(Path("flat.pt"))
        rng = np.random.default_rng(0)
        meta = VolumesMeta(2, ("t1",), ("target",), (), (), (), (), intensity)
        for name, count, shift in (("alike", 40, 0), ("apart", 40, 1), ("few", 3, 0)):
            with VolumesWriter(f"{name}.h5", meta, {}) as writer:
                for i in range(count):
                    image = rng.normal(shift, SIGMA_DATA, (1, 8, 8)).astype(np.float32)
                    writer.add("val", make_item(i, image=image, label=None, attributes=None, class_index=None,
                                                box=full_box((8, 8))))
    return here


def test_what_is_drawn_is_held_against_real_volumes_beside_their_floor(at, flat):
    model, rows = edm3d.load("flat.pt", device="cpu"), {}
    for name in ("alike", "apart"):
        real = read_real(model, Path(f"{name}.h5"), 20, 7)
        assert real.features.shape == (40, 224)
        rows[name], = try_solvers(model, ["multistep"], [8], [0], real)
    alike, apart = rows["alike"], rows["apart"]
    assert alike.size == 20 and alike.distance < alike.floor_p95 < apart.floor_p95 + apart.distance / 2
    assert apart.distance > 5 * apart.floor_p95 and apart.floor < apart.floor_p95
    images = np.concatenate([model.sample([seed], sampler="multistep", num_steps=8).images for seed in range(20)])
    wanted = at_same_size(frechet_distance, real.features, real.extractor(images))
    assert apart.distance == pytest.approx(wanted.distance, rel=1e-4)  # whatever the batch
    kid = at_same_size(kernel_distance, real.features, real.extractor(images))
    assert apart.kid == pytest.approx(kid.distance, rel=1e-3) and apart.kid > 5 * apart.kid_floor_p95
    assert alike.kid < alike.kid_floor_p95 and abs(apart.kid_floor) < apart.kid_floor_p95


def test_the_table_is_written_as_json_csv_and_a_chart(at, flat):
    said = succeed(dataset_tool.main, "solvers", "flat.pt", "--device", "cpu", "--samplers", "multistep", "ddim",
                   "--steps", "1", "4", "--seeds", "0", "--real", "alike.h5", "--num", "6", "--dest", "table")
    lines = said.splitlines()
    assert lines[0].split()[:6] == ["sampler", "steps", "calls", "s/volume", "distance", "KID"]
    assert lines[-1].startswith("distance: Frechet, 6 drawn to 6 real, features of a random network")
    found = json.loads(Path("table/solvers.json").read_text())
    assert found["real"].startswith("12 of ") and [row["steps"] for row in found["rows"]] == [1, 4, 1, 4]
    refused_row, row = found["rows"][:2]
    assert refused_row["distance"] is None and refused_row["why"] and row["distance"] > 0 < row["floor"]
    rows = list(csv.DictReader(Path("table/solvers.csv").read_text().splitlines()))
    assert float(rows[1]["distance"]) == row["distance"] and rows[0]["distance"] == ""
    assert imread("table/solvers.png").shape[0] > 100


def test_volumes_that_nothing_can_be_held_against_are_refused(at, flat):
    succeed(dataset_tool.main, "phantom", "--dest", "solid.h5", "--num", "4", "--size", "8")
    for path, wanted in (("few.h5", "wanted 4 or more"), ("solid.h5", "its volumes are in 3D"),
                         ("gone.h5", "gone.h5: ")):
        assert wanted in refused(at, dataset_tool.main, "solvers", "flat.pt", "--steps", "4", "--real", path)
    assert "is a file, wanted a folder" in refused(at, dataset_tool.main, "solvers", "flat.pt", "--dest", "few.h5")
