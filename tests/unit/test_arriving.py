"""Objects that arrive while a rank does other work keep their deadline."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from hyparflow.comm.arriving import ArrivingObject
from hyparflow.comm.communicator import Communicator
from hyparflow.comm.recorder import Recorder


class Passed(Exception):
    """The deadline was looked at."""


class Message:
    """A message that has come after some looks at it."""

    def __init__(self, array: np.ndarray, data: bytes, looks: int) -> None:
        self._array, self._data, self._looks = array, data, looks

    def Test(self) -> bool:
        self._looks -= 1
        if self._looks < 0:
            self._array[:] = np.frombuffer(self._data, np.uint8)
        return self._looks < 0


class Sender:
    """The other rank of two, whose messages each need some looks; the deadline as well."""

    BYTE = None

    def __init__(self, messages: list[bytes], looks: int, most: int = 100) -> None:
        self.messages, self.looks, self.most = messages, looks, most
        self.checked: list[str] = []

    def Get_rank(self) -> int:
        return 0

    def Get_size(self) -> int:
        return 2

    def Irecv(self, place: list[Any], peer: int, tag: int) -> Message:
        assert (peer, tag) == (1, 5)
        return Message(place[0], self.messages.pop(0), self.looks)

    def check(self, waited: float, what: str) -> None:
        self.checked.append(what)
        if len(self.checked) > self.most:
            raise Passed(what)


def arriving(sender: Any) -> ArrivingObject:
    return ArrivingObject(Communicator(sender, sender, sender, Recorder()), 1, 5, "an answer")


def test_it_is_there_after_some_looks() -> None:
    data = pickle.dumps({"tokens": [1, 2]})
    sender = Sender([len(data).to_bytes(8, "little"), data], looks=2)
    found = arriving(sender)
    assert [found.advance() for _ in range(4)] == [False, False, False, False]
    assert found.advance()
    assert found.value == {"tokens": [1, 2]}
    assert sender.checked == ["an answer"] * 4


def test_one_that_never_comes_ends_the_job() -> None:
    found = arriving(Sender([b""], looks=1000, most=7))
    with pytest.raises(Passed, match="an answer"):
        for _ in range(20):
            found.advance()
