"""Shows what a launcher writes, and goes on taking it when it cannot be shown."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import IO

__all__ = ["shown"]

_INTERVAL = 0.5  # seconds without output after which the end of the process is looked for


@contextlib.contextmanager
def shown(
    process: subprocess.Popen[bytes], lost: Callable[[int, OSError], object]
) -> Iterator[None]:
    """While open, copy a process's two streams to this process's.

    A launcher that writes by itself is stopped by a full disk, or drops output without a word.

    Args:
        process: with pipes for both.
        lost: called once for a stream that can no longer be written, with its number and the
            error, in a thread of its own.
    """
    pairs = [(process.stdout, 1), (process.stderr, 2)]
    threads = [
        threading.Thread(target=_copy, args=(process, source, target, lost), daemon=True)
        for source, target in pairs
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
) -> None:
    is_lost = False
    for piece in _pieces(process, source):
        try:
            if not is_lost:
                _write(target, piece)
        except OSError as error:
            is_lost = True
            lost(target, error)


def _pieces(process: subprocess.Popen[bytes], source: IO[bytes] | None) -> Iterator[bytes]:
    """What comes, to the end of the stream or of the process, whose children may hold it open."""
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
        except BlockingIOError:  # somebody made it so, who shares it
            select.select([], [target], [])
