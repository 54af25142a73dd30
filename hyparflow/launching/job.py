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
from hyparflow.launching.end import End, end_of, ended_well
from hyparflow.launching.flags import LaunchRequest, environment, flags, passed_on
from hyparflow.launching.folder import job_folder
from hyparflow.launching.mpi_library import OPEN_MPI, Mpi
from hyparflow.launching.relay import shown
from hyparflow.launching.start_deadline import begins_in_time
from hyparflow.launching.stdin import handed_to_rank_0
from hyparflow.launching.words import as_one, sent

__all__ = ["Job", "run", "run_and_show"]

_PATIENCE = 10.0  # seconds for a job to end by itself
_LAST_PATIENCE = 5.0  # seconds for it to end after a signal
_INTERVAL = 0.5  # seconds from one look at the record to the next
_FILES = "PRTE_MCA_prte_tmpdir_base"

_FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


@dataclass
class Job:
    """A job to start.

    Attributes:
        launcher: the program that starts ranks.
        mpi: the MPI library of the launcher.
        request: how many ranks, and where.
        program: the program of each rank, and its arguments.
        output: "all", "leader" or a folder; see `hyparflow.launching.rank_process`.
        known: the environment variables of this process.
    """

    launcher: Path
    mpi: Mpi
    request: LaunchRequest
    program: Sequence[str]
    output: str = "all"
    known: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    @property
    def added(self) -> dict[str, str]:
        """The environment variables that are added."""
        return environment(self.mpi, self.request, self.known)

    @property
    def _starting(self) -> list[str]:
        """The launcher's command line up to the program of each rank."""
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
        """The command line for a shell, without the wrapper that shows the output."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in sorted(self.added.items())]
        return " ".join([*settings, shlex.join([*self._starting, *as_one(self.program)])])

    @property
    def is_allowed_root(self) -> bool:
        """Whether hyparflow allows root to use the launcher, which the user has not done."""
        return "OMPI_ALLOW_RUN_AS_ROOT" in self.added


def run(
    job: Job, say: Callable[[str], object], seen: Callable[[bytes], object] | None = None
) -> End:
    """Run a job to its end; signals are passed on, and rank 0 reads the standard input.

    Args:
        job: the job.
        say: called with a text if output can no longer be written.
        seen: called with each piece of the standard error that is shown.

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
            with shown(process, lost, seen), _ended_with_its_ranks(process, record, job) as stopped:
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
        folder: the job's folder, from `job_folder`.

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
            # Otherwise Ctrl-C would reach the launcher twice, from the terminal and from here.
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
    """Variables that make Open MPI keep its files of this machine in the folder of the job.

    It names them by the launcher's process number. Files that a killed job has left would keep a
    launcher with the same number from starting.
    """
    if job.mpi.vendor != OPEN_MPI or not job.request.is_local or _FILES in job.known:
        return {}
    return {_FILES: str(folder)}


@contextlib.contextmanager
def _ended_with_its_ranks(
    process: subprocess.Popen[bytes], record: Path, job: Job
) -> Iterator[list[str]]:
    """While open, stop a launcher that outlives a rank that failed, or all of its ranks.

    A launcher that has lost another host waits many minutes for the processes there, and that of
    Open MPI may hang at its end. Yields a list, which is not empty if the launcher was stopped
    after all ranks had ended without error.
    """
    over, stopped = threading.Event(), list[str]()

    def have_all_ended() -> bool:
        return job.request.is_local and len(ended_well(record)) >= job.request.ranks

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
    """End all processes of the job on this machine."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_LAST_PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
