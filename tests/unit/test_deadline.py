"""How long waits last, as the environment says."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from hyparflow.comm import abort
from hyparflow.comm.communicator import Communicator
from hyparflow.comm.deadline import Deadline
from hyparflow.comm.recorder import Recorder
from hyparflow.comm.timeout import spin_seconds


def test_how_long_a_waiting_rank_keeps_its_core_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYPARFLOW_SPIN", raising=False)
    assert spin_seconds() is None
    for text, seconds in (("0", 0.0), ("0.25", 0.25)):
        monkeypatch.setenv("HYPARFLOW_SPIN", text)
        assert spin_seconds() == seconds


@pytest.mark.parametrize("text", ["", "-1", "soon", "nan"])
def test_no_number_of_seconds(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("HYPARFLOW_SPIN", text)
    with pytest.raises(ValueError, match=rf"a number of seconds. .*HYPARFLOW_SPIN='{text}'"):
        spin_seconds()


class Group:
    """Ranks, as seen from rank 0."""

    def __init__(self, size: int) -> None:
        self.size = size

    def Get_rank(self) -> int:
        return 0

    def Get_size(self) -> int:
        return self.size


class Passed(Exception):
    """The deadline was looked at."""


@pytest.mark.parametrize("spin", [0.0, 1000.0])
def test_a_wait_looks_at_the_deadline_however_long_it_spins(spin: float) -> None:
    class Alone(Group):
        """A rank that waits for what does not come."""

        def check(self, waited: float, what: str) -> None:
            raise Passed(what)

    alone: Any = Alone(1)
    alone.spin = spin
    comm = Communicator(alone, None, alone, Recorder())
    with pytest.raises(Passed, match="what does not come"):
        comm.poll(lambda: False, "what does not come")


class Ended(Exception):
    """The job was ended."""


def ended(monkeypatch: pytest.MonkeyPatch, age: float) -> tuple[list[str], list[float]]:
    """What rank 0 of three says, and how long it sleeps, on two notices that it hears at once."""
    said: list[str] = []
    slept: list[float] = []
    notices = [
        {"rank": rank, "leaving": False, "status": "waits", "states": {}, "board": {}}
        | {"at": time.time() - age}
        for rank in (1, 2)
    ]

    class Three(Group):
        """Notices to others are lost."""

        def Iprobe(self, source: int, tag: int) -> bool:
            return bool(notices)

        def recv(self, source: int, tag: int) -> Any:
            return notices.pop(0)

        def isend(self, data: Any, rank: int, tag: int) -> None: ...

    def end(status: int) -> None:
        raise Ended

    monkeypatch.setattr(abort, "say", said.append)
    monkeypatch.setattr(abort, "abort", end)
    monkeypatch.setattr(time, "sleep", slept.append)
    mpi: Any = SimpleNamespace(ANY_SOURCE=-1)
    board: Any = SimpleNamespace(read=lambda: {})
    watch: Any = SimpleNamespace(states=lambda: {})
    with pytest.raises(Ended):
        Deadline(mpi, Three(3), board, watch).check(1.0, "a message")
    return said, slept


def test_several_ranks_that_answer_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said, slept = ended(monkeypatch, 0.0)
    assert len(said) == 1 and "All ranks answer" in said[0]
    assert not slept


def test_a_rank_that_was_stopped_lets_others_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is let go on to be ended: if nobody does, it reports after a while."""
    said, slept = ended(monkeypatch, 5.0)
    assert len(said) == 1 and sum(slept) >= 4


def test_a_wait_beside_others_has_its_own_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the others look at theirs."""

    class Alone(Group):
        """A rank that nobody tells anything."""

        def Iprobe(self, source: int, tag: int) -> bool:
            return False

    def end(status: int) -> None:
        raise Ended

    said: list[str] = []
    monkeypatch.setattr(abort, "say", said.append)
    monkeypatch.setattr(abort, "abort", end)
    mpi: Any = SimpleNamespace(ANY_SOURCE=-1)
    board: Any = SimpleNamespace(read=lambda: {})
    watch: Any = SimpleNamespace(states=lambda: {})
    deadline = Deadline(mpi, Alone(1), board, watch)
    deadline.check(0.1, "a short window")
    with pytest.raises(Ended):
        deadline.check(deadline.seconds + 1.0, "a long window")
    assert "waits for a long window" in said[0]
