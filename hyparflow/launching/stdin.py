"""Hands this process's standard input to rank 0, which reads it to its end.

Launchers forward it, but Open MPI never tells a rank that it has ended.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

__all__ = ["NAME", "handed_to_rank_0"]

NAME = "input"  # of the socket in the job's folder


@contextlib.contextmanager
def handed_to_rank_0(folder: Path) -> Iterator[None]:
    """While open, whoever connects to the socket in `folder` is given the standard input.

    The descriptor itself is given, so that nothing is read of it that the rank does not read. A
    rank that finds no socket has an empty input.
    """
    if not _has_input():
        yield
        return
    with socket.socket(socket.AF_UNIX) as server:
        place = os.open(folder, os.O_RDONLY)
        try:
            # Not by the folder's name, which may be longer than a socket's address.
            server.bind(f"/proc/self/fd/{place}/{NAME}")
        except OSError:  # another system than Linux
            server.bind(str(folder / NAME))
        finally:
            os.close(place)
        server.listen(1)
        threading.Thread(target=_give, args=(server,), daemon=True).start()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)  # ends the wait for a rank


def _give(server: socket.socket) -> None:
    """Give it to the first; another that believes to be rank 0 is told that there is none."""
    is_given = False
    with contextlib.suppress(OSError):
        while True:
            peer, _ = server.accept()
            with peer:
                if is_given:
                    peer.sendall(b"0")
                else:
                    socket.send_fds(peer, [b"0"], [0])
                is_given = True


def _has_input() -> bool:
    """Whether there is a standard input, and this process may read it now."""
    if sys.__stdin__ is None:  # closed
        return False
    try:
        return not os.isatty(0) or os.tcgetpgrp(0) == os.getpgrp()  # in the foreground
    except OSError:  # a terminal that does not control this process
        return True
