"""Whether generated volumes are of the class asked for: the guess from numbers, and the section of the report."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

import dataset_tool
from edm3d.formats.facts import volume_facts
from edm3d.formats.sample_meta import SampleMeta
from edm3d.formats.samples import Samples
from edm3d.formats.volumes import VolumesFile
from edm3d.inference import evaluate
from edm3d.inference.evaluate import ComparisonOptions
from edm3d.metrics.classes import nearest_class, nearest_class_left_out
from edm3d.physics.phantoms import echo_phantom
from edm3d.reporting.cases import Case, Layout
from edm3d.reporting.sections import NUMBERS
from edm3d.reporting.sections.classes import AskedClasses, Told
from tests.commands import succeed

SIZE = 28


def test_nearest_class_by_hand():
    """Means 1 and 5 in the first column, whose spread is 1; the second says nothing, and has a spread of 10."""
    values = np.array([[0, -10], [2, 10], [4, -10], [6, 10]], float)
    classes = np.array([3, 3, 7, 7])
    assert nearest_class(values, classes, np.array([[2.9, 0], [3.1, 0], [np.nan, 9], [-50, 0]])).tolist() == [
        3, 7, 3, 3]
    assert nearest_class_left_out(values, classes).tolist() == [3, 3, 7, 7]
    odd = np.array([[0, 1], [6, 1], [4, 1], [7, 1]], float)  # the first two are nearer to 7; no spread in 2
    assert nearest_class_left_out(odd, classes).tolist() == [7, 7, 3, 7]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Phantoms at both phases."""
    folder = tmp_path_factory.mktemp("classes")
    path = str(folder / "echo.h5")
    succeed(dataset_tool.main, "phantom", "--dest", path, "--num", "24", "--size", str(SIZE), "--pairs")
    return folder


def report_of(folder, asked: list[int], drawn: list[int]) -> dict:
    """The report of phantoms of phases `drawn` (0 ED, 1 ES) that pass for samples of phases that were asked for."""
    phantoms = [echo_phantom(2 * i + phase, seed=9, size=SIZE, pairs=True) for i, phase in enumerate(drawn)]
    file = VolumesFile(folder / "echo.h5")
    arrays = {"images": np.stack([p.image[None] for p in phantoms]), "labels": np.stack([p.label for p in phantoms]),
              "classes": np.array(asked)}
    meta = SampleMeta(volume_facts(file, "train"), "gone.pt", "0", {})
    Samples(list(range(len(asked))), arrays, meta).save(folder / "samples.h5")
    return evaluate.evaluate(folder / "echo.h5", folder / "samples.h5", folder / "report",
                             ComparisonOptions(num_noise=0, overwrite=True))


def test_volumes_of_the_classes_asked_for_are_told_from_those_of_others(folder):
    asked = [i % 2 for i in range(12)]
    good, bad = (report_of(folder, asked, drawn)["classes"] for drawn in (asked, [1 - c for c in asked]))
    assert good["chance"] == 0.5 and good["real"] > 0.8 and good["generated"] > 0.8
    assert bad["generated"] == pytest.approx(1 - good["generated"]) and bad["real"] == good["real"]
    assert good["generated_low"] < good["generated"] <= good["generated_high"]
    assert {name: row["num"] for name, row in good["by_class"].items()} == {"ED": 6, "ES": 6}
    page = (folder / "report/report.html").read_text()
    assert "of the class asked for" in page and ">Classes</h2>" in page
    assert json.loads((folder / "report/report.json").read_text())["classes"] == bad


def computed(real: list[int], generated: list[int]) -> dict:
    """The section of volumes of classes whose one number is ten times the class and 0, 1, 2, ... more."""
    told = {name: Told(np.array([[10.0 * c + i] for i, c in enumerate(classes)]), np.array(classes))
            for name, classes in (("real", real), ("generated", generated))}
    context = SimpleNamespace(layout=SimpleNamespace(class_names=("ED", "ES")))
    return AskedClasses(()).compute(told, context)["classes"]


def test_one_class_asked_alone():
    """Real means are 2 and 17; of 0, 1, ..., 11 two are nearer to 17."""
    found = computed([0] * 5 + [1] * 5, [0] * 12)
    assert found["by_class"] == {"ED": {"num": 12, "generated": 10 / 12, "real": 1},
                                 "ES": {"num": 0, "generated": None, "real": 1}}


def test_too_few_real_volumes_of_a_class_are_a_reason():
    found = computed([0] * 4 + [1] * 5, [1] * 4)
    assert not found["available"] and found["reason"].endswith("there are 4 of ED")


def test_nothing_is_said_of_data_without_classes():
    layout = Layout(("echo",), (), (1, 1, 1), 0, 1, "")
    section, case = AskedClasses(NUMBERS), Case("a", np.zeros((1, 4, 4, 4)), None)
    context = SimpleNamespace(layout=layout)
    assert section.measure(case, context) is None
    assert section.gather({"real": [None], "generated": [None]}, context) is None
    assert section.compute(None, context) == {} and section.page({}, {}) == "" and section.rows({}) == []
