"""An object that another rank sends, which is received while this rank does other work."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np

from hyparflow.comm.communicator import Communicator
from hyparflow.comm.requests import Pending, Together
from hyparflow.comm.timeout import Waiting

__all__ = ["ArrivingObject"]


class ArrivingObject(Pending):
    """What `Communicator.send_object` sends; the deadline is kept while one looks for it.

    Args:
        ranks: this one's, and the sender's.
        peer: the sender.
        tag: of the messages.
        what: names it in the deadline's report.
    """

    def __init__(self, ranks: Communicator, peer: int, tag: int, what: str) -> None:
        self._ranks, self._name, self._waiting = ranks, what, Waiting()
        self._data = np.empty(0, np.uint8)
        super().__init__(self._messages(peer, tag), ranks.poll, what)

    def advance(self) -> bool:
        """See `Pending.advance`. Ends the job if the object takes longer than the deadline."""
        if super().advance():
            return True
        self._ranks.keep_deadline(self._waiting, self._name)
        return False

    @property
    def value(self) -> Any:
        """The object, once it is here."""
        return pickle.loads(self._data.tobytes())

    def _messages(self, peer: int, tag: int) -> Iterator[Together]:
        size = np.zeros(1, np.int64)
        yield self._received(size, peer, tag)
        self._data = np.empty(int(size[0]), np.uint8)
        yield self._received(self._data, peer, tag)

    def _received(self, array: np.ndarray, peer: int, tag: int) -> Together:
        return Together([part.handle for part in self._ranks.receive(array, peer, tag)])
