"""What long work shows while it goes on: a line of a terminal, or lines of the logger."""

from __future__ import annotations

import io
import logging
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyparflow.comm import log, progress, terminal_line

HEAD = """
import sys, time, warnings
from hyparflow.comm import log, progress
progress._SOON, progress._FIRST, progress._BETWEEN, progress._REDRAWN = 0.3, 0.4, 0.4, 0.1
log.configure()
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lines come soon; the logger is left as it was."""
    for name, seconds in (("_SOON", 0.1), ("_FIRST", 0.15), ("_BETWEEN", 0.2)):
        monkeypatch.setattr(progress, name, seconds)
    level, handlers = log.STATUS.level, list(log.STATUS.handlers)
    log.STATUS.setLevel(logging.INFO)
    yield
    log.STATUS.setLevel(level)
    log.STATUS.handlers[:] = handlers


def on_a_terminal(script: str, **variables: str) -> str:
    """What a terminal of 60 columns gets from `script`."""
    leader, follower = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OMPI_")}
    environment = {**kept, "TERM": "xterm", "COLUMNS": "60", **variables}
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD + script],
        stdin=follower, stdout=follower, stderr=follower, env=environment,
    )  # fmt: skip
    os.close(follower)
    found = b""
    while True:
        try:
            piece = os.read(leader, 4096)
        except OSError:  # the end of a terminal
            break
        if not piece:
            break
        found += piece
    os.close(leader)
    assert process.wait() == 0, found
    return found.decode()


def screen(raw: str) -> list[str]:
    """The lines that are on the screen after `raw`, of the few codes that are used here."""
    lines, column = [""], 0
    position = 0
    while position < len(raw):
        if raw.startswith("\x1b[2K", position):
            lines[-1], position = "", position + 4
            continue
        letter = raw[position]
        position += 1
        assert letter != "\x1b", raw[position - 1 : position + 10]
        if letter == "\r":
            column = 0
        elif letter == "\n":
            lines.append("")
        else:
            lines[-1] = lines[-1][:column].ljust(column) + letter + lines[-1][column + 1 :]
            column += 1
    return lines


def lines_of(seconds: float, **arguments: object) -> list[str]:
    """The lines of work that takes so long."""
    found: list[str] = []
    with progress.progress("planning", log=found.append, **arguments) as one:  # type: ignore[arg-type]
        one.say("3 of 13")
        time.sleep(seconds)
    return found


def test_short_work_shows_nothing() -> None:
    assert lines_of(0.0) == []


def test_long_work_is_told_of_now_and_then() -> None:
    found = lines_of(0.9)
    assert 2 <= len(found) <= 5
    assert set(found) == {"hyparflow: planning, 0 s: 3 of 13"}


def test_the_time_is_told() -> None:
    one = progress.Progress("compiling", lambda: "stage 1")
    one._began -= 12.4
    assert one.line() == "hyparflow: compiling, 12 s: stage 1"
    one._began -= 3600
    assert one.line() == "hyparflow: compiling, 60 min 12 s: stage 1"
    assert progress.Progress("building").line() == "hyparflow: building, 0 s"


def test_silence_is_kept() -> None:
    assert lines_of(0.4, is_shown=False) == []
    log.STATUS.setLevel(logging.WARNING)  # as HYPARFLOW_LOG=WARNING
    assert lines_of(0.4) == []


def test_work_within_work_shows_the_outer_one() -> None:
    with progress.progress("planning", log=lambda text: None):
        assert lines_of(0.4) == []
    assert lines_of(0.4) != []


def test_work_that_fails_ends_the_line() -> None:
    found: list[str] = []
    with pytest.raises(ZeroDivisionError), progress.progress("planning", log=found.append):
        time.sleep(0.3)
        _ = 1 / 0
    count = len(found)
    time.sleep(0.4)
    assert len(found) == count > 0


def test_a_line_goes_away_with_the_work() -> None:
    raw = on_a_terminal("""
with progress.progress("planning") as one:
    one.say("3 of 13")
    time.sleep(1.2)
print("Epoch 1/2")
""")
    assert raw.count("hyparflow: planning, 0 s: 3 of 13") >= 2
    assert "hyparflow: planning, 1 s: 3 of 13" in raw
    assert screen(raw) == ["Epoch 1/2", ""]


def test_what_others_write_is_whole() -> None:
    raw = on_a_terminal("""
with progress.progress("compiling") as one:
    one.say("a stage of a very long name, " * 9 + "\\n[bold]")
    time.sleep(0.6)
    print("a line")
    time.sleep(0.3)
    print("a part, ", end="")
    time.sleep(0.3)
    print("the rest", file=sys.stderr)
    time.sleep(0.3)
    log.STATUS.info("of the logger")
assert sys.stdout is sys.__stdout__ and sys.stderr is sys.__stderr__
""")
    assert screen(raw) == ["a line", "a part, the rest", "of the logger", ""]
    drawn = [part for part in raw.replace("\r\x1b[2K", "\n").splitlines() if "hyparflow" in part]
    assert len(drawn) > 3 and max(map(len, drawn)) == 59


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"OMPI_COMM_WORLD_SIZE": "2"}])
def test_a_terminal_that_nobody_watches_gets_lines(variables: dict[str, str]) -> None:
    """A launcher gives each rank a terminal, and may write itself into a file."""
    script = """
import os
with progress.progress("planning") as one:
    time.sleep(0.6)
"""
    if "TERM" not in variables:
        script = f"""
import os, subprocess
child = {HEAD + script!r}
if os.fork():  # the launcher, whose output is a pipe
    down = os.open("/dev/null", os.O_WRONLY)
    os.dup2(down, 1)
    os.wait()
else:
    time.sleep(0.1)
    exec(child)
"""
    raw = on_a_terminal(script, **variables)
    assert "\x1b" not in raw
    assert screen(raw)[0] == "hyparflow: planning, 0 s"


def test_what_is_no_terminal_is_not_watched(tmp_path: Path) -> None:
    with open(tmp_path / "out", "w") as file:
        assert not terminal_line.is_watched(file, launched=False)
    assert not terminal_line.is_watched(io.StringIO(), launched=False)
    assert not terminal_line.is_watched(None, launched=False)
