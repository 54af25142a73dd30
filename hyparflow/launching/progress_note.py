"""A note of how far a training has come, which is still there when its processes are not.

`hyparflow run --restarts` makes a small file and tells ranks its path; rank 0 maps it into memory
and writes numbers there. The system keeps them whatever happens to the rank, and a write costs a
microsecond, so the note is exact to the step.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import struct
import time
from pathlib import Path
from typing import NamedTuple

from hyparflow.comm import launcher
from hyparflow.comm.leader import LEADER

__all__ = ["VARIABLE", "Reached", "make_note", "note_progress", "note_saved", "read_note"]

VARIABLE = "HYPARFLOW_PROGRESS"  # environment variable: the path of the note
_LAYOUT = struct.Struct("<qqqddd")  # as `Reached`
_PLACE = struct.Struct("<qq")
_SAVED = struct.Struct("<q")
_TIME = struct.Struct("<d")
_OF_SAVED, _OF_FIRST, _OF_LAST, _OF_SAVING = 16, 24, 32, 40  # where each begins


class Reached(NamedTuple):
    """How far a training has come.

    Attributes:
        epoch: the epoch, from 1; -1 before the first step.
        step: the step of the whole training; -1 before the first.
        saved: the step of the last save; -1 for none.
        first_at: when the first step was noted, in seconds since 1970; 0 for never.
        at: when the last step was noted.
        saved_at: when the last save was noted.
    """

    epoch: int = -1
    step: int = -1
    saved: int = -1
    first_at: float = 0.0
    at: float = 0.0
    saved_at: float = 0.0


def make_note(path: Path) -> None:
    """Make a note that says that nothing has been done."""
    path.write_bytes(_LAYOUT.pack(*Reached()))


def read_note(path: Path) -> Reached:
    """What stands in a note; nothing done, where it cannot be read."""
    with contextlib.suppress(OSError, struct.error):
        return Reached(*_LAYOUT.unpack(path.read_bytes()))
    return Reached()


def note_progress(epoch: int, step: int) -> None:
    """Note that a step has been done. Does nothing where nobody asks for notes; never raises.

    Args:
        epoch: the epoch, from 1 as Keras shows it.
        step: how many steps have been done since the training began, over all runs of it.
    """
    if (note := _own_note()) is not None:
        with contextlib.suppress(struct.error, TypeError, ValueError):
            now = time.time()
            _PLACE.pack_into(note, 0, epoch, step)
            _TIME.pack_into(note, _OF_LAST, now)
            if not _TIME.unpack_from(note, _OF_FIRST)[0]:
                _TIME.pack_into(note, _OF_FIRST, now)


def note_saved(step: int) -> None:
    """Note that the state after a step is saved. Does nothing where nobody asks for notes.

    Args:
        step: as for `note_progress`.
    """
    if (note := _own_note()) is not None:
        with contextlib.suppress(struct.error, TypeError, ValueError):
            _SAVED.pack_into(note, _OF_SAVED, step)
            _TIME.pack_into(note, _OF_SAVING, time.time())


@functools.cache
def _own_note() -> mmap.mmap | None:
    """The note of this job in memory; None on other ranks than 0, or without a note."""
    path = os.environ.get(VARIABLE)
    if not path or launcher.told_rank() != LEADER:
        return None
    try:
        with open(path, "r+b") as file:
            return mmap.mmap(file.fileno(), _LAYOUT.size)
    except (OSError, ValueError):  # on another machine than the one that started the job
        return None
