"""Standard output and error that are closed, full, of another encoding, or fed with what moves cursors."""

import errno
import io
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import click
import pytest

import dataset_tool
from edm3d.utils import terminal
from edm3d.utils.log import progress, read_status, say
from edm3d.utils.terminal import Device, Screen, sturdy_streams
from tests.commands import call, succeed


def stream_on(number: int) -> Screen:
    return Screen(io.TextIOWrapper(io.BufferedWriter(Device(number, "w", closefd=False)), "ascii", "backslashreplace"))


def closed_pipe() -> int:
    """A descriptor to write to that nobody reads from any more."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("opened", [closed_pipe, lambda: os.open("/dev/full", os.O_WRONLY)])
def test_what_cannot_be_written_is_dropped(opened):
    number = opened()
    stream = stream_on(number)
    for _ in range(3):
        print("x" * 100_000, file=stream, flush=True)
    os.close(number)
    print("to nowhere", file=stream, flush=True)  # EBADF, as from a descriptor closed by somebody else


@pytest.mark.parametrize(("opened", "error"), [(closed_pipe, SystemExit), (lambda: os.open("/dev/full", os.O_WRONLY),
                                                                            OSError)])
def test_where_printing_is_all_it_ends_the_program_once(monkeypatch, opened, error):
    stream = stream_on(opened())
    monkeypatch.setattr(sys, "stdout", stream)
    terminal.printing_is_all()
    with pytest.raises(error) as raised:
        print("x", flush=True)
    stream.flush()  # as Python does at the end
    assert getattr(raised.value, "code", 141) == 141 and getattr(raised.value, "errno", errno.ENOSPC) == errno.ENOSPC


def test_a_full_pipe_that_does_not_block_is_waited_for():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    got = bytearray()

    def read() -> None:
        time.sleep(0.1)
        while len(got) < 300_000:
            got.extend(os.read(reader, 65536))

    thread = threading.Thread(target=read)
    thread.start()
    print("x" * 299_999, file=stream_on(writer), flush=True)
    thread.join(5)
    assert len(got) == 300_000


def test_everything_printed_is_printable_whoever_prints_it(capfd):
    @click.command()
    def command() -> None:
        click.echo("red\r\x07\u202e")  # from what is no terminal click itself takes colours away
        click.echo("\x9b2J", err=True)
        print("\x1b]0;title\x07")
        sys.stdout.writelines(["\x1b", "\n"])

    with sturdy_streams():
        command.main([], standalone_mode=False)
    said = capfd.readouterr()
    assert said.out == "red\\r\\x07\\u202e\n\\x1b]0;title\\x07\n\\x1b\n" and said.err == "\\x9b2J\n"
    assert not isinstance(sys.stdout, Screen)


def test_letters_that_the_encoding_lacks_are_written_as_codes(tmp_path):
    with open(tmp_path / "out", "w") as file:
        stream = stream_on(file.fileno())
        click.echo("été \udcff", file=stream)
        stream.flush()
    assert (tmp_path / "out").read_text() == "\\xe9t\\xe9 \\udcff\n"


def test_bars_keep_their_escapes_and_lines_stand_above_them(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", Screen(screen))
    with progress(total=2, desc="a\x1bb", unit="img") as bar:
        bar.update(1)
        bar.refresh()
        say("line", sys.stderr)
    drawn = screen.getvalue()
    assert "\ra\\x1bb:" in drawn and "\\r" not in drawn and "\rline\n" in drawn


def test_a_missing_working_folder_is_said(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    result = call(dataset_tool.main, "info", "x.h5")
    assert "the working folder cannot be reached" in str(result.exception) and isinstance(result.exception, SystemExit)


def test_a_program_with_no_standard_streams_keeps_their_numbers_from_files(root, tmp_path):
    """A data file that got number 1 or 2 would be written into by whatever a library prints."""
    code = ("import os, sys\nfrom edm3d.utils.terminal import sturdy_streams\nwith sturdy_streams():\n"
            "    file = open(sys.argv[1], 'w')\n    print('x', flush=True)\n    os.write(2, b'x')\n"
            "    print(file.fileno(), file=file)")
    for closed in ("<&- >&- 2>&-", ">&-", "2>&-"):
        subprocess.run(["bash", "-c", f'"$@" {closed}', "x", sys.executable, "-c", code, str(tmp_path / "data")],
                       check=True, cwd=root, capture_output=True)
        assert int((tmp_path / "data").read_text()) > 2


def test_commands_whose_output_breaks(root: Path, tmp_path):
    """One that makes a file goes on and ends with 0; one that only prints ends as by SIGPIPE, or says why."""
    tool = [sys.executable, str(root / "dataset_tool.py")]
    phantom = [*tool, "phantom", "--dest", "p.h5", "--num", "4", "--size", "8", "--spatial-dims", "2"]
    info = [*tool, "info", "p.h5"]
    with open("/dev/full", "w") as full:
        assert subprocess.run(phantom, cwd=tmp_path, stdout=full, stderr=full).returncode == 0
        ended = subprocess.run(info, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True)
        assert ended.returncode == 1 and ended.stderr.startswith("Error: ") and "No space left" in ended.stderr
    ended = subprocess.run(info, cwd=tmp_path, stdout=closed_pipe(), stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (141, "")


TOY = ["-cn=voxels_edm", "training.dataset.path=p.h5", "training.network.model.model_channels=8",
       "training.network.model.channel_mult=[1]", "training.network.model.attention_levels=[]",
       "training.validation.preview_ticks=null", *(f"training.options.{option}" for option in (
           "device=cpu", "num_threads=1", "precision=fp32", "batch_size=4", "total_kimg=0.032", "kimg_per_tick=0.008",
           "num_workers=1"))]


def test_a_training_outlives_its_standard_output(root: Path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    succeed(dataset_tool.main, "phantom", "--dest", "p.h5", "--num", "12", "--size", "8", "--spatial-dims", "2")
    line = '{ "$@" <&- 2>/dev/full; echo $? > code; } | head -1'
    subprocess.run(["bash", "-c", line, "x", sys.executable, str(root / "train.py"), *TOY], check=True,
                   capture_output=True)
    run_dir = Path("results/00000-voxels_edm")
    assert Path("code").read_text() == "0\n" and read_status(run_dir)["status"] == "done"
    log = (run_dir / "log.txt").read_text().splitlines()
    assert log[0] == "training:" and sum(line.startswith("tick ") for line in log) == 4 and log[-1].startswith("Done: ")
