"""Records of folders: by content, whatever happens between any two writes, and never outside their folder."""

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest

from edm3d.formats.manifest import Manifest

FILES = {"a/1.txt": "one", "a/2.txt": "two", "b.txt": "three"}


def fill(folder: Path, made_of: dict, files: dict[str, str]) -> Manifest:
    """Write what is missing, as the commands do."""
    record = Manifest(folder, "r.json", {"kind": "test", **made_of}, tuple(made_of))
    record.begin()
    record.load()
    for name, text in files.items():
        if not record.is_finished(name):
            with record.writing(name, id=text) as temporary:
                temporary.write_text(text + str(made_of))
    record.settle()
    return record


def content_of(folder: Path) -> dict[str, str]:
    """Every file by its name below the folder."""
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


class Plug:
    """Pulls the plug at the n-th call of what changes a disk, before or after it."""

    def __init__(self, monkeypatch, stop: int, before: bool):
        self.count, self.stop, self.before = 0, stop, before
        for name in ("replace", "unlink"):
            monkeypatch.setattr(os, name, self.wrapped(getattr(os, name)))

    def wrapped(self, real):
        def call(*args, **kwargs):
            if ".tmp-" in str(args[-1]):  # what goes at the end of a write, or after a failure
                return real(*args, **kwargs)
            self.count += 1
            if self.count == self.stop and self.before:
                raise KeyboardInterrupt
            real(*args, **kwargs)
            if self.count == self.stop:
                raise KeyboardInterrupt
        return call


@pytest.mark.parametrize("before", [True, False])
def test_stopped_anywhere_it_ends_as_if_it_was_not(tmp_path, monkeypatch, before):
    """Files of another network, then ours; the run is stopped at every single change of the disk and started again."""
    fill(tmp_path / "sound", {"of": 2}, FILES)
    sound, stops = content_of(tmp_path / "sound"), 0
    for stop in range(1, 40):
        folder = tmp_path / str(stop)
        fill(folder, {"of": 1}, FILES | {"c.txt": "of before"})
        (folder / "mine.txt").write_text("mine")
        with monkeypatch.context() as patch:
            plug = Plug(patch, stop, before)
            try:
                fill(folder, {"of": 2}, FILES)
            except KeyboardInterrupt:
                stops += 1
        again = fill(folder, {"of": 2}, FILES)
        assert content_of(folder) == sound | {"mine.txt": "mine"}, stop
        assert len(again.changed) <= 1  # that which was noted and had not appeared
        if plug.count < stop:
            break
    assert stops == stop - 1 >= 10


def test_stopped_and_then_made_of_something_else_nothing_of_either_stays(tmp_path, monkeypatch):
    for stop in range(1, 40):
        folder = tmp_path / str(stop)
        fill(folder, {"of": 1}, FILES)
        with monkeypatch.context() as patch:
            plug = Plug(patch, stop, before=stop % 2 == 0)
            with suppress(KeyboardInterrupt):
                fill(folder, {"of": 2}, FILES)
        fill(folder, {"of": 3}, {"b.txt": "three"})
        assert content_of(folder).keys() == {"b.txt", "r.json"}, stop
        if plug.count < stop:
            break
    assert stop >= 10


def test_what_is_cut_changed_or_gone_is_noticed_and_dates_are_not_asked(tmp_path):
    fill(tmp_path, {}, FILES)
    os.utime(tmp_path / "b.txt", (1, 1))
    (tmp_path / "a/1.txt").write_text("on")
    (tmp_path / "a/2.txt").unlink()
    record = Manifest(tmp_path, "r.json", {"kind": "test"}, ())
    record.load()
    assert [record.is_finished(name) for name in FILES] == [False, False, True]
    assert record.changed == ["a/1.txt", "a/2.txt"] and not record.is_finished("unknown")
    assert not record.is_finished("b.txt", of="another row")


def test_journals_of_ranks_are_taken_up_and_what_was_cut_off_is_not_believed(tmp_path):
    fill(tmp_path, {}, {})
    for rank, name in enumerate(FILES):
        record = Manifest(tmp_path, "r.json", {"kind": "test"}, (), rank)
        with record.writing(name) as temporary:
            temporary.write_text("x")
    path = tmp_path / ".r.json-2.journal"
    path.write_text(path.read_text() + 'null\n[1]\n["../x", "' + "0" * 64 + '", "", "", ""]\n["b.txt", "01')
    record = Manifest(tmp_path, "r.json", {"kind": "test"}, ())
    record.begin()
    record.load()
    assert record.files.keys() == FILES.keys() and all(map(record.is_finished, FILES))
    assert not list(tmp_path.glob(".r.json*")) and json.loads((tmp_path / "r.json").read_text())["kind"] == "test"


@pytest.mark.parametrize("name", ["../mine.txt", "/tmp/mine.txt", "a/../../mine.txt", "", ".", "a//b", "a/"])
def test_names_outside_the_folder_are_refused(tmp_path, name):
    record = fill(tmp_path / "in", {"of": 1}, FILES)
    found = json.loads(record.path.read_text())
    found["files"][name] = found["files"]["b.txt"]
    record.path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"r\.json: files has the name .*, wanted a path below this folder"):
        fill(tmp_path / "in", {"of": 2}, FILES)


def test_a_record_of_another_command_is_refused(tmp_path):
    fill(tmp_path, {}, {})
    with pytest.raises(ValueError, match=r"kind is 'test', wanted 'export': not a record of this command"):
        Manifest(tmp_path, "r.json", {"kind": "export"}, ()).found()
