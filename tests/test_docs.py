"""The commands in README.md and docs/ are commands: their keys, choices and options exist, and their networks build."""

import json
import os
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import click
import pytest
import torch

import dataset_tool
import evaluate
from tests.test_config import checked, dataset_like
from training.build import fill_network
from utils.config import build

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(markdown: str, script: str) -> list[list[str]]:
    """Words after `script` of every command in a page's fenced blocks, lines that end in a backslash joined."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    split = [shlex.split(line, comments=True) for line in lines if f"{script} " in line]
    return [words[words.index(script) + 1:] for words in split]


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
    dataset.facts = replace(dataset.facts, class_names=("class",) * classes)
    with torch.device("meta"):
        build(fill_network(config["training"], dataset))
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
    given = evaluate.main.make_context("evaluate", words).params
    assert given["real"] and given["dest"] and (given["generated"] is None) != (given["autoencoder"] is None)


def test_commands_are_found():
    text = "a `python train.py -cn=no`\n```\n# train.py\npython train.py -cn=x \\\n    a='${b}'  # why\n```\n"
    assert commands(text, "train.py") == [["-cn=x", "a=${b}"]]


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
