"""What the commands say when memory runs out, and when the fault is ours."""

import re
from pathlib import Path

import pytest
import torch

from edm3d.training.run import failure_noted
from edm3d.utils.log import read_status, run_main, write_status

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
