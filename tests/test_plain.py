"""Plain data out of files: JSON that is read whole, and objects built of it by their hints."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from edm3d.utils.plain import from_plain, parse_json, read_json


class Point(NamedTuple):
    x: float
    y: float = 0.0


@dataclass
class Thing:
    name: str
    number: int
    place: Point
    size: tuple[int, ...] = ()
    affine: tuple[tuple[float, ...], ...] = ()
    pair: tuple[int, str] = (0, "")
    more: Point | None = None
    either: int | list[float] | None = None
    by_name: dict[str, int] = field(default_factory=dict)
    any: Any = None
    flag: bool = False

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError(f"number={self.number} is below 0")


GOOD = {"name": "a", "number": 3, "place": {"x": 1}, "size": [4, 5], "affine": [[1.0, 0], [0, 1]], "pair": [1, "b"],
        "more": {"x": 2.0, "y": 3.0}, "either": [1.5], "by_name": {"k": 1}, "any": [{}], "flag": True}


def test_builds_what_is_nested_and_makes_tuples_of_lists():
    made = from_plain(Thing, json.loads(json.dumps(GOOD)), "file")
    assert made == Thing("a", 3, Point(1), (4, 5), ((1.0, 0), (0, 1)), (1, "b"), Point(2.0, 3.0), [1.5], {"k": 1}, [{}],
                         True)
    assert isinstance(made.size, tuple) and isinstance(made.either, list)
    assert from_plain(Thing, {"name": "a", "number": 0, "place": {"x": 1}, "either": None}, "file").either is None


@pytest.mark.parametrize(("change", "said"), [
    ({"name": 1}, "f.json: name is 1, wanted str"),
    ({"number": 1.5}, "f.json: number is 1.5, wanted int"),
    ({"number": True}, "f.json: number is True, wanted int"),
    ({"number": 10**400}, "f.json: number is 1000"),
    ({"number": -1}, "f.json: number=-1 is below 0"),
    ({"place": []}, "f.json: place is a list, wanted names with values"),
    ({"place": {}}, "f.json: place: x missing"),
    ({"place": {"x": float("nan")}}, "f.json: place.x is nan, wanted float"),
    ({"place": {"x": float("inf")}}, "f.json: place.x is inf, wanted float"),
    ({"place": {"x": 1, "z": 1}}, "f.json: 'place.z' is unknown, wanted x, y"),
    ({"size": 3}, "f.json: size is 3, wanted a list of int"),
    ({"size": [1, "2"]}, r"f.json: size\[1\] is '2', wanted int"),
    ({"affine": [1]}, r"f.json: affine\[0\] is 1, wanted a list of float"),
    ({"pair": [1, "b", 2]}, "f.json: pair is a list, wanted a list of int or str"),
    ({"more": {"x": "1"}}, "f.json: more.x is '1', wanted float"),
    ({"either": "x"}, "f.json: either is 'x', wanted int or a list of float or null"),
    ({"by_name": {"k": "v"}}, "f.json: by_name.k is 'v', wanted int"),
    ({"by_name": {1: 1}}, "f.json: a name in by_name is 1, wanted str"),
    ({"flag": 1}, "f.json: flag is 1, wanted bool"),
    ({"other": 1}, "f.json: 'other' is unknown, wanted name, number"),
])
def test_names_file_and_key_of_what_is_wrong(change, said):
    with pytest.raises(ValueError, match=said):
        from_plain(Thing, GOOD | change, "f.json")


def test_what_lacks_is_named():
    with pytest.raises(ValueError, match=r"^f\.json: name, number, place missing$"):
        from_plain(Thing, {}, "f.json")
    with pytest.raises(ValueError, match=r"f\.json: its content is a list"):
        from_plain(Thing, [], "f.json")


def test_arrays_are_no_plain_numbers():
    with pytest.raises(ValueError, match="number is a ndarray, wanted int"):
        from_plain(Thing, GOOD | {"number": np.ones(3)}, "f.json")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a":' * 100_000, "nul", "9" * 5000])
def test_json_that_is_none_names_its_source(text):
    with pytest.raises(ValueError, match=r"^f\.json: not readable as JSON"):
        parse_json(text, "f.json")


def test_a_json_file_that_cannot_be_read_is_named(tmp_path: Path):
    path = tmp_path / "a.json"
    for content in (b"\xff\xfe{", b"{", None):
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=str(path)):
            read_json(path)
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # a hole
    with pytest.raises(ValueError, match="more than any JSON file"):
        read_json(path)
