"""Messages of other ranks whose sizes this rank does not know.

MPI tells the size of a message that has arrived before it is received (a matched probe, MPI-3.1,
section 3.8.2). So sizes need no messages of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from hyparflow.comm.aligned import aligned
from hyparflow.comm.byte_chunks import longest_chunk

__all__ = ["UnsizedMessages"]


class UnsizedMessages:
    """One message of each of some ranks, in pieces if it is long; see `unsized_chunks`.

    Args:
        comm: an mpi4py communicator.
        mpi: the mpi4py.MPI module.
        peers: the ranks that send.
        tag: of the messages.
    """

    def __init__(self, comm: Any, mpi: Any, peers: Iterable[int], tag: int) -> None:
        self._comm, self._mpi, self._tag = comm, mpi, tag
        self._status = mpi.Status()
        self._pieces: dict[int, list[np.ndarray]] = {peer: [] for peer in peers}
        self._awaited = set(self._pieces)
        self._handles: list[Any] = []

    def advance(self) -> bool:
        """Receive what has arrived; returns whether all messages are here."""
        for peer in list(self._awaited):
            message = self._comm.Improbe(peer, self._tag, self._status)
            if message is not None:
                self._receive(message, peer)
        self._handles = [handle for handle in self._handles if not handle.Test()]
        return not self._awaited and not self._handles

    def of(self, peer: int) -> np.ndarray:
        """The bytes of a rank's message, once all are here."""
        pieces = self._pieces[peer]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _receive(self, message: Any, peer: int) -> None:
        piece = aligned([self._status.Get_count(self._mpi.BYTE)], np.uint8)
        self._handles.append(message.Irecv([piece, self._mpi.BYTE]))
        self._pieces[peer].append(piece)
        if piece.size < longest_chunk():
            self._awaited.discard(peer)  # a full piece has another one behind it
