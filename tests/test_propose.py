"""Proposed experiments: what is chosen by hand-known sizes, the YAML that says it, and runs that start from it."""

import shlex
import shutil
from math import prod
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
import yaml
from nibabel.testing import data_path

import dataset_tool
import evaluate
import generate
import train
from edm3d.formats.facts import Facts
from edm3d.formats.samples import SamplesFile
from edm3d.training import propose as chosen
from edm3d.training import proposed
from edm3d.training.descent import descend, far_apart
from edm3d.training.plan import DecodePlan, StepPlan, plan_step
from edm3d.training.plan_fit import GIB, step_levers
from edm3d.training.propose import Computer, Proposed, look, squeezed, this_machine
from edm3d.training.proposed import Setting, document
from edm3d.training.tasks.base import PlannedData
from edm3d.utils.compose import compose
from tests.commands import refused, succeed
from tests.planned import LABELLED, vae
from tests.test_volumes import make_item, write

SCRIPTS = {"train.py": train, "dataset_tool.py": dataset_tool, "generate.py": generate, "evaluate.py": evaluate}


def two_steps(steps: int, positions: int) -> bool:
    """Enough after two steps."""
    return steps == 2


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with configs/, where the scripts look for experiments."""
    (tmp_path / "configs").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def propose(source: str, *options: str) -> tuple[list[list[str]], str]:
    """Run the command for configs/mine.yaml; the words of the commands that it ends with, and all it says."""
    said = succeed(dataset_tool.main, "propose", source, "--dest", "configs/mine.yaml", *options)
    return [shlex.split(line)[1:] for line in said.partition("Next:")[2].splitlines() if line], said


# ---- sizes and strides ----


def test_cubes_halve_alike_and_odd_sizes_round_up():
    levels = descend((33, 41, 25), (2.0, 2.0, 2.0), [False] * 3, two_steps)
    assert levels.strides == [[2, 2, 2], [2, 2, 2]] and levels.factor == (4, 4, 4)
    assert levels.sizes == [(33, 41, 25), (17, 21, 13), (9, 11, 7)] and levels.kernels == [[3, 3, 3]] * 3


def test_slices_wait_until_voxels_are_cubes_and_odd_ones_stay():
    """8 mm slices of 1.5 mm pixels: 3 and 6 mm after one and two steps, then the slices may halve, if even."""
    apart = far_apart((8.0, 1.5, 1.5))
    assert apart == [True, False, False]
    odd, even = (descend((n, 96, 96), (8.0, 1.5, 1.5), apart, lambda steps, _: steps == 3) for n in (13, 12))
    assert odd.strides == [[1, 2, 2]] * 3 and odd.kernels == [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3]]
    assert even.strides == [[1, 2, 2], [1, 2, 2], [2, 2, 2]] and even.factor == (2, 8, 8)


def test_axes_of_few_positions_stay_and_nothing_halves_for_ever():
    thin = descend((12, 6, 96), (1.0, 1.0, 9.0), [False, False, True], lambda *_: False)
    assert thin.strides == [[2, 1, 1]] and thin.kernels == [[3, 3, 1], [3, 3, 1]]  # 2 mm rows are no slices
    levels = descend((12, 5), (1.0, 1.0), [False] * 2, lambda *_: False)
    assert levels.strides == [[2, 1]] and levels.sizes[-1] == (6, 5)


# ---- the machine and the data ----


def test_memory_is_of_a_card_where_it_is_given_and_of_this_machine_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert this_machine(24, None) == Computer("cuda", 24, "bf16")
    monkeypatch.setattr(chosen.psutil, "virtual_memory", lambda: type("Free", (), {"available": 3 * GIB}))
    assert this_machine(None, None)[:2] == ("cpu", 3) and this_machine(2, "cpu")[:2] == ("cpu", 2)
    with pytest.raises(ValueError, match="say by --memory"):
        this_machine(None, "cuda")


def test_look_says_what_is_there(tmp_path):
    succeed(dataset_tool.main, "phantom", "--dest", str(tmp_path / "e.h5"), "--num", "8", "--size", "16", "--pairs",
            "--split", "0.75", "0.25", "0")
    found = look(tmp_path / "e.h5")
    assert (found.size, found.spacing, found.num, found.held) == ((16,) * 3, (8.0,) * 3, 6, True)
    assert found.facts.class_names == ("ED", "ES") and not any(found.slices)
    with pytest.raises(ValueError, match="split 'train' has no items, it has val"):
        look(write(tmp_path / "val.h5", [("val", make_item(0))]))


# ---- what fits ----


def test_levers_are_pulled_until_it_fits_or_none_is_left():
    config, base = vae(), plan_step(vae()["training"], LABELLED).peak
    found, step = squeezed(config, LABELLED, 0.6 * base, step_levers(config, LABELLED))
    assert found["training"]["options"]["batch_gpu"] == 2 and step.peak <= 0.6 * base
    assert not found["training"]["options"]["checkpointing"] and config == vae()
    assert squeezed(config, LABELLED, base, iter(())) == (config, plan_step(config["training"], LABELLED))
    assert squeezed(config, LABELLED, 1, step_levers(config, LABELLED)) is None


def planned(training: dict, source: PlannedData) -> StepPlan:
    """A step that takes as many GiB as the network is wide, a quarter on crops, and 0.01 PFLOP for each."""
    network = training["network"]
    width = network["model"]["model_channels"] if "model" in network else network["channels"][0]
    return StepPlan(0, int(width * 1e13), 0, 0, 0, 0, 0, 0, int(width * GIB / (4 if training["augment"] else 1)), 0)


@pytest.mark.parametrize(("memory", "flops", "stage", "unet"), [
    (1000, 1e30, 64, 192),
    (40, 1e30, 32, 32),    # 36 GiB of it, so neither 48 nor 64
    (1000, 1e19, 48, 16),  # 20000 steps of 0.48 PFLOP, not of 0.64; 50000 of 0.16, not of 0.32
    (1000, 1e17, 16, 16),  # too long, but the shortest
    (17, 1e30, 48, None),  # 15.3 GiB are too few for whole volumes, and for a UNet; crops take 12, and not 16
])
def test_the_widest_that_fits_in_memory_and_time_is_chosen(tmp_path, monkeypatch, memory, flops, stage, unet):
    """Of 64, 48, 32, 24 and 16 for a first stage, of 192, 128, 96, 64, 32 and 16 for a UNet."""
    monkeypatch.setattr(chosen, "plan_step", planned)
    monkeypatch.setattr(chosen, "plan_encode", lambda *_: 0)
    monkeypatch.setattr(chosen, "plan_decode", lambda *_: SimpleNamespace(peak=0))
    monkeypatch.setitem(chosen.SCALES, "cuda", chosen.SCALES["cuda"]._replace(flops=flops))
    facts = Facts("", "", ("t1",), spatial_shape=(32, 32, 32))
    cohort = chosen.Cohort(Path("e.h5"), (32, 32, 32), (1.0, 1.0, 1.0), 1000, True, facts)
    machine, source = Computer("cuda", memory, "bf16"), PlannedData((1, 32, 32, 32), facts, {})
    levels = descend(cohort.size, cohort.spacing, cohort.slices, two_steps)
    found = chosen.choose_stage(cohort, machine, source, levels, compose("echo_vae")).config["training"]
    assert found["network"]["channels"] == [stage, 2 * stage, 4 * stage] and bool(found["augment"]) == (unet is None)
    if unet is None:
        with pytest.raises(ValueError, match="not even the narrowest diffusion network fits, which takes 16.000 GiB"):
            chosen.choose_diffusion(cohort, machine, source, levels, compose("echo_edm"))
    else:
        found = chosen.choose_diffusion(cohort, machine, source, levels, compose("echo_edm")).config["training"]
        assert found["network"]["model"]["model_channels"] == unet


def test_volumes_that_do_not_go_through_a_first_stage_are_refused(monkeypatch):
    """2 GiB for a volume of 32 x 32, 0.5 for a tile of 16 x 16, the smallest of latents of 4 x 4."""
    machine, source = Computer("cpu", 0.5, "fp32"), PlannedData((1, 32, 32), Facts("", ""), {})
    monkeypatch.setattr(chosen, "plan_encode", lambda source, batch, tiles: int(
        batch * GIB * (prod(tiles.size) if tiles else 1024) / 512))
    with pytest.raises(ValueError, match=r"0.5: encoding a single volume in tiles of \[16, 16\] takes 0.500 GiB"):
        chosen.choose_encoding(machine, source, (4, 4))
    assert chosen.choose_encoding(machine._replace(gib=1.2), source, (4, 4))[:2] == (1, [16, 32])
    assert chosen.choose_encoding(machine._replace(gib=5), source, (4, 4))[:2] == (2, None)
    monkeypatch.setattr(chosen, "plan_decode", lambda config, source: DecodePlan(
        (32, 32), config["sampling"]["batch_size"], config["sampling"]["tile"], 0, 0, GIB))
    drawn = chosen.Chosen(compose("echo_edm"), None, None, source)
    with pytest.raises(ValueError, match=r"decoding a single volume in tiles of \[16, 16\] takes 1.000 GiB"):
        chosen.choose_decoding(machine, drawn, (32, 32), (4, 4))
    assert chosen.choose_decoding(machine._replace(gib=2), drawn, (32, 32), (4, 4)).batch == 16


# ---- the YAML ----


def test_document_nests_keys_and_keeps_to_the_width():
    config = {"training": {"a": {"b": [1, [2, 3]], "c": 0.0003}, "d": None}, "sampling": {"e": "a: b"}}
    settings = [Setting("training.a.b", "why"), Setting("training.a.c", "because " * 20), Setting("training.d"),
                Setting("sampling.e")]
    text = document("title " * 30, {"group": "choice"}, config, settings)
    read = yaml.safe_load(text)
    assert read.pop("defaults") == ["experiment_schema", {"group": "choice"}, "_self_"] and read == config
    assert max(map(len, text.splitlines())) <= 120 and "    b: [1, [2, 3]]  # why" in text
    assert text.count("because") == 20 and text.count("title") == 30


def test_words_out_of_files_are_comments_and_no_keys():
    """A class called so stands in the file as a word; a path that a configuration would fill in is refused."""
    evil = "ED\ntraining: {loss: {_target_: os.mkdir}}\u2028\x1b[31m\x85a: b"
    config = {"training": {"dataset": {"path": "data/it's: #1.h5"}}}
    settings = [Setting("training.dataset.path", f"classes {evil}")]
    text = document(f"Of {evil}", {}, config, settings)
    assert yaml.safe_load(text) == {"defaults": ["experiment_schema", "_self_"], **config}
    assert all(line.startswith("#") or "os.mkdir" not in line.partition("#")[0] for line in text.splitlines())
    with pytest.raises(ValueError, match="rename the file"):
        document("", {}, {"a": "${oc.env:HOME}.h5"}, [Setting("a", "b")])


def test_files_that_are_there_and_odd_names_are_refused(folder):
    succeed(dataset_tool.main, "phantom", "--dest", "e.h5", "--num", "4", "--size", "8")
    Path("configs/mine_vae.yaml").write_text("mine\n")
    for memory, dest, message in (("1", "mine", "mine_vae.yaml: does not say that it was proposed"),
                                  ("1", "my one", "ends in .yaml"),
                                  ("0.001", "new", "not even the narrowest first stage fits, which takes")):
        assert message in refused(folder, dataset_tool.main, "propose", "e.h5", "--memory", memory, "--dest",
                                  f"configs/{dest}.yaml")


@pytest.mark.slow
def test_the_same_proposal_again_is_there_and_another_takes_its_place_on_request_alone(folder):
    succeed(dataset_tool.main, "phantom", "--dest", "same.h5", "--num", "4", "--size", "8", "--spatial-dims", "2")
    words = ["propose", "same.h5", "--dest", "configs/same.yaml", "--device", "cpu", "--memory"]
    succeed(dataset_tool.main, *words, "0.02")
    assert "just so there already" in succeed(dataset_tool.main, *words, "0.02")
    assert "is there already; choose another" in refused(folder, dataset_tool.main, *words, "0.03")
    assert "just so there already" not in succeed(dataset_tool.main, *words, "0.03", "--overwrite")
    assert "with 0.03 GiB" in " ".join(Path("configs/same.yaml").read_text().replace("#", "").split())


def test_what_is_written_is_what_was_planned(folder, monkeypatch):
    """Slices of two classes, 36x36, padded: every key of both experiments, and the numbers that are said of them."""
    succeed(dataset_tool.main, "phantom", "--dest", "data/e.h5", "--num", "10", "--size", "36", "--pairs",
            "--spatial-dims", "2")
    found: list[Proposed] = []
    monkeypatch.setattr(proposed, "propose", lambda *given: found.append(chosen.propose(*given)) or found[0])
    _, said = propose("data/e.h5", "--memory", "0.05", "--device", "cpu")
    made, = found
    assert made.size == (40, 40) and made.diffusion.config["training"]["network"]["model"]["label_dim"] == 2
    for name, part in (("mine_vae", made.stage), ("mine", made.diffusion)):
        part.config["sampling"]["outdir"] = f"results/{name}"
        assert compose(name) == part.config
        peak = f"{part.step.peak / GIB:.3f} GiB"
        line, = (line for line in said.splitlines() if line.startswith(f"configs/{name}.yaml"))
        assert peak in line and f"{part.step.parameters / 1e6:.2f} M parameters" in line
        assert part.step.peak <= 0.05 * 0.9 * GIB and peak in Path(f"configs/{name}.yaml").read_text()
        assert plan_step(part.config["training"], part.source) == part.step


# ---- roads that start without an edit ----


SHORT = ["training.options.total_kimg=0.016", "training.options.num_threads=1", "training.options.device=cpu"]


def walk(words: list[list[str]]) -> None:
    """Run the commands that were proposed, the trainings cut short: then nothing asks what the first stage keeps."""
    more = {"train.py": SHORT, "generate.py": ["sampling.seeds=0-1", "sampling.sampler.num_steps=2",
                                               "sampling.num_threads=1", "sampling.device=cpu"]}
    for path, *rest in words:
        script = Path(path).name
        unasked = ["training.options.min_psnr=null"] if script == "train.py" and rest == ["-cn=mine"] else []
        succeed(SCRIPTS[script].main, *rest, *more.get(script, []), *unasked)


def drawn() -> SamplesFile:
    """What the road ended with."""
    assert Path("results/mine/report.html").is_file()
    return SamplesFile("results/mine/samples.h5")


@pytest.mark.slow
def test_road_of_phantoms(folder):
    succeed(dataset_tool.main, "phantom", "--dest", "data/mine.h5", "--num", "20", "--size", "32", "--pairs")
    words, _ = propose("data/mine.h5", "--memory", "0.5", "--device", "cpu")
    walk(words)
    assert drawn().row("images", 0).shape == (1, 32, 32, 32) and drawn().row("labels", 0) is not None


@pytest.mark.slow
def test_road_of_nibabels_anatomy(folder):
    """33x41x25 divides by nothing: it is padded, here and in encoding, and one of its copies alone is held out."""
    Path("in").mkdir()
    for i in range(4):
        shutil.copy(Path(data_path) / "anatomical.nii", f"in/case{i}.nii")
    succeed(dataset_tool.main, "prepare", "--images", "in", "--dest", "data/mine.h5", "--percentiles", "0", "99.5",
            "--split", "0.5", "0.25", "0.25")
    words, said = propose("data/mine.h5", "--memory", "0.5", "--device", "cpu")
    assert "padded to 40x48x28" in said and "--size" not in words[1]
    walk(words)
    assert drawn().row("images", 0).shape == (1, 40, 48, 28)
    succeed(evaluate.main, "--autoencoder", "mine_vae", "--real", "data/mine.h5", "--dest", "results/stage")


@pytest.mark.slow
def test_road_of_thin_stacks(folder):
    """13 slices of 8 mm keep their number; without a split val nothing is validated."""
    Path("in").mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        image = nibabel.Nifti1Image(rng.random((13, 96, 96), np.float32), np.diag([8, 1.5, 1.5, 1]))
        nibabel.save(image, f"in/stack{i}.nii.gz")
    succeed(dataset_tool.main, "prepare", "--images", "in", "--dest", "data/mine.h5", "--split", "0.75", "0", "0.25")
    words, said = propose("data/mine.h5", "--memory", "0.5", "--device", "cpu")
    read = yaml.safe_load(Path("configs/mine_vae.yaml").read_text())["training"]
    assert read["network"]["strides"] == [[1, 2, 2], [1, 2, 2]] and read["validation"]["max_items"] == 0
    assert "padded" not in said
    walk(words)
    assert drawn().row("images", 0).shape == (1, 13, 96, 96)


@pytest.mark.slow
def test_road_of_crops_and_tiles(folder):
    """Volumes that do not fit whole: the first stage learns from crops, and is validated by nothing."""
    succeed(dataset_tool.main, "phantom", "--dest", "data/mine.h5", "--num", "20", "--size", "48")
    words, _ = propose("data/mine.h5", "--memory", "0.02", "--device", "cpu")
    stage, diffusion = (yaml.safe_load(Path(f"configs/{name}.yaml").read_text()) for name in ("mine_vae", "mine"))
    assert {"augment": "patches"} in stage["defaults"] and stage["training"]["validation"]["max_items"] == 0
    assert max(stage["training"]["augment"]["size"]) < 48 and stage["training"]["augment"]["flip"] == 0
    assert "--tile" in words[1] and diffusion["sampling"]["tile"] != [48, 48, 48]
    walk(words)
    assert drawn().row("images", 0).shape == (1, 48, 48, 48)
