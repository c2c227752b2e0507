"""Posterior samples by the command: measurements out of files, in units of the data, and what is refused."""

import shutil
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch

import edm3d
import generate
from edm3d.formats.dose import DoseRecord
from edm3d.formats.facts import Facts, LatentScaling
from edm3d.formats.intensity import Intensity
from edm3d.formats.sample_settings import SweptAttribute
from edm3d.formats.samples import SamplesFile
from edm3d.inference import scans
from edm3d.inference.asking_scans import ScanAsker, in_units
from edm3d.inference.conditions import Conditions
from edm3d.inference.measurements import built_operator, check_posterior, noisy, open_measurements, rows_measured
from edm3d.inference.network_files import network_hash
from edm3d.inference.scans import ScanBatch
from edm3d.inference.snapshot import CarriedStage, Snapshot
from edm3d.networks.conditioning import Part
from edm3d.physics import projector
from edm3d.physics.activity_scale import ActivityScale
from edm3d.physics.operators import Downsample
from edm3d.samplers import ddim_sampler
from edm3d.training.tasks.previews import preview_options
from edm3d.utils.compose import compose
from edm3d.utils.config import build
from tests.commands import refused, succeed
from tests.denoisers import Denoiser

FACTS = Facts("nowhere.h5", "", ("t1",), intensity=Intensity(10.0, 30.0, False, "HU"))
FACTS_3D = Facts("nowhere.h5", "", ("t1",), spatial_shape=(8, 8, 8), intensity=Intensity(0.0, 1.0, False, ""))
DRAW = ["-cn=brainweb2d_edm", "sampling.network=edm.pt", "sampling.seeds=0-2", "sampling.num_threads=1",
        "sampling.device=cpu", "sampling.outdir=out", "sampling.sampler.num_steps=3", "sampling.montage=0"]
HALVES = ["sampling.posterior.operator._target_=physics.operators.Downsample", "sampling.posterior.operator.factor=4"]
MEASURED = [*DRAW, "posterior=mmps", *HALVES, "sampling.posterior.measurement=y.npy"]


def unet(dims: int, channels: int) -> dict:
    return {"_target_": "networks.unet.ADMUNet", "in_channels": channels, "out_channels": channels,
            "spatial_dims": dims, "model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attention_levels": []}


def snapshot(facts: Facts, shape: tuple[int, ...], stage: CarriedStage | None = None) -> Snapshot:
    torch.manual_seed(0)
    node = {"_target_": "networks.precond.EDMPrecond", "model": unet(len(shape) - 1, shape[0])}
    return Snapshot("diffusion", node, facts, shape, stage, weights=build(node).state_dict(), config={})


def first_stage() -> CarriedStage:
    """An untrained autoencoder of 8x8 images by latents of 2 channels and 4x4."""
    torch.manual_seed(1)
    node = {"_target_": "networks.autoencoder.AutoencoderKL", "in_channels": 1, "latent_channels": 2, "spatial_dims": 2,
            "channels": [4, 4], "num_blocks": 1, "num_blocks_decoder": 1}
    weights = build(node).state_dict()
    return CarriedStage(LatentScaling([0.0, 0.0], [1.0, 1.0]), node, weights, network_hash(node, weights))


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A folder with snapshots, measurements and images."""
    folder = tmp_path_factory.mktemp("measured")
    with chdir(folder):
        snapshot(FACTS, (1, 8, 8)).save(Path("edm.pt"))
        snapshot(FACTS_3D, (1, 8, 8, 8)).save(Path("cubes.pt"))
        snapshot(FACTS, (2, 4, 4), first_stage()).save(Path("latent.pt"))
        rng = np.random.default_rng(0)
        np.save("y.npy", np.stack([np.full((1, 2, 2), 15.0), np.full((1, 2, 2), 25.0)]))
        np.savez("one.npz", y=np.full((2, 2), 15.0), other=np.zeros(3))
        np.savez("truth.npz", images=rng.uniform(10, 30, (2, 1, 8, 8)))
        nibabel.Nifti1Image(np.full((2, 2, 2), 0.25, np.float32), np.eye(4)).to_filename("y.nii.gz")
        np.save("nan.npy", np.full((1, 2, 2), np.nan))
        np.save("wide.npy", np.zeros((4, 1, 3, 2)))
        np.save("text.npy", np.array(["a"]))
        np.save("none.npy", np.zeros((0, 1, 2, 2)))
    return folder


def images(*arguments: str) -> np.ndarray:
    shutil.rmtree("out", ignore_errors=True)
    succeed(generate.main, *arguments)
    return SamplesFile("out/samples.npz").array("images")


def block_means(x: np.ndarray) -> np.ndarray:
    return x.reshape(*x.shape[:2], 2, 4, 2, 4).mean((3, 5))


@pytest.mark.parametrize("method", ["mmps", "dps"])
def test_seeds_go_through_the_rows_in_units_of_the_data(at, method):
    drawn = images(*DRAW, f"posterior={method}", *HALVES, "sampling.posterior.measurement=y.npy",
                   "sampling.sampler.num_steps=12")
    off = np.abs(block_means(drawn) - np.array([15, 25, 15]).reshape(3, 1, 1, 1)).mean()
    assert off < (0.5 if method == "mmps" else 6), block_means(drawn)  # of a range of 20, and 16 without it


def test_batches_of_any_size_give_the_same(at):
    together = images(*MEASURED)
    np.testing.assert_allclose(images(*MEASURED, "sampling.batch_size=1"), together, atol=1e-3)
    np.testing.assert_allclose(images(*MEASURED, "sampling.seeds=1"), together[1:2], atol=1e-3)


def test_one_measurement_is_that_of_all_seeds(at):
    drawn = images(*DRAW, "posterior=mmps", *HALVES, "sampling.posterior.measurement=one.npz",
                   "sampling.sampler.num_steps=8")
    assert np.abs(block_means(drawn) - 15).max() < 1.5


def test_volumes_by_a_nifti_measurement(at):
    drawn = images(*DRAW, "sampling.network=cubes.pt", "sampling.seeds=0", "posterior=mmps", *HALVES,
                   "sampling.posterior.operator.spatial_dims=3", "sampling.posterior.measurement=y.nii.gz",
                   "sampling.posterior.operator.sigma=0.002",
                   "sampling.sampler.num_steps=8", "sampling.nifti=false")
    assert drawn.shape == (1, 1, 8, 8, 8)
    assert np.abs(drawn.reshape(2, 4, 2, 4, 2, 4).mean((1, 3, 5)) - 0.25).max() < 0.1


def test_measurements_of_what_latents_decode_to(at):
    """In tiles too, and where nothing is decoded in the end: gradients go through the whole decoder."""
    draw = [*DRAW, "sampling.network=latent.pt", "sampling.seeds=0", "sampling.sampler.num_steps=12"]
    np.save("decoded.npy", block_means(images(*draw, "sampling.seeds=7")).astype(np.float32))
    measured = [*draw, "posterior=mmps", *HALVES, "sampling.posterior.measurement=decoded.npy"]
    y, plain, given = np.load("decoded.npy"), images(*draw), images(*measured)
    assert np.abs(block_means(given) - y).max() < 0.3 * np.abs(block_means(plain) - y).max()
    latents = SamplesFile("out/samples.npz").array("latents")
    for option in ("sampling.tile=[4,4]", "sampling.decode=false"):
        images(*measured, option)
        np.testing.assert_allclose(SamplesFile("out/samples.npz").array("latents"), latents, atol=1e-4)


def test_measurements_are_simulated_with_noise_of_each_seed(at):
    simulated = [*DRAW, "posterior=mmps", *HALVES, "sampling.posterior.simulate=truth.npz",
                 "sampling.posterior.operator.sigma=0.1", "sampling.sampler.num_steps=8"]
    drawn, truth = images(*simulated), np.load("truth.npz")["images"]
    assert np.abs(block_means(drawn) - block_means(truth[[0, 1, 0]])).max() < 1.5
    np.testing.assert_allclose(images(*simulated, "sampling.seeds=2"), drawn[2:], atol=1e-3)
    clean = torch.zeros(1, 1, 2, 2)
    operator = Downsample(4, sigma=2)
    assert torch.equal(noisy(operator, clean, 3), noisy(operator, clean, 3))
    assert not torch.equal(noisy(operator, clean, 3), noisy(operator, clean, 4))


class LikeDeepinv(torch.nn.Module):
    """An operator in the manner of deepinv: a module with buffers, and a noise model with sigma and torch's own
    generator.
    """

    class Noise(torch.nn.Module):
        def __init__(self, sigma: float):
            super().__init__()
            self.sigma = torch.nn.Parameter(torch.tensor(sigma), requires_grad=False)

        def forward(self, y, sigma=None, seed=None, **kwargs):
            return y + self.sigma * torch.randn_like(y)

    def __init__(self, sigma: float = 0.1):
        super().__init__()
        self.register_buffer("weight", torch.full((1, 1, 4, 4), 1 / 16))
        self.noise_model = self.Noise(sigma)

    def A(self, x, **kwargs):
        return torch.nn.functional.conv2d(x, self.weight, stride=4)

    def A_adjoint(self, y, **kwargs):
        return torch.nn.functional.conv_transpose2d(y, self.weight, stride=4)


def test_operators_of_others_serve_as_well(at):
    theirs = [*DRAW, "posterior=mmps", "sampling.posterior.operator._target_=tests.test_measurements.LikeDeepinv",
              "sampling.posterior.operator.sigma=0.05", "sampling.posterior.measurement=y.npy"]
    ours = images(*MEASURED)
    np.testing.assert_allclose(images(*theirs), ours, atol=1e-3)
    state = torch.random.get_rng_state()
    first, second = (noisy(LikeDeepinv(), torch.zeros(1, 1, 2, 2), 3) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(state, torch.random.get_rng_state())


def test_what_was_measured_is_recorded_and_held_to(at):
    images(*MEASURED)
    record = SamplesFile("out/samples.npz").meta.sampling["posterior"]
    assert record["_target_"] == "samplers.posterior.MMPS" and record["source"] == "y.npy"
    assert record["operator"] == {"_target_": "physics.operators.Downsample", "factor": 4}
    Path("moved.npy").write_bytes(Path("y.npy").read_bytes())
    moved = [*MEASURED[:-1], "sampling.posterior.measurement=moved.npy", "sampling.seeds=0-3"]
    assert "3 there already" in succeed(generate.main, *moved)
    for other in ("sampling.posterior.operator.sigma=0.2", "sampling.posterior.measurement=one.npz", "posterior=none"):
        given = DRAW if other == "posterior=none" else [*MEASURED, other]
        assert "sampling.posterior" in refused(at, generate.main, *given), other


def test_python_draws_the_same(at):
    drawn = images(*MEASURED)
    node = {"_target_": "samplers.posterior.MMPS", "iterations": 3, "measurement": "y.npy",
            "operator": {"_target_": "physics.operators.Downsample", "factor": 4}}
    torch.set_num_threads(1)
    samples = edm3d.load("edm.pt", device="cpu").sample("0-2", sampler="edm_ode", num_steps=3, batch_size=16,
                                                        posterior=node)
    np.testing.assert_allclose(samples.images, drawn, atol=1e-4)


# ---- scans, draws, rows ----


class Prior(Denoiser):
    """Independent voxels of mean 0 and standard deviation 0.5."""

    def __init__(self):
        super().__init__(lambda x, sigma: 0.25 / (0.25 + sigma ** 2) * x)

    def __call__(self, x, sigma, condition=None, augment_labels=None):
        return super().__call__(x, sigma, condition)


class TwoScans:
    """Scans of two scales, which seeds go through in turn."""

    def __call__(self, seeds):
        return ScanBatch(torch.tensor([(4.0, 400.0)[seed % 2] for seed in seeds]), torch.empty(0), {})


@pytest.mark.parametrize("method", ["MMPS", "DPS"])
def test_measurements_are_in_the_unit_of_each_scan(at, method):
    """Two draws of each of two scans, alike but for their scales 4 and 400: from the same noise the same is drawn."""
    y = np.array([1.0, 3.0, 0.5, 2.0], np.float32).reshape(1, 1, 2, 2) * np.array([1, 100]).reshape(2, 1, 1, 1)
    np.save("activity.npy", y.astype(np.float32))
    node = {"_target_": f"samplers.posterior.{method}", "operator": {**HALVED, "noise_model": {
        "_target_": "physics.noise_models.PoissonNoise", "gain": 1e-6}}, "measurement": "activity.npy"}
    conditions = Conditions({}, {}, (8, 8), draws=2, scans=TwoScans())
    made = open_measurements(node, Snapshot.read(at / "edm.pt"), None, conditions, torch.device("cpu"))
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    x = ddim_sampler(made(Prior(), range(4)), noise, num_steps=40)
    drawn = ActivityScale.from_network(x, torch.tensor([4.0, 4.0, 400.0, 400.0]))
    torch.testing.assert_close(x[:2], x[2:], rtol=0, atol=1e-3)
    off = np.abs(block_means(drawn.numpy()) / y.repeat(2, 0) - 1)
    assert off.max() < 0.01 or method == "DPS", off  # which is not exact


@pytest.mark.parametrize("method", ["MMPS", "DPS"])
def test_moves_of_one_measurement_do_not_hang_on_the_unit_of_others(at, method):
    node = {"_target_": f"samplers.posterior.{method}", "operator": HALVED, "measurement": "y.npy"}
    made = open_measurements(node, Snapshot.read(at / "edm.pt"), None, Conditions({}, {}, (8, 8), scans=TwoScans()),
                             torch.device("cpu"))
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([made(Prior(), [k])(x[k:k + 1], 1.0) for k in (0, 1)])
    torch.testing.assert_close(made(Prior(), [0, 1])(x, 1.0), alone)


def test_pairs_are_measured_in_the_typical_scale(at):
    dose = DoseRecord({}, {}, "Bq/ml", "pair", 5.0, 0.01)
    joint = Snapshot.read(at / "edm.pt")
    joint = replace(joint, shape=(2, 8, 8), dose=dose)
    conditions, x = Conditions({}, {}, (8, 8)), torch.tensor([-1.0, 0, 1]).reshape(1, 1, 1, 3)
    node = {**GIVEN, "measurement": None, "simulate": "both.npy"}
    np.save("both.npy", np.zeros((2, 8, 8), np.float32))
    made = open_measurements(node, in_units(joint, conditions), None, conditions, torch.device("cpu"))
    assert made.to_image([0]).at(x).value.flatten().tolist() == [0, 2.5, 5]


def test_draws_of_a_seed_share_its_measurement(at):
    draws = ["sampling.samples_per_condition=2", "sampling.sampler.num_steps=8"]
    drawn = images(*MEASURED, *draws)
    assert np.abs(block_means(drawn) - np.array([15, 15, 25, 25, 15, 15]).reshape(6, 1, 1, 1)).mean() < 1
    assert SamplesFile("out/samples.npz").array("draws").tolist() == [0, 1] * 3
    assert np.abs(drawn[0] - drawn[1]).max() > 0.1
    np.testing.assert_allclose(images(*MEASURED, draws[1]), drawn[::2], atol=1e-3)
    assert "samples_per_condition=2" in refused(at, generate.main, *DRAW, *draws)


def test_noise_of_what_is_simulated_is_that_of_the_seed_and_not_of_the_draw(at):
    conditions = Conditions({}, {}, (8, 8), draws=2)
    node = {**GIVEN, "measurement": None, "simulate": "truth.npz"}
    made = open_measurements(node, Snapshot.read(at / "edm.pt"), None, conditions, torch.device("cpu"))
    y = made.of(conditions.seeds([0, 1, 4, 5]))
    assert torch.equal(y[0], y[1]) and torch.equal(y[2], y[3])
    assert not torch.equal(y[0], y[2])  # both of image 0


def test_values_of_a_sweep_share_the_measurement_of_their_seed(at):
    conditions = Conditions({"attributes": Part(1)}, {}, (8, 8), sweep=SweptAttribute("age", "", [1.0, 2.0, 3.0], 0))
    made = open_measurements(GIVEN, Snapshot.read(at / "edm.pt"), None, conditions, torch.device("cpu"))
    y = made(Prior(), range(6)).y
    assert y.mean((1, 2, 3)).tolist() == [15, 15, 15, 25, 25, 25]


def test_there_is_a_seed_for_each_row_and_others_are_said(at):
    def said_of(*more: str) -> str:
        shutil.rmtree("out", ignore_errors=True)
        return succeed(generate.main, *(word for word in MEASURED if "seeds" not in word), *more)

    text = said_of()
    assert "2 asked for" in text and "rows" not in text
    assert "y.npy: has 2 rows, which 3 seeds go through in turn" in said_of("sampling.seeds=0-2")
    assert "the seeds leave out 1 of them; sampling.seeds=0-1" in said_of("sampling.seeds=1,3")
    snapshot, cpu = Snapshot.read(at / "edm.pt"), torch.device("cpu")
    for source, count in (("y.npy", 2), ("one.npz", 1), ("wide.npy", 1)):
        assert rows_measured({**GIVEN, "measurement": source}, snapshot, cpu, "results") == count
    node = {**GIVEN, "measurement": None, "simulate": "truth.npz"}
    assert rows_measured(node, snapshot, cpu, "results") == 2 and rows_measured({}, snapshot, cpu, "results") == 1
    assert edm3d.load("edm.pt", device="cpu").sample(num_steps=2, sampler="edm_ode", posterior=GIVEN).seeds == [0, 1]


def test_scans_without_seeds_are_no_fewer_than_measurements():
    asker = ScanAsker.__new__(ScanAsker)
    asker.scans = SimpleNamespace(per_scan=True, names=["a", "b"])
    assert asker.seeds(None, lambda: 3) == [0, 1, 2] and asker.seeds(None, lambda: 1) == [0, 1]
    assert asker.seeds("5", lambda: 3) == [5]


def test_previews_are_of_the_prior_and_open_no_measurement():
    options = preview_options(compose("voxels_edm", ["posterior=mmps", "sampling.posterior.measurement=nowhere.npy"]))
    assert options.posterior == {}
    assert preview_options(compose("voxels_edm", ["posterior=mmps"])).posterior == {}  # whose file generate is told


# ---- what is refused ----


class NoOperator:
    def A(self, x):
        return x


class Breaks(Downsample):
    def A(self, x):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


class NoBack(Downsample):
    def A_adjoint(self, y):
        return y


class NoLaw(Downsample):
    def __init__(self, factor: int = 4):
        super().__init__(factor)
        self.noise_model = torch.nn.Identity()


def said(at: Path, node: dict) -> str:
    """What is said of sampling.posterior before anything is drawn."""
    with pytest.raises(ValueError, match=r"^sampling\.posterior") as refusal:
        check_posterior(node)
        open_measurements(node, Snapshot.read(at / "edm.pt"), None, Conditions({}, {}, (8, 8)), torch.device("cpu"))
    return str(refusal.value)


def test_the_matrix_of_a_large_projector_is_made_once(tmp_path, monkeypatch):
    node = {"_target_": "physics.projector.Projector", "blur": 0.5,
            "geometry": {"_target_": "physics.projector.ParallelBeam", "size": 8, "angles": 5}}
    x, plain = torch.rand(1, 1, 8, 8), built_operator(node, tmp_path)
    assert not (tmp_path / "cache").exists()  # of a small one it is soon made
    monkeypatch.setattr(scans, "LARGE", 7)
    first = built_operator(node, tmp_path)
    for module in (scans, projector):
        monkeypatch.setattr(module, "system_matrix", lambda geometry: 1 / 0)
    for operator in (first, built_operator(node, tmp_path)):
        assert torch.equal(operator.A(x), plain.A(x))
    with pytest.raises(ValueError, match=r"^sampling.posterior.operator.geometry.angles=0"):
        built_operator({**node, "geometry": {**node["geometry"], "angles": 0}}, tmp_path)


HALVED = {"_target_": "physics.operators.Downsample", "factor": 4}
GIVEN = {"_target_": "samplers.posterior.MMPS", "operator": HALVED, "measurement": "y.npy"}


@pytest.mark.parametrize(("changes", "wanted"), [
    ({"measurement": None}, ["sampling.posterior: measurement=None, simulate=None"]),
    ({"simulate": "truth.npz"}, ["sampling.posterior: measurement='y.npy', simulate='truth.npz'"]),
    ({"measurement": 3}, ["measurement=3"]),
    ({"measurement": "nowhere.npy"}, ["sampling.posterior.measurement='nowhere.npy'", "no such file"]),
    ({"measurement": "."}, ["sampling.posterior.measurement='.'", "no such file"]),
    ({"measurement": "edm.pt"}, ["sampling.posterior.measurement", "edm.pt"]),
    ({"measurement": "nan.npy"}, ["nan.npy", "NaN"]),
    ({"measurement": "text.npy"}, ["text.npy", "number"]),
    ({"measurement": "none.npy"}, ["none.npy", "no values"]),
    ({"measurement": "wide.npy"}, ["wide.npy", "[4, 1, 3, 2]", "[1, 2, 2]"]),
    ({"measurement": None, "simulate": "y.npy"}, ["y.npy", "[1, 8, 8]"]),
    ({"operator": {**HALVED, "factor": 3}}, ["sampling.posterior.operator", "3"]),
    ({"operator": {**HALVED, "factr": 4}}, ["sampling.posterior.operator.factr"]),
    ({"operator": {**HALVED, "spatial_dims": 3}}, ["sampling.posterior.operator"]),
    ({"operator": {}}, ["sampling.posterior.operator", "physics.operators.Downsample"]),
    ({"iterations": -1}, ["sampling.posterior.iterations=-1"]),
    ({"iterations": "many"}, ["sampling.posterior.iterations"]),
    ({"y": 3}, ["sampling.posterior.y", "leave it out"]),
    ({"_target_": "samplers.posterior.NoSuch"}, ["NoSuch"]),
])
def test_what_cannot_be_is_named_before_anything_is_drawn(at, changes, wanted):
    text = said(at, {**GIVEN, **changes})
    assert all(each in text for each in wanted) and "\n" not in text, text


@pytest.mark.parametrize(("name", "wanted"), [
    ("NoOperator", "NoOperator: has no A_adjoint(y), noise_model"), ("Breaks", "cannot be multiplied"),
    ("NoBack", "A_adjoint [1, 1, 2, 2]"), ("NoLaw", "noise model Identity")])
def test_operators_that_are_none_are_named(at, name, wanted):
    factor = {} if name == "NoOperator" else {"factor": 4}
    assert wanted in said(at, {**GIVEN, "operator": {"_target_": f"tests.test_measurements.{name}", **factor}})


def test_the_command_refuses_it_at_once(at):
    assert "sampling.posterior.operator" in refused(at, generate.main, *DRAW, "posterior=dps",
                                                    "sampling.posterior.measurement=y.npy")
    assert "nan.npy" in refused(at, generate.main, *MEASURED[:-1], "sampling.posterior.measurement=nan.npy")
