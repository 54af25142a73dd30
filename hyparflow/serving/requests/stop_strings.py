"""Ends a text at the first of some strings. Pure text."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["StopStrings"]


class StopStrings:
    """Text that comes in pieces, up to a stop string, which is not given out.

    Args:
        strings: any of which ends the text.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = [string for string in strings if string]
        self._held = ""  # what may be the beginning of a stop string
        self.has_stopped = False

    def add(self, piece: str, is_last: bool = False) -> str:
        """What may be given out. With the last piece, all that is left."""
        if self.has_stopped:
            return ""
        text = self._held + piece
        found = [place for string in self._strings if (place := text.find(string)) >= 0]
        if found:
            self.has_stopped, self._held = True, ""
            return text[: min(found)]
        kept = 0 if is_last else max((_begun(x, text) for x in self._strings), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


def _begun(string: str, text: str) -> int:
    """How many characters at the end of a text begin a string."""
    sizes = range(min(len(string) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(string[:size])), 0)
