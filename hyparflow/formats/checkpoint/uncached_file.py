"""A new file that is written past the system's cache of files, where the file system can do that.

A checkpoint is seldom read again: in the cache it takes memory, which a machine may first have to
find, and the processor's time to copy it there, from training that goes on beside.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from types import TracebackType

import numpy as np

__all__ = ["UncachedFile"]

_ROOM = 2**23  # bytes written at once, a multiple of every block's size
_UNCACHED = getattr(os, "O_DIRECT", 0)  # Linux's


class UncachedFile:
    """A file that is not there yet, opened for writing from its start to its end.

    Disks take whole blocks from memory that begins at a page, so what comes is gathered first.
    Where a file system refuses that, also in the middle, the file is written as any other.

    Args:
        path: of the file.

    Raises:
        FileExistsError: if there is something at `path`.
        OSError: if it cannot be written, here and in the methods.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o666)
        self._is_uncached = False
        self._room = np.frombuffer(mmap.mmap(-1, _ROOM), np.uint8)
        self._filled = 0
        self._bypass_cache(True)

    def __enter__(self) -> UncachedFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._file)

    def write(self, piece: bytes | memoryview) -> None:
        """Take the next bytes."""
        given = np.frombuffer(piece, np.uint8)
        while given.size:
            now = min(given.size, _ROOM - self._filled)
            self._room[self._filled : self._filled + now] = given[:now]
            self._filled, given = self._filled + now, given[now:]
            if self._filled == _ROOM:
                self._empty_room()

    def sync(self) -> None:
        """Write what is left, and wait until the disk has all."""
        self._bypass_cache(False)  # the last block may be a part of one
        self._empty_room()
        os.fsync(self._file)

    def _empty_room(self) -> None:
        left = self._room[: self._filled].data
        while left:
            left = left[self._write_some(left) :]
        self._filled = 0

    def _write_some(self, data: memoryview) -> int:
        """How many of the bytes could be written at once."""
        try:
            return os.write(self._file, data)
        except OSError as error:
            if not self._is_uncached or error.errno != errno.EINVAL:
                raise
        self._bypass_cache(False)
        return os.write(self._file, data)

    def _bypass_cache(self, wanted: bool) -> None:
        """Write past the cache from now on, if the file system lets that be; or no longer."""
        if wanted == self._is_uncached or not _UNCACHED:
            return
        flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
        flags = flags | _UNCACHED if wanted else flags & ~_UNCACHED
        try:
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
            return
        self._is_uncached = wanted
