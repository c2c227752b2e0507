"""Classes in names of files: by patterns and folders, against tables and dataset.json, and patients that stay one."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import dataset_tool
from edm3d.formats.pairing import find_cases
from edm3d.formats.png import write_png
from edm3d.formats.prepare import PrepareOptions, prepare
from edm3d.formats.volumes import VolumesFile
from tests.commands import succeed
from tests.test_pairing import touch

VIEWS = ("p1_2CH_ED", "p1_4CH_ED", "p2_2CH_ED", "p2_4CH_ES", "p3_4CH_ES", "p4_2CH_ED")
OPTIONS = PrepareOptions(value_range=(0, 255), image_pattern="{id}_{class}_{rest}", split=(0.5, 0.5, 0.0))


def pictures(root: Path, *names: str) -> Path:
    """Pictures in images/, with label maps of the same names in labels/."""
    for i, name in enumerate(names):
        for folder, values in (("images", np.arange(16).reshape(4, 4) + i), ("labels", np.eye(4) * (i + 1) % 3)):
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_png(root / folder / f"{name}.png", np.asarray(values, np.uint8))
    return root


def run(root: Path, options: PrepareOptions = OPTIONS, labels: bool = False, table: str | None = None):
    """What came of it, and the class name, group and split of every volume by its id."""
    options = replace(options, classes=("a", "b", "c")) if labels else options
    if table:
        (root / "t.csv").write_text(table)
    made = prepare(root / "images", root / "labels" if labels else None, root / "v.h5", options,
                   table=root / "t.csv" if table else None, overwrite=True)
    file = VolumesFile(root / "v.h5")
    items = [(split, file.read(split, i)) for split in file.splits for i in range(file.length(split))]
    of = {item.id: (None if item.class_index is None else file.meta.class_names[item.class_index], item.group, split)
          for split, item in items}
    return made, file, of


def refused(root: Path, message: str, options: PrepareOptions = OPTIONS, table: str | None = None) -> None:
    with pytest.raises(ValueError, match=message):
        run(root, options, table=table)
    assert not (root / "v.h5").exists()


def classes(of) -> dict[str, str]:
    return {id_: found[0] for id_, found in of.items()}


def test_names_say_class_and_patient_and_label_maps_pair(tmp_path):
    made, file, of = run(pictures(tmp_path, *VIEWS), labels=True)
    assert file.meta.class_names == ("2CH", "4CH") and sum(made.counts.values()) == 6
    assert classes(of) == {name: name.split("_")[1] for name in VIEWS}
    assert {id_: found[1] for id_, found in of.items()} == {name: name[:2] for name in VIEWS}
    assert of["p1_2CH_ED"][2] == of["p1_4CH_ED"][2] and of["p2_2CH_ED"][2] == of["p2_4CH_ES"][2]
    assert "classes: by {class} of --image-pattern, 2CH 3, 4CH 3" in made.notes
    assert any(note.startswith("patients: by {id} of --image-pattern, 4 of 6 volumes") for note in made.notes)
    for split in file.splits:
        for i in range(file.length(split)):
            item = file.read(split, i)
            assert item.label[0, 0] == (VIEWS.index(item.id) + 1) % 3 and item.image[0, 0, 0] == VIEWS.index(item.id)


def test_folders_say_the_class_also_below_those_of_splits(tmp_path):
    names = ("train/sick/001", "train/well/001", "train/well/002", "val/sick/001")
    with pytest.raises(ValueError, match=r"train/sick/001\.png and .*val/sick/001\.png are one image by"):
        run(pictures(tmp_path / "a", *names), replace(OPTIONS, image_pattern="{class}/{id}"))
    root = pictures(tmp_path / "b", *names[:3], "val/sick/003")
    pattern = {"image_pattern": "{class}/{id}", "label_pattern": "{class}/{id}"}
    _, file, of = run(root, replace(OPTIONS, **pattern), labels=True)
    assert of == {"sick_001": ("sick", "001", "train"), "well_001": ("well", "001", "train"),
                  "well_002": ("well", "002", "train"), "sick_003": ("sick", "003", "val")}
    assert file.meta.class_names == ("sick", "well")


@pytest.mark.parametrize("pattern, names, found", (
    ("{id}_{class}", ("a_b_2CH",), [("a_b_2CH", "2CH", "a_b")]),
    ("{class}_{id}", ("2CH_a_b",), [("2CH_a_b", "2CH", "a_b")]),
    ("img-{id}_{class}_t1", ("img-a_2CH_t1",), [("a_2CH", "2CH", "a")]),
    ("{id}/t1", ("a/t1", "b/t1"), [("a", None, None), ("b", None, None)]),
    ("{id}_{rest}", ("a_1", "a_2"), [("a_1", None, "a"), ("a_2", None, "a")]),
    ("{id}_{channel}_{class}", ("a_t1_x", "a_t2_x", "b_t1_y", "b_t2_y"), [("a_x", "x", "a"), ("b_y", "y", "b")]),
    ("{class}{id}", ("L001", "R001"), [("L001", "L", "001"), ("R001", "R", "001")]),
))
def test_patterns_by_hand(tmp_path, pattern, names, found):
    cases = find_cases(touch(tmp_path / "i", *(f"{name}.npy" for name in names)), image_pattern=pattern).cases
    assert [(case.id, case.class_name, case.patient) for case in cases] == found


def test_class_names_are_what_a_class_may_be_and_their_order(tmp_path):
    root = pictures(tmp_path, "p1_apical_2CH", "p2_apical_4CH", "p3_other")
    made, file, of = run(root, replace(OPTIONS, image_pattern="{id}_{class}",
                                       class_names=("apical_4CH", "apical_2CH", "sax")))
    assert file.meta.class_names == ("apical_4CH", "apical_2CH", "sax")
    assert classes(of) == {"p1_apical_2CH": "apical_2CH", "p2_apical_4CH": "apical_4CH"}
    assert any("1 of 3 files" in note and "p3_other.png" in note for note in made.notes)


def test_a_table_may_say_the_same_and_more(tmp_path):
    root = pictures(tmp_path, *VIEWS)
    table = "id,class,group,age [y]\n" + "".join(f"{name},{'' if i else '2CH'},g{i},{i}\n"
                                                 for i, name in enumerate(VIEWS))
    _, file, of = run(root, table=table)
    assert classes(of) == {name: name.split("_")[1] for name in VIEWS} and file.meta.attribute_names == ("age",)
    assert of["p1_4CH_ED"][1] == "g1"
    (root / "v.h5").unlink()
    refused(root, r"p1_2CH_ED\.png: its name says class '2CH' by --image-pattern, and --table says '4CH' of it",
            table=table.replace("p1_2CH_ED,2CH", "p1_2CH_ED,4CH"))


def test_a_dataset_json_numbers_the_classes(tmp_path):
    root = pictures(tmp_path, *VIEWS)
    numbers = {name: 1 - ("4CH" in name) for name in VIEWS}

    def listed(**other) -> None:
        (root / "dataset.json").write_text(json.dumps({"labels": [
            [f"images/{name}.png", number] for name, number in {**numbers, **other}.items()]}))

    listed(p4_2CH_ED=None)
    _, file, of = run(root)
    assert file.meta.class_names == ("4CH", "2CH") and classes(of) == {name: name.split("_")[1] for name in VIEWS}
    listed()
    assert run(root, replace(OPTIONS, class_names=("4CH", "2CH")))[1].meta.class_names == ("4CH", "2CH")
    (root / "v.h5").unlink()
    refused(root, r"p1_2CH_ED\.png: its name says class '2CH' .* dataset\.json says '4CH' of it",
            replace(OPTIONS, class_names=("2CH", "4CH")))
    listed(p4_2CH_ED=0)
    refused(root, r"dataset\.json has .*p1_2CH_ED\.png as class_1 and .*p4_2CH_ED\.png as class_0")
    listed(p1_4CH_ED=None, p2_4CH_ES=None, p3_4CH_ES=None)
    refused(root, r"p1_4CH_ED\.png: its name says class '4CH' .* of which dataset\.json has no file with a number")


@pytest.mark.parametrize("pattern, message", (
    ("{id}_{class}_{class}", r"\{class\} stands in it more than once"), ("{class}", r"\{id\} stands in it 0 times"),
    ("/{id}", "wanted names of folders and files between '/'"), ("../{id}", "wanted names of folders"),
    ("{class}/{id}", r"no name fits --image-pattern '\{class\}/\{id\}'; there are p1_2CH_ED"),
))
def test_patterns_that_cannot_be(tmp_path, pattern, message):
    refused(pictures(tmp_path, *VIEWS), message, replace(OPTIONS, image_pattern=pattern))


def test_the_command_takes_views_from_names(tmp_path):
    root = pictures(tmp_path, *VIEWS)
    said = succeed(dataset_tool.main, "prepare", "--images", str(root / "images"), "--image-pattern",
                   "{id}_{class}_{rest}", "--dest", str(root / "v.h5"))
    assert "classes: by {class}" in said and VolumesFile(root / "v.h5").meta.class_names == ("2CH", "4CH")
