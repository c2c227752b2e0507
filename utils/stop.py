"""Asking a run to end: signals and a file STOP only leave a wish, on which all ranks agree at the end of a step."""

import os
import signal
import sys
import time
from contextlib import suppress
from math import inf
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from edm3d.utils import distributed
from edm3d.utils.runs import STOP_FILE


class Reason(NamedTuple):
    """Why a run ends before its time, what status.json will say, and the exit code."""

    why: str
    status: str
    exit_code: int


TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: ended early, start the same command again
REASONS = (Reason(f"the file {STOP_FILE}", "done", 0), Reason("SIGUSR1", "requeue", TRY_AGAIN),
           Reason("SIGHUP", "requeue", TRY_AGAIN), Reason("SIGTERM", "requeue", TRY_AGAIN),
           Reason("Ctrl-C", "requeue", 130))  # where several: the last
BY_SIGNAL = {signal.SIGUSR1: 2, signal.SIGHUP: 3, signal.SIGTERM: 4, signal.SIGINT: 5}
FROM_TORCHRUN = (BY_SIGNAL[signal.SIGHUP], BY_SIGNAL[signal.SIGTERM])  # by which it ends all ranks where one fails
OF_TERMINAL = (signal.SIGHUP, signal.SIGINT)  # ignored by who detaches a program from it: nohup, a shell's `&`
LOOK_SECONDS = 1    # how often rank 0 looks for the file
REPEAT_SECONDS = 1  # a terminal and torchrun may both pass on one Ctrl-C


class Stop:
    """Requests to end a run; while entered, SIGUSR1, SIGHUP, SIGTERM and Ctrl-C are such.

    A second Ctrl-C interrupts at once. SIGHUP and Ctrl-C stay ignored where they were, as nohup and `&` in a script do.
    A file STOP in the run folder is one too, also when it was there before the start.
    """

    def __init__(self, run_dir: Path):
        self.file, self.asked, self.looked, self.interrupted = run_dir / STOP_FILE, 0, -inf, inf
        self.before: dict = {}

    def __enter__(self) -> "Stop":
        self.before = {number: signal.signal(number, self.ask) for number in BY_SIGNAL
                       if number not in OF_TERMINAL or signal.getsignal(number) is not signal.SIG_IGN}
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Put the handlers back. Where an error follows a signal of torchrun's, rank 0 tells of it, and the other ranks
        just end."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if error and distributed.rank() and self.asked in FROM_TORCHRUN:
            signal.raise_signal(signal.SIGTERM)

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: note it and say so."""
        now = time.monotonic()
        if number == signal.SIGINT and now - self.interrupted > REPEAT_SECONDS:
            raise KeyboardInterrupt("a second Ctrl-C")
        if number == signal.SIGINT:
            self.interrupted = min(self.interrupted, now)
        if distributed.rank() == 0 and BY_SIGNAL[number] > self.asked:  # print() is not safe in a signal handler
            write_safely(f"\n{REASONS[BY_SIGNAL[number] - 1].why}: ending after this step\n")
        self.asked = max(self.asked, BY_SIGNAL[number])

    def wish(self) -> int:
        """What this rank has been asked, 0 for nothing; the ranks go by the largest of their wishes."""
        if distributed.rank() == 0 and time.monotonic() - self.looked > LOOK_SECONDS:
            self.looked = time.monotonic()
            self.asked = max(self.asked, int(self.file.exists()))
        return self.asked


def write_safely(text: str) -> None:
    """Write to standard error from within a signal handler, where there is one."""
    if sys.__stderr__ is not None:  # otherwise its number may be that of another file
        with suppress(OSError):
            os.write(2, text.encode())


def reason_of(wish: float) -> Reason | None:
    """Why a run is to end by the wish that its ranks have agreed on, None when it is to go on."""
    return REASONS[int(wish) - 1] if wish else None


def shield_worker(_: int) -> None:
    """Let a data loader's process ignore the signals: its run needs it to the end of the step, and ends it then."""
    for number in BY_SIGNAL:
        signal.signal(number, signal.SIG_IGN)
