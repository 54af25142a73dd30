"""Hands this process's standard input to rank 0, which reads it to its end.

Launchers forward the input, but with Open MPI a rank never sees its end.
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

NAME = "input"  # name of the socket in the job's folder


@contextlib.contextmanager
def handed_to_rank_0(folder: Path) -> Iterator[None]:
    """While open, the first process that connects to the socket in `folder` gets the input.

    It gets the descriptor itself, so that only the rank reads from it. A rank that finds no socket
    has an empty input.
    """
    if not _has_input():
        yield
        return
    with socket.socket(socket.AF_UNIX) as server:
        place = os.open(folder, os.O_RDONLY)
        try:
            # By a descriptor: the folder's path may be too long for a socket's address.
            server.bind(f"/proc/self/fd/{place}/{NAME}")
        except OSError:  # not Linux
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
    """Give the input to the first process; others that claim to be rank 0 get none."""
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
