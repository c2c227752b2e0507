"""A copy of the checkout takes what CONTRIBUTING.md says to add, one new file and one line of a registry for each."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dataset_tool
from inference.snapshot import Snapshot
from tests.commands import succeed
from tests.conftest import ROOT, walk_own_files
from utils import checkpoint

BLOCK = re.compile(r"^\d\. `([\w./]+)`(?:(?!^\d\. |^#+ ).)*?^```(?:python|yaml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
OPTIONS = ["training.options.batch_size=4", "training.options.kimg_per_tick=0.008", "training.options.num_threads=1",
           "training.options.device=cpu", "training.options.precision=fp32", "training.options.ema_halflife_kimg=0.001",
           "training.optimizer.lr=1e-2", "training.validation.max_items=2", "training.validation.every_ticks=1",
           "training.validation.preview_ticks=1"]


def shown(heading: str) -> dict[str, str]:
    """Path -> text of the blocks in a section of CONTRIBUTING.md, each below a numbered line that starts with a path.
    """
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return dict(BLOCK.findall(section[1]))


def add_line(path: Path, before: str, line: str) -> None:
    """Put a line into a file, above the only one that starts with `before`."""
    text = path.read_text(encoding="utf-8")
    assert text.count(f"\n{before}") == 1, f"{path}: wanted one line that starts with {before!r}"
    path.write_text(text.replace(f"\n{before}", f"\n{line.rstrip()}\n{before}"), encoding="utf-8")


def add_task(house: Path) -> None:
    """The toy task: its file, its line, and an experiment of it."""
    blocks = shown("Add a task")
    for path in ("training/tasks/toy.py", "configs/toy.yaml"):
        assert not (house / path).exists()
        (house / path).write_text(blocks[path], encoding="utf-8")
    registry = house / "training/tasks/__init__.py"
    add_line(registry, "TASKS", "from training.tasks.toy import ToyTask\n")
    add_line(registry, "}", blocks["training/tasks/__init__.py"])


ADDITIONS = [add_task]  # what a copy takes: functions of its folder


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """A copy of the checkout with all additions and a few phantoms."""
    folder = tmp_path_factory.mktemp("house")
    for path in walk_own_files(ROOT):
        if path.parts[0] not in ("tests", "benchmarks", "docs"):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, folder / path)
    for add in ADDITIONS:
        add(folder)
    succeed(dataset_tool.main, "phantom", "--dest", str(folder / "data/volumes.h5"), "--num", "20", "--size", "8")
    return folder


def run(house: Path, script: str, *words: str, code: int = 0) -> str:
    """What a script of the copy says."""
    ran = subprocess.run([sys.executable, script, *words], cwd=house, capture_output=True, text=True, timeout=300,
                         check=False)
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def test_a_task_trains_validates_keeps_its_best_and_goes_on(house):
    said = run(house, "train.py", "-cn=toy", "training.options.total_kimg=0.016", *OPTIONS)
    assert "Warning: no pictures while training" in said and "training.task=toy shows none" in said
    said = run(house, "train.py", "-cn=toy", "training.options.total_kimg=0.032", "training.options.resume=latest",
               *OPTIONS)
    folder, = (house / "results").glob("*-toy")
    assert f"Resumed from {Path('results') / folder.name}/training-state-000000.016.pt" in said
    ticks = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    assert [tick["kimg"] for tick in ticks] == [0.008, 0.016, 0.024, 0.032]
    numbers = {name for tick in ticks for name in tick if name.startswith(("loss/", "val/"))}
    assert numbers == {"loss/toy", "val/mse", "val/psnr"}
    found = [tick["val/psnr"] for tick in ticks]
    assert found[-1] > found[0]  # an untrained convolution learns
    assert f"loss: toy {ticks[-1]['loss/toy']:.4g}, validation {found[-1]:.4g}" in said
    best = checkpoint.load(folder / "network-best.pt", "snapshot").content
    assert best["val_psnr"] == max(found) and best["nimg"] == 8 * (1 + found.index(max(found)))
    snapshot = Snapshot.read(folder / "network-snapshot-000000.032.pt", "toy")
    assert snapshot.build().weight.shape == (1, 1, 3, 3, 3) and snapshot.facts.channels == ("echo",)


def test_a_task_is_planned_and_draws_nothing_unless_it_says_so(house):
    plan = json.loads(run(house, "dataset_tool.py", "plan", "-cn=toy", "--json"))
    assert plan["step"]["parameters"] == 28 and plan["shape"] == [1, 8, 8, 8] and plan["decode"] is None
    assert "task toy draws nothing" in run(house, "generate.py", "-cn=toy", code=1)
    said = run(house, "train.py", "-cn=toy", "training.task=top", code=1)
    assert "training.task='top': wanted one of autoencoder, diffusion, toy" in said
