"""Runs one rank's program, sends its output where it belongs, and notes how it ended.

    python rank.py OUTPUT RECORD COMMAND...

OUTPUT is "all" (each line with the rank's number), "leader" (what others write is shown if they
fail) or a folder (a file for each rank, and the leader's on the terminal too). RECORD is a file to
which the rank's exit status is added if it fails. Imports nothing of hyparflow: it starts at once.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

__all__ = ["main"]

_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "MV2_COMM_WORLD_RANK", "SLURM_PROCID")
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
_SHOWN = 60  # last lines of a rank that failed
_HELD = 0.2  # seconds for a line to be completed
_ENDS = (b"\n", b"\r")
# From here on a stream is shown, if it is the first with one: a launcher may stop this process
# before the rank's end is known.
_TRACEBACK = b"Traceback (most recent call last)"
_LEVEL = "TF_CPP_MIN_LOG_LEVEL"  # environment variable: 0 shows all that TensorFlow notices
# What TensorFlow 2.21 writes while it is loaded, twice in each process, before it knows that level.
_NOTICES = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog\(\) is called are written to STDERR"
    rb"|I0000 .* port\.cc:\d+\] oneDNN custom operations are on\."
)
_INTERVAL = 1.0  # seconds from one look for the launcher to the next
_PATIENCE = 5.0  # seconds for a program to end when it is told to
_DIE_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG


@dataclass
class Stream:
    """One of a rank's two streams on its way.

    Attributes:
        target: where it is shown.
        shown: whether it is.
        starts_line: whether what comes next starts a line.
    """

    target: IO[bytes]
    shown: bool
    starts_line: bool = True


class Sink:
    """Where the output of a rank goes.

    Args:
        rank: its number.
        output: "all", "leader" or a folder.
        record: the file in which failures are noted.
    """

    def __init__(self, rank: int, output: str, record: str) -> None:
        self._rank, self._record = rank, record
        self._prefix = f"[{rank}] ".encode() if output == "all" else b""
        self._shown = output == "all" or rank == 0
        self._quiet = os.environ.get(_LEVEL) != "0"
        self._last: collections.deque[bytes] = collections.deque(maxlen=_SHOWN)
        self._file: Any = None
        self._lock = threading.Lock()
        if output not in ("all", "leader"):
            self._file = (Path(output) / f"rank-{rank}.txt").open("wb", buffering=0)

    def take(self, source: IO[bytes], target: IO[bytes]) -> None:
        """All that comes from `source`: whole lines, and what has waited for its end for long.

        Launchers may mix pieces of lines of several ranks.
        """
        stream, rest = Stream(target, self._shown), b""
        while True:
            if rest and not select.select([source], [], [], _HELD)[0]:
                self._put(stream, [rest])
                rest = b""
            piece = os.read(source.fileno(), 1 << 16)
            lines = (rest + piece).splitlines(keepends=True)
            unfinished = piece and lines and not lines[-1].endswith(_ENDS)
            rest = lines.pop() if unfinished else b""
            self._put(stream, lines)
            if not piece:
                return

    def _put(self, stream: Stream, lines: list[bytes]) -> None:
        """Show lines, or keep the last of them."""
        with self._lock:
            for line in lines:
                if self._quiet and stream.starts_line and _NOTICES.match(line):
                    continue
                if self._file is not None:
                    self._file.write(line)
                if not stream.shown and line.startswith(_TRACEBACK) and self._is_first_error():
                    stream.target.write(f"--- rank {self._rank}:\n".encode())
                    stream.shown = True
                if stream.shown:
                    stream.target.write(self._prefix + line if stream.starts_line else line)
                else:
                    self._last.append(line)
                stream.starts_line = line.endswith(_ENDS)
            stream.target.flush()

    def explain(self, status: str) -> None:
        """Show how a rank ended that was not shown."""
        if not self._shown:
            lines = b"".join(self._last)
            head = f"--- rank {self._rank} {status}" + ("; its last lines:\n" if lines else "\n")
            sys.stderr.buffer.write(head.encode() + lines)
            sys.stderr.flush()

    def _is_first_error(self) -> bool:
        """Whether no other rank of this machine has shown one."""
        try:
            with open(f"{self._record}.traceback", "x"):
                return True
        except FileExistsError:
            return False
        except OSError:  # another machine than the one that started the job
            return True


def rank_number() -> int:
    """This process's rank, as the launcher says."""
    return next((int(os.environ[name]) for name in _RANKS if name in os.environ), 0)


def is_first(record: str, rank: int, code: int) -> bool:
    """Note how this rank failed; whether it was the first on this machine."""
    try:
        with open(record, "a+") as file:
            file.write(f"{rank} {code}\n")
            file.flush()
            file.seek(0)
            return file.readline().split()[0] == str(rank)
    except OSError:  # another machine than the one that started the job
        return True


def die_with_parent() -> None:
    """A launcher may kill this process and know nothing of its child."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def end_without(launcher: int, program: subprocess.Popen[bytes]) -> None:
    """End the program when the process that started this one has gone."""
    while os.getppid() == launcher:
        time.sleep(_INTERVAL)
    program.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        program.wait(_PATIENCE)
    os.kill(os.getpid(), signal.SIGKILL)  # and with it the program


def main() -> int:
    launcher = os.getppid()
    output, record, *command = sys.argv[1:]
    rank = rank_number()
    with contextlib.suppress(OSError):  # another machine than the one that started the job
        Path(f"{record}.begun").touch()
    sink = Sink(rank, output, record)
    # The launcher's own channels to this process belong to the program.
    program = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        close_fds=False,
        preexec_fn=die_with_parent,
        env={_LEVEL: "1"} | dict(os.environ) | {"PYTHONUNBUFFERED": "1"},
    )
    threading.Thread(target=end_without, args=(launcher, program), daemon=True).start()
    for number in _FORWARDED:
        signal.signal(number, lambda number, frame: program.send_signal(number))
    pairs = ((program.stdout, sys.stdout.buffer), (program.stderr, sys.stderr.buffer))
    threads = [threading.Thread(target=sink.take, args=pair, daemon=True) for pair in pairs]
    for thread in threads:
        thread.start()
    code = program.wait()
    for thread in threads:
        thread.join(2.0)  # a process that the program left behind may hold them open
    if code:
        status = f"was killed by signal {-code}" if code < 0 else f"ended with exit status {code}"
        if is_first(record, rank, code):  # the others are stopped because of it
            sink.explain(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
