"""Tables as text: aligned columns for files and pipes, drawn by rich on a terminal."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = [
    "Page",
    "aligned",
    "brief",
    "counted",
    "counted_names",
    "first_line",
    "path_text",
    "shortened",
]

_LONGEST = 48  # letters of a name in a table


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines in which the cells of a column stand below one another."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


@dataclass(frozen=True)
class Page:
    """A table with lines above and below it.

    Attributes:
        head: lines above.
        table: rows of cells; the first has the titles.
        foot: lines below.
    """

    head: Sequence[str]
    table: Sequence[Sequence[str]]
    foot: Sequence[str] = ()

    def plain(self) -> str:
        """As text without colours or frames."""
        below = ["", *self.foot] if self.foot else []
        return "\n".join([*self.head, "", *aligned(self.table), *below])

    def show(self) -> None:
        """Write to the standard output: drawn on a terminal, plain elsewhere."""
        if not sys.stdout.isatty():
            sys.stdout.write(self.plain() + "\n")
            return
        from rich import box
        from rich.console import Console
        from rich.table import Column, Table
        from rich.text import Text

        # Fold cells that are too wide: a number that is cut off would be another number.
        columns = [Column(title, overflow="fold") for title in self.table[0]]
        table = Table(*columns, box=box.SIMPLE_HEAD)
        for row in self.table[1:]:
            table.add_row(*map(Text, row))
        console = Console()
        console.print(*map(Text, self.head), table, *map(Text, self.foot), sep="\n")


def brief(name: str) -> str:
    """A name on one line, with the middle left out where it is too long for a table."""
    name = " ".join(name.split())
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST // 2]}...{name[-_LONGEST // 3 :]}"


def counted(count: int, one: str, many: str) -> str:
    """ "1 rank", "2 ranks": the number and the word that goes with it."""
    return f"{count} {one if count == 1 else many}"


def counted_names(counts: Mapping[str, int]) -> str:
    """ "batch normalization (54), GELU (6)": the most frequent name first."""
    return ", ".join(f"{name} ({n})" for name, n in Counter(counts).most_common())


def shortened(value: object, most: int = 100) -> str:
    """`repr(value)`, with the middle left out where it is long."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        text = f"an integer of {value.bit_length()} bits" if isinstance(value, int) else "?"
    text = re.sub(r" at 0x[0-9a-f]+", "", text)  # addresses differ from rank to rank
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 + 3 :]}"


def path_text(path: object) -> str:
    """The path of a file as text.

    Raises:
        ValueError: if it is not a path, or has a character that no path can have.
    """
    text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else "\0"
    if "\0" in text:
        raise ValueError(
            "A file is named by its path, as text or a pathlib.Path. "
            f"Received: {shortened(path)} of type {type(path).__name__}"
        )
    return text


def first_line(error: BaseException) -> str:
    """The first line of an error, without the layer and arguments that Keras writes around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith("Exception encountered"):
        lines = lines[1:]
    # Without colours, and without TensorFlow's words about nodes and devices.
    return re.sub(r"\x1b\[\dm|\{\{.*?\}\} ?| ?\[Op:.*?\]", "", lines[0]) if lines else repr(error)
