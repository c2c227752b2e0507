"""A command in a process of its own, watched: what it printed, gave, wrote elsewhere, ran, asked the network for."""

import faulthandler
import hashlib
import multiprocessing
import multiprocessing.connection
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from edm3d.utils import checkpoint

LIMIT_S = 60
ADDRESS_SPACE = 3 << 30  # bytes that a command may ask for on top of what it starts with
RISE = 1 << 29           # bytes of resident memory that small files never take
SECRET = "/nowhere/3c8f1e-home"  # what HOME is: nothing may tell it
CANARY = "canary-9d27"   # what hostile content makes, if it is run
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
MOVES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "shutil.rmtree")
RUNS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn")
ASKS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request")
Result = TypeVar("Result")


class Fault(Exception):
    """What the attack itself finds wrong in what a command gave: `fault` is one of attack_judge.FAULTS."""

    def __init__(self, fault: str, text: str):
        super().__init__(text)
        self.fault = fault


class Command(NamedTuple):
    """What to run in the work folder: gives what it read or made, None where that is not compared.

    writes: what it may write to, relative to the folder.
    """

    name: str
    run: Callable[[], object]
    writes: tuple[str, ...] = ("out",)


@dataclass
class Observed:
    """What a command was seen to do. code: 0, another exit code, or what ended it (a fault, signal 11)."""

    command: str
    code: int | str = 0
    out: str = ""
    err: str = ""
    digest: str | None = None
    events: list[str] = field(default_factory=list)   # (kind: what) of the audit hook
    strays: list[str] = field(default_factory=list)   # files beside the destination that changed
    rise: int = 0                                     # of resident memory, bytes

    @property
    def text(self) -> str:
        """All that was printed."""
        return f"{self.out}\n{self.err}"


# ---- what came out, as one hash ----


def digest(value: object) -> str:
    """Hash of nested arrays and plain data."""
    return checkpoint.checksum(as_tensors(value))


def as_tensors(value: object) -> object:
    """The same with tensors for arrays; those of other types as their bytes."""
    if isinstance(value, np.ndarray):
        raw = np.ascontiguousarray(value)
        return {"type": raw.dtype.str, "shape": list(raw.shape), "hash": hashlib.sha256(raw.tobytes()).hexdigest()}
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {str(key): as_tensors(each) for key, each in value.items()}
    return [as_tensors(each) for each in value] if isinstance(value, (list, tuple)) else value


# ---- the watched process ----


class Hook:
    """An audit hook: notes what is written outside the cage, code that is run, and the network asked."""

    def __init__(self, cage: Path):
        self.inside = (f"{cage}/", "/dev/null", "/dev/tty", "/proc/self/")
        self.events: list[str] = []

    def __call__(self, event: str, args: tuple) -> None:
        if event == "open" and isinstance(args[0], (str, bytes)) and (args[2] or 0) & WRITES:
            self.note_path(event, args[0])
        elif event in MOVES:
            for path in args[:2] if event in ("os.rename", "os.link", "os.symlink") else args[:1]:
                self.note_path(event, path)
        elif event in RUNS or (event == "pickle.find_class" and args[0] in ("os", "posix", "subprocess", "builtins")):
            self.events.append(f"run: {event} {args!r:.200}")
        elif event in ASKS:
            self.events.append(f"network: {event} {args!r:.200}")

    def note_path(self, event: str, path: object) -> None:
        """Note a path that is written to, unless it lies in the cage, where the listing tells."""
        with suppress(TypeError, ValueError):
            full = os.path.abspath(os.fsdecode(path)) + "/" * (event == "os.mkdir")
            if CANARY in full.split("/"):  # names that are made of such an id are longer
                self.events.append(f"run: {event} {full}")
            elif not full.startswith(self.inside):
                self.events.append(f"outside: {event} {full}")


def listing(cage: Path) -> dict[str, tuple]:
    """Every file and folder below, relative, with size and time."""
    return {os.path.relpath(os.path.join(folder, name), cage): (os.lstat(os.path.join(folder, name)).st_size,
                                                                os.lstat(os.path.join(folder, name)).st_mtime_ns)
            for folder, _, names in os.walk(cage) for name in names} | {
        os.path.relpath(folder, cage) + "/": (0, 0) for folder, _, _ in os.walk(cage)}


def strays_of(before: Mapping, after: Mapping, writes: Sequence[str]) -> list[str]:
    """What changed outside of what a command may write to."""
    allowed = tuple(f"work/{name}" for name in writes) + ("tmp/", "said/")
    return sorted(name for name in before.keys() | after.keys()
                  if before.get(name) != after.get(name) and not name.startswith(allowed))


def run_watched(command: Command, cage: Path, hook: Hook) -> Observed:
    """Run a command of this process in a fresh copy of the cage's files."""
    seen, work = Observed(command.name), cage / "work"
    shutil.rmtree(work, ignore_errors=True)
    subprocess.run(["cp", "-a", cage / "made", work], check=True)  # links and pipes as they are
    os.chdir(work)
    before, rise = listing(cage), resident_peak()
    streams = [open(cage / "said" / f"{command.name}.{n}", "w+", buffering=1, encoding="utf-8",  # noqa: SIM115
                    errors=errors) for n, errors in ((1, "strict"), (2, "backslashreplace"))]
    for number, stream in enumerate(streams, 1):
        os.dup2(stream.fileno(), number)
    sys.stdout, sys.stderr = streams
    hook.events.clear()
    try:
        found = command.run()
        seen.digest = None if found is None else digest(found)
    except SystemExit as end:
        seen.code = end.code if isinstance(end.code, int) else 1
    except Fault as fault:
        print(f"{fault.fault}: {fault}", file=sys.stderr)
        seen.code = fault.fault
    except BaseException:
        traceback.print_exc()
        seen.code = "tracebacks"
    seen.events = [*dict.fromkeys(hook.events), *leaks_in(work)]
    seen.rise = resident_peak() - rise
    for stream in streams:
        stream.flush()
    seen.strays = strays_of(before, listing(cage), command.writes)
    seen.out, seen.err = ((cage / "said" / f"{command.name}.{n}").read_bytes().decode(errors="backslashreplace")
                          for n in (1, 2))
    return seen


def leaks_in(work: Path) -> list[str]:
    """Files that tell HOME."""
    return [f"leak: {path.relative_to(work)}" for path in work.rglob("*")
            if path.is_file() and not path.is_symlink() and SECRET.encode() in path.read_bytes()]


def resident_peak() -> int:
    """The highest resident memory so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def own_bars() -> None:
    """A lock of its own for the bars of a fork: tqdm's is one for all forks, and who is killed with it keeps it."""
    tqdm.set_lock(threading.RLock())


def confine() -> None:
    """Bounds of a watched process: memory, no core file, a home that nothing may tell, temporary files in the cage."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.dont_write_bytecode = True
    os.environ["HOME"] = SECRET
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)


def watch(make: Callable[[Path], None], commands: Sequence[Command], cage: Path, limit_s: float = LIMIT_S
          ) -> list[Observed]:
    """Fill cage/made, then run each command in a fresh copy of it, all in one process as long as that lives.

    A command that takes longer than limit_s is killed, and the others go on in another process.
    """
    shutil.rmtree(cage, ignore_errors=True)
    for name in ("made", "tmp", "said"):
        (cage / name).mkdir(parents=True)
    seen: list[Observed] = []
    while len(seen) < len(commands):
        seen += _watch_rest(make if not seen else None, commands[len(seen):], cage, limit_s)
    shutil.rmtree(cage)
    return seen


def _watch_rest(make: Callable[[Path], None] | None, commands: Sequence[Command], cage: Path, limit_s: float
                ) -> list[Observed]:
    ours, theirs = multiprocessing.Pipe(duplex=False)
    arguments = (make, commands, cage, theirs, limit_s)
    process = multiprocessing.get_context("fork").Process(target=_in_child, args=arguments)
    process.start()
    theirs.close()
    seen: list[Observed] = []
    with ours:
        if make is not None:
            failed = _received(ours) if ours.poll(limit_s) else "it took too long"
            if failed is not True:
                process.kill()
                raise RuntimeError(f"{cage}: the file to attack could not be made: {failed}")
        for command in commands:
            in_time = ours.poll(limit_s)
            found = _received(ours) if in_time else None
            if found is None:
                process.kill()
                process.join()
                said = "".join(path.read_bytes().decode(errors="backslashreplace")
                               for path in sorted((cage / "said").glob(f"{command.name}.*")))
                code = f"signal {-process.exitcode}" if in_time else "hangs"
                return [*seen, Observed(command.name, code, "", said)]
            seen.append(found)
    process.join()
    return seen


def _received(connection: multiprocessing.connection.Connection) -> object:
    with suppress(EOFError):
        return connection.recv()
    return None


def _in_child(make: Callable[[Path], None] | None, commands: Sequence[Command], cage: Path,
              connection: multiprocessing.connection.Connection, limit_s: float) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    own_bars()
    confine()
    os.environ["TMPDIR"] = tempfile.tempdir = str(cage / "tmp")
    stacks = open(cage / "said" / "stacks", "w")  # noqa: SIM115
    faulthandler.enable(stacks)
    if make is not None:
        try:
            make(cage / "made")
        except BaseException:
            connection.send(traceback.format_exc())
            os._exit(1)
        connection.send(True)
    hook = Hook(cage)
    sys.addaudithook(hook)
    for command in commands:
        faulthandler.dump_traceback_later(max(0.1, 0.9 * limit_s), file=stacks)
        connection.send(run_watched(command, cage, hook))
    faulthandler.cancel_dump_traceback_later()
    os._exit(0)


# ---- many of them ----


def spread(tasks: Sequence[Callable[[], Result]], jobs: int) -> Iterator[Result]:
    """What tasks give, in any order, from `jobs` forks of this process; RuntimeError when one of them dies."""
    context, open_ends, workers = multiprocessing.get_context("fork"), [], []

    def work(mine: Iterable[Callable[[], Result]], connection: multiprocessing.connection.Connection) -> None:
        for task in mine:
            connection.send(task())
        connection.close()
        os._exit(0)

    for rank in range(min(jobs, len(tasks))):
        ours, theirs = context.Pipe(duplex=False)
        workers.append(context.Process(target=work, args=(tasks[rank::jobs], theirs)))
        workers[-1].start()
        theirs.close()
        open_ends.append(ours)
    try:
        while open_ends:
            for end in multiprocessing.connection.wait(open_ends):
                try:
                    yield end.recv()
                except EOFError:
                    open_ends.remove(end)
        for worker in workers:
            worker.join()
            if worker.exitcode:
                raise RuntimeError(f"a process of the attack itself ended by {worker.exitcode}")
    finally:
        for worker in workers:
            worker.kill()
