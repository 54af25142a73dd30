"""How long waits last, as the environment says."""

from __future__ import annotations

from typing import Any

import pytest

from hyparflow.comm.communicator import Communicator
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


class Passed(Exception):
    """The deadline was looked at."""


@pytest.mark.parametrize("spin", [0.0, 1000.0])
def test_a_wait_looks_at_the_deadline_however_long_it_spins(spin: float) -> None:
    class Alone:
        """A group of one rank, which waits for what does not come."""

        def __init__(self) -> None:
            self.spin = spin

        def Get_rank(self) -> int:
            return 0

        def Get_size(self) -> int:
            return 1

        def check(self, waited: float, what: str) -> None:
            raise Passed(what)

    alone: Any = Alone()
    comm = Communicator(alone, None, alone, Recorder())
    with pytest.raises(Passed, match="what does not come"):
        comm.poll(lambda: False, "what does not come")
