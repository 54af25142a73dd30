"""What of a rank's output `hyparflow run` leaves out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hyparflow.launching.rank_process import Sink

HEAD = b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
ONEDNN = (
    b"I0000 00:00:1795833636.990371   10687 port.cc:153] oneDNN custom operations are on. You may "
    b"see slightly different numerical results due to floating-point round-off errors.\n"
)
KEPT = (
    b"W0000 00:00:1795833636.990371   10687 gpu_device.cc:2342] Cannot dlopen some GPU libraries.\n"
    b"before " + ONEDNN + b"ValueError: oneDNN custom operations are on.\n"
)


@pytest.mark.parametrize("level", [None, "0", "2"])
def test_notices_that_no_level_keeps_from_users(
    level: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    if level is not None:
        monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", level)
    reading, writing = os.pipe()
    os.write(writing, HEAD + ONEDNN + KEPT + HEAD + ONEDNN)
    os.close(writing)
    with open(reading, "rb") as source, open(tmp_path / "shown", "wb") as shown:
        Sink(0, "leader", str(tmp_path / "record")).take(source, shown.fileno())
    everything = HEAD + ONEDNN + KEPT + HEAD + ONEDNN
    assert (tmp_path / "shown").read_bytes() == (everything if level == "0" else KEPT)
