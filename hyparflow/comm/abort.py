"""What happens when something goes wrong on one rank: one report, and the job ends.

A rank that dies while others wait for it would leave them waiting for ever (mpi4py issue 290).
The hook installed here prints the first error once, with the rank and what it was doing, and
aborts the job. It starts nothing: without a running MPI of several ranks it hands over to the hook
that was there before, on the first rank that fails.
"""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, TypeVar

from hyparflow.comm import launcher, recursion

__all__ = [
    "abort",
    "alike",
    "give_way",
    "mark_collective",
    "fail",
    "flush",
    "install",
    "locate",
    "locate_layer",
    "say",
    "witnessed",
]

_Error = TypeVar("_Error", bound=BaseException)
_LAST_WORDS = 0.2  # seconds in which the last output of this rank gets through
_UNWRITABLE = (OSError, ValueError)  # a stream cannot be written: disk full, reader gone, or closed
_GRACE = 5.0  # seconds in which another rank's report may end the job before this rank does
_ALIKE = 1.0  # the same, for an error that other ranks may or may not have
_NEXT = 0.3  # further seconds for each rank before this one, up to this number of ranks:
_MOST = 10
_witnesses: list[Callable[[BaseException], object]] = []


def mark_collective(error: _Error) -> _Error:
    """Mark `error` as one that every rank raises alike, so that only the leader reports it."""
    error.__dict__["hyparflow_everywhere"] = True
    return error


@contextlib.contextmanager
def alike() -> Iterator[None]:
    """While open, an error counts as one that all ranks raise: all have the same arguments."""
    try:
        yield
    except Exception as error:
        mark_collective(error)
        raise


def locate(error: BaseException, place: str) -> None:
    """Note on `error` where it happened (rank, partition, action), unless noted before."""
    error.__dict__.setdefault("hyparflow_place", place)


def locate_layer(error: BaseException, layer: str) -> None:
    """Note on `error` in which layer it happened, if that is known."""
    if layer:
        error.__dict__.setdefault("hyparflow_layer", f", layer '{layer}'")


def _running_mpi() -> Any | None:
    """The MPI module if MPI runs with several ranks in this process."""
    module = sys.modules.get("mpi4py.MPI")
    if module is None or not module.Is_initialized() or module.Is_finalized():
        return None
    return module if module.COMM_WORLD.Get_size() > 1 else None


def abort(code: int = 1) -> None:
    """End the whole job now, if MPI runs with several ranks."""
    flush()
    module = _running_mpi()
    if module is not None:
        time.sleep(_LAST_WORDS)  # some launchers stop the process that carries the output at once
        module.COMM_WORLD.Abort(code)


def say(text: str) -> None:
    """Write `text` to the real standard error, even if `sys.stderr` is captured."""
    for stream in {id(s): s for s in (sys.stderr, sys.__stderr__) if s is not None}.values():
        with contextlib.suppress(*_UNWRITABLE):
            stream.write(text)
            stream.flush()


def flush() -> None:
    """Flush standard output and error, where they can still be written."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, *_UNWRITABLE):
            stream.flush()


@contextlib.contextmanager
def witnessed(witness: Callable[[BaseException], object]) -> Iterator[None]:
    """While open, `witness` is called with an error that ends the job, before the end."""
    _witnesses.append(witness)
    try:
        yield
    finally:
        _witnesses.remove(witness)


def report(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None, mpi: Any
) -> None:
    """Print the one report of `error`."""
    rank = mpi.COMM_WORLD.Get_rank()
    place = getattr(error, "hyparflow_place", f"rank {rank}") + getattr(
        error, "hyparflow_layer", ""
    )
    text = "".join(traceback.format_exception(kind, error, trace))
    say(f"{text}hyparflow: {kind.__name__} on {place}; all ranks are stopped.\n")
    _say_remedy(error, trace)
    for witness in _witnesses:
        with contextlib.suppress(Exception):  # an error in it must not keep the job from its end
            witness(error)


def _say_remedy(error: BaseException, trace: TracebackType | None) -> None:
    if text := recursion.remedy(error, trace):
        say(text)


def give_way(error: BaseException) -> None:
    """Let the first of the failing ranks report: mostly all fail alike, since all run one script.

    The report of a rank before this one ends the job, and this rank with it; before MPI runs, the
    launcher does, as that rank ends with an error.
    """
    mpi = _running_mpi()
    rank = launcher.told_rank() if mpi is None else mpi.COMM_WORLD.Get_rank()
    if rank:
        is_alike = getattr(error, "hyparflow_everywhere", False)
        time.sleep(_GRACE if is_alike else _ALIKE + _NEXT * min(rank - 1, _MOST))


def fail(error: BaseException) -> None:
    """Report `error` and end the job; returns only if there is one rank.

    For errors in the middle of a step, after which no rank can go on, so that a `try` around
    the call in the user's script cannot leave the others waiting.
    """
    mpi = _running_mpi()
    if mpi is not None:
        give_way(error)
        report(type(error), error, error.__traceback__, mpi)
        abort(130 if isinstance(error, KeyboardInterrupt) else 1)


def install() -> None:
    """Put the hook in front of the present `sys.excepthook` (once)."""
    previous = sys.excepthook
    if getattr(previous, "hyparflow", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        mpi = _running_mpi()
        give_way(error)
        if mpi is None:
            previous(kind, error, trace)
            _say_remedy(error, trace)
            return
        report(kind, error, trace, mpi)
        abort(130 if issubclass(kind, KeyboardInterrupt) else 1)

    hook.hyparflow = True  # type: ignore[attr-defined]
    sys.excepthook = hook
