"""Every choice of the configuration walks the road at toy size: networks, preconditioners, losses, augmentation,
samplers and guidance."""

import json
import shutil
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import torch

import dataset_tool
import generate
import train
from edm3d.formats.samples import SamplesFile
from edm3d.inference.snapshot import Snapshot
from edm3d.utils import checkpoint
from tests.commands import refused, succeed

MODEL = [f"training.network.model.{key}" for key in (
    "model_channels=8", "channel_mult=[1,1]", "num_blocks=1", "attention_levels=[]", "label_dim=2")]
OPTIONS = [f"training.options.{key}" for key in (
    "batch_size=4", "total_kimg=0.016", "kimg_per_tick=0.016", "num_threads=1", "device=cpu", "precision=fp32")]
OPTIONS.append("training.validation.preview_ticks=null")
TRAIN = ["-cn=echo_edm", "dataset=volumes", "batch_transform=voxels", "training.dataset.path=data/pairs.h5",
         "training.validation.max_items=2", *MODEL, *OPTIONS]
DRAW = ["-cn=echo_edm", "sampling.seeds=0-1", "sampling.num_threads=1", "sampling.device=cpu", "sampling.nifti=false",
        "sampling.montage=0"]
DROPPED = "training.network.label_dropout=0.3"


def fit(root: str, *overrides: str) -> str:
    """Train in a run folder below `root`; what was printed."""
    return succeed(train.main, *TRAIN, f"training.options.run_root={root}", *overrides)


def drawn(root: str, outdir: str, *overrides: str) -> np.ndarray:
    """Images [N,1,*S] of two seeds by the newest run below `root`."""
    succeed(generate.main, *DRAW, f"training.options.run_root={root}", f"sampling.outdir={outdir}", *overrides)
    return np.stack(SamplesFile(f"{outdir}/samples.h5").array("images"))


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A folder with paired phantoms of two classes, a network trained on them with the label dropped at times, an
    earlier snapshot of it, and one trained without dropping."""
    folder = tmp_path_factory.mktemp("choices")
    threads = torch.get_num_threads()
    with chdir(folder):
        succeed(dataset_tool.main, "phantom", "--dest", "data/pairs.h5", "--num", "12", "--size", "8", "--pairs")
        fit("results/dropped", DROPPED, "training.options.ema_halflife_kimg=0.001")
        fit("results/plain")
        snapshot = checkpoint.load(next(Path("results/dropped").glob("*/network-snapshot-*.pt")), "snapshot").content
        generator = torch.Generator().manual_seed(0)  # a network that differs: toy training hardly moves the weights
        for name, scale in (("strong", 0.3), ("weak", 0.2)):
            snapshot["ema"] = {k: torch.randn(v.shape, generator=generator) * scale for k, v in snapshot["ema"].items()}
            checkpoint.save(Path(f"{name}.pt"), "snapshot", snapshot)
    torch.set_num_threads(threads)
    return folder


# ---- training ----


@pytest.mark.parametrize("choices", [
    ["network=adm", "precond=vp", "loss=vp"],
    ["network=ddpmpp", "precond=vp", "loss=vp", "sampler=ablation"],
    ["network=ddpmpp", "precond=edm", "loss=edm", "training.loss.strata=4"],
    ["network=ncsnpp", "precond=ve", "loss=ve"],
    ["network=ncsnpp", "precond=edm", "training.network.model.encoder=skip", "training.network.model.decoder=skip"],
    ["network=adm", "precond=iddpm", "loss=iddpm", "sampler=ddim", "sampling.sampler.grid=table"],
    ["network=adm", "precond=ddpm", "loss=ddpm", "training.network.schedule=sigmoid", "training.loss.norm=l1",
     "sampler=ddpm", "sampling.sampler.grid=table"],
    ["network=adm", "precond=ddpm", "loss=ddpm", "training.network.objective=v", "training.loss.weight=min_snr"],
    ["augment=edm", "training.augment.p=0.5"],
    ["training.network.model.attention_levels=null", "training.network.model.attention_resolutions=[4]",
     "training.network.model.channels_per_head=8"],
    ["network=ddpmpp", "training.network.model.strides=[[1,2,2]]", "training.network.model.kernel_size=[[1,3,3],3]"],
], ids=" ".join)
def test_networks_preconditioners_and_losses_train_and_draw(at, choices):
    root = f"results/{len(list(Path('results').iterdir()))}"
    training = [c for c in choices if not c.startswith("sampl")]
    fit(root, *training)
    images = drawn(root, f"{root}/out", *(c for c in choices if c.startswith("sampl")), "sampling.sampler.num_steps=3")
    assert images.shape == (2, 1, 8, 8, 8) and np.isfinite(images).all() and images.std() > 0


def test_augmentation_sets_the_width_of_the_networks_labels(at):
    fit("results/augmented", "augment=edm")
    path = next(Path("results/augmented").glob("*/network-snapshot-*.pt"))
    assert Snapshot.read(path).build().augment_dim == 18
    fit("results/unflipped", "augment=edm", "training.augment.flip=0")
    path = next(Path("results/unflipped").glob("*/network-snapshot-*.pt"))
    assert Snapshot.read(path).build().augment_dim == 15


def test_a_first_stage_trains_on_augmented_volumes(at):
    def losses(*overrides: str) -> dict[str, float]:
        root = f"results/{len(list(Path('results').iterdir()))}"
        succeed(train.main, "-cn=echo_vae", "training.dataset.path=data/pairs.h5", "training.network.channels=[4,8]",
                "training.validation.max_items=0", *OPTIONS, f"training.options.run_root={root}", *overrides)
        tick = json.loads(next(Path(root).glob("*/stats.jsonl")).read_text().splitlines()[-1])
        return {key: value for key, value in tick.items() if key.startswith("loss/")}

    plain = losses()
    assert plain and losses("augment=edm", "training.augment.p=0") == plain
    assert losses("augment=edm", "training.augment.p=1") != plain


def test_an_unusual_pair_and_the_attention_are_said_at_the_start(at):
    said = fit("results/unusual", "precond=vp", "loss=edm", "training.options.total_kimg=0.004")
    assert "Note: EDMLoss is not the loss that usually goes with VPPrecond" in said and "precond=vp loss=vp" in said
    assert "weights, 0 of 10 blocks with attention, on cpu" in said
    said = fit("results/mixed", "loss=vp", "training.options.total_kimg=0.004")
    assert "Note: VPLoss is not the loss that usually goes with EDMPrecond" in said
    said = fit("results/usual", "training.network.model.attention_levels=[1]", "training.options.total_kimg=0.004",
               "training.network.model.channels_per_head=8")
    assert "usually goes with" not in said and "weights, 4 of 10 blocks with attention, on cpu" in said


NOT_DRAWN = "the program gives this itself"


@pytest.mark.parametrize(("overrides", "wanted"), [
    # pairs
    ("loss=ddpm", [" takes training.network.", "precond=ddpm loss=ddpm"]),
    ("precond=ve loss=vp", ["training.loss draws noise levels 0.01", "precond=ve loss=ve"]),
    ("precond=ve loss=edm", ["0.02", "precond=ve loss=ve"]),
    ("precond=ddpm", ["training.loss draws", "precond=ddpm loss=ddpm"]),
    ("precond=ddpm loss=ddpm training.network.objective=v training.loss.objective=x0",
     ["training.loss.objective=x0", "training.network.objective=v", "precond=ddpm loss=ddpm"]),
    ("training.loss.sigma_data=1", ["training.loss.sigma_data=1", "training.network.sigma_data=0.5"]),
    ("precond=vpp", ["precond", "vp"]),
    ("network=unet", ["network=unet: no such network; here that is network=adm", "ddpmpp"]),
    # networks
    ("training.network.label_dropout=2", ["training.network.label_dropout=2", "0..1"]),
    ("training.network.label_dropout=1", ["label_dropout=1", "0..1"]),
    ("training.network.model.attention_resolutions=[4]", ["attention_resolutions", "no attention_levels"]),
    ("training.network.model.attention_levels=[3]", ["attention_levels", "3"]),
    ("training.network.model.attention_levels=[0]", ["training.network.model.attention_levels=[0]: level 0 has 8",
                                                     "channels_per_head=64", "set channels_per_head=8"]),
    ("training.network.model.num_blocks=0", ["training.network.model.num_blocks=0"]),
    ("+training.network.model.out_channels=2", ["gives [1, 2, 8, 8, 8] for images [1, 1, 8, 8, 8]", "out_channels"]),
    ("training.network.model.label_dim=3", ["training.network.model.label_dim=3: wanted 2", "pairs.h5", "ED, ES"]),
    # data
    ("batch_transform=latents", ["training.batch_transform.channel_mean", "pairs.h5 holds images",
                                 "batch_transform=voxels"]),
    ("training.dataset.split=nothing", ["training.dataset: ", "'nothing'"]),
    ("training.augment.p=0.1", ["training.augment.p: nothing is chosen here; choose augment=NAME first (activities"]),
    ("+training.augment.p=0.1", ["training.augment", "augment"]),
    ("augment=edm training.augment.p=2", ["training.augment: ", "p=2"]),
    # loss and optimiser
    ("training.loss.strata=0", ["training.loss.strata=0"]),
    ("training.loss.strata=3", ["training.loss.strata=3", "training.options.batch_size=4"]),
    ("precond=vp loss=vp training.network.beta_min=-1", ["training.network.beta_min=-1: wanted more than 0"]),
    ("training.optimizer.lr=-1", ["training.optimizer.lr=-1: Invalid learning rate"]),
    # what the program gives a sampler
    ("+sampling.sampler.net=x", ["sampling.sampler.net", NOT_DRAWN]),
    ("+sampling.sampler.callback=null", ["sampling.sampler.callback", NOT_DRAWN]),
])
def test_choices_that_make_no_sense_are_refused(at, overrides, wanted):
    said = refused(at, train.main, *TRAIN, *overrides.split(), "training.options.run_root=results/nonsense")
    assert all(word in said for word in wanted), said


@pytest.mark.parametrize("key", ["net", "latents", "condition", "randn_like", "callback"])
def test_what_drawing_gives_a_sampler_is_refused_there_too(at, key):
    said = refused(at, generate.main, *DRAW, "sampling.network=strong.pt", f"+sampling.sampler.{key}=null",
                   "sampling.outdir=out/refused")
    assert f"sampling.sampler.{key}: {NOT_DRAWN}" in said


# ---- without data ----

DRY = ["-cn=echo_edm", "training.dataset.path=nowhere.h5", "training.options.dry_run=true"]


@pytest.mark.parametrize(("overrides", "wanted"), [
    ("precond=ve", ["training.loss draws", "precond=ve loss=ve"]),
    ("training.loss.sigma_data=1", ["training.loss.sigma_data=1"]),
    ("training.network.model.channel_mult=[]", ["training.network.model.channel_mult=[]"]),
    ("training.network.model.strides=[[1,2]] training.loss.strata=3", ["training.loss.strata=3"]),
    ("training.options.total_kimg=0", ["training.options.total_kimg=0"]),
])
def test_a_dry_run_finds_what_needs_no_data(at, overrides, wanted):
    said = refused(at, train.main, *DRY, *overrides.split())
    assert all(word in said for word in wanted), said


@pytest.mark.parametrize("overrides", [
    "", "precond=vp loss=vp", "augment=edm network=ncsnpp", "training.network.model.label_dim=7",
    "training.network.model.strides=[[1,2],2] training.network.model.kernel_size=[3,[1,3],3]",  # of two axes
    "training.network.model.attention_levels=null training.network.model.attention_resolutions=[5]",
])
def test_a_dry_run_lets_pass_what_only_data_can_tell(at, overrides):
    assert "task: diffusion" in succeed(train.main, *DRY, *overrides.split())


def test_a_dry_run_of_a_first_stage_passes(at):
    assert "task: autoencoder" in succeed(train.main, "-cn=echo_vae", *DRY[1:])


# ---- starting from a snapshot ----


def test_a_run_starts_from_a_snapshot(at):
    said = fit("results/started", DROPPED, "training.options.init_from=strong.pt", "training.options.total_kimg=0.004")
    weights = len(checkpoint.load(Path("strong.pt"), "snapshot").content["ema"])
    assert f"{weights} of the network's {weights} taken" in said
    taken = checkpoint.load(next(Path("results/started").glob("*/network-snapshot-*.pt")), "snapshot").content["ema"]
    source = checkpoint.load(Path("strong.pt"), "snapshot").content["ema"]  # the one step at nimg 0 has rate 0
    assert all(torch.equal(taken[k], source[k]) for k in source)


def test_a_resumed_run_does_not_ask_for_the_snapshot_that_it_started_from(at):
    shutil.copy("strong.pt", "gone.pt")
    start = [DROPPED, "training.options.init_from=gone.pt"]
    fit("results/resumed", *start)
    Path("gone.pt").unlink()
    said = fit("results/resumed", *start, "training.options.resume=latest", "training.options.total_kimg=0.02")
    assert "Resumed from" in said and "Weights     from" not in said
    said = refused(at, train.main, *TRAIN, *start, "training.options.run_root=results/nonsense")
    assert "training.options.init_from=gone.pt" in said


def test_a_run_does_not_start_from_a_snapshot_that_hardly_fits(at):
    said = refused(at, train.main, *TRAIN, DROPPED, "training.options.init_from=strong.pt",
                   "training.network.model.model_channels=16", "training.options.run_root=results/nonsense")
    assert "training.options.init_from=strong.pt: 1 of the network's" in said
    assert said.endswith("training.network differs: model.model_channels 8 -> 16")


def test_another_meaning_of_the_output_is_said(at):
    said = fit("results/other", DROPPED, "training.options.init_from=strong.pt", "precond=ddpm", "loss=ddpm",
               "training.options.total_kimg=0.004")
    assert ("trained for another output of the network: _target_ networks.precond.EDMPrecond -> "
            "networks.precond.DDPMPrecond") in said


# ---- drawing ----


@pytest.mark.parametrize("sampler", ["edm_ode", "edm_sde", "ablation", "ddim", "ddpm", "multistep", "ipndm"])
def test_every_sampler_draws_the_same_for_the_same_seed(at, sampler):
    choice = ["sampling.network=strong.pt", f"sampler={sampler}", "sampling.sampler.num_steps=4"]
    first = drawn("results/plain", f"out/{sampler}", *choice)
    second = drawn("results/plain", f"out/{sampler}-alone", *choice, "sampling.batch_size=1")
    assert np.isfinite(first).all() and first.std() > 0
    np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("sampler", "override", "wanted"), [
    ("edm_ode", "sampling.sampler.num_steps=1", ["num_steps=1", "2"]),
    ("multistep", "sampling.sampler.order=5", ["order=5"]),
    ("multistep", "sampling.sampler.grid=spiral", ["grid='spiral'", "exponential"]),
    ("ddim", "sampling.sampler.grid=table", ["grid", "table"]),
    ("ddim", "sampling.sampler.eta=2", ["eta=2"]),
    ("ablation", "sampling.sampler.solver=rk4", ["solver='rk4'", "heun"]),
    ("edm_ode", "+sampling.sampler.sigmas=[80,1]", ["sigmas"]),
    ("edm_ode", "+sampling.sampler.sigmas=[1,80,0]", ["sigmas"]),
])
def test_samplers_refuse_by_name(at, sampler, override, wanted):
    said = refused(at, generate.main, *DRAW, "sampling.network=strong.pt", f"sampler={sampler}", override,
                   "sampling.outdir=out/refused")
    assert all(word in said for word in wanted), said


def test_a_users_own_grid_is_taken(at):
    own = drawn("results/plain", "out/own", "sampling.network=strong.pt",
                "+sampling.sampler.sigmas=[80,2.5152190,0.002,0]")  # the polynomial grid of three steps, by hand
    named = drawn("results/plain", "out/named", "sampling.network=strong.pt", "sampling.sampler.num_steps=3")
    np.testing.assert_allclose(own, named, rtol=1e-4, atol=1e-4)


# ---- guidance ----


def test_guidance_moves_away_from_the_guide(at):
    network = ["sampling.network=strong.pt", "sampling.sampler.num_steps=4"]
    plain = drawn("x", "out/plain", *network)
    guided = drawn("x", "out/guided", *network, "sampling.guidance.strength=2")
    assert np.abs(guided - plain).max() > 1e-2
    barely = drawn("x", "out/barely", *network, "sampling.guidance.strength=1.0000001")
    np.testing.assert_allclose(barely, plain, rtol=1e-3, atol=1e-3)
    nowhere = drawn("x", "out/nowhere", *network, "sampling.guidance.strength=2",
                    "sampling.guidance.interval=[1000,2000]")
    np.testing.assert_allclose(nowhere, plain, rtol=1e-5, atol=1e-5)
    auto = drawn("x", "out/auto", *network, "sampling.guidance.strength=2", "sampling.guidance.network=weak.pt")
    assert np.abs(auto - plain).max() > 1e-2 and np.abs(auto - guided).max() > 1e-2


def test_guidance_is_part_of_what_samples_record(at):
    network = ["sampling.network=strong.pt", "sampling.sampler.num_steps=2", "sampling.guidance.strength=2"]
    drawn("x", "out/recorded", *network, "sampling.guidance.network=weak.pt")
    recorded = SamplesFile("out/recorded/samples.h5").meta.sampling["guidance"]
    assert recorded["strength"] == 2 and len(recorded["guide"]) == 64
    said = refused(at, generate.main, *DRAW, *network, "sampling.outdir=out/recorded")
    assert "another sampling" in said


def test_guidance_of_the_one_part_is_that_of_all_and_another_is_not_mixed_in(at):
    network = ["sampling.network=strong.pt", "sampling.sampler.num_steps=3", "++sampling.guidance.parts.class_labels="]
    by_part = drawn("x", "out/parts", *network[:2], f"{network[2]}2")
    assert np.array_equal(by_part, drawn("x", "out/all", *network[:2], "sampling.guidance.strength=2"))
    recorded = SamplesFile("out/parts/samples.h5").meta.sampling["guidance"]
    assert recorded["parts"] == {"class_labels": {"strength": 2, "interval": None}}
    assert "another sampling" in refused(at, generate.main, *DRAW, *network[:2], f"{network[2]}3",
                                         "sampling.outdir=out/parts")
    assert np.array_equal(by_part, drawn("x", "out/parts", *network[:2], f"{network[2]}2"))


@pytest.mark.parametrize(("overrides", "wanted"), [
    (["sampling.guidance.strength=2"], ["label", "training.network.label_dropout"]),
    (["sampling.guidance.network=../weak.pt"], ["sampling.guidance.network", "strength=1"]),
    (["sampling.guidance.strength=-1", "sampling.network=strong.pt"], ["strength"]),
    (["sampling.guidance.strength=2", "sampling.guidance.network=nobody"], ["sampling.guidance.network=nobody"]),
    (["sampling.guidance.strength=2", "sampling.guidance.interval=[2]", "sampling.network=strong.pt"], ["interval"]),
    (["sampling.guidance.strength=2", "sampling.guidance.interval=[2,1]", "sampling.network=strong.pt"], ["interval"]),
    (["++sampling.guidance.parts.class_label=2", "sampling.network=strong.pt"], ["did you mean 'class_labels'"]),
    (["++sampling.guidance.parts.class_labels=2"], ["training.network.label_dropout=0.1"]),
    (["++sampling.guidance.parts.class_labels={strenght: 2}"], ["sampling.guidance.parts.class_labels", "strenght"]),
    (["++sampling.guidance.parts.class_labels=2", "sampling.guidance.network=../weak.pt", "sampling.network=strong.pt"],
     ["sampling.guidance.network=../weak.pt", "class_labels", "one of both"]),
    (["sampling.start=mean", "sampling.sampler.sigma_max=2"], ["sampling.start=mean", "no condition image"]),
    (["sampling.start=middle"], ["sampling.start='middle'", "noise, mean"]),
])
def test_guidance_that_cannot_be_is_refused(at, overrides, wanted):
    said = refused(at, generate.main, *DRAW, "training.options.run_root=results/plain", "sampling.outdir=out/no",
                   *overrides)
    assert all(word in said for word in wanted), said


def test_a_guide_of_other_volumes_is_refused(at):
    succeed(dataset_tool.main, "phantom", "--dest", "data/large.h5", "--num", "8", "--size", "16", "--pairs")
    fit("results/large", "training.dataset.path=data/large.h5")
    other = next(Path("results/large").glob("*/network-snapshot-*.pt"))
    said = refused(at, generate.main, *DRAW, "sampling.network=strong.pt", "sampling.outdir=out/no",
                   "sampling.guidance.strength=2", f"sampling.guidance.network={other}")
    assert "[1, 16, 16, 16]" in said and "[1, 8, 8, 8]" in said
