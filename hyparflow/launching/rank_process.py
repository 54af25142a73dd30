"""Runs one rank's program, passes on its output, and records how it ended.

    python rank_process.py OUTPUT RECORD WORDS...

OUTPUT is "all" (each line with the rank's number), "leader" (what others write is shown if they
fail) or a folder (a file for each rank, and the leader's on the terminal too). RECORD is a file to
which the rank's exit status is added if it fails. WORDS are the program and its arguments, as
hyparflow.launching.words writes them. Imports nothing of hyparflow, to start fast.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import os
import re
import select
import signal
import stat
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import unquote_to_bytes

__all__ = ["main"]

_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "MV2_COMM_WORLD_RANK", "SLURM_PROCID")
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
_SHOWN = 60  # number of last lines that are shown of a rank that failed
_HELD = 0.2  # seconds to wait for the end of a line
_ENDS = (b"\n", b"\r")
# The first stream with this text is shown from there on: a launcher may stop this process before
# the rank's end is known.
_TRACEBACK = b"Traceback (most recent call last)"
_LEVEL = "TF_CPP_MIN_LOG_LEVEL"  # environment variable: 0 shows all log lines of TensorFlow
# Lines that TensorFlow 2.21 writes while it is loaded, before it reads that variable.
_NOTICES = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog\(\) is called are written to STDERR"
    rb"|I0000 .* port\.cc:\d+\] oneDNN custom operations are on\."
)
_INTERVAL = 1.0  # seconds from one look for the launcher to the next
_PATIENCE = 5.0  # seconds for a program to end after a signal
_DIE_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG


@dataclass
class Stream:
    """One of a rank's two output streams.

    Attributes:
        target: the file descriptor to which it is copied; None once that cannot be written.
        shown: whether it is copied there.
        starts_line: whether the next byte starts a line.
    """

    target: int | None
    shown: bool
    starts_line: bool = True

    def write(self, data: bytes) -> None:
        """Copy `data`; drop it if that cannot be written, since the rank must not wait."""
        try:
            if self.target is not None:
                write_whole(self.target, data)
        except OSError:
            self.target = None


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
        self._lock = threading.Lock()
        self._path, self._file = Path(output) / f"rank-{rank}.txt", None
        if output not in ("all", "leader"):
            try:
                self._file = open_file(self._path)
            except OSError as error:
                self._drop_file(error)

    def take(self, source: IO[bytes], target: int) -> None:
        """Copy `source` to its end, in whole lines, or parts of lines that have waited for long.

        Whole lines, because launchers may mix pieces of lines of several ranks.
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
            if self._quiet and stream.starts_line:
                lines = [line for line in lines if not _NOTICES.match(line)]
            self._keep(b"".join(lines))
            pieces = []
            for line in lines:
                if not stream.shown and line.startswith(_TRACEBACK) and self._is_first_error():
                    pieces.append(f"--- rank {self._rank}:\n".encode())
                    stream.shown = True
                if stream.shown:
                    pieces.append(self._prefix + line if stream.starts_line else line)
                else:
                    self._last.append(line)
                stream.starts_line = line.endswith(_ENDS)
            stream.write(b"".join(pieces))

    def _keep(self, data: bytes) -> None:
        """Write `data` into the rank's file, as long as that is possible."""
        try:
            if self._file is not None:
                write_whole(self._file, data)
        except OSError as error:
            self._drop_file(error)

    def _drop_file(self, error: OSError) -> None:
        """Go on without the file, and print one warning."""
        self._file = None
        text = f"output is not written to {self._path} from here on: {error.strerror}"
        Stream(2, True).write(f"hyparflow: rank {self._rank}'s {text}\n".encode())

    def explain(self, status: str) -> None:
        """Print the end of a rank whose output was not shown."""
        if not self._shown:
            lines = b"".join(self._last)
            head = f"--- rank {self._rank} {status}" + ("; its last lines:\n" if lines else "\n")
            Stream(2, True).write(head.encode() + lines)

    def _is_first_error(self) -> bool:
        """Whether no other rank of this machine has shown an error."""
        try:
            with open(f"{self._record}.traceback", "x"):
                return True
        except FileExistsError:
            return False
        except OSError:  # another machine than the one that started the job
            return True


def write_whole(file: int, data: bytes) -> None:
    """Write all of `data`; one system call may write only a part."""
    while data:
        try:
            data = data[os.write(file, data) :]
        except BlockingIOError:
            if stat.S_ISFIFO(os.fstat(file).st_mode) and file > 2:  # a pipe that nobody reads
                raise
            select.select([], [file], [])


def open_file(path: Path) -> int:
    """Open a file for new content; does not wait for a reader of a pipe.

    Raises:
        OSError: if it cannot be opened.
    """
    if path.is_symlink() and path.lstat().st_uid not in (os.geteuid(), 0):
        raise PermissionError(0, "another user's link is not followed")
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK, 0o666)


def decoded(words: list[str]) -> list[str]:
    """The program and its arguments."""
    if words[0][0] == "@":
        words = Path(words[0][1:]).read_text().split("\n")
    return [os.fsdecode(unquote_to_bytes(word[1:])) for word in words]


def own_input(rank: int, record: str) -> int:
    """The standard input of the program: the job's input for rank 0, empty for the others."""
    if rank == 0:
        import socket

        with contextlib.suppress(OSError):  # on another machine, or without an input
            place = os.open(Path(record).parent, os.O_RDONLY)
            with socket.socket(socket.AF_UNIX) as peer:
                near = f"/proc/self/fd/{place}"  # the path may be too long for a socket's address
                folder = near if os.path.exists(near) else str(Path(record).parent)
                peer.connect(f"{folder}/input")
                _, files, _, _ = socket.recv_fds(peer, 1, 1)
                return files[0] if files else subprocess.DEVNULL
    return subprocess.DEVNULL


def rank_number() -> int:
    """This process's rank, as the launcher says."""
    return next((int(os.environ[name]) for name in _RANKS if name in os.environ), 0)


def is_first(record: str, rank: int, code: int) -> bool:
    """Record how this rank failed; returns whether it is the first failure on this machine."""
    try:
        with open(record, "a+") as file:
            file.write(f"{rank} {code}\n")
            file.flush()
            file.seek(0)
            return file.readline().split()[0] == str(rank)
    except OSError:  # another machine than the one that started the job
        return True


def die_with_parent() -> None:
    """Have Linux kill the program with this process, since a launcher may kill only the latter."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def end_without(launcher: int, program: subprocess.Popen[bytes]) -> None:
    """End the program when the process that started this one has gone."""
    while os.getppid() == launcher:
        time.sleep(_INTERVAL)
    program.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        program.wait(_PATIENCE)
    os.kill(os.getpid(), signal.SIGKILL)  # and the program with it


def start(command: list[str], rank: int, record: str) -> subprocess.Popen[bytes]:
    """Start the rank's program, which inherits the launcher's channels to this process."""
    return subprocess.Popen(
        command,
        stdin=own_input(rank, record),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        close_fds=False,
        preexec_fn=die_with_parent,
        env={_LEVEL: "1"} | dict(os.environ) | {"PYTHONUNBUFFERED": "1"},
    )


def forward_signals(program: subprocess.Popen[bytes]) -> None:
    """Give the program each signal once; this process lives until the program has ended.

    Launchers (PRRTE, Hydra) give this process a group of its own and signal the group, so the
    program gets the signal already. A second signal would kill a program that ends in its handler.
    """
    hears_itself = os.getpgrp() == os.getpid()
    for number in _FORWARDED:
        signal.signal(number, lambda n, frame: None if hears_itself else program.send_signal(n))


def how(code: int) -> str:
    """How a program ended, in words."""
    if code >= 0:
        return f"ended with exit status {code}"
    known = -code in signal.valid_signals()
    name = f" ({signal.Signals(-code).name})" if known and -code < signal.SIGRTMIN else ""
    return f"was killed by signal {-code}{name}"


def main() -> int:
    launcher = os.getppid()
    output, record, *words = sys.argv[1:]
    rank, command = rank_number(), decoded(words)
    with contextlib.suppress(OSError):  # another machine than the one that started the job
        Path(f"{record}.begun").touch()
    sink = Sink(rank, output, record)
    try:
        program = start(command, rank, record)
    except OSError as error:
        is_first(record, rank, 127)
        Stream(2, True).write(f"hyparflow: {command[0]} cannot be started: {error}\n".encode())
        return 127
    threading.Thread(target=end_without, args=(launcher, program), daemon=True).start()
    forward_signals(program)
    pairs = ((program.stdout, 1), (program.stderr, 2))
    threads = [threading.Thread(target=sink.take, args=pair, daemon=True) for pair in pairs]
    for thread in threads:
        thread.start()
    code = program.wait()
    first = bool(code) and is_first(record, rank, code)  # after which others are stopped
    for thread in threads:
        thread.join(2.0)  # a process that the program left may hold the streams open
    if not code:
        with contextlib.suppress(OSError), open(f"{record}.well", "a") as file:
            file.write(f"{rank}\n")  # of each rank that has ended without error
    if first:
        sink.explain(how(code))
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
