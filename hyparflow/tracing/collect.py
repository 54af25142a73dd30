"""Traces a call of `fit`: every rank records its events, and the leader writes them all."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hyparflow.comm.leader import LEADER, on_leader
from hyparflow.comm.recorder import Event
from hyparflow.comm.tags import Tag
from hyparflow.comm.world import World
from hyparflow.engine.sequence.sequence_counts import SequenceCounts
from hyparflow.formats.writing import require_writable
from hyparflow.pipeline.grid import Grid
from hyparflow.tracing.clocks import clock_offset
from hyparflow.tracing.trace import RankTrace, Trace

__all__ = ["TraceRequest", "traced", "wants_trace"]

_FOLDER = "HYPARFLOW_TRACE"  # environment variable: a trace of each call goes into this folder


class TracedCall(Protocol):
    """What a trace needs to know of a call.

    Attributes:
        options: the checked parallel arguments.
        rows: rows of a full batch; None where a stream does not tell.
    """

    options: Any
    rows: int | None


@dataclass
class TraceRequest:
    """The wish for a trace of a call.

    Attributes:
        call: the call; its rows are known once it runs.
        file: where to write it; None for a new file in the folder HYPARFLOW_TRACE.
        plan: the plan that is followed, as JSON, or None.
    """

    call: TracedCall
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
def traced(
    world: World,
    wanted: TraceRequest | None,
    rewritten: Callable[[], Mapping[str, int]],
    sequences: Callable[[], SequenceCounts],
) -> Iterator[None]:
    """While open, all ranks record events, if a trace is wanted; then the leader writes it.

    Collective.

    Args:
        world: all ranks.
        wanted: the trace, or None.
        rewritten: how often which faster kernel was put in on this rank, once it is done.
        sequences: what this rank moved and kept of divided sequences, once it is done.
    """
    if wanted is None:
        yield
        return
    what = "the leader to make the file of the trace"
    path = on_leader(world, lambda: _ready_file(wanted.file), what)
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
        options = wanted.call.options
        ranks = _gather(world, options.grid, (steps, dict(rewritten()), sequences()))
        if world.rank == LEADER:
            arguments = dataclasses.asdict(options) | {"batch_size": wanted.call.rows}
            _write(Trace(ranks, arguments, wanted.plan), path)


def _ready_file(trace: Any) -> Path:
    """The file to write; makes sure before training that it can be written."""
    try:
        if trace is None:
            return _new_file(Path(os.environ[_FOLDER]).absolute())
        path = Path(trace).absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        require_writable(path)
        return path
    except (OSError, ValueError) as error:
        if trace is None:
            rule = f"{_FOLDER} must be a folder in which files can be written."
            raise ValueError(f"{rule} Received: {os.environ[_FOLDER]} ({error})") from error
        raise ValueError(
            f"`trace` must be a file that can be written. Received: trace={trace!r} ({error})"
        ) from error


def _new_file(folder: Path) -> Path:
    """An empty file under the next free name, which other jobs then do not take."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        path = folder / f"fit-{number}.json"
        try:
            path.open("x").close()
        except FileExistsError:
            number += 1
        else:
            return path


def _write(trace: Trace, path: Path) -> None:
    try:
        trace.save(path)
    except (OSError, ValueError) as error:  # the trained weights are worth more than the trace
        warnings.warn(f"The trace was not written: {error}", stacklevel=2)


def _read_clock(world: World) -> tuple[float, float]:
    """This rank's time, and how far it is behind the leader's."""
    offset = clock_offset(world)
    return time.monotonic(), offset


def _by_leaders_clock(step: list[Event], clocks: list[tuple[float, float]]) -> list[Event]:
    """The events by the leader's clock; clocks drift evenly between two comparisons."""
    (begin, first), (end, last) = clocks
    drift = (last - first) / (end - begin)

    def moved(when: float) -> float:
        return when + first + drift * (when - begin)

    return [event._replace(start=moved(event.start), end=moved(event.end)) for event in step]


def _gather(
    world: World, grid: Grid, mine: tuple[list[list[Event]], dict[str, int], SequenceCounts]
) -> list[RankTrace]:
    """The recorded events, the kernels and the sequences of all ranks, on the leader."""
    what = "the events of all ranks"
    if world.rank != LEADER:
        world.wait_all(world.send_object(mine, LEADER, Tag.EVENTS), what)
        return []
    others = range(1, world.size)
    found = [mine, *(world.receive_object(rank, Tag.EVENTS, what) for rank in others)]
    return [
        RankTrace(
            name=grid.describe(rank),
            replica=grid.replica(rank),
            partition=grid.partition(rank),
            steps=steps,
            rewritten=rewritten,
            sequences=sequences,
        )
        for rank, (steps, rewritten, sequences) in enumerate(found)
    ]
