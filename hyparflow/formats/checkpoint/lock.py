"""Lets one training at a time save into a folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["LOCK", "locked"]

LOCK = "lock"  # the file's name, whose text says who has it
_CANNOT_LOCK = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # as some file systems
_HELD = (errno.EACCES, errno.EAGAIN)
# A process that was killed has gone by then, and a file server has given up a host that is lost.
_SECONDS_HERE, _SECONDS_ELSEWHERE = 3.0, 120.0
_PAUSE = 0.1


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """While open, no other process gets the folder; a process that dies gives it back.

    A file system that cannot lock lets everybody have it.

    Raises:
        ValueError: if another process has it, and keeps it.
        OSError: if nothing can be written there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _wait(descriptor, folder)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{socket.gethostname()} {os.getpid()}\n".encode())
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _wait(descriptor: int, folder: Path) -> None:
    begun = time.monotonic()
    while not _has(descriptor):
        host, _, process = os.pread(descriptor, 300, 0).decode(errors="replace").partition(" ")
        is_here = host == socket.gethostname()
        if time.monotonic() - begun > (_SECONDS_HERE if is_here else _SECONDS_ELSEWHERE):
            raise ValueError(
                "One training at a time saves into a folder. Received: "
                f"checkpoint={str(folder)!r}, into which process {process.strip() or 'unknown'} "
                f"on {host or 'another host'} saves. Wait for its end, or choose another folder."
            )
        time.sleep(_PAUSE)


def _has(descriptor: int) -> bool:
    """Whether this process has the lock now."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        if error.errno not in _CANNOT_LOCK:
            raise
    return True
