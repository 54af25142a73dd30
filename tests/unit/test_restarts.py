"""What is a fault and what a bug; errors in the output of ranks; the hosts that are left."""

from __future__ import annotations

import pathlib
import signal
from typing import Any

import pytest

from hyparflow.launching import hosts_left
from hyparflow.launching.end import End, end_of
from hyparflow.launching.first_error import FirstError, OutputScan
from hyparflow.launching.flags import LaunchRequest
from hyparflow.launching.hosts_left import hosts_of, remaining
from hyparflow.launching.job import Job
from hyparflow.launching.mpi_library import OPEN_MPI, Mpi
from hyparflow.launching.progress_note import Reached
from hyparflow.launching.restarts import Attempt, decide, report, restart_line

ERROR = FirstError("ValueError", "loss is nan", "train.py:7")


def attempt(failed: int = 1, step: int = -1, saved: int = -1, **more: Any) -> Attempt:
    """An attempt whose rank 1 failed."""
    code = failed if failed >= 0 else 128 - failed
    text = f"rank 1 ended as {failed}" if failed else ""
    reached = Reached(int(step >= 0) - 1, step, saved)
    known = {"end": End(code, text, 1, failed), "began": 0.0, "ended": 9.0, "reached": reached}
    return Attempt(ranks=2, **(known | more))


FAULTS = [
    attempt(-signal.SIGKILL, 5),
    attempt(-signal.SIGTERM, 5),
    attempt(-signal.SIGBUS, 5),
    attempt(-signal.SIGSEGV),  # in no step that is known
    attempt(1, 5, has_hung=True),
    attempt(1, end=End(137, "the launcher was killed by signal 9 (SIGKILL)")),
    attempt(1, end=End(255, "the launcher ended with exit status 255, and no rank had failed")),
]
BUGS = [
    attempt(1, 5, error=ERROR),
    attempt(1, error=ERROR),
    attempt(-signal.SIGTERM, 5, error=ERROR),  # it was ended while it showed its error
    attempt(-signal.SIGSEGV, 5),
    attempt(7, 5),
    attempt(1, end=End(1, "the launcher ended with exit status 1"), error=ERROR),  # another host's
]


@pytest.mark.parametrize("one", FAULTS)
def test_a_fault_may_come_again(one: Attempt) -> None:
    assert decide([one], 2).is_again
    assert decide([one, one], 2).is_again
    assert decide([one, one, one], 2).why_not == "no restart is left of 2"


@pytest.mark.parametrize("one", BUGS)
def test_the_same_error_at_the_same_step_is_a_bug(one: Attempt) -> None:
    assert decide([one], 5).is_again
    found = decide([one, FAULTS[0], one], 5)
    assert not found.is_again
    assert "the same error came twice" in found.why_not


def test_another_step_or_another_error_is_none() -> None:
    one = attempt(1, 5, error=ERROR)
    others = [
        attempt(1, 8, error=ERROR),
        attempt(1, error=ERROR),
        attempt(1, 5, error=ERROR._replace(message="loss is inf")),
        attempt(1, 5, error=ERROR._replace(place="train.py:8")),
        attempt(2, 5),
    ]
    for other in others:
        assert decide([one, other], 5).is_again
    same = ERROR._replace(message="no port 80"), ERROR._replace(message="no port 8080")
    assert not decide([attempt(1, 5, error=same[0]), attempt(1, 6, error=same[1])], 5).is_again


@pytest.mark.parametrize(
    "one",
    [
        attempt(2),
        attempt(1, error=FirstError("SyntaxError", "invalid syntax", "train.py:1")),
        attempt(1, error=FirstError("ModuleNotFoundError", "No module named 'x'", "train.py:1")),
    ],
)
def test_what_fails_before_the_first_step_each_time(one: Attempt) -> None:
    assert "before its first step" in decide([one], 5).why_not
    later = attempt(one.end.failed, 5, error=one.error)
    assert decide([later], 5).is_again


@pytest.mark.parametrize("end", [End(0), End(85, "", 0, 85), End(143, is_users=True)])
def test_what_needs_no_restart(end: End) -> None:
    assert decide([attempt(end=end)], 5) == (False, 0.0, "")


def test_a_signal_that_was_passed_on_is_the_user_s(tmp_path: pathlib.Path) -> None:
    (tmp_path / "ended").write_text("1 -10\n")
    for received in ([], [signal.SIGUSR1]):
        end = end_of(138, tmp_path / "ended", received)
        assert (end.code, end.rank, end.failed) == (138, 1, -signal.SIGUSR1)
        assert decide([attempt(end=end)], 5).is_again is not bool(received)


def test_pauses_grow_while_nothing_is_done() -> None:
    stuck = [attempt(-9, 5) for _ in range(9)]
    assert [decide(stuck[:n], 9).pause for n in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert decide([*stuck, attempt(-9, 6)], 99).pause == 1


def test_what_is_said() -> None:
    first = attempt(-9, 120, 100, reached=Reached(3, 120, 100, 10.0, 20.0, 18.0), ended=21.0)
    second = attempt(0, 200, -1, reached=Reached(5, 200, -1, 25.5, 30.0, 0.0), ended=31.0)
    assert restart_line([first], 5, 2.0, 8) == (
        "rank 1 ended as -9 at epoch 3, step 120; attempt 2 of 6 starts in 2 s on 8 ranks, "
        "goes on from step 100."
    )
    assert report([first, second]) == [
        "attempt 1 on 2 ranks: rank 1 ended as -9, reached epoch 3, step 120, last saved step 100, "
        "7.5 s lost",
        "attempt 2 on 2 ranks: ended without error, reached epoch 5, step 200, last saved step 100",
    ]
    assert report([attempt(-9)])[0].endswith("step not known, no save known, 9.0 s lost")


# The first to ask for the host "lost" waits for ever, as where a connection was cut; later ones
# are answered. Others are answered at once, or refused.
LAUNCHER = """#!/bin/sh
case "$*" in
*lost*) mkdir {mark} && exec sleep 60 ;;
*none*) exit 1 ;;
esac
exit 0
"""


def test_a_host_is_asked_again_whose_connection_was_cut(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts_left, "_AGAIN", 0.3)
    launcher = tmp_path / "launcher"
    launcher.write_text(LAUNCHER.format(mark=tmp_path / "mark"))
    launcher.chmod(0o755)
    job = Job(launcher, Mpi(OPEN_MPI, "5"), LaunchRequest(3), ["train.py"])
    assert hosts_left.reachable(job, ["good", "lost", "none"]) == {"good", "lost"}


TRACE = """\
[1] Traceback (most recent call last):
[0] Traceback (most recent call last):
[1]   File "train.py", line 3, in <module>
[1]     f()
[0]   File "train.py", line 9, in <module>
[1]   File "train.py", line 2, in f
[1]     raise OSError("no 0x7f12, process 12")
[1] OSError: no 0x7f12, process 12
[0] KeyError: 'x'
[1]
[1] During handling of the above exception, another exception occurred:
[1]
[1] Traceback (most recent call last):
[1]   File "train.py", line 5, in <module>
[1] RuntimeError: late
"""


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_the_first_error_of_a_rank(size: int) -> None:
    scan = OutputScan()
    for begin in range(0, len(TRACE), size):
        scan.take(TRACE[begin : begin + size].encode())
    found = scan.error_of(1)
    assert found == ("OSError", "no 0x7f12, process 12", "train.py:2")
    assert found.signature == "OSError: no #, process # at train.py:2"
    assert scan.error_of(0) == ("KeyError", "'x'", "train.py:9")
    assert scan.error_of(5) is not None
    assert not scan.has_hung


def test_an_error_that_was_caught_is_not_that_of_the_end() -> None:
    scan = OutputScan()
    caught = (
        b'Traceback (most recent call last):\n  File "a.py", line 1\nKeyError: 1\nall is well\n'
    )
    scan.take(
        caught + b'--- rank 1:\nTraceback (most recent call last):\n  File "b.py", line 2\nE\n'
    )
    assert scan.error_of(1) == ("E", "", "b.py:2")


def test_a_script_that_cannot_be_read_and_a_deadline() -> None:
    scan = OutputScan()
    scan.take(b'[0]   File "c.py", line 3\n[0]     x = = 1\n[0] SyntaxError: invalid syntax\n')
    assert scan.error_of(0) == ("SyntaxError", "invalid syntax", "c.py:3")
    scan.take(b"[1] hyparflow: a wait passed its deadline of 6 s (HYPARFLOW_TIMEOUT). Stuck\n")
    assert scan.has_hung


@pytest.mark.parametrize(
    ("gone", "ranks", "hosts"),
    [("", 4, "a:2,b:2,c:1"), ("a", 3, "b:2,c:1"), ("bc", 2, "a:2"), ("abc", 0, "")],
)
def test_ranks_of_the_hosts_that_are_left(
    gone: str, ranks: int, hosts: str, tmp_path: pathlib.Path
) -> None:
    request = LaunchRequest(4, "a:2,b:2,c:1")
    left = remaining(request, lambda names: set(names) - set(gone), tmp_path / "hosts")
    assert (left.ranks, left.hosts) == (ranks, hosts)


@pytest.mark.parametrize(
    ("text", "slots"),
    [("a slots=2\n# a comment\n\nb slots=1 max_slots=4\n", [2, 1]), ("a:2\nb\n", [2, None])],
)
def test_a_file_of_hosts(text: str, slots: list[int], tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text(text)
    request = LaunchRequest(3, hostfile=str(tmp_path / "file"))
    found = hosts_of(request)
    assert [(host.name, host.slots) for host in found] == list(zip("ab", slots, strict=True))
    assert remaining(request, lambda names: names, tmp_path / "left") is request
    left = remaining(request, lambda names: ["a"], tmp_path / "left")
    assert left.ranks == 2
    assert left.hostfile == str(tmp_path / "left")
    assert (tmp_path / "left").read_text() == text.split("\n")[0] + "\n"
