"""Names in messages: ten and a count, and two lists from where they differ."""

from edm3d.utils.checks import listed, listed_apart


def test_ten_names_and_a_count():
    assert listed(f"n{i}" for i in range(80)) == "n0, n1, n2, n3, n4, n5, n6, n7, n8, n9, ... and 70 more"
    assert listed(range(10)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert listed(["b", "a"], "; ") == "b; a" and listed([]) == ""


def test_two_lists_are_told_from_where_they_differ():
    assert listed_apart(("a", "b"), ("a",)) == ("a, b", "a")
    assert listed_apart(("a",), ()) == ("a", "none")
    many = [f"c{i}" for i in range(30)]
    assert listed_apart(many, [*many[:29], "lung"]) == ("..., c29", "..., lung")
    assert listed_apart(many, many[:29]) == ("..., c29", "..., none")
