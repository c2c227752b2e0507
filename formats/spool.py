"""The file that HDF5 writes to: one that takes every write, so that a full disk is an error of ours and not a crash."""

import os
from collections.abc import Callable
from pathlib import Path


class Spool:
    """A new file as h5py takes it (seek, read, write, truncate), which never refuses a write.

    HDF5 crashes the process when a write of its fails, at the latest when the process ends. So what the disk refuses
    is kept in memory, and `check` raises what `describe` makes of the refusal; who writes must call it now and then.
    """

    def __init__(self, path: Path, describe: Callable[[OSError], OSError]):
        self._path, self._describe = path, describe
        self._error: OSError | None = None
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self._place, self._end = 0, 0
        self._kept: list[tuple[int, bytes]] = []  # writes that the disk refused, and all after them

    def __repr__(self) -> str:
        return str(self._path)

    def check(self) -> None:
        """Raise OSError if the disk refused a write."""
        if self._error is not None:
            raise self._describe(self._error) from self._error

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place; returns it."""
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._end}[whence]
        return self._place

    def tell(self) -> int:
        """The present place."""
        return self._place

    def write(self, data: memoryview | bytes) -> int:
        """Write at the present place."""
        content, done = memoryview(data).cast("B"), 0
        while self._error is None and done < len(content):
            try:
                done += os.pwrite(self._handle, content[done:], self._place + done)
            except OSError as error:
                self._error = error
        if done < len(content):
            self._kept.append((self._place + done, bytes(content[done:])))
        self._place += len(content)
        self._end = max(self._end, self._place)
        return len(content)

    def read(self, size: int) -> bytes:
        """Read from the present place; what was never written is zero."""
        content = bytearray(size)
        whole = os.pread(self._handle, size, self._place)
        content[:len(whole)] = whole
        for place, kept in self._kept:
            first, last = max(place, self._place), min(place + len(kept), self._place + size)
            if first < last:
                content[first - self._place:last - self._place] = kept[first - place:last - place]
        self._place += size
        return bytes(content)

    def truncate(self, size: int) -> int:
        """Make the file end at `size`."""
        if self._error is None:
            try:
                os.ftruncate(self._handle, size)
            except OSError as error:
                self._error = error
        self._end = size
        return size

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)
