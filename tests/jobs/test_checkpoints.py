"""Faults of all kinds while a training saves: it starts again, and ends with the same bits."""

from __future__ import annotations

import pathlib
import re
import signal
import socket
import time

import pytest
from jobs.jobs import SCRIPTS, Job, Result

SCRIPT = SCRIPTS / "goes_on.py"


def start(folder: pathlib.Path, *words: object, ranks: int = 2, restarts: int = 3) -> Result:
    line = ["-m", "hyparflow.cli", "run", "-n", ranks, "--oversubscribe"]
    line += ["--restarts", restarts] if restarts else []
    result = Job(0, *line, SCRIPT, folder, *words).wait(200)
    assert not result.left
    return result


def end_of(result: Result) -> tuple[str, str, str]:
    """Bits of the weights, epochs of the History, and its last loss."""
    assert result.code == 0, result.output
    found = re.search(r"ends with (\w+) (\d+) (\S+)", result.output)
    assert found is not None, result.output
    return found[1], found[2], found[3]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    return end_of(start(folder, restarts=0))


@pytest.mark.parametrize(
    ("words", "goes_on"),
    [
        (("kill", 13), True),
        (("kill-other", 12), True),
        (("raise", 9), True),
        (("kill", 1), False),  # nothing was saved
        (("disk", 10), False),  # training went on without a disk
        (("kill-other", 3), False),  # in the middle of the first save
    ],
    ids=str,
)
def test_a_fault_changes_no_bit(
    words: tuple[str, int], goes_on: bool, expected: tuple[str, str, str], tmp_path: pathlib.Path
) -> None:
    result = start(tmp_path / "run", *words)
    assert end_of(result) == expected
    assert result.output.count("hyparflow: training goes on from") == goes_on
    if words[0] == "disk":
        assert "a checkpoint could not be written, and training goes on" in result.output
    shown = Job(0, "-m", "hyparflow.cli", "checkpoint", "verify", tmp_path / "run").wait(60)
    assert shown.code == 0, shown.output


def test_a_signal_for_the_end_of_time_saves_first(
    expected: tuple[str, str, str], tmp_path: pathlib.Path
) -> None:
    first = start(tmp_path / "run", "usr1", 13)
    assert first.code == 85, first.output
    assert "told to end by SIGUSR1; saved up to step 13" in first.output
    assert end_of(start(tmp_path / "run", "usr1", 13)) == expected


def test_two_jobs_do_not_save_into_one_folder(tmp_path: pathlib.Path) -> None:
    first = Job(2, SCRIPT, tmp_path / "run", "stay", 2)
    waits = tmp_path / "had-a-fault"
    while first.is_running() and not waits.exists():
        time.sleep(0.1)
    second = Job(2, SCRIPT, tmp_path / "run").wait(120)
    first.signal(signal.SIGTERM)
    assert not first.wait(60).left
    assert second.code
    assert "One training at a time saves into a folder." in second.output
    assert f"on {socket.gethostname()} saves" in second.output
    assert start(tmp_path / "run", restarts=0).code == 0  # the first has given it back


def test_other_numbers_of_ranks(expected: tuple[str, str, str], tmp_path: pathlib.Path) -> None:
    """Saved by two ranks, and gone on from by one, and by three."""
    start(tmp_path / "run", "usr1", 10)
    bits, epochs, loss = end_of(start(tmp_path / "run", ranks=1))
    assert epochs == expected[1]
    assert float(loss) == pytest.approx(float(expected[2]), rel=1e-5)
