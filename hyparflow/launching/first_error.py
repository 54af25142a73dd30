"""Finds in the output of ranks the error that ended them, so that two can be compared."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["FirstError", "OutputScan"]

_TRACEBACK = "Traceback (most recent call last)"
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
# Errors of a script that Python could not even read come without the line above.
_UNREAD = ("SyntaxError", "IndentationError", "TabError")
_RANK = re.compile(r"\[(\d+)\] |--- rank (\d+)\b")  # as rank_process.py writes them
_PLACE = re.compile(r'  File "(.+)", line (\d+)')
_KIND = re.compile(r"([A-Za-z_][\w.]*)(?:: (.*))?$")
_CHANGING = re.compile(r"0x[0-9a-fA-F]+|\d+")  # addresses, processes, ports, times
_DEADLINE = "(HYPARFLOW_TIMEOUT)"
_LONGEST = 1 << 16  # characters of a line; what is longer is no line of a traceback
_SHOWN = 300  # characters of a message that are kept


class FirstError(NamedTuple):
    """An exception, with the place in the code at which it was raised.

    Attributes:
        kind: the name of its type.
        message: its text, the first line.
        place: file and line.
    """

    kind: str
    message: str = ""
    place: str = ""

    @property
    def signature(self) -> str:
        """What two errors have in common that are the same: numbers in the message may differ."""
        return f"{self.kind}: {_CHANGING.sub('#', self.message)} at {self.place}"

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}" if self.message else self.kind


@dataclass
class _Trace:
    """The last chain of exceptions that a rank has shown, of which the first is kept."""

    is_open: bool = False
    is_chained: bool = False
    place: str = ""
    error: FirstError | None = None

    def take(self, line: str) -> None:
        if line.startswith(_TRACEBACK):
            if not self.is_chained:
                self.error = None
            self.is_open, self.place = True, ""
        elif line.startswith(_CHAINED):
            self.is_chained = True
        elif found := _PLACE.match(line):
            self.place = f"{found[1]}:{found[2]}"
        elif (found := _KIND.match(line)) and (self.is_open or found[1] in _UNREAD):
            self.error = self.error or FirstError(found[1], (found[2] or "")[:_SHOWN], self.place)
            self.is_open = self.is_chained = False


class OutputScan:
    """Reads what ranks write to their standard error while it is shown.

    Attributes:
        has_hung: whether ranks were ended because a wait passed its deadline.
    """

    def __init__(self) -> None:
        self.has_hung = False
        self._rest = ""
        self._rank: int | None = None
        self._traces: dict[int | None, _Trace] = {}

    def take(self, piece: bytes) -> None:
        """Read the next piece of output."""
        lines = (self._rest + piece.decode(errors="replace")).split("\n")
        self._rest = lines.pop()[:_LONGEST]
        for line in lines:
            self._take_line(line.strip("\0\r"))  # Open MPI writes some zeros

    def error_of(self, rank: int | None) -> FirstError | None:
        """The error that a rank ended with; the first that is known, if none of this rank is."""
        known = {at: trace.error for at, trace in self._traces.items() if trace.error is not None}
        return known.get(rank, next(iter(known.values()), None))

    def _take_line(self, line: str) -> None:
        rank = self._rank
        if found := _RANK.match(line):
            rank = int(found[1] or found[2])
            if found[2]:  # all that follows is of this rank
                self._rank = rank
                return
            line = line[found.end() :]
        if line.startswith("hyparflow: ") and _DEADLINE in line:
            self.has_hung = True
        self._traces.setdefault(rank, _Trace()).take(line)
