"""The process beside a rank: what it tells of ranks, when it ends one, and when it does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hyparflow.comm import sentinel, status_board
from hyparflow.comm.timeout import Waiting
from hyparflow.comm.watch import Watch

RANK = """
import sys, time
from hyparflow.comm.watch import Watch
watch = Watch(float(sys.argv[1]))
for phase in sys.argv[2:]:
    watch.enter(phase)
print(watch.is_kept, flush=True)
time.sleep(60)
"""
# A launcher of two ranks that hangs when they have ended.
LAUNCHER = """
import os, signal, subprocess, sys
name, seconds, output, code = sys.argv[1:]
with open("/proc/self/comm", "w") as file:
    file.write(name)
if output == "unread":
    os.set_blocking(1, False)
    while True:
        try:
            os.write(1, bytes(4096))
        except BlockingIOError:
            break
ranks = []
for rank in "01":
    told = {"SIZE": "2", "LOCAL_SIZE": "2", "RANK": rank}
    known = os.environ | {"OMPI_COMM_WORLD_" + name: value for name, value in told.items()}
    words = [sys.executable, "-c", code, seconds, "running"]
    ranks.append(subprocess.Popen(words, env=known, stdout=subprocess.DEVNULL))
print([rank.wait() for rank in ranks], file=sys.stderr, flush=True)
signal.pause()
"""
LATE = "print(True, flush=True); import time; time.sleep(60)"
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


class Ranks:
    """Processes that a launcher might have started."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[str]] = []

    def start(self, rank: int, code: str, *arguments: object, size: int = 2) -> Any:
        names = ("SIZE", "LOCAL_SIZE", "RANK")
        told = dict(zip(names, (size, size, rank), strict=True))
        one = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=os.environ | {f"OMPI_COMM_WORLD_{name}": str(n) for name, n in told.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(one)
        assert one.stdout is not None
        assert one.stdout.readline() in ("True\n", "False\n")
        return one


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    found = Ranks()
    yield found
    for one in found.started:
        one.kill()
        one.communicate()


def test_a_rank_that_waits_for_mpi_is_ended_with_a_table(ranks: Ranks) -> None:
    late = ranks.start(1, LATE)
    late.send_signal(signal.SIGSTOP)
    first = ranks.start(0, RANK, 0.5)
    _, said = first.communicate(timeout=30)
    assert first.returncode == -signal.SIGTERM
    assert said.splitlines() == [
        "hyparflow: a wait passed its deadline of 0.5 s (HYPARFLOW_TIMEOUT): rank 0 waits for all "
        "ranks to start MPI.",
        "  rank | now",
        "     0 | runs, waits for all ranks to start MPI",
        "     1 | is stopped, has not started MPI by a call of hyparflow",
        "hyparflow: all ranks are stopped.",
    ]
    # No launcher ends the other here.
    assert late.wait(timeout=30) == -signal.SIGKILL


def test_one_rank_reports_and_absent_ranks_are_named(ranks: Ranks) -> None:
    both = [ranks.start(rank, RANK, 0.5, size=3) for rank in (0, 2)]
    said = "".join(one.communicate(timeout=30)[1] for one in both)
    assert said.count("hyparflow: all ranks are stopped.") == 1
    assert "     1 | has ended\n" in said


def test_a_rank_that_runs_or_is_suspended_is_left_alone(ranks: Ranks) -> None:
    runs = ranks.start(0, RANK, 0.3, "running")
    suspended = ranks.start(1, RANK, 0.3)
    suspended.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    assert (runs.poll(), suspended.poll()) == (None, None)
    suspended.send_signal(signal.SIGCONT)
    assert suspended.wait(timeout=30) == -signal.SIGTERM


def test_it_ends_with_its_rank(ranks: Ranks) -> None:
    one = ranks.start(0, RANK, 60)

    words = f"-S\0{Path(sentinel.__file__).resolve()}\0{one.pid}\0".encode()

    def beside() -> int:
        return sum(words in _read(path) for path in Path("/proc").glob("[0-9]*/cmdline"))

    for count in (1, 0):
        end = time.monotonic() + 30
        while beside() != count:
            assert time.monotonic() < end
            time.sleep(0.02)
        one.kill()


def _hanging(name: str, seconds: float, output: str) -> Any:
    """A launcher that hangs at its end, from when its ranks have ended on."""
    one = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, name, str(seconds), output, RANK.replace("60", "1")],
        env={k: v for k, v in os.environ.items() if "OMPI_" not in k},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert one.stderr is not None and one.stderr.readline() == "[0, 0]\n"
    return one


def test_a_launcher_that_hangs_after_its_ranks_is_ended() -> None:
    one = _hanging("prterun", 0.5, "read")
    _, said = one.communicate(timeout=30)
    assert one.returncode == -signal.SIGTERM
    assert said == (
        f"hyparflow: prterun (process {one.pid}) has not ended within 0.5 s (HYPARFLOW_TIMEOUT) "
        "after its ranks did; it is stopped.\n"
    )


def test_a_launcher_that_has_a_reason_to_go_on_is_left_alone() -> None:
    """A daemon that serves other jobs, and one whose output is still to be read."""
    both = [_hanging("prte", 0.3, "read"), _hanging("prterun", 0.3, "unread")]
    time.sleep(1.5)
    assert [one.poll() for one in both] == [None, None]
    both[0].kill()
    assert both[0].communicate()[1] == ""
    _, said = both[1].communicate(timeout=30)  # now it is read, and still hangs
    assert "it is stopped" in said


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_no_process_where_a_rank_is_alone(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    watch = Watch(60)
    assert not watch.is_kept and watch.states() == {}
    watch.enter(sentinel.ENDING)


def test_time_in_which_this_process_did_not_run_is_not_waited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = iter([100.0, 100.5, 900.0, 900.5])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    waiting = Waiting()
    assert [waiting.look() for _ in range(3)] == [0.5, 0.5, 1.0]


def test_full_disks_leave_no_board(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    class Alone:
        """A machine with one rank."""

        def Get_rank(self) -> int:
            return 0

        def bcast(self, value: Any) -> Any:
            return value

        def allgather(self, value: Any) -> list[Any]:
            return [value]

        def Barrier(self) -> None:
            pass

    alone = Alone()
    alone.COMM_WORLD = alone  # type: ignore[attr-defined]
    for fails in (False, True):
        if fails:
            monkeypatch.setattr("os.posix_fallocate", full)
        board = status_board.StatusBoard(alone, alone)
        board.write("trains")
        assert board.read() == {0: "trains"}
