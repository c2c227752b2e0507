"""The road of the README at toy size, and what the commands say to bad input."""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dataset_tool
import evaluate
import generate
import train
from edm3d.formats.latents import LatentsFile
from edm3d.formats.samples import SamplesFile
from edm3d.formats.volumes import VolumesFile
from edm3d.utils import checkpoint, commands
from tests.commands import call, files_below, refused, succeed

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = ["training.options.batch_size=4", "training.options.total_kimg=0.016", "training.options.kimg_per_tick=0.008",
           "training.options.min_psnr=null",
           "training.options.num_threads=1", "training.options.device=cpu", "training.options.precision=fp32",
           "training.validation.max_items=2"]
VAE = ["-cn=echo_vae", "training.network.channels=[4,8]", *OPTIONS]
EDM = ["-cn=echo_edm", "training.network.model.model_channels=8", "training.network.model.channel_mult=[1,1]",
       "training.network.model.num_blocks=1", "training.network.model.attention_levels=[]", *OPTIONS]
DRAW = ["-cn=echo_edm", "sampling.sampler.num_steps=3", "sampling.num_threads=1", "sampling.device=cpu"]


def draw(outdir: str, seeds: str, *overrides: str) -> str:
    """Run generate.py."""
    return succeed(generate.main, *DRAW, f"sampling.seeds={seeds}", f"sampling.outdir={outdir}", *overrides)


@pytest.fixture(scope="module")
def road(tmp_path_factory) -> Path:
    """A folder in which the first five commands of the README have run, with what they printed."""
    folder = tmp_path_factory.mktemp("road")
    threads = torch.get_num_threads()
    with chdir(folder):
        said = {
            "phantom": succeed(dataset_tool.main, "phantom", "--dest", "data/echo.h5", "--num", "12", "--size", "16"),
            "vae": succeed(train.main, *VAE),
            "encode": succeed(dataset_tool.main, "encode", "--autoencoder", "echo_vae", "--source", "data/echo.h5",
                              "--dest", "data/echo_latents.h5"),
            "edm": succeed(train.main, *EDM),
            "generate": draw("results/demo", "0-3"),
        }
    torch.set_num_threads(threads)
    (folder / "said.json").write_text(json.dumps(said))
    return folder


@pytest.fixture
def at(road: Path):
    """Work in the folder of the road."""
    with chdir(road):
        yield road


# ---- the road ----


def test_phantoms_and_latents_hold_the_same_items(at):
    volumes, latents = VolumesFile("data/echo.h5"), LatentsFile(Path("data/echo_latents.h5"))
    assert sum(volumes.length(s) for s in volumes.splits) == 12
    for split in volumes.splits:
        encoded = latents.read(split)
        assert encoded.ids == volumes.ids(split) and encoded.groups == volumes.groups(split)
        assert encoded.mean.shape == (volumes.length(split), 4, 8, 8, 8) == encoded.std.shape


def test_every_command_says_what_it_chose_and_wrote(at):
    said = json.loads((at / "said.json").read_text())
    assert "data/echo.h5" in said["phantom"] and "00000-echo_vae" in said["encode"]
    assert "00001-echo_edm" in said["edm"] and "results/demo/samples.h5" in said["generate"]


def test_the_six_commands_given_again_do_no_work_twice(at):
    report = ["--real", "data/echo.h5", "--generated", "results/demo/samples.h5", "--dest", "results/demo", "--split",
              "all", "--num-noise", "2"]
    succeed(evaluate.main, *report)
    before = {path: path.stat().st_mtime_ns for path in [*Path().glob("data/*"), *Path("results").rglob("*.pt"),
                                                         *Path("results/demo").rglob("*.nii.gz")]}
    resume = "training.options.resume=latest"
    for command, words, said in (
            (dataset_tool.main, ["phantom", "--dest", "data/echo.h5", "--num", "12", "--size", "16"], "there already"),
            (train.main, [*VAE, resume], "Nothing left to do"),
            (dataset_tool.main, ["encode", "--autoencoder", "echo_vae", "--source", "data/echo.h5", "--dest",
                                 "data/echo_latents.h5"], "all 12 there already"),
            (train.main, [*EDM, resume], "Nothing left to do"),
            (generate.main, [*DRAW, "sampling.seeds=0-3", "sampling.outdir=results/demo"], "4 there already"),
            (evaluate.main, report, "Report ")):
        assert said in succeed(command, *words)
    assert {path: path.stat().st_mtime_ns for path in before} == before and len(before) > 10


def test_run_folder_holds_what_the_design_says(at):
    for run in (at / "results/00000-echo_vae", at / "results/00001-echo_edm"):
        status = json.loads((run / "status.json").read_text())
        assert status["status"] == "done" and status["nimg"] == 16
        names = {p.name for p in run.iterdir()}
        assert {"config.yaml", "log.txt", "stats.jsonl", "network-snapshot-000000.016.pt",
                "training-state-000000.016.pt"} <= names
        assert len((run / "stats.jsonl").read_text().splitlines()) == 2


def test_samples_carry_geometry_and_pictures(at):
    samples, real = SamplesFile("results/demo/samples.h5"), VolumesFile("data/echo.h5")
    assert samples.seeds.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(samples.affine, real.read("train", 0).affine)
    assert samples.array("images").shape == (4, 1, 16, 16, 16) and samples.array("labels").dtype == np.uint8
    assert samples.array("images").min() >= 0 and samples.array("images").max() <= 1
    assert len(np.unique(samples.array("images")[:, 0, 8, 8, 8])) == 4
    nifti = sorted(p.name for p in Path("results/demo/nifti").iterdir())
    assert nifti == sorted(f"seed{s:06d}_{kind}.nii.gz" for s in range(4) for kind in ("image", "label"))
    assert Path("results/demo/samples.png").stat().st_size > 1000
    assert not Path("results/demo/parts").exists()


def test_latents_and_images_of_a_sample_belong_together(at):
    from edm3d.inference.snapshot import Snapshot
    samples = SamplesFile("results/demo/samples.h5")
    stage = Snapshot.read(Path("results/00001-echo_edm/network-snapshot-000000.016.pt")).open_first_stage()
    image, label = stage.decode(torch.from_numpy(samples.row("latents", 2)[None]))
    np.testing.assert_allclose(image[0].numpy(), samples.row("images", 2), atol=1e-5)
    assert (label[0].numpy() == samples.row("labels", 2)).mean() > 0.999


def test_a_seed_alone_gives_its_row(at):
    draw("results/two", "2-3")
    whole, two = SamplesFile("results/demo/samples.h5"), SamplesFile("results/two/samples.h5")
    assert two.seeds.tolist() == [2, 3]
    for name in ("latents", "images"):
        np.testing.assert_allclose(two.array(name), whole.array(name)[2:], atol=1e-4)


def test_rerun_draws_nothing_new_and_more_seeds_draw_only_themselves(at):
    before = SamplesFile("results/demo/samples.h5").array("latents")
    time = Path("results/demo/samples.h5").stat().st_mtime_ns
    assert "4 asked for, 4 there already" in draw("results/demo", "0-3")
    assert Path("results/demo/samples.h5").stat().st_mtime_ns == time
    shutil.copytree("results/demo", "results/more")
    assert "3 asked for, 2 there already" in draw("results/more", "2-4")
    more = SamplesFile("results/more/samples.h5")
    assert more.seeds.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(more.array("latents")[:4], before)


def test_best_snapshot_draws_like_any_other(at):
    draw("results/best", "0-1", "sampling.network=results/00001-echo_edm/network-best.pt", "sampling.montage=0")
    np.testing.assert_allclose(SamplesFile("results/best/samples.h5").array("latents"),  # one tick, the last, measured
                               SamplesFile("results/demo/samples.h5").array("latents")[:2], atol=1e-4)


def test_start_says_what_the_data_looks_like(at):
    log = Path("results/00001-echo_edm/log.txt").read_text()
    assert float(log.partition("Data std")[2].split()[0]) == pytest.approx(0.5, rel=0.05)
    assert "sigma_data 0.5" in log and "Warning" not in log


def test_npz_holds_the_same(at):
    draw("results/npz", "0-1", "sampling.format=npz", "sampling.nifti=false", "sampling.montage=0")
    assert os.listdir("results/npz") == ["samples.npz"]
    np.testing.assert_allclose(SamplesFile("results/npz/samples.npz").array("latents"),
                               SamplesFile("results/demo/samples.h5").array("latents")[:2], atol=1e-4)


def test_two_ranks_draw_what_one_process_draws(at):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               str(ROOT / "generate.py"), *DRAW, "sampling.seeds=0-3", "sampling.outdir=results/ranks",
               "sampling.montage=0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 asked for, 0 there already") == 1
    one, two = SamplesFile("results/demo/samples.h5"), SamplesFile("results/ranks/samples.h5")
    assert two.seeds.tolist() == [0, 1, 2, 3]
    for name in ("latents", "images"):
        np.testing.assert_allclose(two.array(name), one.array(name), atol=1e-4)


def test_resume_latest_goes_on_in_the_same_folder(at):
    said = succeed(train.main, *EDM, "training.options.run_root=results/again", "training.options.resume=latest")
    assert "starting fresh" in said
    said = succeed(train.main, *EDM, "training.options.run_root=results/again", "training.options.resume=latest",
                   "training.options.total_kimg=0.024")
    assert "Resumed from" in said and os.listdir("results/again") == ["00000-echo_edm"]
    assert len(Path("results/again/00000-echo_edm/stats.jsonl").read_text().splitlines()) == 3


def test_resume_of_an_older_state_keeps_the_newer_ones(at):
    root = "training.options.run_root=results/older"
    succeed(train.main, *EDM, root)
    run = Path("results/older/00000-echo_edm")
    newest = run / "training-state-000001.pt"
    shutil.copy(run / "training-state-000000.016.pt", newest)
    said = succeed(train.main, *EDM, root, f"training.options.resume={run}/training-state-000000.016.pt",
                   "training.options.total_kimg=0.024")
    assert "Resumed from" in said and newest.is_file()
    assert sorted(os.listdir("results/older")) == ["00000-echo_edm", "00001-echo_edm"]


def test_classes_reach_training_and_samples(at):
    """Phantom pairs are of class ED or ES; a conditional network draws the classes in turn, or those asked for."""
    succeed(dataset_tool.main, "phantom", "--dest", "data/pairs.h5", "--num", "8", "--size", "8", "--pairs", "--split",
            "1", "0", "0")
    voxels = ["-cn=echo_edm", "dataset=volumes", "batch_transform=voxels", "training.dataset.path=data/pairs.h5",
              "training.options.run_root=results/pairs", *EDM[1:], "training.validation.max_items=0"]
    where = ["training.options.run_root=results/pairs", "sampling.nifti=false", "sampling.montage=0"]
    said = succeed(train.main, *voxels)  # a network without classes takes such data, and draws without
    assert "Note: data/pairs.h5 holds 2 classes (ED, ES) and 4 attributes (" in said
    assert "trained without classes" in refused(at, generate.main, *DRAW, *where, "sampling.classes=[ED]",
                                                "sampling.outdir=results/classless")
    assert "holds 4 attributes" in succeed(train.main, *voxels, "training.network.model.label_dim=2")
    draw("results/classes", "0-3", *where)
    assert SamplesFile("results/classes/samples.h5").array("classes").tolist() == [0, 1, 0, 1]
    draw("results/systole", "0-1", *where, "sampling.classes=[ES]")
    systole = SamplesFile("results/systole/samples.h5")
    assert systole.array("classes").tolist() == [1, 1]
    classes = SamplesFile("results/classes/samples.h5")
    np.testing.assert_allclose(systole.row("images", 1), classes.row("images", 1), atol=1e-4)
    assert "not one of ED, ES" in refused(at, generate.main, *DRAW, *where, "sampling.classes=[XX]",
                                          "sampling.outdir=results/classless")


def test_latents_have_unit_variance_for_a_network_without_sigma_data_and_decode_from_it(at):
    succeed(train.main, *EDM, "precond=vp", "loss=vp", "training.options.run_root=results/vp")
    path = next(Path("results/vp").glob("*/network-snapshot-*.pt"))
    assert checkpoint.load(path, "snapshot").content["first_stage"]["sigma_data"] == 1
    last = (path.parent / "stats.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["loss/data_square"] == pytest.approx(1, abs=0.3)


def test_samples_of_another_network_are_overwritten_only_on_request(at):
    shutil.copytree("results/demo", "results/other")
    steps = "sampling.sampler.num_steps=4"
    assert "sampling.overwrite=true" in refused(at, generate.main, *DRAW, "sampling.seeds=0", steps,
                                                "sampling.outdir=results/other")
    old = Path("results/other/nifti/seed000001_image.nii.gz").read_bytes()
    draw("results/other", "0-1", steps, "sampling.overwrite=true")
    assert SamplesFile("results/other/samples.h5").seeds.tolist() == [0, 1]
    assert Path("results/other/nifti/seed000001_image.nii.gz").read_bytes() != old


def test_labelled_slices_walk_the_whole_road(at):
    """2D images with label maps: every file has two axes, the montage and the report come out."""
    paths = ["training.options.run_root=results/flat"]
    succeed(dataset_tool.main, "phantom", "--dest", "data/flat.h5", "--num", "12", "--size", "16", "--spatial-dims",
            "2")
    succeed(train.main, *VAE, *paths, "training.dataset.path=data/flat.h5")
    succeed(dataset_tool.main, "encode", "--autoencoder", "echo_vae", "--run-root", "results/flat", "--source",
            "data/flat.h5", "--dest", "data/flat_latents.h5")
    succeed(train.main, *EDM, *paths, "training.dataset.path=data/flat_latents.h5")
    draw("results/flat2d", "0-2", *paths)
    samples = SamplesFile("results/flat2d/samples.h5")
    assert samples.row("images", 0).shape == (1, 16, 16) and samples.row("labels", 0).shape == (16, 16)
    assert Path("results/flat2d/samples.png").is_file()
    arguments = [*DRAW, *paths, "sampling.outdir=results/flat2d", "sampling.seeds=0-2", "sampling.format=png"]
    assert "3 there already" in succeed(generate.main, *arguments)
    np.testing.assert_array_equal(np.asarray(Image.open("results/flat2d/png/seed000002_label.png")),
                                  samples.row("labels", 2))
    assert "decode=false leaves latents" in refused(at, generate.main, *arguments, "sampling.decode=false")
    succeed(evaluate.main, "--real", "data/flat.h5", "--generated", "results/flat2d/samples.h5", "--dest",
            "results/flat2d", "--split", "all", "--num-noise", "2")


def test_encode_spares_its_source_and_refuses_a_diverged_autoencoder(at):
    encode = ["encode", "--source", "data/echo.h5"]
    assert "--source" in refused(at, dataset_tool.main, *encode, "--autoencoder", "echo_vae", "--dest", "data/echo.h5")
    path = next(Path("results/00000-echo_vae").glob("network-snapshot-*.pt"))
    snapshot = checkpoint.load(path, "snapshot").content
    snapshot["ema"]["encoder.0.bias"].fill_(float("nan"))
    checkpoint.save(Path("diverged.pt"), "snapshot", snapshot)
    assert "not finite" in refused(at, dataset_tool.main, *encode, "--autoencoder", "diverged.pt", "--dest",
                                   "data/nan.h5")


def test_dry_run_prints_the_config_and_leaves_nothing(at):
    before = files_below(at)
    said = succeed(train.main, *EDM, "training.options.dry_run=true")
    assert "model_channels: 8" in said and files_below(at) == before


def test_evaluate_reports(at):
    succeed(evaluate.main, "--real", "data/echo.h5", "--generated", "results/demo/samples.h5", "--dest",
            "results/report", "--split", "all", "--num-noise", "2")
    assert {"report.json", "report.html"} <= set(os.listdir("results/report"))
    json.loads(Path("results/report/report.json").read_text())


def test_brainweb_walks_the_road_in_voxel_space(tmp_path):
    rows = np.random.default_rng(0).integers(1, 200, (120, 4096)).astype(np.uint8)
    with chdir(tmp_path):
        np.savez("phantoms.npz", phantoms=rows)
        model = ["training.network.model.model_channels=8", "training.network.model.channel_mult=[1,1]",
                 "training.network.model.attention_levels=[]", "training.network.model.num_blocks=1"]
        succeed(train.main, "-cn=brainweb2d_edm", "training.dataset.path=phantoms.npz", *model, *OPTIONS)
        succeed(generate.main, "-cn=brainweb2d_edm", "sampling.seeds=0-1", "sampling.outdir=out",
                "sampling.sampler.num_steps=2", "sampling.num_threads=1")
        assert sorted(os.listdir("out")) == ["samples.npz", "samples.png"]
        images = SamplesFile("out/samples.npz").array("images")
    assert images.shape == (2, 1, 64, 64) and images.min() >= 0 and images.max() <= 1


# ---- bad input ----


@pytest.fixture
def damaged(at) -> Path:
    """Files that are not what they should be."""
    folder = at / "damaged"
    if not folder.exists():
        folder.mkdir()
        (folder / "text.h5").write_text("not a data file")
        (folder / "text.pt").write_text("not a snapshot")
        whole = (at / "data/echo.h5").read_bytes()
        (folder / "half.h5").write_bytes(whole[: len(whole) // 2])
        snapshot = (at / "results/00001-echo_edm/network-snapshot-000000.016.pt").read_bytes()
        (folder / "half.pt").write_bytes(snapshot[: len(snapshot) // 2])
        latents = bytearray((at / "data/echo_latents.h5").read_bytes())
        place = latents.index(LatentsFile(at / "data/echo_latents.h5").read("train").mean.tobytes()[:64])
        latents[place + 5] ^= 1
        (folder / "flipped.h5").write_bytes(latents)
    return folder


@pytest.mark.parametrize(("path", "words"), [
    ("none.h5", "none.h5: no such file; wanted a latents file; "),
    ("data/echo.h5", "format is 'volumes', wanted a latents file; "),
    ("results", "results: a folder, wanted a latents file; "),
])
def test_latents_that_are_none_name_what_makes_them(at, path, words):
    said = refused(at, train.main, *EDM, f"training.dataset.path={path}")
    assert f"{words}{commands.command('data', 'encode')} makes one of a volumes file" in said


def test_a_folder_where_a_file_is_wanted_names_the_file_that_is_meant(at):
    words = ["evaluate", "--real", "data/echo.h5", "--dest", "results/refused", "--generated"]
    assert refused(at, evaluate.main, *words[1:], "results/demo").endswith(
        "results/demo: a folder, wanted a samples file; did you mean results/demo/samples.h5?")
    assert refused(at, evaluate.main, *words[1:], "results/00000-echo_vae").endswith(
        f"a folder, wanted a samples file; {commands.command('generate')} makes one")
    assert "network-snapshot-000000.016.pt" in succeed(dataset_tool.main, "info", "results/00000-echo_vae")
    assert refused(at, dataset_tool.main, "info", "results/demo").endswith("did you mean results/demo/samples.h5?")
    assert refused(at, dataset_tool.main, "info", "results").endswith("results: a folder, wanted a file")
    assert "wanted a volumes file; did you mean data/" in refused(
        at, dataset_tool.main, "propose", "data", "--dest", "x.yaml")


@pytest.mark.parametrize(("overrides", "wanted"), [
    (["training.dataset.path=none.h5"], ["none.h5", "no such file"]),
    (["training.dataset.path=damaged/text.h5"], ["text.h5", "not an HDF5 file"]),
    (["training.dataset.path=damaged/half.h5"], ["half.h5", "truncated"]),
    (["training.dataset.path=data/echo_latents.h5"], ["echo_latents.h5", "'latents'"]),
    (["training.dataset.split=nothing"], ["nothing", "training.dataset.split"]),
    (["training.network.channels=[4,4,4,4,4,4]"], ["(16, 16, 16)", "training.dataset.size=[32,32,32] pads"]),
    (["training.options.batch_size=7", "training.options.batch_gpu=2"], ["batch_size=7"]),
    (["training.options.batch_sise=7"], ["training.options.batch_sise", "batch_size"]),
    (["+training.network.chanels=[4]"], ["training.network.chanels", "channels"]),
    (["training.options.batch_size=many"], ["training.options.batch_size", "many"]),
    (["training.optimizer.lr=fast"], ["training.optimizer.lr", "fast"]),
    (["training.options.precision=fp8"], ["precision", "fp8", "bf16"]),
    (["training.options.lr_schedule=step"], ["training.options.lr_schedule", "step"]),
    (["training.options.device=tpu"], ["tpu"]),
    (["training.options.num_threads=-1"], ["training.options.num_threads"]),
    (["training.options.seed=-1"], ["training.options.seed"]),
    (["training.options.total_kimg=0"], ["training.options.total_kimg"]),
    (["training.options.keep_states=0"], ["training.options.keep_states"]),
    (["training.options.num_workers=99999999"], ["training.options.num_workers=99999999: wanted 0 .. 1024"]),
    (["training.options.total_kimg=inf"], ["training.options.total_kimg=inf"]),
    (["training.options.grad_clip=-1"], ["training.options.grad_clip=-1"]),
    (["training.options.lr_rampup_kimg=nan"], ["training.options.lr_rampup_kimg=nan"]),
    (["training.options.desc=a/b"], ["training.options.desc=a/b: wanted"]),
    (["training.options.max_bad_steps=0"], ["training.options.max_bad_steps=0", "more than 0"]),
    (["training.options.ema_halflife_kimg=[1,0]"], ["training.options.ema_halflife_kimg=[1, 0]", "above 0"]),
    (["training.options.wandb=echo"], ["training.options.wandb=echo", "pip install wandb"]),
    (["training.options.run_root=data/echo.h5"], ["data/echo.h5", "training.options.run_root"]),
    (["training.options.resume=none.pt"], ["training.options.resume", "none.pt"]),
    (["training.options.resume=damaged/text.pt"], ["text.pt"]),
    (["training.options.resume=results/00001-echo_edm"], ["training.options.resume", "another configuration"]),
    (["training.options.resume=results/00000-echo_vae/network-snapshot-000000.016.pt"], ["wanted a state", "snapshot"]),
])  # fmt: skip
def test_train_refuses(at, damaged, overrides, wanted):
    line = refused(at, train.main, *VAE, *overrides)
    assert all(text in line for text in wanted), line


@pytest.mark.parametrize(("overrides", "wanted"), [
    (["training.dataset.path=data/echo.h5"], ["echo.h5", "'volumes'"]),
    (["training.dataset.path=damaged/flipped.h5"], ["flipped.h5", "damaged"]),
    (["training.network.model.channel_mult=[1,1,1,1,1]"], ["(8, 8, 8)", "(16, 16, 16)", "anew with --size 32 32 32"]),
    (["training.network.model.attention_levels=[7]"], ["attention_levels"]),
    (["training.network.model.channel_mult=3"], ["training.network.model.channel_mult=3"]),
    (["training.dataset=volumes"], ["training.dataset", "dataset=NAME"]),
    (["training.network._target_=os.system"], ["training.network"]),
    (["augment=edm"], ["training.augment", "latents do not turn with their image", "augment=none"]),
    (["batch_transform=voxels"], ["training.batch_transform", "echo_latents.h5 holds latents",
                                  "batch_transform=latents"]),
    (["training.network.model.label_dim=2"], ["training.network.model.label_dim=2: wanted 0", "no classes"]),
])  # fmt: skip
def test_train_diffusion_refuses(at, damaged, overrides, wanted):
    line = refused(at, train.main, *EDM, *overrides)
    assert all(text in line for text in wanted), line


@pytest.mark.parametrize(("overrides", "wanted"), [
    (["sampling.seeds=5-2"], ["sampling.seeds", "5-2", "empty"]),
    (["sampling.seeds=a"], ["sampling.seeds", "'a'"]),
    (["sampling.seeds=-3"], ["sampling.seeds", "negative"]),
    (["sampling.seeds='1,1'"], ["sampling.seeds", "twice"]),
    (["sampling.seeds="], ["sampling.seeds"]),
    (["sampling.network=echo_vae"], ["diffusion", "autoencoder", "00000-echo_vae"]),
    (["sampling.network=nobody"], ["sampling.network=nobody", "no run"]),
    (["sampling.network=damaged"], ["sampling.network=damaged", "network-snapshot"]),
    (["sampling.network=damaged/half.pt"], ["half.pt", "damaged"]),
    (["sampling.network=damaged/text.pt"], ["text.pt"]),
    (["sampling.network=results/00001-echo_edm/training-state-000000.016.pt"],
     ["a training state, wanted a network-snapshot; the newest beside it is"]),
    (["sampling.autoencoder=echo_edm"], ["autoencoder", "diffusion"]),
    (["sampling.format=tiff"], ["sampling.format", "tiff", "npz", "png"]),
    (["sampling.format=png"], ["sampling.format=png", "in 3D", "sampling.nifti=true", "export --format png"]),
    (["sampling.batch_size=0"], ["sampling.batch_size=0"]),
    (["sampling.sampler.num_steps=1"], ["num_steps=1"]),
    (["sampling.sampler.num_stps=1"], ["sampling.sampler.num_stps", "num_steps"]),
    (["sampling.sampler.sigma_min=90"], ["sigma_min"]),
    (["sampling.outdir=results/demo", "sampling.sampler.num_steps=4"], ["results/demo/samples.h5", "sampling.outdir"]),
])  # fmt: skip
def test_generate_refuses(at, damaged, overrides, wanted):
    line = refused(at, generate.main, *DRAW, "sampling.outdir=results/refused", *overrides)
    assert all(text in line for text in wanted), line


def test_generate_refuses_another_autoencoder_by_hash(at):
    succeed(train.main, *VAE, "training.options.seed=5", "training.options.run_root=results/other")
    other = "sampling.autoencoder=results/other/00000-echo_vae"
    line = refused(at, generate.main, *DRAW, "sampling.outdir=results/refused", other)
    assert "sampling.autoencoder" in line and "hash" in line
    draw("results/own", "0", "sampling.autoencoder=echo_vae", "sampling.nifti=false", "sampling.montage=0")


def test_snapshot_that_names_code_is_refused(at):
    snapshot = checkpoint.load(Path("results/00001-echo_edm/network-snapshot-000000.016.pt"), "snapshot").content
    snapshot["network"]["_target_"] = "os.mkdir"
    checkpoint.save(Path("damaged-hostile.pt"), "snapshot", snapshot)
    line = refused(at, generate.main, *DRAW, "sampling.outdir=results/refused", "sampling.network=damaged-hostile.pt")
    assert "os.mkdir" in line and "trust" in line


@pytest.mark.parametrize(("arguments", "wanted"), [
    (["--source", "none.h5"], ["none.h5: no such file; wanted a volumes file; ", " prepare makes one of NIfTI"]),
    (["--source", "damaged/text.h5"], ["text.h5: not an HDF5 file; wanted a volumes file; ", " prepare makes"]),
    (["--source", "results"], ["results: a folder, wanted a volumes file; ", " prepare makes one of"]),
    (["--source", "data/echo_latents.h5"], ["format is 'latents', wanted a volumes file; ", " prepare makes"]),
    (["--source", "damaged/half.h5"], ["half.h5", "truncated"]),
    (["--autoencoder", "nobody"], ["nobody", "no run of that name with a network-snapshot in results/"]),
    (["--autoencoder", "ecko_vae"], ["no run of that name", "in results/; did you mean 'echo_vae'?"]),
    (["--autoencoder", "data/echo.h5"], ["echo.h5: wanted a network-snapshot (.pt), this file holds data"]),
    (["--autoencoder", "results/00000-echo_vae/training-state-000000.016.pt"],
     ["training-state-000000.016.pt: a training state, wanted a network-snapshot; the newest beside it is results/00000"
      "-echo_vae/network-snapshot-000000.016.pt"]),
    (["--autoencoder", "echo_edm"], ["autoencoder", "diffusion"]),
    (["--autoencoder", "damaged/half.pt"], ["half.pt"]),
    (["--run-root", "nowhere"], ["echo_vae", "nowhere"]),
])  # fmt: skip
def test_encode_refuses(at, damaged, arguments, wanted):
    options = {"--autoencoder": "echo_vae", "--source": "data/echo.h5", "--dest": "data/refused.h5"}
    options.update([arguments])
    line = refused(at, dataset_tool.main, "encode", *(word for pair in options.items() for word in pair))
    assert all(text in line for text in wanted), line


def test_encode_refuses_volumes_of_another_kind(at):
    succeed(dataset_tool.main, "phantom", "--dest", "data/odd.h5", "--num", "4", "--size", "15")
    line = refused(at, dataset_tool.main, "encode", "--autoencoder", "echo_vae", "--source", "data/odd.h5", "--dest",
                   "data/refused.h5")
    assert "(15, 15, 15)" in line and "(16, 16, 16)" in line


def test_full_disk_is_said_and_leaves_nothing_half_written(at, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2 ** 40, 2 ** 40 - 10, 10))
    for command, arguments in [
        (generate.main, [*DRAW, "sampling.seeds=7", "sampling.outdir=results/full"]),
        (dataset_tool.main, ["encode", "--autoencoder", "echo_vae", "--source", "data/echo.h5", "--dest", "full.h5"]),
        (dataset_tool.main, ["phantom", "--dest", "full.h5", "--num", "2", "--size", "16"]),
    ]:
        line = refused(at, command, *arguments)
        assert "free" in line
    line = refused(at, train.main, *VAE, "training.options.run_root=results/full")
    assert "MiB needed, 0.00 MiB free" in line and "training.options.run_root" in line
    assert not Path("results/full").exists()


def test_debug_shows_the_traceback(at):
    result = call(train.main, *VAE, "training.dataset.path=none.h5", "training.options.debug=true")
    assert result.exit_code == 1 and "Traceback" in result.stderr


def test_unknown_experiment_is_refused(at):
    for command in (train.main, generate.main):
        assert "did you mean 'echo_vae'" in refused(at, command, "-cn=echo_vea")


def test_error_of_all_ranks_is_printed_once_by_us(at):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               str(ROOT / "train.py"), *VAE, "training.dataset.path=none.h5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert sum(line.startswith("Error") for line in done.stderr.splitlines()) == 1
    assert str(ROOT / "utils") not in done.stderr  # torchrun adds a traceback of its own, we add none
