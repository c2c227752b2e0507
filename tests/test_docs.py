"""The commands in README.md and docs/ are commands: their keys, choices and options exist, and their networks build.

The files that CONTRIBUTING.md shows work as they stand.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import click
import numpy as np
import pytest
import torch

import dataset_tool
import evaluate
from edm3d.networks.precond import EDMPrecond
from edm3d.samplers import ddim_sampler
from edm3d.training.tasks.base import fill_network
from edm3d.utils.config import build
from tests.denoisers import gaussian
from tests.test_config import checked, dataset_like, outputs

ROOT = Path(__file__).resolve().parents[1]
NEW_FILES = ("training/datasets/folder.py", "configs/dataset/folder.yaml", "networks/plain.py",
             "configs/network/plain.yaml", "configs/plain_edm.yaml", "samplers/euler.py", "configs/sampler/euler.yaml")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(markdown: str, script: str) -> list[list[str]]:
    """Words after `script` of every command in a page's fenced blocks, lines that end in a backslash joined, and of
    those that fill a cell at the end of a table's row.
    """
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"\| `((?:python|torchrun) [^`]+)` \|$", markdown, re.MULTILINE)
    split = [shlex.split(line, comments=True) for line in lines if f"{script} " in line]
    return [words[words.index(script) + 1:] for words in split if script in words]  # not in a comment


def of_all_pages(script: str) -> list:
    """Such commands of all pages, each named by its page and words."""
    return [pytest.param(words, id=f"{page.name} {' '.join(words)}")
            for page in PAGES for words in commands(page.read_text(encoding="utf-8"), script)]


@pytest.mark.parametrize("words", of_all_pages("train.py"))
def test_training_commands_compose_and_build(words):
    name, overrides = words[0].removeprefix("-cn=").replace("$NAME", "echo_edm"), words[1:]
    config = checked(name, *overrides)
    classes = config["training"]["network"].get("model", {}).get("label_dim", 0)
    dataset = dataset_like(name)
    dataset.facts = replace(dataset.facts, class_names=tuple(f"class{i}" for i in range(classes)))
    with torch.device("meta"):
        build(fill_network(config["training"], dataset, outputs=outputs(name, config["training"]["task"])))
    build(config["training"]["loss"])


@pytest.mark.parametrize("words", of_all_pages("generate.py"))
def test_drawing_commands_compose(words):
    checked(words[0].removeprefix("-cn="), *words[1:])


@pytest.mark.parametrize("words", of_all_pages("dataset_tool.py"))
def test_data_commands_have_the_options_they_are_given(words):
    command = dataset_tool.main.commands[words[0]]
    command.make_context(words[0], words[1:], parent=click.Context(dataset_tool.main))


@pytest.mark.parametrize("words", of_all_pages("evaluate.py"))
def test_evaluation_commands_have_the_options_they_are_given(words):
    if command := evaluate.main.commands.get(words[0]):
        params = command.make_context(words[0], words[1:], parent=click.Context(evaluate.main)).params
        assert params[{"downstream": "runs", "enhancement": "samples"}[words[0]]]
        return
    given = evaluate.main.make_context("evaluate", words).params
    if given["compare"]:
        assert sum(map(len, given["compare"])) > 1
        return
    assert given["real"] and given["dest"] and (given["generated"] is None) != (given["autoencoder"] is None)


def test_commands_are_found():
    text = "a `python train.py -cn=no`\n```\n# train.py\npython train.py -cn=x \\\n    a='${b}'  # why\n```\n" \
        "| [a](a.md) | `python train.py -cn=y` |\n| `train.py` | as in `python train.py -cn=no` |\n"
    assert commands(text, "train.py") == [["-cn=x", "a=${b}"], ["-cn=y"]]


@pytest.mark.parametrize(("status", "why", "state", "queued"), [
    ("requeue", "stopped by SIGTERM", "old", True), ("done", "", "new", False), ("failed", "ValueError", "new", False),
    ("running", "", "new", True), ("running", "", "old", False), ("running", "", None, False),
    ("failed", "ConnectionError: rank 1 was lost at the step at 44 images", "new", True),
])
def test_slurm_job_queues_itself_again_where_that_helps(tmp_path, status, why, state, queued):
    text = (ROOT / "docs/running.md").read_text(encoding="utf-8")
    job, = re.findall(r"^```bash\n(#!/bin/bash.*?)^```", text, re.MULTILINE | re.DOTALL)
    folder = tmp_path / "results" / "00003-echo_edm"
    folder.mkdir(parents=True)
    before, after = ({"status": s, "why": why, **({"state": n} if n else {})} for s, n in
                     (("running", state and "old"), (status, state)))
    (folder / "status.json").write_text(json.dumps(before, indent=2))
    (tmp_path / "after.json").write_text(json.dumps(after, indent=2))
    for name, does in (("scontrol", 'echo "$@" >> called; echo host'),
                       ("srun", "cp after.json results/00003-echo_edm/status.json; exit 1")):
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    subprocess.run(["bash", "-c", job], cwd=tmp_path, check=False, timeout=30, env={
        **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "host"})
    assert ("requeue 7" in (tmp_path / "called").read_text()) is queued


# ---- CONTRIBUTING.md ----


@cache
def files_shown() -> dict[str, str]:
    """Path -> text of the files in CONTRIBUTING.md: the block below a numbered line that starts with the path."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    item = r"^\d\. `([\w./]+)`(?:(?!^\d\. |^#+ ).)*?^```(?:python|yaml)\n(.*?)^```"
    return dict(re.findall(item, text, re.MULTILINE | re.DOTALL))


def defined(path: str) -> dict:
    """The names that a shown file defines."""
    names: dict = {"__name__": path}
    exec(compile(files_shown()[path], path, "exec"), names)
    return names


def write_folder(folder: Path) -> None:
    """Twenty images of 8x8: image i is i / 20 everywhere."""
    folder.mkdir()
    for i in range(20):
        np.save(folder / f"{i:02}.npy", np.full((8, 8), i / 20))


def test_dataset_that_is_shown_reads_and_fills_a_network(tmp_path):
    write_folder(tmp_path / "images")
    dataset = defined("training/datasets/folder.py")["FolderDataset"](str(tmp_path / "images"), "val")
    assert [float(dataset[i].image.mean()) for i in range(len(dataset))] == pytest.approx([-0.1, 0.9])
    model = fill_network(checked("voxels_edm")["training"], dataset)["model"]
    assert (model["in_channels"], model["spatial_dims"], dataset[0].image.shape) == (1, 2, dataset.shape)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_network_that_is_shown_is_a_denoiser(dims):
    net = EDMPrecond(defined("networks/plain.py")["PlainNet"](2, 2, dims, channels=8))
    x, sigma = torch.ones(3, 2, *[5] * dims), torch.tensor([0.1, 0.5, 2])
    gain = (0.25 / (sigma ** 2 + 0.25)).reshape(-1, *[1] * (dims + 1))  # the last layer starts at 0
    torch.testing.assert_close(net(x, sigma), gain * x)
    torch.nn.init.ones_(net.model.out.weight)
    assert not torch.allclose(net(x, sigma), gain * x)
    with pytest.raises(ValueError, match="augment=none"):
        net(x, sigma, augment_labels=torch.zeros(3, 3))


def test_sampler_that_is_shown_is_eulers_method():
    euler, latents, seen = defined("samplers/euler.py")["euler_sampler"], torch.randn(4, 1, 6), []
    x = euler(gaussian(0.5), latents, num_steps=12, callback=lambda i, x, denoised: seen.append(i))
    torch.testing.assert_close(x, ddim_sampler(gaussian(0.5), latents, num_steps=12), rtol=1e-12, atol=1e-12)
    assert seen == list(range(12))


@pytest.mark.slow
def test_files_that_are_shown_train_and_draw_in_a_copy(tmp_path, own_files):
    copy = tmp_path / "copy"
    for path in own_files:
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, copy / path)
    for path in NEW_FILES:
        assert not (copy / path).exists(), f"CONTRIBUTING.md shows {path}, which is there already"
        (copy / path).write_text(files_shown()[path])
    for path, before, new in (
            ("samplers/__init__.py", "from edm3d.samplers.grids", "from edm3d.samplers.euler import euler_sampler"),
            ("utils/trusted.py", '    "edm3d.networks.precond"', '    "edm3d.networks.plain": ("PlainNet",),'),
            ("tests/test_config.py", '"voxels_edm": ', '"plain_edm": ((1, 32, 32, 32), 0, 0),')):
        text = (copy / path).read_text()
        (copy / path).write_text(text.replace(before, f"{new}\n{before}", 1))
    write_folder(copy / "images")
    options = [f"training.options.{key}" for key in ("batch_size=4", "total_kimg=0.008", "num_threads=1", "device=cpu",
                                                     "checkpointing=true")]
    for words in (["train.py", "-cn=plain_edm", "dataset=folder", "training.dataset.path=images", *options],
                  ["generate.py", "-cn=plain_edm", "sampler=euler", "sampling.sampler.num_steps=4",
                   "sampling.seeds=0-1", "sampling.num_threads=1", "sampling.device=cpu"],
                  ["-m", "pytest", "-q", "tests/test_imports.py", "tests/test_config.py", "-k",
                   "folder or plain or euler or import or known"]):
        ran = subprocess.run([sys.executable, *words], cwd=copy, capture_output=True, text=True, timeout=300,
                             check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (copy / "results/plain/samples.h5").exists()
