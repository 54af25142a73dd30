"""What HYPARFLOW_DEBUG=comm prints, and who asks for it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from hyparflow.comm.message_log import MessageLog, wants_messages


def test_a_line_for_each_message(capsys: pytest.CaptureFixture[str]) -> None:
    log = MessageLog([1, 3], 1)
    log.sends(np.zeros((2, 3), np.float32), 0, 7)
    log.receives(np.zeros(4, np.int64), 0, 8)
    log.broadcasts(np.zeros(5, np.uint8), 1)
    log.sums(np.zeros(6))
    lines = [re.sub(r"^[\d:.]{12} ", "", line) for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "hyparflow: rank 3 sends to rank 1, tag 7: float32 (2, 3)",
        "hyparflow: rank 3 receives from rank 1, tag 8: int64 (4,)",
        "hyparflow: rank 3 takes part in a broadcast of rank 3: uint8 (5,)",
        "hyparflow: rank 3 takes part in a sum of ranks 1, 3: float64 (6,)",
    ]


def test_who_asks() -> None:
    assert not wants_messages({})
    assert not wants_messages({"HYPARFLOW_DEBUG": ""})
    assert wants_messages({"HYPARFLOW_DEBUG": "comm"})
    with pytest.raises(ValueError, match="takes comm. Received: com, mpi"):
        wants_messages({"HYPARFLOW_DEBUG": "com,mpi"})
