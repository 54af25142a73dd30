"""Shows what a long piece of work is at: planning, building, compiling.

On a terminal it is a line that goes away with the work, elsewhere a line of the logger now and
then. Work that ends soon shows nothing. Those who do the work only leave words, which cost
nothing: on the board of ranks, or in a `Progress`.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator

from hyparflow.comm import launcher
from hyparflow.comm.log import STATUS
from hyparflow.comm.terminal_line import is_watched, terminal_line

__all__ = ["Progress", "progress"]

_SOON = 2.0  # seconds; work that ends sooner shows nothing
_FIRST = 5.0  # seconds to the first line of the logger
_BETWEEN = 10.0  # and from one to the next
_REDRAWN = 0.5  # seconds until a line on a terminal is drawn anew
_NAME = "hyparflow-progress"
_STUCK = 1.0  # seconds; a terminal that takes nothing for so long is left alone

_one_at_a_time = threading.Lock()


class Progress:
    """What a piece of work is at.

    Args:
        title: what is done.
        words: called for what it is at; None for what `say` was told last.
    """

    def __init__(self, title: str, words: Callable[[], str] | None = None) -> None:
        self._title, self._words = title, words
        self._said = ""
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        """Tell what the work is at, and how much of it is done."""
        self._said = text

    def line(self) -> str:
        """The line that is shown."""
        words = self._said if self._words is None else self._words()
        since = _duration(time.monotonic() - self._began)
        return f"hyparflow: {self._title}, {since}" + (f": {words}" if words else "")


@contextlib.contextmanager
def progress(
    title: str,
    is_shown: bool = True,
    words: Callable[[], str] | None = None,
    stream: str = "stdout",
    log: Callable[[str], object] = STATUS.info,
) -> Iterator[Progress]:
    """While open, show what the work is at; the lines of work within work are left out.

    Args:
        title: what is done, for example "planning".
        is_shown: whether to show it: by the leader only, and not with ``verbose=0``.
        words: called for what the work is at, in another thread; None for what was last told to
            `Progress.say`.
        stream: the stream that a line is drawn on, if it is a terminal: "stdout" or "stderr".
        log: takes the lines otherwise.
    """
    found = Progress(title, words)
    if not is_shown or not STATUS.isEnabledFor(logging.INFO):
        yield found
        return
    if not _one_at_a_time.acquire(blocking=False):
        yield found
        return
    end = threading.Event()
    arguments = (found, end, stream, log)
    thread = threading.Thread(target=_show, args=arguments, name=_NAME, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        end.set()
        thread.join(_STUCK)
        _one_at_a_time.release()


def _show(found: Progress, end: threading.Event, stream: str, log: Callable[[str], object]) -> None:
    """Show `found` until `end` is set."""
    if end.wait(_SOON):
        return
    # The stream of this moment: notebooks and tests put others in its place.
    target = getattr(sys, stream)
    launched = bool(launcher.expected_size()[1])
    with contextlib.suppress(OSError, ValueError):  # it can no longer be written
        if is_watched(target, launched):
            with terminal_line(target) as line:
                while True:
                    line.draw(found.line())
                    if end.wait(_REDRAWN):
                        return
        wait = _FIRST - _SOON
        while not end.wait(wait):
            log(found.line())
            wait = _BETWEEN


def _duration(seconds: float) -> str:
    """For example "12 s", or "3 min 05 s"."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
