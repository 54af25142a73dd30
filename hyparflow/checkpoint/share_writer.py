"""Writes one rank's share of a checkpoint, at once or while training goes on.

No thread but the main one talks to other ranks. The leader's thread waits for the records of all
ranks before it commits the checkpoint.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hyparflow.checkpoint.share_files import (
    ShareRecord,
    read_share,
    write_failure,
    write_share,
)
from hyparflow.checkpoint.stored_part import StoredPart
from hyparflow.comm.timeout import timeout_seconds

__all__ = ["Commit", "ShareWriter"]

Commit = Callable[[list[ShareRecord]], object]

_PAUSE = 0.02  # seconds from one look for the records of other ranks to the next


class ShareWriter:
    """Writes shares, one after another.

    Args:
        rank: this rank.
        num_ranks: how many there are.
        is_asynchronous: whether a thread writes.
    """

    def __init__(self, rank: int, num_ranks: int, is_asynchronous: bool) -> None:
        self._rank, self._num_ranks = rank, num_ranks
        self._is_asynchronous = is_asynchronous
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._seconds = timeout_seconds()

    def write(self, folder: Path, parts: Sequence[StoredPart], commit: Commit | None) -> None:
        """Write a share; the one before has been waited for.

        Args:
            folder: of the checkpoint.
            parts: what to write.
            commit: on the leader, called with what all ranks have written.
        """
        if self._is_asynchronous:
            arguments = folder, parts, commit
            self._thread = threading.Thread(target=self._work, args=arguments, daemon=True)
            self._thread.start()
        else:
            self._work(folder, parts, commit)

    def wait(self) -> Exception | None:
        """Wait until the last share is written; returns the error, if that failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        return error

    def _work(self, folder: Path, parts: Sequence[StoredPart], commit: Commit | None) -> None:
        try:
            try:
                write_share(folder, self._rank, parts)
            except Exception as error:  # a full disk, memory, a type that has no place in the file
                write_failure(folder, self._rank, error)
                raise
            if commit is not None:
                self._commit(folder, commit)
        except Exception as error:  # told to the main thread
            self._error = error

    def _commit(self, folder: Path, commit: Commit) -> None:
        shares: list[ShareRecord] = []
        last = time.monotonic() + self._seconds
        while (rank := len(shares)) < self._num_ranks:
            share = read_share(folder, rank)
            if share is not None and share.error:
                raise OSError(f"rank {rank}: {share.error}")
            if share is not None:
                shares.append(share)
            elif time.monotonic() > last:
                raise OSError(f"rank {rank} has written nothing in {self._seconds:g} s")
            else:
                time.sleep(_PAUSE)
        commit(shares)
