"""One process at a time has a folder; one that dies gives it back."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hyparflow.formats.checkpoint import lock
from hyparflow.formats.checkpoint.lock import LOCK, locked

HOLDS = """
import sys, time
from pathlib import Path
from hyparflow.formats.checkpoint.lock import locked
with locked(Path(sys.argv[1])):
    print("has it", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "has it\n"
    yield process
    process.kill()
    process.wait()


def test_another_process_is_refused(
    holder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_SECONDS_HERE", 0.3)
    with (
        pytest.raises(ValueError, match=rf"One training at a time .* process {holder.pid} on "),
        locked(tmp_path),
    ):
        pass


def test_a_process_on_a_lost_host_is_waited_for(
    holder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file server gives the folder back, which ends the wait."""
    (tmp_path / LOCK).write_text("elsewhere 7\n")
    monkeypatch.setattr(lock, "_SECONDS_HERE", 0.0)
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            holder.send_signal(signal.SIGKILL)
            holder.wait()

    monkeypatch.setattr(lock.time, "sleep", pause)
    with locked(tmp_path):
        assert len(pauses) == 3
        assert (tmp_path / LOCK).read_text().split()[1] == str(os.getpid())


def test_it_is_given_back(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path / "new"):
            assert (tmp_path / "new" / LOCK).stat().st_size
        assert not (tmp_path / "new" / LOCK).stat().st_size


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "lockf", refuses)
    with locked(tmp_path):
        assert (tmp_path / LOCK).exists()
