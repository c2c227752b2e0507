"""Conditions out of files reach batches, and those of seeds are what was asked for."""

from dataclasses import replace
from math import nan
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from edm3d.formats import h5
from edm3d.formats.facts import Facts
from edm3d.formats.intensity import Intensity
from edm3d.formats.latents import EncodedSplit, FirstStageRecord, write_latents
from edm3d.formats.volumes import Item, VolumesFile, VolumesMeta, VolumesWriter
from edm3d.inference.batch import collate
from edm3d.inference.conditions import Conditions, StoredConditions
from edm3d.networks.conditioning import Condition, Part
from edm3d.networks.parts import PARTS
from edm3d.networks.parts.base import PartKind
from edm3d.networks.parts.images import Images
from edm3d.training.datasets.latents import LatentsDataset
from edm3d.training.datasets.volumes import VolumesDataset
from edm3d.training.tasks.diffusion import check_conditions, left_aside

CLASSES = [1, -1, 0]
ONE_HOT = [[0, 1], [0, 0], [1, 0]]
ATTRIBUTES = np.array([[60.5, nan], [nan, nan], [-1, 2]], np.float32)


def write_volumes(path: Path, names: tuple[str, ...] = ("age", "ef"), classes: tuple[str, ...] = ("ED", "ES")) -> Path:
    """Three volumes with classes and attributes, some of them missing."""
    meta = VolumesMeta(2, ("echo",), ("target",), (), names, tuple("-" for _ in names), classes,
                       Intensity(0.0, 1.0, True, ""))
    with VolumesWriter(path, meta, {"kind": "test"}) as writer:
        for i, index in enumerate(CLASSES):
            writer.add("train", Item(np.full((1, 4, 4), i / 2, np.float32), None, ATTRIBUTES[i] if names else None,
                                     index if classes and index >= 0 else None, f"item-{i}", f"item-{i}", np.eye(4),
                                     np.array([[0, 0, 0], [4, 4, 1]])))
    return path


def known(classes: tuple[str, ...] = ("ED", "ES"), attributes: tuple[str, ...] | None = None) -> Facts:
    """What is known of data with these names."""
    return Facts("v.h5", "", class_names=classes, attribute_names=attributes)


def write_latents_of(path: Path, **tables: np.ndarray) -> Path:
    """Latents of three volumes with tables of conditions."""
    mean = np.zeros((3, 1, 2, 2), np.float32)
    names = [f"item-{i}" for i in range(3)]
    split = EncodedSplit(mean, mean + 1, names, names, np.tile(np.eye(4), (3, 1, 1)), tables)
    write_latents(path, {"train": split}, FirstStageRecord({}, {}, ""), known(), {"kind": "test"})
    return path


def batch_of(dataset) -> Condition:
    """The condition of the batch of all items."""
    return collate([dataset[i] for i in range(len(dataset))]).condition


@pytest.mark.parametrize("kind", ["volumes", "latents"])
def test_classes_and_attributes_pass_from_files_to_batches(tmp_path, kind):
    if kind == "volumes":
        dataset = VolumesDataset(write_volumes(tmp_path / "v.h5"))
    else:
        dataset = LatentsDataset(write_latents_of(tmp_path / "l.h5", classes=np.array(CLASSES), attributes=ATTRIBUTES))
    for _ in range(2):  # read, and out of the cache
        condition = batch_of(dataset)
        assert list(condition) == ["class_labels", "attributes"]
        assert condition.class_labels.tolist() == ONE_HOT and condition.class_labels.dtype == torch.float32
        np.testing.assert_array_equal(condition.attributes.numpy(), ATTRIBUTES)
        assert condition.attributes.dtype == torch.float32


def test_files_without_conditions_give_none(tmp_path):
    assert batch_of(VolumesDataset(write_volumes(tmp_path / "v.h5", (), ()))) == Condition()


def test_a_split_without_the_classes_of_its_data_has_them_missing(tmp_path):
    assert batch_of(LatentsDataset(write_latents_of(tmp_path / "l.h5"))).class_labels.tolist() == [[0, 0]] * 3


def test_a_part_that_no_name_says_the_width_of_is_as_wide_as_it_is_stored():
    stored = StoredConditions({"attributes": ATTRIBUTES}.get, known(()))
    assert list(stored(2)) == ["attributes"] and stored(2).attributes.tolist() == [-1, 2]


@pytest.mark.parametrize(("shape", "width"), [((3, 5), 5), ((3, 2, 4, 6), 2), ((3,), 1)])
def test_a_part_without_names_is_as_wide_as_its_first_axis(monkeypatch, shape, width):
    """Of a further kind, as CONTRIBUTING.md says to add one: numbers, images on a grid, a single number."""
    kind = type("Doses", (Images,), {"stored": "doses", "names": None})()
    monkeypatch.setitem(PARTS, "images", kind)
    stored = StoredConditions({"doses": np.ones(shape, np.float32)}.get, known(()))
    assert stored.columns["images"][1] == width and stored(1).images.shape == (shape[1:] or (1,))


class Grade(PartKind):
    """A part that lies in a column of its own."""

    one, many, width_key, dropout_key, stored = "grade", "grades", "grade_dim", "grade_dropout", "grade"


@pytest.mark.parametrize("column", [np.float32([3, 1, 2]), np.float32([[3], [1], [2]])])
def test_a_column_that_others_have_added_reaches_batches_of_volumes_and_latents(tmp_path, monkeypatch, column):
    monkeypatch.setitem(PARTS, "grade", Grade())
    path = write_volumes(tmp_path / "v.h5", (), ())
    with h5py.File(path, "r+") as file:
        h5.write_array(file["train"], "grade", column)
        h5.seal(file)
    tables = VolumesFile(path).tables("train")
    assert tables.keys() == {"affines", "boxes", "grade"}
    for dataset in (VolumesDataset(path), LatentsDataset(write_latents_of(tmp_path / "l.h5", grade=tables["grade"]))):
        assert batch_of(dataset).grade.tolist() == [[3], [1], [2]]


def test_a_column_with_too_few_rows_is_refused(tmp_path):
    path = write_latents_of(tmp_path / "l.h5", grade=np.zeros(2))
    with pytest.raises(ValueError, match=r"/train/grade is float64 \(2,\), wanted float64 \(3,\)"):
        LatentsDataset(path)


# ---- seeds ----


TAKES = {"class_labels": Part(3), "attributes": Part(2), "semantic": Part(4), "images": Part(1)}


def test_a_part_of_which_nothing_is_asked_is_drawn_as_its_kind_says():
    conditions = Conditions(TAKES, {}, (5, 6))
    condition = conditions([2, 3])
    assert condition.class_labels.argmax(1).tolist() == [2, 0]
    assert condition.attributes.shape == (2, 2) and condition.attributes.isnan().all()
    assert condition.semantic.shape == (2, 5, 6) and (condition.semantic == 4).all()
    assert condition.images.shape == (2, 1, 5, 6) and not condition.images.any()
    assert list(conditions.stored(condition)) == ["classes", "attributes"]  # and no maps or images, as none was asked


# ---- data and network ----


@pytest.mark.parametrize(("takes", "message"), [
    ({"class_labels": Part(3)}, r"model\.label_dim=3: wanted 2, as v\.h5 has 2 classes \(ED, ES\), or 0 to leave"),
    ({"attributes": Part(3)}, r"model\.attribute_dim=3: wanted 1, as v\.h5 has 1 attributes \(age\), or 0 to leave"),
])
def test_networks_and_data_of_other_widths_do_not_go_together(takes, message):
    net = torch.nn.Identity()
    net.takes = takes
    with pytest.raises(ValueError, match=message):
        check_conditions(net, known(attributes=("age",)))
    with pytest.raises(ValueError, match="wanted 0, as v.h5 has no (classes|attributes)"):
        check_conditions(net, known((), ()))


def test_networks_that_take_as_much_as_the_data_have_or_nothing_pass():
    net = torch.nn.Identity()
    check_conditions(net, known())
    net.takes = {"class_labels": Part(2), "attributes": Part(7)}  # the data say nothing of these
    check_conditions(net, known())


@pytest.mark.parametrize(("takes", "maps", "wanted"), [
    ({}, (), "2 classes (ED, ES) and 1 attribute (age) and semantic maps and 3 condition channels"),
    ({"class_labels": Part(2), "images": Part(3)}, (), "1 attribute (age) and semantic maps"),
    ({"class_labels": Part(2), "attributes": Part(1), "semantic": Part(5), "images": Part(3)}, ("air", "wall"), None),
    ({"class_labels": Part(2), "attributes": Part(1), "semantic": Part(5), "images": Part(3)}, (), None),
])
def test_what_a_network_is_not_told_is_said(takes, maps, wanted):
    net = torch.nn.Identity()
    net.takes = takes
    condition = Condition(class_labels=np.zeros(2), attributes=np.zeros(1), semantic=np.zeros((4, 4)),
                          images=np.zeros((3, 4, 4)))
    said = left_aside(net, condition, known(attributes=("age",)), maps)
    assert said == (f"Note: v.h5 holds {wanted} that this network is not told" if wanted else "")


def test_label_maps_beside_maps_are_said_to_be_left_aside():
    facts = replace(known(), map_classes=("out", "in"))
    net, condition = torch.nn.Identity(), Condition(semantic=np.zeros((4, 4)))
    net.takes = {"semantic": Part(2)}
    assert left_aside(net, condition, facts, ("air", "wall")) == \
        "Note: v.h5 holds label maps of 2 classes (air, wall) that this network is not told"
    net.takes = {}
    assert left_aside(net, condition, replace(facts, map_classes=None, label_classes=("air", "wall"))) == \
        "Note: v.h5 holds semantic maps of 2 classes (air, wall) that this network is not told"
