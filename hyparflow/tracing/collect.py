"""Traces a call of `fit`: every rank records, and the leader writes what all have done."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyparflow.comm import World
from hyparflow.grid import LEADER, Grid
from hyparflow.leading import led
from hyparflow.options import Options
from hyparflow.recorder import Event
from hyparflow.tracing.clocks import clock_offset
from hyparflow.tracing.trace import RankTrace, Trace

__all__ = ["Wanted", "traced", "wants_trace"]

_FOLDER = "HYPARFLOW_TRACE"  # environment variable: a trace of each call goes into this folder
_TAG = 4  # of events on their way to the leader


@dataclass
class Wanted:
    """A trace that is wanted of a call.

    Attributes:
        options: the parallel arguments.
        file: where to write it; None for a new file in the folder HYPARFLOW_TRACE.
        plan: the plan that is followed, as JSON, or None.
    """

    options: Options
    file: Any = None
    plan: dict[str, Any] | None = None


def wants_trace(trace: Any) -> bool:
    """Whether a call is to be traced, by its argument or by HYPARFLOW_TRACE.

    Raises:
        ValueError: if `trace` is no path.
    """
    if trace is not None and not isinstance(trace, str | os.PathLike):
        raise ValueError(f"`trace` must be the path of a file to write. Received: trace={trace!r}")
    return trace is not None or bool(os.environ.get(_FOLDER))


@contextlib.contextmanager
def traced(world: World, wanted: Wanted | None) -> Iterator[None]:
    """While open, all ranks record what they do, if that is wanted; then the leader writes it.

    Collective.
    """
    if wanted is None:
        yield
        return
    what = "the leader to make the file of the trace"
    path = led(world, lambda: _ready_file(wanted.file), what)
    recorder = world.recorder
    clocks = [_read_clock(world)]
    recorder.steps.clear()
    recorder.on = True
    try:
        yield
    finally:
        recorder.on = False
        clocks.append(_read_clock(world))
        steps = [_by_leaders_clock(step, clocks) for step in recorder.steps]
        recorder.steps.clear()
        ranks = _gather(world, wanted.options.grid, steps)
        if world.rank == LEADER:
            arguments = {k: v for k, v in vars(wanted.options).items() if k != "grid"}
            _write(Trace(ranks, arguments | vars(wanted.options.grid), wanted.plan), path)


def _ready_file(trace: Any) -> Path:
    """The file to write, in a folder that is there."""
    folder = os.environ.get(_FOLDER, "")
    if trace is not None:
        path = Path(trace).absolute()
    else:
        taken = {file.name for file in Path(folder).glob("fit-*.json")}
        number = next(n for n in range(len(taken) + 1) if f"fit-{n}.json" not in taken)
        path = Path(folder).absolute() / f"fit-{number}.json"
    if path.is_dir():
        raise ValueError(f"`trace` must be a file. Received: {path}, which is a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def _write(trace: Trace, path: Path) -> None:
    try:
        trace.save(path)
    except OSError as error:  # what was learnt is worth more than the trace
        warnings.warn(f"The trace was not written: {error}", stacklevel=2)


def _read_clock(world: World) -> tuple[float, float]:
    """This rank's time, and how far it is behind the leader's."""
    offset = clock_offset(world)
    return time.monotonic(), offset


def _by_leaders_clock(step: list[Event], clocks: list[tuple[float, float]]) -> list[Event]:
    """The events with the leader's times; between two comparisons, a clock drifts evenly."""
    (begin, first), (end, last) = clocks
    drift = (last - first) / (end - begin)

    def moved(when: float) -> float:
        return when + first + drift * (when - begin)

    return [event._replace(start=moved(event.start), end=moved(event.end)) for event in step]


def _gather(world: World, grid: Grid, steps: list[list[Event]]) -> list[RankTrace]:
    """What all ranks recorded, on the leader."""
    what = "the events of all ranks"
    if world.rank != LEADER:
        world.wait_all(world.send_object(steps, LEADER, _TAG), what)
        return []
    return [
        RankTrace(
            grid.describe(rank),
            grid.replica(rank),
            grid.partition(rank),
            steps if rank == LEADER else world.receive_object(rank, _TAG, what),
        )
        for rank in range(world.size)
    ]
