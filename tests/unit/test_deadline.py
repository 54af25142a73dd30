"""How long waits last, as the environment says."""

from __future__ import annotations

import pytest

from hyparflow.limits import spin_seconds


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
