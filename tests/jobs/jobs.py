"""Starts jobs as users do, with a hard limit, and sees to it that no process stays behind."""

from __future__ import annotations

import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["SCRIPTS", "Job", "Result", "run", "run_alone", "user_environment"]

SCRIPTS = pathlib.Path(__file__).with_name("scripts")
_MARK = "HYPARFLOW_TEST_JOB"  # every process of a job inherits it
# What Open MPI's mpirun says when it cannot read the machine's addresses while they change, as when
# another job's network namespace goes. No rank has begun then.
_NOT_STARTED = "PMIx server's listener thread failed to start"
_LAUNCHER = ("OMPI_COMM_WORLD_", "PMI_", "PMIX_", "MV2_", "SLURM_STEP_", "PALS_")


@dataclass
class Result:
    """How a job ended.

    Attributes:
        code: the exit status.
        output: what it wrote, stdout and stderr as they came.
        end: when its last process was gone, in seconds since the epoch.
        left: the commands of processes that had to be killed because they stayed behind.
    """

    code: int
    output: str
    end: float
    left: list[str]


class Job:
    """A running job.

    Args:
        ranks: start so many with mpirun; 0 for a plain Python process without a launcher.
        arguments: for Python: a script and its arguments, or "-c" and the code.
        before: words to put before the whole command.
        environment: variables to set.
    """

    def __init__(
        self, ranks: int, *arguments: object, before: Sequence[str] = (), **environment: str
    ) -> None:
        self._mark = uuid.uuid4().hex
        # A file, not a pipe: a process that stays behind would keep a pipe open.
        self._output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        launcher = []
        if ranks:
            flags = os.environ.get("MPIRUN_FLAGS", "--map-by :OVERSUBSCRIBE --bind-to none")
            mpirun = os.environ.get("MPIRUN", "mpirun")
            launcher = [mpirun, *shlex.split(flags), "-n", str(ranks)]
        self._process = subprocess.Popen(
            [*before, *launcher, sys.executable, *map(str, arguments)],
            env=user_environment() | environment | {_MARK: self._mark},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def signal(self, number: int) -> None:
        """Send a signal to mpirun."""
        self._process.send_signal(number)

    def is_running(self) -> bool:
        """Whether mpirun runs."""
        return self._process.poll() is None

    def wait(self, limit: float = 240) -> Result:
        """Wait for the end of all processes; kill what is there after `limit` seconds.

        The limit is for jobs that hang: it must be far from what a slow machine takes for a long
        job beside other tests.
        """
        killed = ""
        try:
            self._process.wait(limit)
        except subprocess.TimeoutExpired:
            self._process.terminate()  # so that mpirun can take the ranks with it
            killed = f"\nterminated after {limit} s\n"
        last = time.time() + 3
        # Looked for once: one that becomes another program has no environment for a moment.
        while (present := self._processes()) and time.time() < last:
            time.sleep(0.02)
        end = time.time()
        left = [" ".join(self._kill(process)) for process in present]
        code = self._process.wait()
        with self._output:
            self._output.seek(0)
            return Result(code, self._output.read() + killed, end, left)

    @staticmethod
    def _kill(process: int) -> list[str]:
        """Kill a process; its command."""
        try:
            command = pathlib.Path(f"/proc/{process}/cmdline").read_text().split("\0")
            os.kill(process, signal.SIGKILL)
        except OSError:
            return []  # it ended meanwhile
        return command

    def _processes(self) -> list[int]:
        """The job's processes that still run, where the system can tell (/proc)."""
        mark = f"{_MARK}={self._mark}".encode()
        found = []
        for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in path.read_bytes():
                    found.append(int(path.parent.name))
            except OSError:
                continue  # it ended meanwhile, or is another user's
        return found


def run(ranks: int, *arguments: object, **environment: str) -> Result:
    """Run a job of `ranks` ranks to its end; once more if its launcher could not start it."""
    result = Job(ranks, *arguments, **environment).wait()
    if _NOT_STARTED in result.output:
        result = Job(ranks, *arguments, **environment).wait()
    return result


def run_alone(*arguments: object, **environment: str) -> Result:
    """Run Python without a launcher."""
    return run(0, *arguments, **environment)


def user_environment() -> dict[str, str]:
    """This process's environment as a user's shell has it: no launcher, few threads."""
    kept = {name: v for name, v in os.environ.items() if not name.startswith(_LAUNCHER)}
    defaults = {
        "KERAS_BACKEND": "tensorflow",
        "OMP_NUM_THREADS": "1",
        "TF_NUM_INTRAOP_THREADS": "1",
        "TF_NUM_INTEROP_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    if os.geteuid() == 0:  # Open MPI refuses to run as root unless told twice
        defaults |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return defaults | kept
