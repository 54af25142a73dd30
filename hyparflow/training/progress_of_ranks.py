"""What is shown of a call on the leader until its first step is done: building and compiling."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from hyparflow.comm.leader import LEADER
from hyparflow.comm.progress import Progress, progress
from hyparflow.comm.world import World
from hyparflow.engine.first_runs import compiling
from hyparflow.formats.text import counted
from hyparflow.training.call import Call, is_shown

__all__ = ["building_shown", "progress_of_ranks", "words_of"]

_Lead = Callable[..., Any]


def progress_of_ranks(title: str, call: Call, world: World) -> AbstractContextManager[Progress]:
    """While open, the leader shows what it is at, and which other ranks of its machine compile.

    Args:
        title: what all ranks do.
        call: the user's call.
        world: all ranks.
    """
    wanted = world.rank == LEADER and is_shown(call.arguments)
    return progress(title, wanted, lambda: words_of(world.board.read()))


@contextlib.contextmanager
def building_shown(lead: _Lead, call: Call, world: World) -> Iterator[_Lead]:
    """While open, what is built is shown, until the function that it yields is called.

    Args:
        lead: begins Keras's loop, which shows its own progress; the same function is yielded.
        call: the user's call.
        world: all ranks.
    """
    with contextlib.ExitStack() as before:

        def led(*args: Any) -> Any:
            before.close()
            return lead(*args)

        before.enter_context(progress_of_ranks("building", call, world))
        yield led


def words_of(board: Mapping[int, str]) -> str:
    """What ranks are at, of what each rank has said last."""
    at_work = [(rank, what) for rank, text in board.items() if (what := compiling(text))]
    if not at_work:
        mine = board.get(LEADER, "")
        return f"action {mine}" if mine[:1].isdigit() else mine
    rank, what = at_work[0]
    others = counted(len(at_work) - 1, "rank more", "ranks more")
    return f"rank {rank} compiles {what}" + (f"; {others}" if at_work[1:] else "")
