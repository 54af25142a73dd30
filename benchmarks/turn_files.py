"""A job's side of the turns: the files by which it is told to train, and says how fast it was.

The other side is `turns.py`. A job trains a few steps, then a turn of several whenever a file
"go-N" appears in its folder, and writes "done-N" after it; the first step of a turn is not counted.
At its end each rank writes "end-RANK": its peak memory above that of a bare import. No framework is
imported here, for each has an environment of its own.
"""

import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

__all__ = ["Turns", "number_of_steps", "resident", "write_end"]

_WARM = 2  # steps before the first turn
# Steps of each turn that are not counted: what ran before has left caches full of its own.
_COLD = 1


class Turns:
    """Waits for each turn, and notes what it took.

    Args:
        folder: where turns are announced.
        steps: of a turn.
        wait_for_all: returns once all ranks have called it, if each of them waits for turns.
        speaks: whether this rank says how fast they were.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        wait_for_all: Callable[[], Any] | None = None,
        speaks: bool = True,
    ) -> None:
        self._folder, self._steps, self._speaks = folder, steps, speaks
        self._wait_for_all = wait_for_all or (lambda: None)
        self._turn = -1
        self._begun = time.perf_counter()

    def begin_step(self, number: int) -> None:
        """Call it before the step of this number, from 0 on."""
        step = (number - _WARM) % (_COLD + self._steps)
        if number >= _WARM and step == 0:
            self._change_turns()
        if number >= _WARM and step == _COLD:
            self._wait_for_all()
            self._started = time.perf_counter(), time.process_time()

    def end_step(self, number: int) -> None:
        """Call it after the step."""
        if number == 0:
            self._say("ready", {"first_step": time.perf_counter() - self._begun})

    def _change_turns(self) -> None:
        """End a turn, and wait for the next."""
        self._wait_for_all()
        if self._turn >= 0:
            ended = time.perf_counter(), time.process_time()
            wall, cpu = ((b - a) / self._steps for a, b in zip(self._started, ended, strict=True))
            self._say(f"done-{self._turn}", {"seconds": wall, "cpu_seconds": cpu})
        self._turn += 1
        if self._turn == 0:
            self._say("warm", {})
        go = self._folder / f"go-{self._turn}"
        while not go.exists():
            time.sleep(0.005)
        self._wait_for_all()

    def _say(self, name: str, content: Any) -> None:
        if self._speaks:
            path = self._folder / f"{name}.part"
            path.write_text(json.dumps(content))
            path.rename(self._folder / name)


def number_of_steps(steps: int, turns: int) -> int:
    """All that a job takes in so many turns; the last step waits until it is told to end."""
    return _WARM + (_COLD + steps) * turns + 1


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(psutil.Process().memory_info().rss)


def write_end(folder: Path, rank: int, bare: int, **more: Any) -> None:
    """Say what this rank took at most above `bare`, and what else there is to say."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (folder / f"end-{rank}").write_text(json.dumps({"peak": peak - bare, **more}))
