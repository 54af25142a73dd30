"""Refuses anything but plain files: opening a named pipe might wait for ever."""

from __future__ import annotations

import os
import stat

__all__ = ["kind_of", "require_plain"]

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def kind_of(mode: int) -> str:
    """The kind of a file of this mode, in words; an empty string for a plain file."""
    return "" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no plain file")


def require_plain(path: str | os.PathLike[str], rule: str) -> None:
    """Refuse a path that does not lead to a plain file; opens nothing.

    Args:
        path: the path of a file to read.
        rule: the first words of the error, which say what the file must be.

    Raises:
        ValueError: if it is not a plain file, or cannot be examined.
    """
    try:
        kind = kind_of(os.stat(path).st_mode)
    except OSError as error:
        raise ValueError(f"{rule} Received: {path} ({error.strerror})") from error
    if kind:
        raise ValueError(f"{rule} Received: {path}, which is {kind}")
