"""Tables and splits."""

import random
from collections import Counter

import numpy as np
import pytest

from edm3d.formats.cohort import assign_splits, nearest_split, parse_fractions, read_table


def test_table(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "\ufeffid,group,class,age [y],site,ef\n1,p1,10,50.5,Oslo,\n2,,9,,Bergen,0.5\n\n3,p1,,70,Oslo,nan\n", "utf-8"
    )
    table = read_table(path)
    assert table.attribute_names == ("age", "ef") and table.attribute_units == ("y", "")
    assert table.class_names == ("9", "10") and table.ignored == ("site",)
    assert [table.rows[i].group for i in "123"] == ["p1", "2", "p1"]
    assert table.rows["3"].class_name is None and table.rows["1"].split is None
    np.testing.assert_array_equal(
        [table.rows[i].attributes for i in "123"], [[50.5, np.nan], [np.nan, 0.5], [70, np.nan]]
    )


def test_a_table_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(ValueError, match=r"no\.csv: no such file; wanted a table with a column id, as --table has it$"):
        read_table(tmp_path / "no.csv")


@pytest.mark.parametrize(
    "text, message",
    [
        ("name,age\na,1\n", "one of them 'id'"),
        ("id,age\na,1\na,2\n", "ids empty or doubled: a"),
        ("id,age\na,1\nb,l2\n", "b: age = 'l2'"),
        ("id,age\na,inf\n", "a: age = 'inf'"),
        ("id,age\na,1e300\nb,1\n", "not a finite number within float32: a: age = '1e300'"),
        ("id,age\na,1e-60\n", "a: age = '1e-60'"),
        ("id,age\na,1_000\nb,1\n", "a: age = '1_000'"),
        ("id;age\na;1,5\n", r"a: age = '1,5'. Correct the cells \(1.5 for 1,5\)"),
        ("id,age [y],age [m]\na,1,2\n", r"columns of one name, or of none, .*: age \[y\], age \[m\]"),
        ("id,[mL]\na,1\n", r"or of none, but for their units: \[mL\]"),
        ("id,age\n\u00e9,1\ne\u0301,2\n", "ids empty or doubled: \u00e9$"),
        ("id,age\na,1\n,2\n", r"empty or doubled: \(empty\)"),
        ("ID,age\na,1\n", "got ID, age; did you mean 'id' by 'ID'"),
        ("participant_id\tage\na\t1\n", "did you mean 'id' by 'participant_id'"),
        ("id,Split\na,train\n", "column 'Split': did you mean 'split'"),
        ("id,groups\na,b\n", "column 'groups': did you mean 'group'"),
        ("id,patient\na,p\nb,p\nc,q\n", "column 'patient' has several rows of one, 'p'; rename it to 'group'"),
        ("id,split\na,train\np1,Train\n", "split 'Train' of p1: did you mean 'train'"),
        ("id,split\na,train\np1,a/b\n", "split 'a/b' of p1: no name for a split"),
        ("id,split\na,first_stage\n", "'first_stage' of a: no name"),
        ("id,x\x1b[1m\na,1,2\n", "fewer cells"),
        ("id,age\na,\x1b[1m\nb,1\n", r"a: age = '\\x1b\[1m'"),
        ("id,age\na\0,1\n", "is no text, it has bytes of 0; wanted a CSV file"),
        ('id,age\n"a,1\n', "cannot be read as a table"),
        ("id,age\na," + "1" * 200_000 + "\n", "field larger than field limit"),
        ("", "got $"),
        ("id,age\na,1,2\n", "more or fewer cells than the header: a"),
        ("id\n", "has no rows"),
    ],
)
def test_bad_tables_are_refused(tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=message):
        read_table(path)


@pytest.mark.parametrize(("content", "message"), [
    ("id,age\na,1\n".encode("utf-16"), "is text in UTF-16, Excel's 'Unicode text'; wanted a CSV file in UTF-8"),
    (b"PK\x03\x04rest", r"is a spreadsheet \(\.xlsx"), (b"\xd0\xcf\x11\xe0\xa1", "is an Excel file"),
    ("id\nM\u00fcller\n".encode("latin-1"), "cannot be read as a table .*; save it as CSV UTF-8")])
def test_files_that_are_no_csv_are_named(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "t.csv")
    with pytest.raises(ValueError, match="cannot be read as a table"):
        read_table(tmp_path)


@pytest.mark.parametrize(("separator", "notes"), [(";", 1), ("\t", 1), (",", 0)])
def test_columns_between_semicolons_or_tabs_are_read_and_said(tmp_path, separator, notes):
    path = tmp_path / "t.csv"
    path.write_text("id,age,group\r\n a ,1.5,e\u0301\r\nb,NaN,\r\n".replace(",", separator), "utf-8")
    table = read_table(path)
    assert [table.rows[i].group for i in "ab"] == ["\u00e9", "b"] and table.rows["a"].attributes == [1.5]
    assert table.has_groups and len(table.notes) == notes and all("columns between" in note for note in table.notes)


def test_own_splits_and_groups_that_differ_in_capitals_are_said(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("id,group,split,patient\na,P1,train,x\nb,p1,fold1,x\nc,q,test_2,\n")
    table = read_table(path)
    assert table.rows["b"].split == "fold1" and table.ignored == ("patient",)
    assert "splits of other names, fold1, test_2: training.dataset.split" in table.notes[0]
    assert table.notes[1].endswith("count as patients of their own: P1 and p1") and len(table.notes) == 2


@pytest.mark.parametrize(("text", "message"), [
    ("id,set\na,train\nb,val\nc,\n", "column 'set' holds names of splits .train, val.; rename it to 'split'"),
    ("id,fold\na,Training\nb,Testing\n", "column 'fold' holds names of splits"),
    ("id,pid\na,7\nb,7\n", "column 'pid' has several rows of one")])
def test_columns_meant_for_splits_and_groups_by_other_names_are_refused(tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_table(path)
    path.write_text("id,split,set,fold\na,train,train,1\nb,val,val,2\n")
    assert read_table(path).ignored == ("set",)  # where there is a column split


@pytest.mark.parametrize(("wanted", "names"), [
    ("train", "Train TRAIN training Training trian tr train_set train."), ("val", "valid validation VAL vali va vals"),
    ("test", "Test testing tset tests te"),
    (None, "train val test fold1 test_2 train_fold1 external site_a 0 1 a")])
def test_names_near_to_a_split(wanted, names):
    assert {name: nearest_split(name) for name in names.split()} == dict.fromkeys(names.split(), wanted)


def test_any_table_is_read_or_refused_in_a_line(tmp_path):
    chance, path, read = random.Random(0), tmp_path / "t.csv", 0
    head = ["id", "group", "class", "split", "age [y]", "age", "ID", "", "x\n"]
    cells = ["1", "2.5", "train", "", "nan", "inf", "1e300", "1,5", "\0", "\x1b", '"', "a/b", "Train", "\u2028"]
    for _ in range(200):
        header = ["id", *chance.sample(head, chance.randint(0, 3))]
        rows = [[f"p{n}", *chance.choices(cells[:4] if chance.random() < 0.5 else cells, k=len(header) - 1)]
                for n in range(chance.randint(0, 4))]
        separator = chance.choice(",,;\t")
        content = bytearray("\n".join(map(separator.join, [header, *rows])).encode())
        if chance.random() < 0.2:
            content[chance.randrange(len(content))] = chance.randrange(256)
        path.write_bytes(content)
        try:
            table = read_table(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ") and str(error).isprintable(), bytes(content)
        else:
            read += 1
            assert not any(np.isinf(record.attributes).any() for record in table.rows.values())
    assert 20 < read < 180


def counts(chosen, groups):
    return Counter(chosen[g] for g in groups)


def test_splits_are_exact_for_single_volumes_and_pairs():
    fractions = parse_fractions((0.8, 0.1, 0.1))
    single = [f"p{i}" for i in range(640)]
    assert counts(assign_splits(single, fractions), single) == {"train": 512, "val": 64, "test": 64}
    pairs = [f"p{i // 2}" for i in range(640)]
    assert counts(assign_splits(pairs, fractions), pairs) == {"train": 512, "val": 64, "test": 64}


def test_splits_with_uneven_groups_stay_near_and_none_is_empty():
    groups = ["big"] * 10 + ["a", "b", "c", "d", "e"]
    for seed in range(10):
        got = counts(assign_splits(groups, {"train": 0.6, "val": 0.2, "test": 0.2}, seed), groups)
        assert got["train"] == 10 and sorted((got["val"], got["test"])) == [2, 3]
    few = ["a", "b", "c"]
    assert counts(assign_splits(few, {"train": 0.8, "val": 0.1, "test": 0.1}), few) == {"train": 1, "val": 1, "test": 1}
    with pytest.raises(ValueError, match=r"empty split: 2 group\(s\) cannot fill train, val, test"):
        assign_splits(["a", "a", "b"], {"train": 0.8, "val": 0.1, "test": 0.1})


def test_splits_follow_the_seed_not_the_order():
    fractions, groups = {"train": 0.5, "val": 0.5}, [f"p{i}" for i in range(40)]
    assert assign_splits(groups, fractions, 1) == assign_splits(groups[::-1], fractions, 1)
    assert assign_splits(groups, fractions, 1) != assign_splits(groups, fractions, 2)


@pytest.mark.parametrize("bad", [(0.8, 0.1), (0.8, 0.3, -0.1), (0.0, 1.0), (0.4, 0.2, 0.2, 0.2), ()])
def test_bad_fractions_are_refused(bad):
    with pytest.raises(ValueError, match="--split"):
        parse_fractions(bad)
