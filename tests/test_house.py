"""A copy of the checkout takes what CONTRIBUTING.md says to add, one new file and one line of a registry for each.

An experiment that uses it comes on top.
"""

import csv
import json
import re
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import dataset_tool
from edm3d.formats.volumes import VolumesFile
from edm3d.inference.snapshot import Snapshot
from edm3d.utils import checkpoint
from tests.commands import succeed
from tests.conftest import ROOT, walk_own_files

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


class Addition(NamedTuple):
    """What a section of CONTRIBUTING.md adds: new files, and a line of a registry above one that starts with `before`.

    imported: what stands above the registry's line that starts with `after_imports`.
    """

    heading: str
    files: tuple[str, ...]
    registry: str
    before: str
    imported: str
    after_imports: str
    network: str = ""  # where in the list of what files may name its network stands: above the line that starts so

    def make(self, house: Path) -> None:
        """Add it to a copy."""
        blocks = shown(self.heading)
        for path in self.files:
            assert not (house / path).exists()
            (house / path).write_text(blocks[path], encoding="utf-8")
        assert blocks[self.registry].count("\n") == 1
        add_line(house / self.registry, self.after_imports, self.imported)
        add_line(house / self.registry, self.before, blocks[self.registry])
        if self.network:
            add_line(house / "utils/trusted.py", self.network, blocks["utils/trusted.py"])


ADDITIONS = (
    Addition("Add a task", ("training/tasks/toy.py", "configs/toy.yaml"), "training/tasks/__init__.py", "}",
             "from edm3d.training.tasks.toy import ToyTask", "TASKS"),
    Addition("Add a condition", ("networks/parts/severity.py", "configs/severity.yaml"), "networks/parts/__init__.py",
             "}", "from edm3d.networks.parts.severity import Severity", "PARTS", '    "edm3d.networks.precond"'),
    Addition("Add a metric", ("reporting/sections/bright_level.py",), "reporting/sections/__init__.py",
             ")\nMEASURED = ",
             "from edm3d.reporting.sections.bright_level import BrightLevel",
             "from edm3d.reporting.sections.decoded_pictures"),
)


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """A copy of the checkout with all additions and a few phantoms."""
    folder = tmp_path_factory.mktemp("house")
    for path in walk_own_files(ROOT):
        if path.parts[0] not in ("tests", "benchmarks", "docs"):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, folder / path)
    for addition in ADDITIONS:
        addition.make(folder)
    succeed(dataset_tool.main, "phantom", "--dest", str(folder / "data/volumes.h5"), "--num", "20", "--size", "8")
    with chdir(folder):
        exec(shown("Add a condition")["data/volumes.h5"], {})
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
    assert f"loss: toy {ticks[-1]['loss/toy']:.4g}, validation psnr {found[-1]:.4g}" in said
    best = checkpoint.load(folder / "network-best.pt", "snapshot").content
    assert best["val_psnr"] == max(found) and best["nimg"] == 8 * (1 + found.index(max(found)))
    snapshot = Snapshot.read(folder / "network-snapshot-000000.032.pt", "toy")
    assert snapshot.build().weight.shape == (1, 1, 3, 3, 3) and snapshot.facts.channels == ("echo",)


def test_a_task_is_planned_and_draws_nothing_unless_it_says_so(house):
    plan = json.loads(run(house, "dataset_tool.py", "plan", "-cn=toy", "--json"))
    assert plan["step"]["parameters"] == 28 and plan["shape"] == [1, 8, 8, 8] and plan["decode"] is None
    assert "task toy draws nothing" in run(house, "generate.py", "-cn=toy", code=1)
    said = run(house, "train.py", "-cn=toy", "training.task=top", code=1)
    assert "training.task='top': wanted one of autoencoder, diffusion, segmentation, classification, toy" in said


# ---- a part of the condition ----


LOOK = """
import json, sys, torch
from edm3d.formats.samples import SamplesFile
from edm3d.inference.snapshot import Snapshot
from edm3d.networks.conditioning import Condition
from edm3d.samplers import ImageGenerators
snapshot, samples = Snapshot.read(sys.argv[1], "diffusion"), SamplesFile(sys.argv[2])
net = snapshot.build()
x = 80 * ImageGenerators(samples.seeds.tolist(), purpose="sample").randn(snapshot.shape)
first = torch.from_numpy(samples.array("trajectory")[:, 0])
with torch.no_grad():
    told = [net(x, 80, Condition(severity=torch.full((len(x), 1), grade))) for grade in (0.0, 3.0)]
    told.append(net(x, 80))
print(json.dumps({"takes": net.takes, "weight": net.model.shift.weight.item(),
                  "apart": [float((first - each).abs().max()) for each in told]}))
"""


@pytest.fixture(scope="module")
def drawn(house) -> Path:
    """The folder of samples of a network that was told of the part in training."""
    run(house, "train.py", "-cn=severity", "training.options.total_kimg=0.016", "training.optimizer.lr=0.05", *OPTIONS)
    run(house, "generate.py", "-cn=severity", "sampling.seeds=0-2", "sampling.sampler.num_steps=3",
        "sampling.trajectory=true", "sampling.num_threads=1", "sampling.device=cpu", "sampling.nifti=false")
    return house / "results/severity"


def test_a_part_of_the_condition_reaches_training_and_is_drawn_as_its_null(house, drawn):
    snapshot, = (house / "results").glob("*-severity/network-snapshot-000000.016.pt")
    found = json.loads(run(house, "-c", LOOK, str(snapshot), str(drawn / "samples.h5")))
    assert found["takes"] == {"severity": [1, 0.2, 0]}
    assert abs(found["weight"]) > 1e-3  # it begins at 0 and stays there where nothing but nulls, zeros, is told
    null, value, nothing = found["apart"]
    assert null < 1e-5 < 1e-3 < value and nothing == null


# ---- a number of the report ----


def test_a_number_is_in_all_that_a_report_writes(house, drawn):
    said = run(house, "evaluate.py", "--real", "data/volumes.h5", "--split", "all", "--generated",
               str(drawn / "samples.h5"), "--dest", "report")
    report = json.loads((house / "report/report.json").read_text())["metrics"]
    assert [*report][-1] == "bright_level"
    file = VolumesFile(house / "data/volumes.h5")
    images = [file.read(split, i).image for split in file.splits for i in range(file.length(split))]
    assert report["bright_level"]["real_mean"] == pytest.approx(np.mean([np.percentile(x, 99) for x in images]))
    assert report["bright_level"]["generated_undefined"] == 0 and "bright_level" in said
    page = (house / "report/report.html").read_text()
    assert "level of the brightest hundredth" in page and "A hundredth of the voxels is brighter." in page
    rows = list(csv.DictReader((house / "report/cases.csv").open()))
    assert len([row for row in rows if row["bright_level"]]) == len(images) + 3
