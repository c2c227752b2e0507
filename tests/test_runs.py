"""Run folders: what is said where an older one is taken, as newer ones hold nothing."""

import re
from pathlib import Path

import h5py
import pytest

from edm3d.utils.log import write_status
from edm3d.utils.runs import find_file, passed_over


def make_run(folder: Path, status: str, why: str = "", snapshot: bool = False) -> Path:
    folder.mkdir(parents=True)
    write_status(folder, status, why, experiment="mine")
    if snapshot:
        (folder / "network-snapshot-000001.pt").write_bytes(b"PK")
    return folder


def found(name: str, root: Path) -> list[str]:
    return passed_over(find_file(name, "network-snapshot", root, "--network"), name, root)


def test_a_misspelt_name_is_held_against_those_of_the_runs(tmp_path):
    make_run(tmp_path / "00000-mine", "done", snapshot=True)
    (make_run(tmp_path / "00001-mind", "done") / "status.json").write_text("{")  # tells nobody's name
    (tmp_path / "00002-mini").mkdir()
    with pytest.raises(ValueError, match=rf"name=mime: no such .*in {tmp_path}/; did you mean 'mine'\?$"):
        find_file("mime", "network-snapshot", tmp_path, "name")
    for name, kind in (("other", "network-snapshot"), ("mine", "training-state")):
        with pytest.raises(ValueError, match=rf"and no run of that name with a {kind} in {tmp_path}/$"):
            find_file(name, kind, tmp_path, "name")


def test_files_that_are_no_snapshots_are_told_from_them(tmp_path):
    folder = make_run(tmp_path / "00000-mine", "done", snapshot=True)
    state, data = folder / "training-state-000001.pt", tmp_path / "x.h5"
    state.write_bytes(b"PK")
    with h5py.File(data, "w"):
        pass
    newest = folder / "network-snapshot-000001.pt"
    for path, words in {data: "wanted a network-snapshot (.pt), this file holds data (HDF5)",
                        state: f"wanted a network-snapshot; the newest beside it is {newest}"}.items():
        with pytest.raises(ValueError, match=f"{re.escape(words)}$"):
            find_file(str(path), "network-snapshot", tmp_path, "name")
    assert find_file(str(state), "training-state", tmp_path, "name") == state
    newest.unlink()
    with pytest.raises(ValueError, match="a training state, wanted a network-snapshot, of which there is none beside"):
        find_file(str(state), "network-snapshot", tmp_path, "name")


def test_newer_runs_that_left_nothing_are_named(tmp_path):
    taken = make_run(tmp_path / "00000-mine", "done", snapshot=True)
    assert found("mine", tmp_path) == []
    failed = make_run(tmp_path / "00001-mine", "failed", "ValueError: loss is not finite\n" + "x" * 200)
    make_run(tmp_path / "00002-mine-two", "running")
    write_status(make_run(tmp_path / "00003-other", "done"), "done", experiment="other")
    assert found("mine", tmp_path) == [
        f"Note: newer, but without a network-snapshot: {tmp_path}/00002-mine-two (running), {failed} (failed: "
        f"ValueError: loss is not finite); used is {taken}"]
    assert found(str(taken), tmp_path) == []  # what was named by its folder was chosen
    make_run(tmp_path / "00004-mine", "failed", "y" * 150, snapshot=True)
    assert found("mine", tmp_path) == []
    make_run(tmp_path / "00005-mine", "failed", "y" * 150)
    assert f"(failed: {'y' * 97}...)" in found("mine", tmp_path)[0]


def test_a_run_is_found_by_experiment_and_description(tmp_path):
    taken = make_run(tmp_path / "00000-mine-two", "done", snapshot=True)
    make_run(tmp_path / "00001-mine-twofold", "done", snapshot=True)
    write_status(make_run(tmp_path / "00002-mine-two", "done", snapshot=True), "done", experiment="other")  # moved here
    failed = make_run(tmp_path / "00003-mine-two", "failed", "why")
    assert find_file("mine-two", "network-snapshot", tmp_path, "name").parent == taken
    assert found("mine-two", tmp_path) == [
        f"Note: newer, but without a network-snapshot: {failed} (failed: why); used is {taken}"]
    with pytest.raises(ValueError, match="did you mean 'mine-twofold'"):
        find_file("mine-twofol", "network-snapshot", tmp_path, "name")
