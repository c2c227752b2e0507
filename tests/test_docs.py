"""The commands in README.md and docs/ are commands: their keys, choices and options exist, and their networks build."""

import re
import shlex
from pathlib import Path

import click
import pytest
import torch
from test_config import checked, dataset_like

import dataset_tool
import evaluate
from training.run import fill_network
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
    dataset.data["class_names"] = ["class"] * classes
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
    evaluate.main.make_context("evaluate", words)


def test_commands_are_found():
    text = "a `python train.py -cn=no`\n```\n# train.py\npython train.py -cn=x \\\n    a='${b}'  # why\n```\n"
    assert commands(text, "train.py") == [["-cn=x", "a=${b}"]]
