"""The note of how far a training has come, which outlives the rank that writes it."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from hyparflow.launching.progress_note import VARIABLE, Reached, make_note, read_note

NOTES = """
import os, signal
from hyparflow.launching.progress_note import note_progress, note_saved
note_progress(0, 1)
note_saved(1)
note_progress("no", None)
note_progress(2, 7)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("rank", "step"), [("0", 7), ("1", -1)])
def test_a_note_outlives_its_rank(tmp_path: pathlib.Path, rank: str, step: int) -> None:
    note = tmp_path / "note"
    make_note(note)
    assert read_note(note) == Reached()
    known = os.environ | {VARIABLE: str(note), "PMI_RANK": rank, "PMI_SIZE": "2"}
    ended = subprocess.run([sys.executable, "-c", NOTES], env=known, check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    found = read_note(note)
    assert found.step == step
    if step > 0:
        assert (found.epoch, found.saved) == (2, 1)
        assert 0 < found.first_at <= found.saved_at <= found.at


def test_a_note_that_is_not_there(tmp_path: pathlib.Path) -> None:
    known = os.environ | {VARIABLE: str(tmp_path / "none")}
    ended = subprocess.run([sys.executable, "-c", NOTES], env=known, check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL  # and no error before
    assert read_note(tmp_path / "none") == Reached()
