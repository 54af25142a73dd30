"""A rank's program gets each signal once, whomever the launcher signals."""

from __future__ import annotations

import pathlib
import signal
import subprocess
import sys
import time

import pytest

import hyparflow.launching.rank_process

PROGRAM = """
import signal, sys, time

heard = []
signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
open(sys.argv[1], "w").close()
end = time.monotonic() + 1.5
while time.monotonic() < end:
    time.sleep(0.01)
print("heard", len(heard))
"""


@pytest.mark.parametrize(
    ("leads_group", "heard"),
    [(True, 0), (False, 1)],
    ids=["a group is signalled as a whole", "a single process is"],
)
def test_who_passes_a_signal_on(tmp_path: pathlib.Path, leads_group: bool, heard: int) -> None:
    """Only this process is signalled here, so the program hears what is passed on."""
    (tmp_path / "program.py").write_text(PROGRAM)
    words = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "ready")]
    rank = [
        sys.executable,
        hyparflow.launching.rank_process.__file__,
        "all",
        str(tmp_path / "record"),
    ]
    process = subprocess.Popen(
        [*rank, *(f"={word}" for word in words)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=leads_group,
    )
    end = time.monotonic() + 30
    while not (tmp_path / "ready").exists() and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out == f"[0] heard {heard}\n"
