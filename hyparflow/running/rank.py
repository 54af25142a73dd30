"""Runs one rank's program, sends its output where it belongs, and notes how it ended.

    python rank.py OUTPUT RECORD COMMAND...

OUTPUT is "all" (each line with the rank's number), "leader" (what others write is shown if they
fail) or a folder (a file for each rank, and the leader's on the terminal too). RECORD is a file to
which the rank's exit status is added if it fails. Imports nothing of hyparflow: it starts at once.
"""

import collections
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

__all__ = ["main"]

_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "MV2_COMM_WORLD_RANK", "SLURM_PROCID")
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
_SHOWN = 60  # last lines of a rank that failed
_DIE_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG


class Sink:
    """Where the output of a rank goes, line by line.

    Args:
        rank: its number.
        output: "all", "leader" or a folder.
    """

    def __init__(self, rank: int, output: str) -> None:
        self._prefix = f"[{rank}] ".encode() if output == "all" else b""
        self._shown = output == "all" or rank == 0
        self._last: collections.deque[bytes] = collections.deque(maxlen=_SHOWN)
        self._file: Any = None
        self._lock = threading.Lock()
        if output not in ("all", "leader"):
            self._file = (Path(output) / f"rank-{rank}.txt").open("wb", buffering=0)

    def take(self, source: IO[bytes], target: IO[bytes]) -> None:
        """All that comes from `source`, as it comes."""
        start = True
        while piece := os.read(source.fileno(), 1 << 16):
            with self._lock:
                if self._file is not None:
                    self._file.write(piece)
                if self._shown:
                    start = self._write(piece, target, start)
                else:
                    self._last.extend(piece.splitlines(keepends=True))

    def _write(self, piece: bytes, target: IO[bytes], start: bool) -> bool:
        """Show a piece; whether the next one starts a line."""
        for line in piece.splitlines(keepends=True):
            target.write(self._prefix + line if start else line)
            start = line.endswith((b"\n", b"\r"))
        target.flush()
        return start

    def explain(self, rank: int, status: str) -> None:
        """Show how a rank ended that was not shown."""
        if not self._shown:
            sys.stderr.buffer.write(f"--- rank {rank} {status}; its last lines:\n".encode())
            sys.stderr.buffer.write(b"".join(self._last))
            sys.stderr.flush()


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


def main() -> int:
    output, record, *command = sys.argv[1:]
    rank = rank_number()
    sink = Sink(rank, output)
    # The launcher's own channels to this process belong to the program.
    program = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        close_fds=False,
        preexec_fn=die_with_parent,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
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
            sink.explain(rank, status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
