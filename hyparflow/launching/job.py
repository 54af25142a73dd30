"""A job: the launcher's command, its environment, and how it ends."""

from __future__ import annotations

import codecs
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from hyparflow.comm.timeout import timeout_seconds
from hyparflow.launching.end import End, end_of
from hyparflow.launching.flags import LaunchRequest, environment, flags, passed_on
from hyparflow.launching.folder import job_folder
from hyparflow.launching.mpi_library import OPEN_MPI, Mpi
from hyparflow.launching.relay import shown
from hyparflow.launching.start_deadline import begins_in_time
from hyparflow.launching.stdin import handed_to_rank_0
from hyparflow.launching.words import as_one, sent

__all__ = ["Job", "run", "run_and_show"]

_PATIENCE = 10.0  # seconds for a job to end by itself
_LAST_PATIENCE = 5.0  # seconds for it to end when it is told to
_INTERVAL = 0.5  # seconds from one look at the record to the next
_FILES = "PRTE_MCA_prte_tmpdir_base"

_FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


@dataclass
class Job:
    """What to start.

    Attributes:
        launcher: the program that starts ranks.
        mpi: of which MPI it is.
        request: how many ranks, and where.
        program: what each rank runs, and its arguments.
        output: "all", "leader" or a folder; see `hyparflow.launching.rank_process`.
        known: the environment.
    """

    launcher: Path
    mpi: Mpi
    request: LaunchRequest
    program: Sequence[str]
    output: str = "all"
    known: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    @property
    def added(self) -> dict[str, str]:
        """What is added to the environment."""
        return environment(self.mpi, self.request, self.known)

    @property
    def _starting(self) -> list[str]:
        """The launcher's command line up to what each rank runs."""
        told = passed_on(self.mpi, self.request, sorted(self.known | self.added))
        return [str(self.launcher), *flags(self.mpi, self.request), *told]

    def command(self, record: Path) -> list[str]:
        """The launcher's command line; `record` is where ranks note how they ended."""
        return [
            *self._starting,
            *(
                sys.executable,
                str(Path(__file__).with_name("rank_process.py")),
                self.output,
                str(record),
            ),
            *sent(self.program, record.with_name("words")),
        ]

    def describe(self) -> str:
        """The same for a shell, without what shows the output."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in sorted(self.added.items())]
        return " ".join([*settings, shlex.join([*self._starting, *as_one(self.program)])])

    @property
    def is_allowed_root(self) -> bool:
        """Whether the launcher is told that root may use it, which it was not."""
        return "OMPI_ALLOW_RUN_AS_ROOT" in self.added


def run(job: Job, say: Callable[[str], object]) -> End:
    """Run a job to its end; signals are passed on, and rank 0 reads the standard input.

    Args:
        job: the job.
        say: called with what happens to the output.

    Returns:
        How it ended.

    Raises:
        ValueError: if it cannot be started.
    """
    with job_folder() as folder, handed_to_rank_0(folder):
        record = folder / "ended"
        received: list[int] = []
        process = _start(job, record, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

        def forward(number: int, frame: FrameType | None) -> None:
            received.append(number)
            process.send_signal(number)

        def lost(stream: int, error: OSError) -> None:
            if isinstance(error, BrokenPipeError):
                received.append(signal.SIGPIPE)
                process.terminate()
                say("nobody reads the output any more: the job is ended.")
            else:
                name = "stdout" if stream == 1 else "stderr"
                say(f"{name} is lost from here on, for it cannot be written: {error.strerror}.")

        previous = {
            number: signal.signal(number, forward) for number in (signal.SIGINT, *_FORWARDED)
        }
        try:
            with shown(process, lost), _ended_with_its_ranks(process, record, job) as stopped:
                code = process.wait()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        return end_of(0 if stopped else code, record, received)


def run_and_show(job: Job, show: Callable[[str], object], folder: Path) -> End:
    """Run a job to its end, and show what it writes; an interrupt ends it.

    Args:
        job: the job.
        show: called with each piece of text, as it comes.
        folder: the job's own; see `job_folder`.

    Returns:
        How it ended.

    Raises:
        ValueError: if it cannot be started.
    """
    record = folder / "ended"
    process = _start(job, record, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    try:
        with _ended_with_its_ranks(process, record, job) as stopped:
            while process.stdout and (piece := os.read(process.stdout.fileno(), 1 << 16)):
                show(decoder.decode(piece.replace(b"\0", b"")))  # Open MPI writes some
        code = process.wait()
        return end_of(0 if stopped else code, record, ())
    finally:
        _stop(process)
        if process.stdout is not None:
            process.stdout.close()


def _start(job: Job, record: Path, **streams: Any) -> subprocess.Popen[bytes]:
    seconds = timeout_seconds(job.known)
    tied = [sys.executable, str(Path(__file__).with_name("parent_tie.py")), str(os.getpid())]
    try:
        process = subprocess.Popen(
            [*tied, *job.command(record)],
            env=job.known | job.added | _own_folder(job, record.parent),
            stdin=subprocess.DEVNULL,
            # Else Ctrl-C would reach the launcher twice, from the terminal and from here.
            start_new_session=True,
            **streams,
        )
    except OSError as error:
        raise ValueError(
            f"The launcher cannot be started. Received: {error.strerror}. If arguments are too "
            "long, write them into a file that the script reads."
        ) from error
    if job.request.is_local:
        begins_in_time(process, job.launcher, record, seconds, _stop)
    return process


def _own_folder(job: Job, folder: Path) -> dict[str, str]:
    """Where Open MPI keeps its files on this machine: in the folder of the job.

    It names them by the launcher's process number. What a killed job has left behind would keep
    another of that number from starting.
    """
    if job.mpi.vendor != OPEN_MPI or not job.request.is_local or _FILES in job.known:
        return {}
    return {_FILES: str(folder)}


@contextlib.contextmanager
def _ended_with_its_ranks(
    process: subprocess.Popen[bytes], record: Path, job: Job
) -> Iterator[list[str]]:
    """While open, stop a launcher that outlives a rank that failed, or all of its ranks.

    One that has lost another host waits for the processes there for many minutes, and Open MPI's
    may hang at its end. Gives a list, which is not empty if that was after all had ended well.
    """
    over, stopped = threading.Event(), list[str]()

    def have_all_ended() -> bool:
        ended = Path(f"{record}.well")
        return job.request.is_local and ended.exists() and ended.stat().st_size >= job.request.ranks

    def watch() -> None:
        while not over.wait(_INTERVAL):
            if record.exists() or have_all_ended():
                if not over.wait(_PATIENCE):
                    if not record.exists():
                        stopped.append("all ranks had ended well")
                    _stop(process)
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield stopped
    finally:
        over.set()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """See to it that nothing of the job stays behind on this machine."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_LAST_PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
