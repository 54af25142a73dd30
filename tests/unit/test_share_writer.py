"""Writers of shares: what the leader learns of a rank that could not write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hyparflow.checkpoint.share_files import ShareRecord
from hyparflow.checkpoint.share_writer import ShareWriter
from hyparflow.checkpoint.stored_part import StoredPart


def test_the_leader_learns_why_a_rank_has_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of errors that no disk has made, and without waiting for the deadline."""
    monkeypatch.setenv("HYPARFLOW_TIMEOUT", "5")
    leader, other = (ShareWriter(rank, 2, is_asynchronous=False) for rank in range(2))
    other.write(tmp_path, [StoredPart("a", (1,), 0, np.zeros(1, "complex128"))], None)
    assert isinstance(other.wait(), ValueError)
    committed: list[list[ShareRecord]] = []
    leader.write(tmp_path, [StoredPart("b", (1,), 0, np.zeros(1, "float32"))], committed.append)
    error = leader.wait()
    assert isinstance(error, OSError) and str(error).startswith("rank 1: "), error
    assert "complex128" in str(error) and not committed
