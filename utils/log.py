"""What a run says: lines on rank 0's terminal and in log.txt, progress bars, status.json, and errors in one line."""

import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from edm3d.utils.commands import command
from edm3d.utils.files import first_line, overwrite_text, write_text
from edm3d.utils.names import printable
from edm3d.utils.plain import from_plain, read_json

NO_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED")  # in what torch raises as a RuntimeError
READERS = ("formats/", "training/datasets/", "training/loader.py", "utils/checkpoint.py")  # of files of data
RANK_0_SPEAKS_S = 10.0  # in which torchrun ends the other ranks where rank 0 fails too; some seconds on a busy machine


class RunLog:
    """Prints on rank 0, and into run_dir/log.txt where there is a run folder; silent on other ranks."""

    def __init__(self, is_main: bool = True, run_dir: Path | None = None):
        self.is_main, self.run_dir, self.is_whole = is_main, run_dir, True  # whether all lines are in log.txt

    def __call__(self, text: str = "") -> None:
        if not self.is_main:
            return
        say(text, sys.stdout)
        if self.run_dir:
            self.keep(text)

    def keep(self, text: str) -> None:
        """Add a line to log.txt; where that cannot be done, say so once: it ends no run."""
        try:
            append_log(self.run_dir, text)
            self.is_whole = True
        except OSError as e:
            if self.is_whole:
                note(f"Warning: {self.run_dir / 'log.txt'}: cannot be written ({e.strerror}); lines are printed only")
            self.is_whole = False


def say(text: str, stream: Any) -> None:
    """Print a line, above the progress bars where there are some."""
    with tqdm.external_write_mode(file=bars()):
        print(printable(text), file=stream, flush=True)


def bars() -> Any:
    """Where progress bars are drawn, by terminal escapes: past what makes standard error printable."""
    return getattr(sys.stderr, "stream", sys.stderr)


def note(text: str) -> None:
    """A line on rank 0's stderr, also before the ranks have met."""
    if os.environ.get("RANK", "0") == "0":
        say(text, sys.stderr)


def append_log(run_dir: Path, text: str) -> None:
    """Add a line to log.txt."""
    with open(run_dir / "log.txt", "a", encoding="utf-8") as file:
        print(printable(text), file=file)


def progress(iterable: Iterable | None = None, *, total: int | None = None, desc: str, unit: str,
             is_main: bool = True) -> tqdm:
    """A progress bar on terminals; nothing where the output is a file or on other ranks than 0."""
    return tqdm(iterable, total=total, desc=printable(desc), unit=unit, file=bars(),
                disable=None if is_main else True, dynamic_ncols=True, smoothing=0.05, leave=False)


class RunStatus(NamedTuple):
    """What status.json may say of a run, each as `write_status` gave it."""

    experiment: str | None = None
    config_hash: str | None = None
    run_id: str | None = None
    launch: str | None = None
    attempt: int | None = None
    status: str | None = None
    why: str = ""
    nimg: int | None = None
    state: str | None = None


def read_status(run_dir: Path) -> dict:
    """What status.json says, {} where there is none; ValueError when it is damaged, or says what no run does."""
    path = run_dir / "status.json"
    if not os.path.lexists(path):
        return {}
    try:
        if not path.is_file():  # a pipe would be waited for
            raise ValueError("no file that can be read")
        found = read_json(path)
        known = {name: found[name] for name in RunStatus._fields if name in found} if isinstance(found, dict) else found
        from_plain(RunStatus, known, path)
    except ValueError as e:
        raise ValueError(f"{path}: damaged ({str(e).removeprefix(f'{path}: ')}); delete it, or the folder, if the run "
                         "is not needed") from e
    return found


def write_status(run_dir: Path, status: str, why: str = "", **facts: object) -> None:
    """Write status.json: running, requeue, done or failed, why, and further facts (experiment, config_hash, nimg).

    On a full disk in place of what is there.
    """
    assert status in ("running", "requeue", "done", "failed")
    try:
        old = read_status(run_dir)
    except ValueError:  # damaged while the run goes on, which that does not stop
        old = {}
    new = {**old, **facts, "status": status, "why": why}
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


def less_memory() -> str:
    """What takes less memory where networks are at work."""
    return ("a smaller training.options.batch_gpu or training.options.checkpointing=true takes less memory, when "
            f"drawing a smaller sampling.batch_size or sampling.tile, in {command('data')} --batch-size or --tile; "
            f"{command('data', 'plan')} says how much")


def error_text(error: BaseException) -> str:
    """What an error says, in one line but for lists; where memory has run out with what helps."""
    if isinstance(error, UnicodeEncodeError) and re.search("[\ud800-\udfff]", error.object):
        return f"{error.object[:100]}: not UTF-8; rename what it names, or set LC_ALL=C.UTF-8"
    if not is_lack_of_memory(error):
        return re.sub(r"\s*\n(?!  )\s*", " ", str(error).strip())
    if is_of_a_file(error):
        return (f"{first_line(error)}: a file that was read asks for more memory than there is; it is too large for "
                "this machine, or damaged")
    return f"{first_line(error)}; {less_memory()}"


def is_of_a_file(error: BaseException) -> bool:
    """Whether an error comes out of the reading of a file of data."""
    root = f"{Path(__file__).resolve().parents[1]}/"
    places = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return any(place.startswith(root) and place.removeprefix(root).startswith(READERS) for place in places)


def run_main(main: Callable[[], None], debug: bool) -> None:
    """Call main; errors a user can cause become one line on stderr and exit code 1, with a traceback under debug.

    An error that all ranks share is printed by rank 0: the others wait a moment, in which torchrun ends them, and
    speak up only when rank 0 did not fail.
    """
    rank = os.environ.get("RANK", "0")
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as e:
        if rank != "0":
            time.sleep(RANK_0_SPEAKS_S)
        if debug or not (isinstance(e, (ValueError, OSError)) or is_lack_of_memory(e)):
            traceback.print_exc()
        else:
            say(f"Error{f' (rank {rank})' if rank != '0' else ''}: {error_text(e)}", sys.stderr)
        sys.exit(1)
