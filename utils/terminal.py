"""Standard output and error as our programs use them: nothing that cannot be written or shown there ends any work."""

import errno
import io
import os
import select
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from edm3d.utils.names import printable

OF_SIGPIPE = 141  # the exit code that a shell gives for what SIGPIPE has ended


class Device(io.FileIO):
    """A descriptor that takes everything: what cannot be written, as to a closed pipe or a full disk, is dropped.

    is_product: what is printed is what the program was started for. Then, once, the error is raised, or, where nobody
    reads any more, the program ends in silence.
    """

    is_product = False

    def write(self, data: Any) -> int:
        """Write, and wait where a pipe is full that somebody else has made non-blocking; how many bytes were taken."""
        try:
            while (written := super().write(data)) is None:
                select.select([], [self], [])
        except OSError as e:
            if self.is_product:
                self.is_product = False  # what waits in buffers is flushed again at the end
                if e.errno == errno.EPIPE:
                    raise SystemExit(OF_SIGPIPE) from e
                raise OSError(e.errno, f"standard output cannot be written ({e.strerror})") from e
            return memoryview(data).nbytes
        return written


class Screen:
    """A text stream on which everything is printable (utils/names.py), whoever prints it; bars go to its `stream`."""

    buffer = None  # where the encoding is ASCII, click would print past this stream, into its buffer

    def __init__(self, stream: IO[str]):
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text."""
        if not isinstance(text, str):  # by this click tells streams of text and of bytes apart
            raise TypeError(f"wanted text, not {type(text).__name__}")
        return self.stream.write(printable(text))

    def writelines(self, lines: Iterable[str]) -> None:
        """Write texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def sturdy_streams() -> Iterator[None]:
    """Standard output and error that take everything, and show no terminal escapes, while the block lasts."""
    if isinstance(sys.stdout, Screen):
        yield
        return
    hold_places()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Screen(sturdy(sys.stdout, 1)), Screen(sturdy(sys.stderr, 2))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def hold_places() -> None:
    """Put something where standard streams were closed at the start (`>&-`): a data file would get their number, and
    what libraries print."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free


def sturdy(stream: IO[str] | None, number: int) -> IO[str]:
    """A text stream on a Device and for all letters, in place of a standard one; None: it was closed at the start.

    Another stream, as that of a notebook or of a test, is given back as it is.
    """
    if stream is None:
        number, encoding, by_line = os.open(os.devnull, os.O_WRONLY), "utf-8", False
    elif number_of(stream) == number:
        stream.flush()
        encoding, by_line = stream.encoding, stream.line_buffering
    else:
        return stream
    return io.TextIOWrapper(io.BufferedWriter(Device(number, "w", closefd=False)), encoding, "backslashreplace",
                            line_buffering=by_line)


def number_of(stream: IO[str]) -> int | None:
    """The descriptor of a stream, None where it has none."""
    try:
        return stream.fileno()
    except (AttributeError, OSError, ValueError):
        return None


def printing_is_all() -> None:
    """Say that the program was started for what it prints: it ends where that cannot be written."""
    device = getattr(getattr(getattr(sys.stdout, "stream", None), "buffer", None), "raw", None)
    if isinstance(device, Device):
        device.is_product = True
