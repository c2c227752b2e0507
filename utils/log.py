"""What a run says: lines on rank 0's terminal and in log.txt, progress bars, status.json, and errors in one line."""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm

from edm3d.utils.commands import command
from edm3d.utils.files import first_line, overwrite_text, write_text

NO_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED")  # in what torch raises as a RuntimeError
LESS_MEMORY = ("a smaller training.options.batch_gpu or training.options.checkpointing=true takes less memory, when "
               f"drawing a smaller sampling.batch_size or sampling.tile, in {command('data')} --batch-size or --tile; "
               f"{command('data', 'plan')} says how much")


class RunLog:
    """Prints on rank 0, and into run_dir/log.txt where there is a run folder; silent on other ranks."""

    def __init__(self, is_main: bool = True, run_dir: Path | None = None):
        self.is_main, self.run_dir = is_main, run_dir

    def __call__(self, text: str = "") -> None:
        if not self.is_main:
            return
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
        if self.run_dir:
            append_log(self.run_dir, text)


def note(text: str) -> None:
    """A line on rank 0's stderr, also before the ranks have met."""
    if not int(os.environ.get("RANK", 0)):
        print(text, file=sys.stderr, flush=True)


def append_log(run_dir: Path, text: str) -> None:
    """Add a line to log.txt."""
    with open(run_dir / "log.txt", "a", encoding="utf-8") as file:
        print(text, file=file)


def progress(iterable: Iterable | None = None, *, total: int | None = None, desc: str, unit: str,
             is_main: bool = True) -> tqdm:
    """A progress bar on terminals; nothing where the output is a file or on other ranks than 0."""
    return tqdm(iterable, total=total, desc=desc, unit=unit, disable=None if is_main else True, dynamic_ncols=True,
                smoothing=0.05, leave=False)


def read_status(run_dir: Path) -> dict:
    """What status.json says, {} where there is none; ValueError when it is damaged."""
    path = run_dir / "status.json"
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as e:
        raise ValueError(f"{path}: damaged ({e}); delete it, or the folder, if the run is not needed") from e


def write_status(run_dir: Path, status: str, why: str = "", **facts: object) -> None:
    """Write status.json: running, requeue, done or failed, why, and further facts (experiment, config_hash, nimg).

    On a full disk in place of what is there.
    """
    assert status in ("running", "requeue", "done", "failed")
    new = {**read_status(run_dir), **facts, "status": status, "why": why}
    path, text = run_dir / "status.json", json.dumps(new, indent=2) + "\n"
    try:
        write_text(path, text)
    except OSError:
        if not path.is_file():
            raise
        overwrite_text(path, text)


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out. By its name: the scripts start without torch."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)


def error_text(error: BaseException) -> str:
    """What an error says; where memory has run out, in one line with what takes less."""
    return f"{first_line(error)}; {LESS_MEMORY}" if is_lack_of_memory(error) else str(error)


def run_main(main: Callable[[], None], debug: bool) -> None:
    """Call main; errors a user can cause become one line on stderr and exit code 1, with a traceback under debug.

    An error that all ranks share is printed by rank 0: the others wait a moment, in which torchrun ends them, and
    speak up only when rank 0 did not fail.
    """
    rank = int(os.environ.get("RANK", 0))
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as e:
        if rank:
            time.sleep(3)
        if debug or not (isinstance(e, (ValueError, OSError)) or is_lack_of_memory(e)):
            traceback.print_exc()
        else:
            print(f"Error{f' (rank {rank})' if rank else ''}: {error_text(e)}", file=sys.stderr, flush=True)
        sys.exit(1)
