"""What is no plain file is not opened: a named pipe that nobody writes to may be waited for."""

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
    """What a file of this mode is, in words; empty for a plain one."""
    return "" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no plain file")


def require_plain(path: str | os.PathLike[str], rule: str) -> None:
    """Refuse what is no plain file, or leads to none; opens nothing.

    Args:
        path: of something that is read.
        rule: says what it must be; begins the error.

    Raises:
        ValueError: if it is something else, or cannot be looked at.
    """
    try:
        kind = kind_of(os.stat(path).st_mode)
    except OSError as error:
        raise ValueError(f"{rule} Received: {path} ({error.strerror})") from error
    if kind:
        raise ValueError(f"{rule} Received: {path}, which is {kind}")
