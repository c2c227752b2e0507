"""Asking for what is drawn: literals, sweeps and files reach the network as they were meant, or are refused."""

from contextlib import chdir
from dataclasses import replace
from math import nan
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import edm3d
import generate
from edm3d.formats.asked import AskedColumn, AskedFile, open_asked
from edm3d.formats.facts import AttributeStatistics, Facts
from edm3d.formats.intensity import Intensity
from edm3d.formats.nifti import spacing_of, write_nifti
from edm3d.formats.png import write_png
from edm3d.formats.sample_meta import SampleMeta
from edm3d.formats.samples import SamplesFile, write_samples
from edm3d.formats.volumes import Item, VolumesMeta, VolumesWriter, full_box
from edm3d.inference.asking import Asker, in_memory
from edm3d.inference.batch import Sample
from edm3d.inference.drawing import Drawer, draw
from edm3d.inference.generation import check_part
from edm3d.inference.snapshot import Snapshot
from edm3d.networks.conditioning import Condition, Part
from edm3d.samplers import edm_sampler
from edm3d.training.tasks.previews import known_of
from edm3d.utils.compose import compose
from edm3d.utils.overrides import open_keys
from edm3d.utils.schema import Sampling
from tests.commands import refused, succeed

SIZE = (4, 6)
NAMES, UNITS = ("lv_volume", "body mass", "spacing_0"), ("ml", "kg/m²", "mm")
STATISTICS = AttributeStatistics([100, 25, 2], [20, 5, 1], [40, 15, 1], [200, 40, 3], [0, 2, 0])
AFFINE = ((0.0, 3.0, 0.0, 5.0), (2.0, 0.0, 0.0, 7.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))  # axes change
FACTS = Facts("v.h5", "", ("us",), ("air", "wall"), ("ED", "ES"), Intensity(0.0, 200.0, True, "a.u."), SIZE, AFFINE,
              ("low",), ("out", "in", "rim"), NAMES, UNITS, STATISTICS)
TAKES = {"class_labels": Part(2, 0.1), "attributes": Part(3, 0.1), "semantic": Part(3, 0.1), "images": Part(1, 0.1)}


def ask(takes: dict | None = None, seeds: range | None = range(8), *, facts: Facts = FACTS, given=None, **options):
    """What is asked of a network that takes these parts, all of them by default."""
    return Asker(TAKES if takes is None else takes, facts, SIZE)(Sampling(outdir="", **options), seeds, given)


def attributes_of(*numbers: int, **asked) -> list:
    """Attributes of samples of a network that takes nothing else."""
    takes = {"attributes": asked.pop("part", Part(3, 0.1, 0.2))}
    return ask(takes, **asked)(numbers).attributes.tolist()


def write_table(path: Path, header: str, *rows: str) -> str:
    """A CSV of some lines."""
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return str(path)


def a_map(first: int = 0) -> np.ndarray:
    """A map of all classes, the first value of which can be chosen."""
    found = np.arange(24, dtype=np.uint8).reshape(SIZE) % 3
    found[0, 0] = first
    return found


# ---- overrides ----


def test_names_of_attributes_are_typed_as_they_stand():
    found = compose("brainweb2d_edm", [
        "sampling.attributes.lv_volume=120", 'sampling.attributes."body mass"=25', "sampling.attributes.größe=1e2",
        "sampling.attributes.'a.b=\"c\" [d]'=null", "sampling.attributes={a: 1, b c: 2}", "+sampling.attributes.d='3'",
        "sampling.attributes.m=25 kg/m²", "sampling.attributes.v=120 ml", "sampling.sweep.lv_volume=[40,200,6]",
        'sampling.attributes."say \\"x\\""=1'])["sampling"]
    assert found["attributes"] == {"lv_volume": 120, "body mass": 25, "größe": 100, 'a.b="c" [d]': None, "a": 1,
                                   "b c": 2, "d": "3", "m": "25 kg/m²", "v": "120 ml", 'say "x"': 1}
    assert found["sweep"] == {"lv_volume": [40, 200, 6]}


@pytest.mark.parametrize(("override", "wanted"), [
    ("sampling.attributes.a", "wanted sampling.attributes.NAME=value"), ("sampling.attributes.a =1", "without blanks"),
    ("sampling.attributes.=1", "wanted sampling.attributes.NAME=value"), ("sampling.attributes.a=1,2", "several value"),
    ("sampling.attributes.\"a=1", "stand in quotes"), ("sampling.attributes.a=${x}", "cannot be read"),
    ("sampling.attributes.a=[1", "cannot be read"), ("sampling.attribute.a=1", "did you mean 'attributes'"),
    ("sampling.attributes=3", "Cannot assign"),
])
def test_names_that_cannot_be_read_are_refused_in_a_line(override, wanted):
    with pytest.raises(ValueError) as error:
        compose("brainweb2d_edm", [override])
    assert wanted in str(error.value) and "\n" not in str(error.value)


def test_all_dicts_of_sampling_but_the_sampler_take_names_of_the_users():
    assert "sampling.sampler" not in open_keys() and {"sampling.attributes", "sampling.sweep"} <= set(open_keys())


def test_yaml_files_and_the_command_line_may_ask_together(tmp_path):
    (tmp_path / "mine.yaml").write_text("defaults: [brainweb2d_edm, _self_]\nsampling:\n  attributes:\n"
                                        "    body mass: 25\n    a.b: 1\n    half: {strength: 1}\n")
    found = compose("mine", ['sampling.attributes."body mass"=30', "sampling.attributes.half.more=[1,2]"], tmp_path)
    assert found["sampling"]["attributes"] == {"body mass": 30, "a.b": 1, "half": {"strength": 1, "more": [1, 2]}}
    with pytest.raises(ValueError, match=r"attributes\.a\.b=1: a has a value of its own"):
        compose("mine", ["sampling.attributes.a=1", "sampling.attributes.a.b=1"], tmp_path)


# ---- classes ----


def test_seeds_go_through_the_classes_in_turn_or_through_those_asked_for():
    takes = {"class_labels": Part(2)}
    assert ask(takes)([4, 5, 6]).class_labels.argmax(1).tolist() == [0, 1, 0]
    some = ask(takes, classes=["ES", "0", "ES"])
    told = some([0, 1, 2, 7])
    assert told.class_labels.argmax(1).tolist() == [1, 0, 1, 0]
    assert some.stored(told)["classes"].tolist() == [1, 0, 1, 0] and some.stored(told)["classes"].dtype == np.int64


def test_a_network_that_takes_nothing_is_told_nothing():
    nothing = ask({})
    assert nothing([0, 1]) == Condition() and nothing.stored(Condition()) == nothing.shapes() == {}
    assert nothing.record == {} and nothing.numbers([3, 5]) == [3, 5]


@pytest.mark.parametrize(("takes", "classes", "message"), [
    ({}, ["ED"], r"sampling\.classes=\['ED'\]: the network was trained without classes.*label_dim=2"),
    (None, ["ED", "z"], r"sampling\.classes: 'z' is not one of ED, ES"),
    (None, ["2"], r"there is no class 2, but 2, 0 to 1 \(ED, ES\)"),
    (None, ["-1"], "there is no class -1"),
])
def test_classes_that_the_network_does_not_know_are_refused(takes, classes, message):
    with pytest.raises(ValueError, match=message):
        ask(takes, classes=classes)


# ---- attributes ----


def test_attributes_are_asked_by_name_and_the_others_are_missing():
    np.testing.assert_array_equal(attributes_of(0, 5, attributes={"body mass": "25 kg/m²", "lv_volume": 120}),
                                  [[120, 25, nan]] * 2)
    np.testing.assert_array_equal(attributes_of(0, attributes={"lv_volume [mL]": "60", "spacing_0": None}),
                                  [[60, nan, nan]])
    record = ask(attributes={"lv_volume": 120, "spacing_0": nan}, takes={"attributes": Part(3, 0.1, 0.2)}).record
    assert record == {"attributes": {"lv_volume": 120.0, "spacing_0": None}}


@pytest.mark.parametrize(("attributes", "message"), [
    ({"lv_volum": 1}, r"sampling\.attributes\.lv_volum: no such attribute; did you mean 'lv_volume'"),
    ({"lv_volume": "120 cl"}, r"lv_volume='120 cl': is in cl, lv_volume of the data in ml"),
    ({"lv_volume [l]": 1}, "is in l, lv_volume of the data in ml"), ({"lv_volume": "big"}, "'big' is no number"),
    ({"lv_volume": True}, "True is no number"), ({"lv_volume": [1, 2]}, "a list is no number"),
    ({"lv_volume": float("inf")}, "inf is no number"), ({"lv_volume": 1e39}, "is no number"),
    ({"lv_volume": -1e30}, r"=-1e\+30: -1e\+30 is far from all that the network was trained on, 40 to 200 ml"),
    ({"lv_volume": {"strength": 1}}, "a dict is no number"), ({"lv_volume": "1_000"}, "no number|is in _000"),
    ({"lv_volume": 1, "lv_volume [ml]": 1}, "asked for twice"), ({"spacing_0": -1}, "voxels of -1 to -1 mm"),
])
def test_attributes_that_cannot_be_are_refused(attributes, message):
    with pytest.raises(ValueError, match=message) as error:
        ask({"attributes": Part(3, 0.1, 0.2)}, attributes=attributes)
    assert str(error.value).startswith("sampling.attributes.")


@pytest.mark.parametrize(("part", "attributes", "message"), [
    (Part(3, 0.1, 0), {"lv_volume": 1}, r"spacing_0: no value.*attribute_gaps=0\.1"),  # body mass lacks in training
    (Part(3, 0.1, 0), {"lv_volume": 1, "spacing_0": 2}, None), (Part(3, 0.1, 0), {}, None),
    (Part(3, 0, 0.1), {"lv_volume": 1}, None), (Part(3, 0, 0.1), {}, None),
    (Part(3, 0, 0), {}, r"no attribute has a value.*lv_volume, body mass, spacing_0.*attribute_dropout=0\.1"),
    (Part(3, 0, 0), {"lv_volume": None}, r"no attribute has a value.*attribute_dropout=0\.1"),
    (Part(3, 0.1, 0), {"lv_volume": 1, "spacing_0": nan}, r"spacing_0: no value"),
])
def test_missing_attributes_are_legal_where_training_had_such(part, attributes, message):
    if message is None:
        ask({"attributes": part}, attributes=attributes)
        return
    with pytest.raises(ValueError, match=message):
        ask({"attributes": part}, attributes=attributes)


def test_values_outside_the_training_are_drawn_with_a_warning_of_both_ranges():
    found = ask({"attributes": Part(3, 0.1, 0.2)}, attributes={"lv_volume": 40, "body mass": 50})
    assert found.notes == ["Warning   body mass: asked for are 50 to 50 kg/m², the network was trained on 15 to 40 "
                           "kg/m²"]
    assert found([0]).attributes[0, 1] == 50


@pytest.mark.parametrize(("change", "message"), [
    ({"lo": [300, 15, 1]}, r"lo is \[300, 15, 1\], hi \[200, 40, 3\].*none of lo above hi"),
    ({"missing": [0, -1, 0]}, "missing 0 or more"), ({"std": [20, 0, 1]}, "std is"),
    ({"hi": [1, 2]}, "of 2 attributes"), ({"items": 1}, r"missing is \[0, 2, 0\], of 1 items"),
])
def test_figures_of_the_training_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=f"attribute_statistics.*{message}"):
        replace(FACTS, attribute_statistics=STATISTICS._replace(**change))


def test_two_attributes_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"attribute_names: 'a' is there 2 times, wanted names that differ"):
        VolumesMeta(2, ("us",), ("target",), (), ("a", "a"), ("", ""), (), FACTS.intensity)


def test_an_attribute_that_no_training_item_has_can_only_be_missing(tmp_path):
    known = AttributeStatistics.of(np.float32([[100, nan, 0], [nan, nan, 2]]))
    assert known.never() == [1] and known.items == 2
    facts = Facts.from_plain(replace(FACTS, attribute_statistics=known).plain(), "x")
    of = {"takes": {"attributes": Part(3, 0.1, 0.2)}, "facts": facts}
    message = "no training item has body mass"
    for options in ({"attributes": {"body mass": 0}}, {"sweep": {"body mass": [0, 1, 2]}}):
        with pytest.raises(ValueError, match=message) as error:
            ask(**of, **options)
        assert str(error.value).startswith(f"sampling.{next(iter(options))}.body mass")
    table = write_table(tmp_path / "a.csv", "id,lv_volume,body mass", "p,100,30")
    with pytest.raises(ValueError, match=f"a.csv: body mass of p: {message}"):
        ask(**of, conditions=table)
    told = ask(**of, conditions=table, attributes={"body mass": None})([0]).attributes
    np.testing.assert_array_equal(told, [[100, nan, nan]])
    before = replace(FACTS, attribute_statistics=known._replace(items=None))
    assert "items" not in before.plain()["attribute_statistics"]
    assert ask(of["takes"], facts=before, attributes={"body mass": 1})([0]).attributes[0, 1] == 1  # it does not say


def test_attributes_of_a_network_without_are_refused():
    for options in ({"attributes": {"lv_volume": 1}}, {"sweep": {"lv_volume": [1, 2, 3]}}):
        with pytest.raises(ValueError, match=r"lv_volume: the network was trained without attributes.*attribute_dim"):
            ask({}, **options)


SIZED = replace(FACTS, attribute_names=("spacing_0", "extent_0", "extent_y"), attribute_units=("mm", "cm", "mm"),
                attribute_statistics=AttributeStatistics([2, 1, 18], [1, 1, 9], [1, 0.1, 1], [9, 9, 99], [0] * 3))


def sized(*numbers: int, **asked) -> np.ndarray:
    """Sides of the voxels of samples [N,2] of a grid of 4 and 6 voxels that were asked for by SIZED."""
    found = ask({"attributes": Part(3, 0.1, 0.2)}, facts=SIZED, **asked)
    return np.array([spacing_of(affine)[:2] for affine in found.stored(found(numbers))["affines"]])


def test_an_extent_that_is_asked_for_makes_voxels_of_its_share(tmp_path):
    np.testing.assert_allclose(sized(0, attributes={"extent_0": 0.8}), [[2, 3]])  # 8 mm of 4 voxels
    np.testing.assert_allclose(sized(0, attributes={"extent_y": 30}), [[2, 5]])  # of 6
    np.testing.assert_allclose(sized(0, attributes={"spacing_0": 2.5, "extent_0": 1}), [[2.5, 3]])
    np.testing.assert_allclose(sized(0, attributes={"spacing_0": 2.5, "extent_0": 0.5}), [[2.5, 3]])  # padded
    np.testing.assert_allclose(sized(0, 1, sweep={"extent_0": [0.4, 0.8, 2]}), [[1, 3], [2, 3]])
    table = write_table(tmp_path / "a.csv", "id,spacing_0,extent_0", "p,,0.4", "q,3,0.4", "r,,")
    np.testing.assert_allclose(sized(0, 1, 2, conditions=table), [[1, 3], [3, 3], [2, 3]])
    asked = ask({"attributes": Part(3, 0.1, 0.2)}, facts=SIZED, conditions=table)
    assert [line for line in asked.notes if line.startswith("Note")] == [
        "Note      extent_0 without a voxel size: voxels are taken to be of 1 to 1 mm, which fill it without padding"]


def test_an_extent_longer_than_the_voxels_asked_for_is_refused_with_both():
    with pytest.raises(ValueError, match=r"extent_0: 1\.2 cm, and 4 voxels by spacing_0 of 2\.5 mm are 10 mm"):
        sized(0, attributes={"spacing_0": 2.5, "extent_0": 1.2})
    with pytest.raises(ValueError, match=r"extent_0: 1\.2 cm, and 4 voxels by spacing_0 of 2\.5 mm are 10 mm"):
        sized(0, attributes={"spacing_0": 2.5}, sweep={"extent_0": [0.4, 1.2, 2]})
    real = AskedFile("v.h5", ["p"], attributes=[AskedColumn("spacing_0", [2.5]), AskedColumn("extent_0", [1.2])])
    np.testing.assert_allclose(sized(0, given=real), [[2.5, 3]])  # a volume that was cropped since
    with pytest.raises(ValueError, match=r"extent_0: 1\.2 cm, and 4 voxels by spacing_0 of 2 mm are 8 mm"):
        sized(0, given=real, attributes={"spacing_0": 2})


# ---- parts of which nothing is asked ----


@pytest.mark.parametrize(("name", "message"), [
    ("attributes", r"sampling\.attributes: .*attribute_dropout=0\.1"),
    ("semantic", r"no semantic maps? .*or train with training\.network\.model\.semantic_dropout=0\.1|no map classes"),
    ("images", r"or train with training\.network\.model\.image_dropout=0\.1"),
])
def test_a_null_that_was_never_trained_is_not_drawn_from(name, message):
    with pytest.raises(ValueError, match=message):
        ask({name: TAKES[name]._replace(dropout=0)})
    assert name in ask({name: TAKES[name]})([0])


# ---- sweeps ----


def test_a_sweep_gives_every_seed_all_values():
    found = ask({"attributes": Part(3, 0.1, 0.2), "class_labels": Part(2)}, [1, 4],
                sweep={"lv_volume": ["40 ml", 200, 5]}, attributes={"body mass": 20}, classes=["ED", "ES"])
    numbers = found.numbers([1, 4])
    assert numbers == [5, 6, 7, 8, 9, 20, 21, 22, 23, 24] and found.seeds(numbers) == [1] * 5 + [4] * 5
    told = found(numbers)
    assert told.attributes[:, 0].tolist() == [40, 80, 120, 160, 200] * 2
    assert told.attributes[:, 1].tolist() == [20] * 10 and told.class_labels.argmax(1).tolist() == [1] * 5 + [0] * 5
    assert found.record["sweep"] == {"name": "lv_volume", "unit": "ml", "values": [40, 80, 120, 160, 200], "column": 0}


@pytest.mark.parametrize(("sweep", "options", "message"), [
    ({"lv_volume": [1, 2]}, {}, r"=\[1, 2\]: wanted \[lowest, highest, how many\]"),
    ({"lv_volume": 3}, {}, r"=3: wanted \[lowest"), ({"lv_volume": [1, 2, 1]}, {}, "whole number of 2 or more"),
    ({"lv_volume": [1, 2, 2.5]}, {}, "whole number of 2"), ({"lv_volume": [1, 1, 3]}, {}, "two numbers that differ"),
    ({"lv_volume": [1, "x", 3]}, {}, "'x' is no number"), ({"lv_volume": [1, None, 3]}, {}, "two numbers that differ"),
    ({"lv_volume": [1, 2, 10 ** 9]}, {}, "1000 values"), ({"lv": [1, 2, 3]}, {}, "did you mean|there are lv_volume"),
    ({"lv_volume": [1, 2, 3], "body mass": [1, 2, 3]}, {}, "one attribute at a time"),
    ({"lv_volume": [1, 2, 3]}, {"attributes": {"lv_volume": 2}}, "asked for by sampling.attributes, too"),
    ({"lv_volume": [1, 2, 3]}, {"seeds": [2 ** 62]}, "smaller seeds"),
    ({"lv_volume": [40, 40.0000001, 5]}, {}, "the same in float32"),
    ({"lv_volume": [-1e38, 1e38, 5]}, {}, "far from all that"),
    ({"lv_volume": ["1 l", 2, 3]}, {}, "is in l, lv_volume of the data in ml"),
])
def test_sweeps_that_cannot_be_are_refused(sweep, options, message):
    with pytest.raises(ValueError, match=message) as error:
        ask({"attributes": Part(3, 0.1, 0.2)}, sweep=sweep, **options)
    assert str(error.value).startswith("sampling.sweep")


# ---- tables ----


def test_rows_of_a_table_are_asked_seed_by_seed(tmp_path):
    (tmp_path / "maps").mkdir()
    write_nifti(tmp_path / "maps/one.nii.gz", a_map(), np.asarray(AFFINE), spatial_dims=2)
    write_png(tmp_path / "two.png", a_map(2))
    np.save(tmp_path / "low.npy", np.full((1, *SIZE), 50.0))
    path = write_table(tmp_path / "c.csv", "id,class,lv_volume [mL],body mass,map,image", "a,ES,60,,one,low.npy",
                       "b,0,80 ml,30 kg/m²,two.png,low.npy")
    found = ask({**TAKES, "attributes": Part(3, 0.1, 0.2)}, conditions=path)
    told = found([0, 1, 3])
    assert told.class_labels.argmax(1).tolist() == [1, 0, 0]
    np.testing.assert_array_equal(told.attributes, [[60, nan, nan], [80, 30, nan], [80, 30, nan]])
    np.testing.assert_array_equal(told.semantic, [a_map(), a_map(2), a_map(2)])
    assert (told.images == -0.5).all()
    stored = found.stored(told)
    assert {name: (array.shape[1:], array.dtype) for name, array in stored.items()} == {
        "classes": ((), np.int64), "attributes": ((3,), np.float32), "maps": (SIZE, np.uint8),
        "cond_images": ((1, *SIZE), np.float32)}
    assert {name: array.shape[1:] for name, array in stored.items()} == found.shapes()
    record = found.record["conditions"]
    assert (record["source"], record["ids"]) == (path, ["a", "b"]) and "2 rows (a, b)" in found.notes[0]
    write_png(tmp_path / "two.png", a_map(1))
    again = ask({**TAKES, "attributes": Part(3, 0.1, 0.2)}, conditions=path).record["conditions"]
    assert again["hash"] != record["hash"] and again["ids"] == record["ids"]


def test_what_is_typed_stands_for_all_rows_of_a_file(tmp_path):
    path = write_table(tmp_path / "c.csv", "id,class,lv_volume,body mass,spacing_0", "a,ED,60,20,1", "b,ES,80,30,2")
    found = ask(takes := {"attributes": Part(3), "class_labels": Part(2)}, conditions=path, classes=["ES"],
                attributes={"body mass": 15})
    assert found([0, 1]).attributes.tolist() == [[60, 15, 1], [80, 15, 2]]
    assert found([0, 1]).class_labels.argmax(1).tolist() == [1, 1] and "stands for all rows" in found.notes[1]
    swept = ask(takes, conditions=path, sweep={"lv_volume": [50, 70, 3]})
    assert swept(swept.numbers([1, 2])).attributes.tolist() == [[v, *row] for row in ([30, 2], [20, 1])
                                                                for v in (50, 60, 70)]


@pytest.mark.parametrize(("header", "row", "takes", "message"), [
    ("id,lv_volum", "a,1", None, r"column 'lv_volum': no such attribute; did you mean 'lv_volume'"),
    ("id,lv_volume [l]", "a,1", None, "is in l, lv_volume of the data in ml"),
    ("id,lv_volume", "a,x", None, "lv_volume of a: 'x' is no number"),
    ("id,lv_volume,lv_volume [ml]", "a,1,1", None, "are one attribute"),
    ("id,class", "a,ex", None, "class of a: 'ex' is not one of ED, ES"),
    ("id,class", "a,2", None, "class of a: there is no class 2"),
    ("id,class", f"a,{'9' * 5000}", None, "class of a: there is no class 999999999999999999, but 2, 0 to 1"),
    ("id,lv_volume", "a,1e30", None, r"lv_volume of a: 1e\+30 is far from all that the network was trained on"),
    ("id,map", f"a,{'m' * 300}", None, r"map of a: 'mmm.*\.\.\. can be no file"),
    ("id,Class", "a,2", None, "column 'Class': wanted one of id, class, map, image"),
    ("id,class", "a,ED", {"attributes": Part(3, 0.1)}, "column class: the network was trained without classes.*_dim"),
    ("id,lv_volume", "a,1", {"class_labels": Part(2)}, "'lv_volume': the network was trained without attributes.*_dim"),
    ("id,map", "a,m.png", {"class_labels": Part(2)}, "its maps: the network was trained without .*semantic_dim"),
    ("id,image", "a,m.png", {"class_labels": Part(2)}, "its images: the network was trained without .*image_dim"),
    ("id,map", "a,gone.png", None, "map of a: there is no file"), ("name,map", "a,m.png", None, "'id'"),
    ("id,lv_volume,body mass", "a,1,2", {"attributes": Part(3, 0.1)}, "spacing_0: no value.*attribute_gaps"),
    ("id", "a", None, "holds nothing that the network is told"),
    ("id,map", "a,table.csv", None, "cannot be read|not readable"),
])
def test_tables_that_ask_for_what_cannot_be_are_refused(tmp_path, header, row, takes, message):
    write_png(tmp_path / "m.png", a_map())
    path = write_table(tmp_path / "table.csv", header, row)
    with pytest.raises(ValueError, match=message) as error:
        ask({**TAKES, "attributes": Part(3, 0.1, 0.2)} if takes is None else takes, conditions=path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_gaps_of_a_table_are_refused_where_training_had_none(tmp_path):
    write_png(tmp_path / "m.png", a_map())
    path = write_table(tmp_path / "c.csv", "id,map", "a,m.png", "b,")
    with pytest.raises(ValueError, match=r"map of b: no file; wanted one for every id, or for none"):
        ask(conditions=path)
    path = write_table(tmp_path / "c.csv", "id,class", "a,ED", "b,")
    assert ask(conditions=path).asked["class_labels"] == [0, -1]
    with pytest.raises(ValueError, match=r"class of b: none, .*training\.network\.label_dropout=0\.1"):
        ask({"class_labels": Part(2)}, conditions=path)


def test_a_column_of_classes_without_any_asks_for_none(tmp_path):
    """In all rows as in one, and not for all classes in turn."""
    path = write_table(tmp_path / "c.csv", "id,class,lv_volume", "a,,60", "b,,60")
    takes = {name: part._replace(gaps=0.1) for name, part in TAKES.items()}
    assert ask(takes, conditions=path).asked["class_labels"] == [-1, -1]
    assert "class_labels" not in ask({"attributes": takes["attributes"]}, conditions=path).asked
    with pytest.raises(ValueError, match="class of a: none"):
        ask({**takes, "class_labels": Part(2)}, conditions=path)


def test_more_rows_than_seeds_are_refused_and_fewer_are_cycled(tmp_path):
    path = write_table(tmp_path / "c.csv", "id,class", *(f"{i},{'ES' if i == 2 else 'ED'}" for i in range(5)))
    with pytest.raises(ValueError, match=r"has 5 rows, and there are 3 seeds; sampling\.seeds=10-14 takes them all"):
        ask(conditions=path, seeds=[10, 11, 12])
    assert ask(conditions=path, seeds=range(5))([2, 7, 8]).class_labels.argmax(1).tolist() == [1, 1, 0]


# ---- maps and images ----


def test_a_folder_of_maps_is_sorted_by_name(tmp_path):
    np.save(tmp_path / "b.npy", a_map(1))
    np.savez(tmp_path / "c.npz", label=a_map(2))
    write_png(tmp_path / "a.png", a_map(0))
    (tmp_path / "notes.txt").write_text("")
    found = ask(conditions=str(tmp_path))
    assert found.record["conditions"]["ids"] == ["a", "b", "c"]
    assert found([0, 1, 2, 3]).semantic[:, 0, 0].tolist() == [0, 1, 2, 0]
    alone = ask(conditions=str(tmp_path / "b.npy"))
    assert alone.record["conditions"]["ids"] == ["b"] and alone([5]).semantic[0, 0, 0] == 1


@pytest.mark.parametrize(("array", "message"), [
    (a_map(3), r"the map has the value 3, and there are 3 classes, 0 to 2 \(out, in, rim\)"),
    (a_map().astype(np.int16) - 1, "the map has the value -1"), (a_map() + 0.5, "no whole numbers"),
    (np.full(SIZE, nan), "no whole numbers"), (a_map()[:2], r"the map is on a grid of 2x6, the volumes on 4x6"),
    (a_map().T, "on a grid of 6x4"), (np.zeros((2, *SIZE), np.uint8), "of one channel"),
    (np.zeros((1, 2, 4, 6), np.uint8), "wanted 2 axes"),
])
def test_maps_that_are_none_of_the_networks_are_refused(tmp_path, array, message):
    np.save(tmp_path / "m.npy", array)
    with pytest.raises(ValueError, match=message) as error:
        ask(conditions=str(tmp_path))
    assert str(error.value).startswith(str(tmp_path / "m.npy"))


def test_maps_whose_axes_point_elsewhere_are_refused(tmp_path):
    write_nifti(tmp_path / "m.nii.gz", a_map(), np.diag([-2, 3, 1, 1.0]), spatial_dims=2)
    with pytest.raises(ValueError, match=r"axes point to LA, those of the volumes that the network draws to AR"):
        ask(conditions=str(tmp_path))
    write_nifti(tmp_path / "m.nii.gz", a_map(), np.eye(4), spatial_dims=2)  # which says nothing
    ask(conditions=str(tmp_path))


@pytest.mark.parametrize(("make", "message"), [
    (lambda path: None, "no such file; wanted a table"), (lambda path: path.mkdir(), "holds no maps"),
    (lambda path: path.write_text("x"), "cannot be asked by; wanted a table"),
])
def test_files_of_no_kind_are_refused(tmp_path, make, message):
    make(tmp_path / "asked.txt")
    with pytest.raises(ValueError, match=message):
        ask(conditions=str(tmp_path / "asked.txt"))


def test_two_maps_of_one_name_and_splits_of_what_has_none_are_refused(tmp_path):
    np.save(tmp_path / "m.npy", a_map())
    with pytest.raises(ValueError, match="conditions_split=val: .* has no splits"):
        ask(conditions=str(tmp_path), conditions_split="val")
    with pytest.raises(ValueError, match="there is no sampling.conditions"):
        ask(conditions_split="val")
    write_png(tmp_path / "m.png", a_map())
    with pytest.raises(ValueError, match="files of the same name: m.npy, m.png"):
        ask(conditions=str(tmp_path))


@pytest.mark.parametrize(("image", "message"), [
    (np.zeros((2, *SIZE)), "has 2 channels on a grid of 4x6, wanted 1 on 4x6 \\(low\\)"),
    (np.zeros((1, 4, 5)), "1 channels on a grid of 4x5"), (np.full((1, *SIZE), nan), "not finite"),
    (np.full((1, *SIZE), 300.0), "values 300 to 300, the network was trained on 0 to 200 a.u."),
])
def test_images_that_are_none_of_the_networks_are_refused(image, message):
    with pytest.raises(ValueError, match=message) as error:
        ask(given=in_memory(images=[image]))
    assert str(error.value).startswith("images[0]: ")


def test_a_map_that_changes_while_it_is_drawn_from_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", a_map(0))
    found = ask(conditions=str(tmp_path))
    assert found([0]).semantic[0, 0, 0] == 0
    np.save(tmp_path / "a.npy", a_map(1))
    with pytest.raises(ValueError, match=r"a\.npy: was changed while samples were drawn by it"):
        found([0])


def test_rows_are_read_by_one_rank_and_held_against_what_it_read_by_the_others(tmp_path):
    for number in range(20):
        np.save(tmp_path / f"{number:02d}.npy", a_map(number % 3))
    told, asker, sent = Sampling(outdir="", conditions=str(tmp_path)), Asker(TAKES, FACTS, SIZE), []
    first = asker(told, range(20), once=lambda read: sent.append(read()) or sent[-1])
    assert [len(each["semantic"]) for each in sent[:-1]] == [16, 4]
    np.save(tmp_path / "17.npy", a_map(0))  # between the one and the others
    answers = iter(sent)
    other = asker(told, range(20), once=lambda read: next(answers))
    assert other.record == first.record
    assert other([16]).semantic[0, 0, 0] == 1
    with pytest.raises(ValueError, match=r"17\.npy: was changed while samples were drawn by it"):
        other([17])


def test_what_a_file_of_volumes_lacks_is_said(tmp_path):
    """As channels of another name than the network was trained on."""
    takes = {name: part._replace(gaps=0.1) for name, part in TAKES.items()}
    notes = [ask(takes, conditions=str(write_volumes(tmp_path / f"{name}.h5", channels=("us", name)))).notes
             for name in ("low", "high")]
    assert not any("has no" in line for line in notes[0])
    assert f"Note      {tmp_path}/high.h5: has no condition channels of the network's; none are asked for" in notes[1]


def test_a_path_too_long_for_any_file_is_refused():
    with pytest.raises(ValueError, match=r"sampling\.conditions='a/a/.*\.\.\.: wanted a table"):
        ask(conditions="a/" * 3000 + "b.csv")


# ---- files of ours ----


def write_volumes(path: Path, **changes) -> Path:
    """Two held-out volumes and one of training, with all that can be asked for."""
    meta = replace(VolumesMeta(2, ("us", "low"), ("target", "condition"), ("air", "wall"), ("spacing_0", "lv_volume"),
                               ("mm", "ml"), ("ES", "ED"), FACTS.intensity, ("out", "in", "rim")), **changes)
    with VolumesWriter(path, meta, {"kind": "test"}) as writer:
        for i, split in enumerate(("train", "val", "val")):
            writer.add(split, Item(np.stack([np.zeros(SIZE), np.full(SIZE, 50.0 * i)]).astype(np.float32), a_map() % 2,
                                   np.array([2, 60 + i], np.float32), i % 2, f"item-{i}", f"item-{i}", np.eye(4),
                                   full_box(SIZE), a_map(i)))
    return path


GAPPY = {**TAKES, "attributes": Part(3, 0.1, 0.2)}


def test_volumes_are_asked_by_what_is_held_out(tmp_path):
    path = str(write_volumes(tmp_path / "v.h5"))
    found = ask(GAPPY, conditions=path)
    told = found([0, 1])
    assert found.record["conditions"]["ids"] == ["item-1", "item-2"]
    assert told.class_labels.argmax(1).tolist() == [0, 1]  # by name, in the order of the network's
    np.testing.assert_array_equal(told.attributes, [[61, nan, 2], [62, nan, 2]])
    assert told.semantic[:, 0, 0].tolist() == [1, 2] and told.images[:, 0, 0, 0].tolist() == [-0.5, 0]
    assert ask(GAPPY, conditions=path, conditions_split="train").record["conditions"]["ids"] == ["item-0"]
    assert list(ask({"class_labels": Part(2)}, conditions=path)([0])) == ["class_labels"]  # the rest is left aside
    labels = ask({"semantic": Part(2)}, facts=replace(FACTS, map_classes=None), conditions=path)
    np.testing.assert_array_equal(labels([0]).semantic[0], a_map() % 2)  # a network that was trained on label maps


@pytest.mark.parametrize(("changes", "facts", "message"), [
    ({"map_classes": ("out", "rim", "in")}, {}, "classes of its maps are out, rim, in, the network was trained on out"),
    ({"attribute_units": ("mm", "l")}, {}, "'lv_volume': is in l, lv_volume of the data in ml"),
    ({"class_names": ("ES", "XX")}, {}, "'XX' is not one of ED, ES"),
    ({}, {"intensity": Intensity(0.0, 1.0, True, "a.u.")}, "intensities are .*trained with"),
    ({}, {"conditions_split": "vall"}, r"conditions_split=vall: .* has train, val"),
])
def test_volumes_of_other_data_are_refused(tmp_path, changes, facts, message):
    options = {"conditions_split": facts.pop("conditions_split")} if "conditions_split" in facts else {}
    path = str(write_volumes(tmp_path / "v.h5", **changes))
    with pytest.raises(ValueError, match=message):
        ask(GAPPY, facts=replace(FACTS, **facts), conditions=path, **options)


def test_samples_are_asked_by_what_they_were_asked_for(tmp_path):
    meta = SampleMeta(FACTS, "net.pt", "", {})
    arrays = {"images": np.zeros((2, 1, *SIZE), np.float32), "labels": np.stack([a_map() % 2] * 2),
              "classes": np.array([1, 0]), "attributes": np.float32([[60, 20, 1], [70, 30, 2]]),
              "maps": np.stack([a_map(1), a_map(2)]), "cond_images": np.full((2, 1, *SIZE), 150, np.float32)}
    write_samples(tmp_path / "s.npz", [3, 5], arrays, np.eye(4), meta)
    found = ask({name: part._replace(dropout=0) for name, part in TAKES.items()}, conditions=str(tmp_path / "s.npz"))
    told = found([0, 1])
    assert found.record["conditions"]["ids"] == ["seed000003", "seed000005"]
    assert told.attributes.tolist() == arrays["attributes"].tolist() and (told.images == 0.5).all()
    assert told.class_labels.argmax(1).tolist() == [1, 0] and told.semantic[:, 0, 0].tolist() == [1, 2]
    write_samples(tmp_path / "drawn.h5", [0], {name: arrays[name][:1] for name in ("images", "labels")}, np.eye(4),
                  SampleMeta(replace(FACTS, map_classes=None), "net.pt", "", {}))
    drawn = open_asked(str(tmp_path / "drawn.h5"), replace(FACTS, map_classes=None), 2)
    np.testing.assert_array_equal(drawn.maps[0], a_map() % 2)
    with pytest.raises(ValueError, match="classes of its maps are air, wall, the network was trained on out, in, rim"):
        ask(conditions=str(tmp_path / "drawn.h5"))


# ---- prompts ----


def test_prompts_are_rows_with_missing_values(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("- {id: a, class: ES, lv_volume: 60, body mass: null}\n"
                    "- {lv_volume: 70 ml, body mass: 30 kg/m2}\n- class: 0\n  spacing_0: 2\n")
    found = ask({"class_labels": Part(2, 0.1), "attributes": Part(3, 0.1, 0.2)}, range(3), conditions=str(path),
                facts=replace(FACTS, attribute_units=("ml", "kg/m2", "mm")))
    told = found([0, 1, 2])
    np.testing.assert_array_equal(told.attributes, [[60, nan, nan], [70, 30, nan], [nan, nan, 2]])
    assert told.class_labels.tolist() == [[0, 1], [0, 0], [1, 0]]
    assert found.record["conditions"]["ids"] == ["a", "prompt1", "prompt2"]


@pytest.mark.parametrize(("text", "message"), [
    ("a: 1", "p.yaml: is no list of prompts; wanted a mapping for each, as in '- {id: a, lv_volume: 120}'"),
    ("[]", "is no list of prompts"), ("[1, 2]", "is no list of prompts"), ("- {}", "is no list of prompts"),
    ("- {a: 1", "p.yaml: not readable as YAML"), ("- {id: a}\n- {id: a}", "ids empty or doubled: a"),
    ("- {id: '', lv_volume: 1}", "ids empty or doubled: (empty)"),
    ("- {Class: ED}", "column 'Class': wanted one of id, class, map, image"),
    ("- {lv_volum: 60}", "did you mean 'lv_volume'"), ("- {lv_volume: 60 l}", "is in l"),
    ("- {lv_volume: true}", "lv_volume of prompt0: True is no number"), ("- {lv_volume: [1]}", "is no number"),
    ("- {class: XX}", "'XX' is not one of")])
def test_what_is_no_prompt_is_refused(tmp_path, text, message):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ValueError) as error:
        ask({"class_labels": Part(2, 0.1), "attributes": Part(3, 0.1, 0.2)}, conditions=str(tmp_path / "p.yaml"))
    assert message in str(error.value)


# ---- drawing ----


class Told(torch.nn.Module):
    """The perfect denoiser of N(m, 1), where m is a hundredth of the first attribute, and 1 in class 1 of the map."""

    sigma_min, sigma_max, self_condition, noise_table = 0.0, float("inf"), False, None

    def __init__(self, dropout: float = 0.1, gaps: float = 0.2):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.takes = {"class_labels": Part(2), "attributes": Part(3, dropout, gaps), "semantic": Part(3, dropout),
                      "images": Part(1, dropout)}

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma)

    def forward(self, x, sigma, condition=None, augment_labels=None):
        level = torch.as_tensor(sigma, device=x.device).reshape(-1, *[1] * (x.ndim - 1))
        volume = torch.nan_to_num(condition.attributes[:, :1, None, None] / 100)
        mean = volume + (condition.semantic[:, None] == 1) + condition.images
        return (mean + (x - mean) / (1 + level ** 2)).to(x.dtype) * self.weight


DRAW = ["-cn=brainweb2d_edm", "sampling.network=net.pt", "sampling.num_threads=1", "sampling.device=cpu",
        "sampling.trust=true", "sampling.sampler.num_steps=4", "sampling.outdir=out"]


@pytest.fixture
def at(tmp_path):
    """Work in a folder with a snapshot of it."""
    threads = torch.get_num_threads()
    with chdir(tmp_path):
        Snapshot("diffusion", {"_target_": "tests.test_asking.Told"}, replace(FACTS, map_classes=("out", "in", "rim")),
                 (1, *SIZE), weights={"weight": torch.ones(1)}).save(Path("net.pt"))
        yield tmp_path
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("change", "message"), [
    ({"attribute_names": ("a",), "attribute_units": ("",)}, "names 1 attributes, and the network takes 3"),
    ({"attribute_names": (), "attribute_units": ()}, "names 0 attributes"),
    ({"map_classes": ("a", "b")}, "names 2 map classes"), ({"condition_channels": ("a", "b")}, "names 2 condition"),
    ({"map_classes": None, "label_classes": ()}, None),
])
def test_a_network_that_takes_more_or_less_than_its_data_name_is_refused(at, change, message):
    """Before samples are drawn that no file can hold."""
    Snapshot("diffusion", {"_target_": "tests.test_asking.Told"}, replace(FACTS, attribute_statistics=None, **change),
             (1, *SIZE), weights={"weight": torch.ones(1)}).save(Path("net.pt"))
    if message is None:
        Snapshot.read(Path("net.pt")).build(trust=True)
        return
    line = refused(at, generate.main, *DRAW)
    assert message in line and "net.pt: data names" in line


def test_samples_hold_what_they_were_asked_for_and_others_are_not_mixed_in(at):
    write_volumes(Path("v.h5"))
    asked = ["sampling.conditions=v.h5", "sampling.attributes.spacing_0=1.5", "sampling.nifti=true"]
    said = succeed(generate.main, *DRAW, *asked, "sampling.seeds=0-1")
    assert "Asked     v.h5: 2 rows (item-1, item-2), of " in said and "stands for all rows" in said
    succeed(generate.main, *DRAW, *asked, "sampling.seeds=0-3")
    samples = SamplesFile("out/samples.npz")
    assert samples.meta.id_of(3) == "item-2" and samples.array("maps")[:, 0, 0].tolist() == [1, 2, 1, 2]
    np.testing.assert_array_equal(samples.array("attributes"), [[61, nan, 1.5], [62, nan, 1.5]] * 2)
    assert samples.array("cond_images")[:, 0, 0, 0].tolist() == [50, 100] * 2
    assert samples.array("classes").tolist() == [0, 1] * 2
    image = nibabel.load("out/nifti/item-1_seed000002_image.nii.gz")
    wanted = np.array(AFFINE)
    wanted[:3, 0] *= 1.5 / 2
    np.testing.assert_allclose(image.affine, wanted)
    np.testing.assert_allclose(samples.affine_of(2), wanted)
    assert spacing_of(samples.affine).tolist() == [2, 3, 1]
    for other in (["sampling.conditions=v.h5"], [*asked, "sampling.attributes.lv_volume=60"]):
        said = refused(at, generate.main, *DRAW, *other, "sampling.seeds=0-3")
        assert "was drawn with another sampling" in said and "attributes" in said


def test_a_file_is_known_by_its_content_wherever_it_lies(at, monkeypatch):
    write_volumes(Path("v.h5"))
    Path("sub").mkdir()
    Path("sub/w.h5").write_bytes(Path("v.h5").read_bytes())
    succeed(generate.main, *DRAW, "sampling.conditions=v.h5", "sampling.nifti=true", "sampling.seeds=0-1")
    before = Path("out/nifti/item-1_seed000000_image.nii.gz").stat().st_mtime_ns
    for name in ("./v.h5", f"{at}/sub/../sub/w.h5"):
        said = succeed(generate.main, *DRAW, f"sampling.conditions={name}", "sampling.nifti=true", "sampling.seeds=0-2")
        assert ("2 there already" if name == "./v.h5" else "3 there already") in said and "gone" not in said
    assert SamplesFile("out/samples.npz").meta.sampling["conditions"]["source"] == "./v.h5"
    assert Path("out/nifti/item-1_seed000000_image.nii.gz").stat().st_mtime_ns == before
    Path("out/samples.npz").unlink()  # the records beside it know the file, too
    assert "0 there already" in succeed(generate.main, *DRAW, "sampling.conditions=sub/w.h5", "sampling.seeds=0-2")
    metas = [SampleMeta(FACTS, "n.pt", "1", {"conditions": {"source": source, "hash": hash_, "ids": ["a"]}})
             for source, hash_ in (("a", "1"), ("b", "1"), ("a", "2"))]
    assert metas[0].made_of == metas[1].made_of != metas[2].made_of
    metas = [SampleMeta(FACTS, "n.pt", "1", {"classes": classes}) for classes in (["ES", "0"], ["1", "ED"], ["ED"])]
    assert metas[0].made_of == metas[1].made_of != metas[2].made_of


def test_a_sweep_is_drawn_from_the_same_noise_and_shown(at):
    said = succeed(generate.main, *DRAW, "sampling.seeds=2-3", "sampling.sweep.lv_volume=[40,240,3]")
    assert "Warning   lv_volume: asked for are 40 to 240 ml, the network was trained on 40 to 200 ml" in said
    assert "2 asked for, 3 samples of each (numbers 6 to 11), 0 there already" in said
    assert "Sweep     out/sweep.png: 3 values of lv_volume, 2 seeds" in said and Path("out/sweep.png").is_file()
    samples = SamplesFile("out/samples.npz")
    assert samples.seeds.tolist() == list(range(6, 12)) and samples.meta.noise_of(10) == 3
    model = edm3d.load("net.pt", device="cpu", trust=True)
    alone = model.sample([2, 3], sampler="edm_ode", num_steps=4, attributes={"lv_volume": 140}, batch_size=6,
                         maps=None)
    np.testing.assert_allclose(alone.images, samples.array("images")[[1, 4]], atol=1e-4)
    more = succeed(generate.main, *DRAW, "sampling.seeds=1-3", "sampling.sweep.lv_volume=[40,240,3]")
    assert "(numbers 3 to 11), 6 there already" in more


def test_from_python_the_same_is_asked(at):
    write_volumes(Path("v.h5"))
    model = edm3d.load("net.pt", device="cpu", trust=True)
    by_file = model.sample(range(2), conditions="v.h5", num_steps=2)
    by_arrays = model.sample(range(2), classes=["ED", "ES"], maps=[a_map(1), a_map(2)], num_steps=2,
                             images=np.float32([[[[50]]], [[[100]]]]) * np.ones((1, 1, *SIZE), np.float32),
                             attributes={"lv_volume": 61, "spacing_0": 2})
    assert np.array_equal(by_file.images[0], by_arrays.images[0])
    assert by_arrays.meta.sampling["conditions"]["source"] == "arrays" and by_file.meta.id_of(1) == "item-2"
    assert not np.array_equal(by_arrays.affine_of(0), by_arrays.affine) or by_arrays.affine_of(0)[1, 0] == 2
    swept = model.sample([1], sweep={"lv_volume": (50, 60, 2)}, num_steps=2)
    assert swept.seeds == [2, 3] and swept.arrays["attributes"][:, 0].tolist() == [50, 60]
    for asked, message in ((dict(maps=[a_map(9)]), r"maps\[0\]: the map has the value 9"),
                           (dict(maps=[a_map()] * 3), "arrays: has 3 rows, and there are 2 seeds"),
                           (dict(maps=[a_map()], conditions="v.h5"), "wanted the file or the arrays"),
                           (dict(maps=[]), "0 given"), (dict(maps=[["a"]]), "wanted arrays of numbers"),
                           (dict(conditions=""), "wanted a table"), (dict(attributes={"x": 1}), "no such attribute")):
        with pytest.raises(ValueError, match=message):
            model.sample(range(2), num_steps=2, **asked)


def test_previews_are_told_what_is_known_of_held_out_items():
    condition = Condition(class_labels=np.float32([0, 1]), attributes=np.float32([60, nan, 2]), semantic=a_map(1),
                          images=np.full((1, *SIZE), 0.5, np.float32))
    held = [Sample(np.zeros((1, *SIZE)), None, condition)] * 2
    takes = {name: part._replace(dropout=0, gaps=0) for name, part in TAKES.items()}
    told = Asker(takes, FACTS, SIZE, known_of(held, takes))(Sampling(outdir=""))
    np.testing.assert_array_equal(told([0]).attributes, [condition.attributes])
    np.testing.assert_array_equal(told([1]).semantic, [condition.semantic])
    assert (told([5]).images == 0.5).all() and told([0, 1]).class_labels.argmax(1).tolist() == [1, 1]
    with pytest.raises(ValueError, match="never trained without"):
        Asker(takes, FACTS, SIZE, known_of([], takes))(Sampling(outdir=""))


@pytest.mark.parametrize(("change", "message"), [
    ({"maps": np.zeros((4, 5), np.uint8)}, "maps is"), ({"attributes": None}, "attributes is missing"),
    ({"affines": np.eye(3)}, "affines is"), ({"classes": np.zeros(2, np.int64)}, "classes is"), ({}, None),
])
def test_parts_of_what_is_asked_are_held_against_it(change, message):
    conditions = ask(GAPPY, given=in_memory([a_map()]), attributes={"spacing_0": 2})
    drawer = Drawer(lambda seeds: Told(), conditions, False, None, edm_sampler, (1, *SIZE), FACTS.intensity,
                    torch.device("cpu"), "fp32")
    arrays = {name: array[0] for name, array in draw(drawer, [3]).items()}
    assert sorted(arrays) == ["affines", "attributes", "classes", "images", "maps"]
    arrays = {name: array for name, array in {**arrays, **change}.items() if array is not None}
    if message is None:
        check_part(drawer, 3, arrays)
        return
    with pytest.raises(ValueError, match=message):
        check_part(drawer, 3, arrays)
