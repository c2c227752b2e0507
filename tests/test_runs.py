"""Run folders: what is said where an older one is taken, as newer ones hold nothing."""

from pathlib import Path

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
