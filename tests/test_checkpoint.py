"""Snapshots and states: whole or absent, checked on load, plain data only."""

import os
import pickle
import resource
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from edm3d.utils import checkpoint
from edm3d.utils.files import atomic_path, plain_hash, remove_temporary, write_error

PAYLOAD = {
    "task": "diffusion", "nimg": 12, "beta": 0.5, "none": None, "flag": True, "list": [1, "a", 2.5],
    "ema": {"w": torch.arange(12, dtype=torch.float32).reshape(3, 4), "b": torch.tensor(7, dtype=torch.int64)},
    "optimizer": {"state": {0: {"step": torch.tensor(3.0), "half": torch.ones(5, dtype=torch.bfloat16)},
                            1: {"mask": torch.tensor([True, False]), "none": torch.zeros(0)}}},
}  # fmt: skip


def same(a: object, b: object) -> bool:
    """Whether two trees hold equal leaves of equal types at equal places."""
    left, right = list(checkpoint.walk(a)), list(checkpoint.walk(b))
    return [p for p, _ in left] == [p for p, _ in right] and all(
        torch.equal(x, y) and x.dtype == y.dtype if isinstance(x, torch.Tensor) else x == y and type(x) is type(y)
        for (_, x), (_, y) in zip(left, right, strict=True))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A snapshot of PAYLOAD."""
    path = tmp_path / "network-snapshot-000012.pt"
    checkpoint.save(path, "snapshot", PAYLOAD)
    return path


def test_what_is_saved_comes_back(saved):
    data = checkpoint.load(saved, "snapshot").content
    assert data.pop("format") == "snapshot" and data.pop("version") == checkpoint.VERSION
    assert same(data, PAYLOAD)
    assert os.listdir(saved.parent) == [saved.name]


def test_any_flipped_byte_is_noticed_or_harmless(saved):
    whole, wanted = saved.read_bytes(), checkpoint.load(saved, "snapshot").content
    noticed = 0
    for position in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[position] ^= 0x11
        saved.write_bytes(damaged)
        try:
            data = checkpoint.load(saved, "snapshot").content
        except ValueError as error:
            assert saved.name in str(error)
            noticed += 1
        else:
            assert same(data, wanted), f"byte {position} changed what was read"
    assert noticed > 100


def test_every_flipped_byte_of_a_tensor_is_noticed(saved):
    whole = saved.read_bytes()
    numbers = PAYLOAD["ema"]["w"].numpy().tobytes()
    start = whole.index(numbers)
    for position in range(start, start + len(numbers)):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        saved.write_bytes(damaged)
        with pytest.raises(ValueError, match="checksum"):
            checkpoint.load(saved, "snapshot")


def test_truncated_files_are_refused_by_name(saved):
    whole = saved.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        saved.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=saved.name):
            checkpoint.load(saved, "snapshot")


def test_what_is_read_of_damage_speaks_of_the_file_and_not_of_its_inside(saved):
    whole = saved.read_bytes()
    place = whole.index(PAYLOAD["ema"]["w"].numpy().tobytes())
    for damaged in (b"", whole[:place], whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1:]):
        saved.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged") as error:
            checkpoint.load(saved, "snapshot")
        assert not any(word in str(error.value) for word in (".tmp", "zip", "data/", "one before"))


def test_missing_file_and_wrong_kind_are_refused(saved, tmp_path):
    with pytest.raises(ValueError, match="no such state file"):
        checkpoint.load(tmp_path / "none.pt", "state")
    with pytest.raises(ValueError, match="wanted a state, this is 'snapshot'"):
        checkpoint.load(saved, "state")


@pytest.mark.parametrize("content", [{"a": 1}, [1, 2], {"format": "snapshot"}, {"format": "snapshot", "version": 1}])
def test_torch_files_that_are_not_ours_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt"):
        checkpoint.load(tmp_path / "other.pt", "snapshot")


@pytest.mark.parametrize("version", [checkpoint.VERSION + 1, "2", None, torch.ones(2)])
def test_newer_and_odd_format_versions_are_refused(tmp_path, version):
    torch.save({"format": "state", "version": version}, tmp_path / "new.pt")
    with pytest.raises(ValueError, match=r"new\.pt: format version") as error:
        checkpoint.load(tmp_path / "new.pt", "state")
    assert len(str(error.value)) < len(str(tmp_path)) + 200


def test_file_of_an_older_program_is_said_to_be_one(tmp_path):
    torch.save({"format": "state", "version": 1, "checksum": "00"}, tmp_path / "old.pt")
    with pytest.raises(ValueError, match="of an older program \\(format version 1\\)"):
        checkpoint.load(tmp_path / "old.pt", "state")


def nested(depth: int) -> list:
    """A list in a list in a list ..."""
    tree: list = []
    for _ in range(depth):
        tree = [tree]
    return tree


@pytest.mark.parametrize("content", [nested(300), torch.eye(2).to_sparse(), {"a", "b"}])
def test_contents_that_no_file_of_ours_has_are_refused(tmp_path, content):
    torch.save({"format": "state", "version": 1, "checksum": "00", "x": content}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=r"odd\.pt"):
        checkpoint.load(tmp_path / "odd.pt", "state")


class Hostile:
    """Unpickling this makes a folder, to show that code has run."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["torch", "legacy", "pickle"])
def test_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, how):
    proof, path = tmp_path / "code-has-run", tmp_path / "hostile.pt"
    payload = {"format": "snapshot", "version": 1, "ema": {"w": torch.ones(2)}, "x": Hostile(proof)}
    if how == "pickle":
        payload["ema"] = {}
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(ValueError, match=r"hostile\.pt"):
        checkpoint.load(path, "snapshot")
    assert not proof.exists()
    pickle.loads(pickle.dumps(Hostile(proof)))  # the proof would have been there
    assert proof.is_dir()


def test_full_disk_leaves_the_old_file_whole_and_nothing_else(saved, monkeypatch):
    old = saved.read_bytes()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2 ** 40, 2 ** 40 - 1000, 1000))
    with pytest.raises(ValueError, match="not enough free disk") as error:
        checkpoint.save(saved, "snapshot", {"ema": {"w": torch.zeros(10)}})
    assert str(saved.parent) in str(error.value)
    assert saved.read_bytes() == old and os.listdir(saved.parent) == [saved.name]


def test_write_that_breaks_off_leaves_the_old_file_whole_and_nothing_else(saved, monkeypatch):
    old = saved.read_bytes()

    def break_off(data: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", break_off)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(saved, "snapshot", PAYLOAD)
    assert saved.read_bytes() == old and os.listdir(saved.parent) == [saved.name]


@pytest.mark.parametrize("kib", [1, 64])
def test_disk_that_fills_up_while_writing_is_said(saved, kib):
    old, limits = saved.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kib * 1024, limits[1]))  # as a full disk: writes stop half-way
    try:
        with pytest.raises(OSError, match=r"is the disk full\? about 1\.\d\d MiB are needed") as error:
            checkpoint.save(saved, "snapshot", {"ema": {"w": torch.zeros(50_000)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(saved) in str(error.value) and "\n" not in str(error.value)
    assert saved.read_bytes() == old and os.listdir(saved.parent) == [saved.name]


def test_temporary_files_of_killed_writers_are_deleted_and_nothing_else(saved):
    ours = [saved.with_name(f".tmp-{pid}-{saved.name}") for pid in (1, 4194304)]
    theirs = [saved.with_name(name) for name in (".tmp-x-a.pt", "tmp-1-a.pt", ".tmp-1-", ".hidden", "a.tmp-1-a.pt")]
    for path in (*ours, *theirs):
        path.write_bytes(b"half")
    (saved.parent / ".tmp-5-folder").mkdir()
    assert remove_temporary(saved.parent) == ours
    assert sorted(os.listdir(saved.parent)) == sorted([saved.name, ".tmp-5-folder", *(p.name for p in theirs)])
    assert remove_temporary(saved.parent) == []


def test_temporary_name_is_one_that_is_cleaned(tmp_path):
    with atomic_path(tmp_path / "a.pt") as temporary:
        temporary.touch()
        assert remove_temporary(tmp_path) == [temporary]
        temporary.touch()


def test_a_link_is_written_through_and_none_in_wait_is_followed(tmp_path, monkeypatch):
    (tmp_path / "far").mkdir()
    link, target = tmp_path / "a.txt", tmp_path / "far/b.txt"
    link.symlink_to("far/b.txt")
    for content in ("one", "two"):
        with atomic_path(link) as temporary:
            temporary.write_text(content)
        assert link.is_symlink() and target.read_text() == content and os.listdir(tmp_path / "far") == ["b.txt"]
    victim = tmp_path / "victim"
    victim.write_text("whole")
    monkeypatch.setattr("secrets.token_hex", lambda n: "0" * 2 * n)
    (tmp_path / f".tmp-{os.getpid()}-{'0' * 16}-c.txt").symlink_to(victim)
    with pytest.raises(FileExistsError), atomic_path(tmp_path / "c.txt") as temporary:
        temporary.write_text("harm")
    assert victim.read_text() == "whole"


def test_names_as_long_as_a_file_system_takes_are_written(tmp_path):
    for name in ("x" * 248 + ".nii.gz", "é" * 120 + ".nii.gz"):
        with atomic_path(tmp_path / name) as temporary:
            assert temporary.name.endswith(".nii.gz")
            temporary.write_text("a")
        assert (tmp_path / name).read_text() == "a"


def test_errors_of_writing_name_the_file_and_not_its_temporary_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/a.txt") as error, atomic_path(tmp_path / "a.txt") as path:
        path.unlink()
        path.read_text()
    assert ".tmp-" not in str(error.value)
    said = RuntimeError(f"File {tmp_path}/.tmp-{os.getpid()}-{'0f' * 8}-b.pt cannot be opened.")
    assert str(write_error(tmp_path / "b.pt", 0, said)).endswith(f"(File {tmp_path}/b.pt cannot be opened.)")


def test_checksum_sees_values_shapes_types_and_places():
    w = torch.arange(4, dtype=torch.float32)
    trees = [{"a": w}, {"b": w}, {"a": w.reshape(2, 2)}, {"a": w.double()}, {"a": w + 1}, {"a": w.view(torch.int32)},
             {"a": {"a": w}}, {"a": [w]}, {"a": (w,)}, {"a": 1}, {"a": 1.0}, {"a": "1"}, {"a": True}, {"a": None}, {},
             {"a": w, "b": None}, {1: w}, {"1": w}]
    assert len({checkpoint.checksum(tree) for tree in trees}) == len(trees)
    assert checkpoint.checksum({"x": 1, "a": w}) == checkpoint.checksum({"a": w.clone(), "x": 1})


def test_checksum_does_not_depend_on_strides():
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    for view in (base.T, base[:, ::2], base[:1, ::2][:, :1].squeeze(0), base[1, 1]):
        assert checkpoint.checksum(view) == checkpoint.checksum(view.clone(memory_format=torch.contiguous_format))


def test_plain_hash_does_not_depend_on_the_order_of_keys():
    assert plain_hash({"a": 1, "b": [2]}) == plain_hash({"b": [2], "a": 1})
    assert plain_hash({"a": 1}) != plain_hash({"a": 2})


def test_tensor_bytes_counts_what_tensors_hold():
    assert checkpoint.tensor_bytes({"a": torch.zeros(3, 2), "b": [torch.zeros(5, dtype=torch.int8), "x"]}) == 29
