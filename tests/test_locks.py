"""Locks on outputs: one command at a time, lifted when their process dies."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edm3d.utils import locks

ROOT = Path(__file__).resolve().parents[1]
DEAD = 2 ** 30  # more than any process has
HOLD = ("import sys, time; from pathlib import Path\nfrom edm3d.utils.locks import output\n"
        "with output(Path(sys.argv[1]), is_folder=sys.argv[2] == 'True'):\n"
        "    print('locked', flush=True); time.sleep(60)")


def hold(dest: Path, is_folder: bool) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(dest), str(is_folder)], stdout=subprocess.PIPE,
                               text=True, cwd=ROOT)
    assert process.stdout.readline() == "locked\n"
    return process


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_second_command_is_refused_by_name_until_the_first_is_gone(tmp_path, is_folder):
    dest, link = tmp_path / "out", tmp_path / "link"
    link.symlink_to(dest)
    process = hold(dest, is_folder)
    for name in (dest, link):
        with pytest.raises(ValueError, match=rf"--dest {name}: another command .*process {process.pid} on"), \
                locks.output(name, is_folder=is_folder):
            pass
    process.kill()
    process.wait()
    with locks.output(dest, is_folder=is_folder):
        assert list(dest.iterdir() if is_folder else tmp_path.glob(".lock-*")) != []
    assert not [*tmp_path.rglob(".lock*")]


def test_what_killed_commands_left_goes_and_nothing_else(tmp_path):
    """Of a file all that has its name; in a folder, where others may write files of their own, what the dead had."""
    alive = f".tmp-{os.getppid()}-0123456789abcdef-b.h5"
    ours = [f".tmp-{os.getppid()}-0123456789abcdef-a.h5", ".tmp-2-a.h5"]
    others = [f".tmp-{DEAD}-0123456789abcdef-b.h5", alive, "a.h5", ".a.h5", "tmp-1-a.h5"]
    (tmp_path / "images").mkdir()
    for name in (*ours, *others, f"images/.tmp-{DEAD}-0123456789abcdef-c.nii.gz"):
        (tmp_path / name).touch()
    with locks.output(tmp_path / "a.h5"):
        pass
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "images"]) and os.listdir(tmp_path / "images")
    with locks.output(tmp_path, is_folder=True):
        pass
    assert sorted(os.listdir(tmp_path)) == sorted([*others[1:], "images"]) and not os.listdir(tmp_path / "images")


def test_a_lock_file_that_was_deleted_by_its_holder_is_not_a_lock(tmp_path, monkeypatch):
    """One opens the file, its holder deletes it and leaves: the lock is taken on the file that is there then."""
    path, opened = tmp_path / "lock", []
    real = fcntl.lockf

    def lockf(handle, how):
        if not opened:
            path.unlink()
        opened.append(handle)
        real(handle, how)

    monkeypatch.setattr(fcntl, "lockf", lockf)
    handle = locks.take(path)
    assert len(opened) == 2 and os.path.samestat(os.fstat(handle.fileno()), path.stat())
    handle.close()


def test_file_systems_without_locks_do_without(tmp_path, monkeypatch):
    def lockf(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    assert locks.take(tmp_path / "lock") is None
    with locks.output(tmp_path / "a.h5"):
        pass


def test_many_at_once_leave_one_at_work(tmp_path):
    """A counter that is read and written under the lock by processes that come and go loses nothing."""
    code = ("import sys, time; from pathlib import Path\nfrom edm3d.utils import locks\npath = Path(sys.argv[1])\n"
            "for _ in range(30):\n"
            "    while True:\n"
            "        try:\n"
            "            with locks.output(path):\n"
            "                n = int(path.read_text()); time.sleep(0.0005); path.write_text(str(n + 1))\n"
            "            break\n"
            "        except ValueError:\n"
            "            time.sleep(0.0002)\n")
    path = tmp_path / "n"
    path.write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT) for _ in range(3)]
    assert [process.wait() for process in processes] == [0] * 3
    assert path.read_text() == "90" and not [*tmp_path.glob(".lock*")]


def test_what_cannot_be_written_to_is_named_and_no_empty_folder_stays(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--dest .*file/x.h5: no files can be written there \((Not a dir|File ex)"), \
            locks.output(tmp_path / "file/x.h5"):
        pass
    with pytest.raises(ValueError, match="refused"), locks.output(tmp_path / "a/b/c", is_folder=True):
        raise ValueError("refused")
    assert os.listdir(tmp_path) == ["file"]
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(ValueError, match="links lead nowhere"), locks.output(tmp_path / "circle"):
        pass
