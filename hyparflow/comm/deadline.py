"""No wait without end: deadlines, the board of what each rank does, and leaving ranks.

When a wait passes its deadline (``HYPARFLOW_TIMEOUT`` seconds, default 600) the rank asks all
others what they are doing. Ranks that wait themselves answer; one that is stopped or stuck does
not. The lowest rank that answers prints one table and ends the job. Time in which this process did
not run itself, as after Ctrl-Z, does not count.
"""

from __future__ import annotations

import atexit
import threading
import time
from typing import Any

from hyparflow.comm import abort, sentinel
from hyparflow.comm.last_threads import watch_last_threads
from hyparflow.comm.status_board import StatusBoard
from hyparflow.comm.timeout import Waiting, spin_seconds, timeout_seconds
from hyparflow.comm.watch import Watch

__all__ = ["Deadline", "wait_for_all_ranks"]

_SPIN = 0.002  # seconds, where ranks may share cores
_LONG_SPIN = 0.5  # where ranks have cores of their own: longer than a wait within a step
_GRACE = 2.0  # seconds given to the other ranks for their answers
_SPARE = 10.0  # seconds after which a rank does what the process beside it has failed to do
_NOTICE = 7  # tag of a notice on the deadline's own communicator


def wait_for_all_ranks(mpi: Any, watch: Watch) -> None:
    """Wait until all ranks have called this, or end the job at the deadline.

    Communicators are made next, by MPI calls that cannot be polled.
    """
    barrier = mpi.COMM_WORLD.Ibarrier()
    waiting = Waiting()
    end = timeout_seconds() + (_SPARE if watch.is_kept else 0.0)
    while not barrier.Test():
        time.sleep(1e-3)
        if waiting.look() > end:
            abort.say(
                f"hyparflow: not all ranks called it within {timeout_seconds():g} s "
                "(HYPARFLOW_TIMEOUT) of the first; all ranks are stopped.\n"
            )
            abort.abort(1)


def _end_with(text: str) -> None:
    abort.say(text)
    abort.abort(1)


class Deadline:
    """Watches waits; knows which ranks have left.

    Args:
        mpi: the mpi4py.MPI module.
        comm: a communicator of all ranks for notices only.
        board: this machine's status board.
        watch: finds out what ranks do that do not answer.

    Attributes:
        seconds: how long a wait may last before it ends the job.
        spin: for how long of a wait this rank keeps its core busy.
        calls: how many calls this rank has begun in which all ranks take part.
    """

    def __init__(self, mpi: Any, comm: Any, board: StatusBoard, watch: Watch) -> None:
        self._mpi = mpi
        self._comm = comm
        self._board = board
        self.watch = watch
        self.seconds = timeout_seconds()
        self._chosen_spin = spin_seconds()
        self.spin = _SPIN if self._chosen_spin is None else self._chosen_spin
        self._rank = comm.Get_rank()
        self._size = comm.Get_size()
        self._next_check, self._checks = 0.0, threading.Lock()
        self._sent: list[Any] = []
        self.calls = 0
        self._left: list[dict[str, Any]] = []  # notices of ranks that have left

    def keep_core_busy(self) -> None:
        """Spin for long, since no other rank needs the core; unless the user chose the time."""
        if self._chosen_spin is None:
            self.spin = _LONG_SPIN

    def check(self, waited: float, what: str) -> None:
        """Called while a rank waits: hears notices, and ends the job if the time is over.

        Of waits that go on at the same time, in several threads as well, each may call it.
        """
        if time.monotonic() < self._next_check and waited <= self.seconds:
            return
        if self._checks.acquire(blocking=False):
            try:
                self._check(waited, what)
            finally:
                self._checks.release()

    def _check(self, waited: float, what: str) -> None:
        self._next_check = time.monotonic() + 0.05
        heard = self._hear()
        self._left += [notice for notice in heard if notice["leaving"]]
        ending = [notice for notice in heard if not notice["leaving"]]
        if ending:
            self._end(waited, what, ending)
        for notice in self._left:
            # A rank that has made as many calls has done its part: others may be slower to end.
            if notice["calls"] < self.calls:
                self._report_leaver(notice, what)
        if waited > self.seconds:
            self._end(waited, what, [])

    def _hear(self) -> list[dict[str, Any]]:
        notices = []
        while self._comm.Iprobe(self._mpi.ANY_SOURCE, _NOTICE):
            notices.append(self._comm.recv(source=self._mpi.ANY_SOURCE, tag=_NOTICE))
        return notices

    def _tell(self, **notice: Any) -> None:
        """Send a notice to all other ranks."""
        data = {"rank": self._rank, "board": self._board.read(), "at": time.time(), **notice}
        for peer in range(self._size):
            if peer != self._rank:
                self._sent.append(self._comm.isend(data, peer, _NOTICE))

    def _end(self, waited: float, what: str, notices: list[dict[str, Any]]) -> None:
        """Exchange what every waiting rank waits for; the lowest of them reports."""
        status = f"waits for {what}, {waited:.1f} s so far"
        states = self._states()
        self._tell(leaving=False, status=status, states=states)
        # A rank that was stopped, and is let go on only to be ended, finds old notices.
        is_late = any(time.time() - notice["at"] > _GRACE for notice in notices)
        answers = {self._rank: status}
        boards = dict(self._board.read())
        end = time.monotonic() + _GRACE
        while time.monotonic() < end:
            for notice in notices:
                if not notice["leaving"]:
                    answers[notice["rank"]] = notice["status"]
                states.update({r: t for r, t in notice["states"].items() if r not in states})
                boards.update({r: t for r, t in notice["board"].items() if r not in boards})
            if len(answers) == self._size:
                break
            time.sleep(0.02)
            notices = self._hear()
        if min(answers) != self._rank or is_late:
            time.sleep(_GRACE * 2)  # the reporter ends the job first
        if min(answers) == self._rank:
            abort.say(self._table(answers, boards, states))
        abort.abort(1)

    def _table(
        self, answers: dict[int, str], boards: dict[int, str], states: dict[int, str]
    ) -> str:
        silent = [rank for rank in range(self._size) if rank not in answers]
        head = (
            f"hyparflow: a wait passed its deadline of {self.seconds:g} s (HYPARFLOW_TIMEOUT). "
            + (
                f"Stuck, for they do not answer: {', '.join(f'rank {r}' for r in silent)}."
                if silent
                else "All ranks answer, but each waits for another."
            )
        )
        rows = [f"  {'rank':>4} | {'answers':7} | {'was in':40} | now"]
        for rank in range(self._size):
            answered = rank in answers
            otherwise = states.get(rank, "is stopped, stuck or still computing")
            rows.append(
                f"  {rank:>4} | {'yes' if answered else 'NO':7} | "
                f"{boards.get(rank, 'unknown (another machine)'):40} | "
                f"{answers.get(rank, otherwise)}"
            )
        return "\n".join([head, *rows, "hyparflow: all ranks are stopped.\n"])

    def _report_leaver(self, notice: dict[str, Any], what: str) -> None:
        if self._rank != int(notice["rank"] == 0):
            time.sleep(_GRACE)  # the lowest of the others reports, unless it is busy
        abort.say(
            f"hyparflow: rank {notice['rank']} has ended its script while "
            f"{self._board.role} waits for {what}; all ranks are stopped. Every rank must make "
            "the same calls of hyparflow, in the same order.\n"
        )
        abort.abort(1)

    def _states(self) -> dict[int, str]:
        """What /proc shows of the ranks of this machine that may not answer."""
        stuck = f"runs, has {sentinel.STARTED}"
        return {
            rank: "is stuck or still computing" if text == stuck else text
            for rank, text in self.watch.states().items()
        }

    def announce_exit(self) -> None:
        """At the end of the script, wait for the others, and tell those who wait for this rank."""
        atexit.register(self._leave)
        watch_last_threads(self._rank, self.seconds, _end_with)

    def _leave(self) -> None:
        abort.flush()
        if self._mpi.Is_finalized():
            return
        self._board.write("the end of its script")
        barrier = self._comm.Ibarrier()
        waiting = Waiting()
        told = False
        # A Horovod that started MPI ends it on all ranks as soon as one has left.
        while not (self._mpi.Is_finalized() or barrier.Test()):
            waited = waiting.look()
            if not told and waited > 0.5:
                told = True
                self._tell(leaving=True, status="left", calls=self.calls)
            notices = [notice for notice in self._hear() if not notice["leaving"]]
            if notices or waited > self.seconds:
                self._end(waited, sentinel.PHASES[sentinel.ENDING], notices)
            time.sleep(0.01)
        self.watch.enter(sentinel.ENDING)
