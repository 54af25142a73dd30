"""The hook that ends the job: who reports, with which exit code, and when it stays out."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import pytest

from hyparflow.comm import abort


class FakeMPI:
    """The few calls of mpi4py.MPI that the guard makes."""

    def __init__(self, rank: int = 0, size: int = 2, finalized: bool = False) -> None:
        self.COMM_WORLD = self
        self.rank, self.size, self.finalized = rank, size, finalized
        self.codes: list[int] = []

    def Is_initialized(self) -> bool:
        return True

    def Is_finalized(self) -> bool:
        return self.finalized

    def Get_size(self) -> int:
        return self.size

    def Get_rank(self) -> int:
        return self.rank

    def Abort(self, code: int) -> None:
        self.codes.append(code)


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """Install the hook before a fake one; what that one was given."""
    given: list[BaseException] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: given.append(error))
    monkeypatch.delitem(sys.modules, "mpi4py.MPI", raising=False)
    abort.install()
    return given


def run_with(monkeypatch: pytest.MonkeyPatch, mpi: FakeMPI, error: BaseException) -> list[int]:
    """Let `error` reach the hook on a rank of `mpi`; the codes of the aborts."""
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", mpi)  # type: ignore[arg-type]
    sys.excepthook(type(error), error, None)
    return mpi.codes


def test_without_mpi_the_former_hook_answers(handed_over: list[BaseException]) -> None:
    error = ValueError("mine")
    sys.excepthook(ValueError, error, None)
    assert handed_over == [error]


@pytest.mark.parametrize("mpi", [FakeMPI(size=1), FakeMPI(finalized=True)], ids=["alone", "over"])
def test_with_one_rank_too(
    mpi: FakeMPI, handed_over: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = ValueError("mine")
    assert run_with(monkeypatch, mpi, error) == []
    assert handed_over == [error]


def test_before_mpi_the_other_ranks_of_a_launcher_give_way(
    handed_over: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher ends them when the first has ended; where it does not, they report, too."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    for rank, size in ((0, 2), (1, 2), (0, 1)):
        monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", str(size))
        monkeypatch.setenv("OMPI_COMM_WORLD_RANK", str(rank))
        error = ValueError("of all")
        sys.excepthook(ValueError, error, None)
        assert handed_over[-1] is error
    assert len(slept) == 1


def test_install_once(handed_over: list[BaseException]) -> None:
    hook = sys.excepthook
    abort.install()
    assert sys.excepthook is hook


def test_report_and_abort(
    handed_over: list[BaseException],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_with(monkeypatch, FakeMPI(rank=1), ValueError("wrong rows")) == [1]
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "ValueError: wrong rows",
        "hyparflow: ValueError on rank 1; all ranks are stopped.",
    ]
    assert handed_over == []


def test_the_first_place_counts(
    handed_over: list[BaseException],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = ValueError("wrong rows")
    abort.locate(error, "rank 1 (replica 0, partition 1), action 1F3")
    abort.locate(error, "rank 1, somewhere")
    run_with(monkeypatch, FakeMPI(rank=1), error)
    report = capsys.readouterr().err
    assert "ValueError on rank 1 (replica 0, partition 1), action 1F3; all ranks" in report


def test_keyboard_interrupt_has_its_own_code(
    handed_over: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_with(monkeypatch, FakeMPI(), KeyboardInterrupt()) == [130]


@pytest.mark.parametrize("rank, waits", [(0, []), (1, [abort._GRACE])])
def test_followers_leave_the_report_to_the_leader(
    rank: int, waits: list[float], handed_over: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    error = abort.mark_collective(ValueError("on all ranks alike"))
    assert run_with(monkeypatch, FakeMPI(rank=rank), error) == [1]
    assert slept == [*waits, abort._LAST_WORDS]


def test_fail_returns_with_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mpi4py.MPI", raising=False)
    abort.fail(ValueError("mine"))


def test_fail_ends_the_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mpi = FakeMPI(rank=1)
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", mpi)  # type: ignore[arg-type]
    abort.fail(ValueError("in the middle of a step"))
    assert mpi.codes == [1]
    assert "in the middle of a step" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["none", "closed", "full"])
def test_a_stream_that_takes_nothing_does_not_keep_the_job_from_ending(
    kind: str, handed_over: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(os.devnull, "w") as stream:
        pass
    full = _Full()
    for name in ("stdout", "stderr", "__stderr__"):
        monkeypatch.setattr(sys, name, {"none": None, "closed": stream, "full": full}[kind])
    assert run_with(monkeypatch, FakeMPI(rank=1), ValueError("wrong rows")) == [1]


class _Full:
    """A stream to a full disk."""

    def write(self, text: str) -> None:
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        self.write("")
