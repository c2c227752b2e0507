"""What the commands say when memory runs out, and when the fault is ours."""

import re
from pathlib import Path

import pytest
import torch

from edm3d.training.run import failure_noted
from edm3d.utils.log import RunLog, error_text, note, read_status, run_main, write_status

ADVICE = r"training\.options\.batch_gpu .*training\.options\.checkpointing=true .*python dataset_tool\.py plan"


def too_much() -> None:
    torch.empty(1 << 50)


def no_memory(error: Exception):
    def act() -> None:
        raise error
    return act


@pytest.mark.parametrize(("act", "words"), [
    (too_much, "can't allocate memory: you tried to allocate"),
    (no_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nSee the docs")), "20.00 MiB"),
    (no_memory(MemoryError()), "MemoryError"), (no_memory(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")), "CUBLAS"),
])  # fmt: skip
def test_lack_of_memory_is_one_line_with_what_takes_less(tmp_path: Path, capsys, act, words):
    write_status(tmp_path, "running")

    def main() -> None:
        with failure_noted(tmp_path):
            act()

    with pytest.raises(SystemExit) as ended:
        run_main(main, debug=False)
    line, = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1 and words in line and re.search(f"^Error: .*{ADVICE}", line)
    why = read_status(tmp_path)["why"]
    assert why.partition(": ")[2] == line.removeprefix("Error: ")
    assert (tmp_path / "log.txt").read_text() == f"Failed: {why}\n"


def test_an_error_of_ours_is_still_a_traceback(capsys):
    with pytest.raises(SystemExit):
        run_main(no_memory(RuntimeError("shapes do not fit")), debug=False)
    said = capsys.readouterr().err
    assert "Traceback" in said and "batch_gpu" not in said


def test_memory_that_a_file_asks_for_brings_no_advice_on_networks(root):
    read = {"__file__": str(root / "formats/volumes.py")}
    code = compile("def act():\n    raise MemoryError('900 GiB')", read["__file__"], "exec")
    exec(code, read)
    with pytest.raises(MemoryError) as error:
        read["act"]()
    assert "too large for this machine, or damaged" in error_text(error.value)
    assert "batch_gpu" not in error_text(error.value)


def test_an_error_is_one_line_but_for_lists():
    assert error_text(ValueError("a\nb\n\n c:\n  d\n  e\n")) == "a b c:\n  d\n  e"
    assert error_text(UnicodeEncodeError("utf-8", "a\udcff", 1, 2, "no")).startswith("a\udcff: not UTF-8; rename")


def test_a_log_that_cannot_be_written_is_said_once_and_ends_nothing(tmp_path, capsys):
    log = RunLog(run_dir=tmp_path)
    (tmp_path / "log.txt").mkdir()
    for text in "ab":
        log(text)
    (tmp_path / "log.txt").rmdir()
    log("c\x1b[31m\udcff")
    (tmp_path / "log.txt").rename(tmp_path / "first.txt")
    (tmp_path / "log.txt").mkdir()
    log("d")
    said = capsys.readouterr()
    assert said.out == "a\nb\nc\\x1b[31m\\udcff\nd\n" and (tmp_path / "first.txt").read_text() == "c\\x1b[31m\\udcff\n"
    assert said.err == 2 * f"Warning: {tmp_path}/log.txt: cannot be written (Is a directory); lines are printed only\n"


@pytest.mark.parametrize("rank", ["x", "-1", "1"])
def test_notes_are_those_of_rank_0(capsys, monkeypatch, rank):
    monkeypatch.setenv("RANK", rank)
    note("here")
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(SystemExit):
        run_main(no_memory(ValueError("wrong")), debug=False)
    assert capsys.readouterr().err == f"Error (rank {rank}): wrong\n"
