"""Counts what a rank gives to others in collectives: calls and bytes, by kind and purpose."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["Collective", "Entry", "Ledger"]


class Collective(Enum):
    """What all ranks of a group do together."""

    ALL_GATHER = "all-gather"
    ALL_TO_ALL = "all-to-all"
    BROADCAST = "broadcast"
    SUM = "sum"


@dataclass
class Entry:
    """The collectives of one kind that serve one purpose.

    Attributes:
        calls: how many there were.
        payload: bytes of what this rank put in.
        off_rank: bytes that it gave to other ranks, each as often as there are ranks that got it;
            of a sum, as many as it put in.
    """

    calls: int = 0
    payload: int = 0
    off_rank: int = 0


class Ledger:
    """The collectives of one rank in one group.

    Attributes:
        entries: by kind and purpose, which is what reports of waits call it.
    """

    def __init__(self) -> None:
        self.entries: dict[tuple[Collective, str], Entry] = {}

    def note(self, kind: Collective, purpose: str, payload: int, off_rank: int) -> None:
        """Count a collective that this rank takes part in."""
        entry = self.entries.setdefault((kind, purpose), Entry())
        entry.calls += 1
        entry.payload += payload
        entry.off_rank += off_rank

    def total(self, kind: Collective, purpose: str | None = None) -> Entry:
        """All of one kind, or those of it that serve one purpose, together."""
        found = Entry()
        for (other, named), entry in self.entries.items():
            if other is kind and purpose in (None, named):
                found.calls += entry.calls
                found.payload += entry.payload
                found.off_rank += entry.off_rank
        return found

    def clear(self) -> None:
        """Count anew."""
        self.entries.clear()
