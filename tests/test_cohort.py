"""Tables and splits."""

from collections import Counter

import numpy as np
import pytest

from edm3d.formats.cohort import assign_splits, parse_fractions, read_table


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
        ("id,age\na,1,2\n", "more or fewer cells than the header: a"),
        ("id\n", "has no rows"),
    ],
)
def test_bad_tables_are_refused(tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    if "inf" in text:
        path.write_text("id,age\na,inf\nb,2\n")
    with pytest.raises(ValueError, match=message):
        read_table(path)


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
