"""One line at the bottom of a terminal that is drawn anew; what others write appears above it."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["TerminalLine", "is_watched", "terminal_line"]

_TERMINAL = re.compile(r"/dev/(pts/\d+|tty\w*|console)")
_PARENTS = 16  # processes between a rank and its launcher, at most: shells, wrappers


def is_watched(stream: Any, launched: bool) -> bool:
    """Whether `stream` ends at a terminal that knows how to draw a line anew.

    Args:
        stream: standard output or error.
        launched: whether a launcher started this process. Open MPI gives each rank a terminal of
            its own, even where the launcher's output goes into a file.
    """
    try:
        if not stream.isatty() or os.environ.get("TERM", "").lower() in ("", "dumb", "unknown"):
            return False
        return not launched or _launcher_is_watched(os.ttyname(stream.fileno()))
    except (AttributeError, OSError, ValueError):
        return False


def _launcher_is_watched(mine: str) -> bool:
    """Whether the first parent whose output is not the terminal `mine` writes to a terminal."""
    process = os.getppid()
    for _ in range(_PARENTS):
        target = os.readlink(f"/proc/{process}/fd/1")
        if target != mine:
            return _TERMINAL.fullmatch(target) is not None
        # The name in parentheses may have spaces.
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return False


class TerminalLine:
    """The line.

    Args:
        stream: a terminal.
    """

    def __init__(self, stream: Any) -> None:
        from rich.console import Console

        self._console = Console(file=stream, highlight=False)
        self._lock = threading.RLock()
        self._is_drawn = False
        self._is_free = True  # whether others have ended their last line

    def draw(self, text: str) -> None:
        """Show `text` in place of what is shown; not in the middle of a line of others."""
        from rich.text import Text

        with self._lock:
            if self._is_free:
                self.erase()
                # The last column stays free: some terminals begin another line there.
                shown = Text(" ".join(text.split()))
                shown.truncate(max(1, self._console.width - 1), overflow="ellipsis")
                self._console.print(shown, end="", soft_wrap=True)
                self._console.file.flush()
                self._is_drawn = True

    def erase(self) -> None:
        """Leave the line as it was before."""
        from rich.control import Control, ControlType

        with self._lock:
            if self._is_drawn:
                self._console.control(Control(ControlType.CARRIAGE_RETURN))
                self._console.control(Control((ControlType.ERASE_IN_LINE, 2)))
                self._console.file.flush()
                self._is_drawn = False

    def write_above(self, stream: Any, text: str) -> Any:
        """Write what others write to `stream`."""
        with self._lock:
            self.erase()
            result = stream.write(text)
            stream.flush()
            if text:
                self._is_free = text.endswith("\n")
            return result


class _Above:
    """A stream of the terminal that makes room before it writes."""

    def __init__(self, stream: Any, line: TerminalLine) -> None:
        self._stream, self._line = stream, line

    def write(self, text: str) -> Any:
        return self._line.write_above(self._stream, text)

    def writelines(self, lines: Any) -> None:
        for text in lines:
            self.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def terminal_line(stream: Any) -> Iterator[TerminalLine]:
    """While open, there is such a line on the terminal `stream`, drawn when it is told to."""
    line = TerminalLine(stream)
    placed: dict[str, tuple[Any, _Above]] = {}
    for name in ("stdout", "stderr"):
        present = getattr(sys, name)
        if _is_same_terminal(present, stream):
            placed[name] = present, _Above(present, line)
            setattr(sys, name, placed[name][1])
    try:
        yield line
    finally:
        line.erase()
        for name, (before, above) in placed.items():
            if getattr(sys, name) is above:  # else another has been put there meanwhile
                setattr(sys, name, before)


def _is_same_terminal(one: Any, other: Any) -> bool:
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return os.ttyname(one.fileno()) == os.ttyname(other.fileno())
    return False
