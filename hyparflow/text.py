"""Tables as text."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["aligned", "counted"]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines in which the cells of a column stand below one another."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def counted(count: int, one: str, many: str) -> str:
    """ "1 rank", "2 ranks": the number and the word that goes with it."""
    return f"{count} {one if count == 1 else many}"
