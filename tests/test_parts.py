"""Parts of a job: which are there and whole, who makes the rest, and what stands in for what was damaged."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from edm3d.inference.parts import Parts, ahead, check_alike, check_shapes, make_missing, missing_of
from edm3d.utils import distributed

ARRAYS = {"x": np.arange(12, dtype=np.float32).reshape(3, 4), "label": np.ones(3, np.uint8)}


@pytest.fixture
def parts(tmp_path) -> Parts:
    """Where parts of something are to lie."""
    return Parts(tmp_path / "parts", {"all": "that they depend on"}, lambda number, arrays: None)


def double(numbers: list[int], found: list[int]) -> list[dict[str, np.ndarray]]:
    """What is made of numbers: their doubles."""
    assert found == [2 * n for n in numbers]
    return [{"x": np.array(value)} for value in found]


def make(parts: Parts, missing: list[int], batch_size: int = 2) -> None:
    """Make what is missing."""
    make_missing(parts, missing, batch_size, double, read=lambda numbers: [2 * n for n in numbers], desc="", unit="")


def test_what_is_written_is_there_whole_and_alone(parts):
    assert not parts.is_whole(7)
    parts.write(7, ARRAYS)
    assert parts.is_whole(7) and not parts.is_whole(8)
    assert parts.read(7).keys() == ARRAYS.keys() and parts.read(7, "label").keys() == {"label"}
    np.testing.assert_array_equal(parts.read(7)["x"], ARRAYS["x"])
    assert not Parts(parts.folder.parent, {"all": "something else"}, parts.check).is_whole(7)


def test_a_part_that_is_cut_off_or_changed_is_not_whole(parts):
    parts.write(7, ARRAYS)
    path = parts.path(7)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert not parts.is_whole(7), length
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x11
        path.write_bytes(damaged)
        if parts.is_whole(7):  # a byte that nothing depends on, such as a date
            for name, array in parts.read(7).items():
                np.testing.assert_array_equal(array, ARRAYS[name])


def test_a_part_of_values_that_are_not_finite_is_not_whole_but_for_those_that_may_lack(parts):
    for number, (name, value) in enumerate([("x", np.nan), ("x", np.inf), ("dice", np.nan), ("psnr", np.inf)]):
        parts.write(number, {name: np.array([1, value])})
    assert [parts.is_whole(number) for number in range(4)] == [False, False, True, True]


def test_a_part_that_the_job_refuses_is_not_whole(tmp_path):
    parts = Parts(tmp_path, "these", lambda number, arrays: check_shapes(arrays, {"x": (number, None), "y": ()}))
    whole = {"x": np.ones((2, 3)), "y": np.array(1)}
    for arrays in (whole, {"x": whole["x"]}, whole | {"x": np.ones(2)}, whole | {"y": np.array("a")}):
        parts.write(2, arrays)
        assert parts.is_whole(2) == (arrays is whole)
        parts.write(3, arrays)
        assert not parts.is_whole(3)


def test_parts_that_are_merged_have_the_same_arrays(parts):
    parts.write(1, ARRAYS)
    parts.write(2, dict(reversed(ARRAYS.items())))
    assert parts.names([1, 2]) == ["x", "label"]
    parts.write(3, {"x": ARRAYS["x"]})
    with pytest.raises(ValueError, match=r"0000000003\.npz: holds x, and .*0000000001\.npz x, label; delete both"):
        parts.names([1, 2, 3])


def test_what_is_missing_is_made_in_batches_and_what_is_whole_is_left(parts):
    make(parts, [1, 4])
    before = {n: parts.path(n).stat().st_mtime_ns for n in (1, 4)}
    parts.path(4).write_bytes(parts.path(4).read_bytes()[:-30])
    assert missing_of(parts, range(6)) == [0, 2, 3, 4, 5]
    make(parts, missing_of(parts, range(6)))
    assert missing_of(parts, range(6)) == [] and parts.path(1).stat().st_mtime_ns == before[1]
    assert [int(parts.read(n)["x"]) for n in range(6)] == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_what_is_missing(parts, monkeypatch, ranks):
    made = []
    monkeypatch.setattr(parts, "write", lambda number, arrays: made.append(number))
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    for rank in range(ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        make(parts, [3, 4, 6, 9, 11])
        assert len(made) in (5 * (rank + 1) // ranks, 5 * (rank + 1) // ranks + 1)
    assert sorted(made) == [3, 4, 6, 9, 11]


def test_a_failure_keeps_what_was_made_before(parts):
    def failing(numbers: list[int], found: list[int]) -> list[dict[str, np.ndarray]]:
        if 4 in numbers:
            raise OSError("pulled the plug")
        return double(numbers, found)

    with pytest.raises(OSError, match="pulled"):
        make_missing(parts, range(6), 2, failing, read=lambda numbers: [2 * n for n in numbers], desc="", unit="")
    assert missing_of(parts, range(6)) == [4, 5]


def test_a_failure_to_write_is_raised(parts, monkeypatch):
    def full(number: int, arrays: dict) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(parts, "write", full)
    with pytest.raises(OSError, match="disk full"):
        make(parts, [0])


def test_one_batch_is_read_ahead():
    read, seen = [], []
    second = threading.Event()

    def reading(batch: list[int]) -> int:
        read.append(batch)
        if len(read) == 2:
            second.set()
        return len(read)

    for batch, _ in ahead([[0], [1], [2]], reading):
        if batch == [0]:
            assert second.wait(10)  # while the first is worked on
        seen.append(batch)
    assert seen == read == [[0], [1], [2]]


def test_all_parts_go_and_those_of_other_settings_stay(parts):
    other = Parts(parts.folder.parent, "other settings", parts.check)
    parts.write(1, ARRAYS)
    other.write(1, ARRAYS)
    (parts.folder / f".tmp-{os.getpid()}-0000000002.npz").touch()
    parts.remove()
    assert not parts.folder.exists() and other.is_whole(1)
    other.remove()
    other.remove()
    assert not Path(other.folder.parent).exists()


def test_what_is_of_other_settings_is_named():
    check_alike("x was drawn with", {"a": 1, "b": 2}, {"a": 1}, "do something")
    with pytest.raises(ValueError, match=r"^x was drawn with another b \(b: none, asked for is \[2\]\); do something$"):
        check_alike("x was drawn with", {"a": 1}, {"a": 1, "b": [2]}, "do something")
    had, wanted = ({"a": {"long": "x" * 200, "in": {"steps": n, **more}}} for n, more in ((18, {}), (5, {"eta": 1})))
    with pytest.raises(ValueError, match=r"with another a \(a\.in\.eta: none, asked for is 1, a\.in\.steps: 18, asked "
                                         r"for is 5\); do something$"):
        check_alike("x was drawn with", had, wanted, "do something")
