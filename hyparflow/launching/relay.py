"""Copies a launcher's output, and goes on reading it if it cannot be written."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import IO

__all__ = ["shown"]

_INTERVAL = 0.5  # seconds without output before a check whether the process has ended


@contextlib.contextmanager
def shown(
    process: subprocess.Popen[bytes],
    lost: Callable[[int, OSError], object],
    seen: Callable[[bytes], object] | None = None,
) -> Iterator[None]:
    """While open, copy a process's two streams to this process's.

    A launcher that writes directly stops at a full disk, or drops output without a message.

    Args:
        process: with pipes for both.
        lost: called once for a stream that can no longer be written, with its number and the
            error, in a thread of its own.
        seen: called with each piece of the second stream, in a thread of its own.
    """
    copies = [(process.stdout, 1, None), (process.stderr, 2, seen)]
    threads = [
        threading.Thread(target=_copy, args=(process, source, target, lost, taker), daemon=True)
        for source, target, taker in copies
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join()


def _copy(
    process: subprocess.Popen[bytes],
    source: IO[bytes] | None,
    target: int,
    lost: Callable[[int, OSError], object],
    seen: Callable[[bytes], object] | None,
) -> None:
    is_lost = False
    for piece in _pieces(process, source):
        if seen is not None:
            seen(piece)
        try:
            if not is_lost:
                _write(target, piece)
        except OSError as error:
            is_lost = True
            lost(target, error)


def _pieces(process: subprocess.Popen[bytes], source: IO[bytes] | None) -> Iterator[bytes]:
    """Pieces of output, to the end of the stream or of the process, whose children may keep it."""
    while source is not None:
        has_ended = process.poll() is not None
        if select.select([source], [], [], _INTERVAL)[0]:
            if not (piece := os.read(source.fileno(), 1 << 16)):
                return
            yield piece
        elif has_ended:
            return


def _write(target: int, piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        try:
            rest = rest[os.write(target, rest) :]
        except BlockingIOError:  # another process that shares it made it non-blocking
            select.select([], [target], [])
