"""Reads a part of a file that stays the file it was, whatever happens to its name."""

from __future__ import annotations

import io
import os
import weakref
from pathlib import Path
from typing import Any

__all__ = ["FilePart", "OpenFile", "open_files"]

_OPEN: weakref.WeakSet[OpenFile] = weakref.WeakSet()


class OpenFile:
    """A file that is open for reading as long as anyone holds this object.

    A file that replaces it under its name changes nothing here; writing into it is noticed.

    Attributes:
        key: equal for files that other processes open and that look the same.

    Args:
        path: the file's.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._descriptor = os.open(path, os.O_RDONLY)
        found = os.fstat(self._descriptor)
        self._state = found.st_size, found.st_mtime_ns
        self.key = (self.path.name, *self._state)
        _OPEN.add(self)

    @property
    def size(self) -> int:
        """In bytes."""
        return self._state[0]

    @property
    def is_in_place(self) -> bool:
        """Whether the file is still the one under its name."""
        try:
            there = self.path.stat()
        except OSError:
            return False
        return os.path.samestat(there, os.fstat(self._descriptor))

    def read(self, offset: int, into: Any) -> None:
        """Fill the buffer `into` with the bytes from `offset` on.

        Raises:
            OSError: if the file has changed since it was opened, or ends before.
        """
        rest, place = memoryview(into).cast("B"), offset
        while rest:
            count = os.preadv(self._descriptor, [rest], place)
            if count == 0:
                raise self._changed()
            rest, place = rest[count:], place + count
        found = os.fstat(self._descriptor)
        if (found.st_size, found.st_mtime_ns) != self._state:
            raise self._changed()

    def _changed(self) -> OSError:
        return OSError(
            "A file of weights must stay as it is until they are read, which is when they are "
            f"needed. Received: {self.path}, into which something wrote meanwhile. Write to "
            "another name, or load the file again."
        )

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


def open_files() -> list[Path]:
    """The files that are held open, as long as each is still found under its name."""
    return [file.path for file in list(_OPEN) if file.is_in_place]


class FilePart(io.RawIOBase):
    """A part of a file as a file of its own.

    Args:
        file: the file.
        start, size: of the part, in bytes.
    """

    def __init__(self, file: OpenFile, start: int, size: int) -> None:
        super().__init__()
        self.file, self.start = file, start
        self._size, self._place = size, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of files."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = base + offset
        return self._place

    def tell(self) -> int:
        """As of files."""
        return self._place

    def readinto(self, buffer: Any) -> int:
        """As of files."""
        room = memoryview(buffer).cast("B")
        count = max(0, min(len(room), self._size - self._place))
        self.file.read(self.start + self._place, room[:count])
        self._place += count
        return count
