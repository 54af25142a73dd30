"""Writes docs/compatibility.rst from the rows: python tests/compatibility/write.py."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from compatibility.every import ROWS
from compatibility.rows import SECTIONS, Row

PAGE = Path(__file__).resolve().parents[2] / "docs" / "compatibility.rst"
INTRODUCTION = """\
What of Keras works
===================

Each row has a test that runs it on several ranks, data-parallel and cut into partitions, with two
micro-batches, and compares History, weights, optimizer state and files with plain Keras: to 1e-10
in float64 where nothing else is said. "Refused" means an error at the start, the same on every
rank, that names the feature and what to do; "warned" that a warning does. This page is written from
the tests (``python tests/compatibility/write.py``); one of them fails when it is stale.
"""


def page() -> str:
    """The text of the page."""
    return "\n".join([INTRODUCTION, *(_section(name) for name in SECTIONS if _rows(name))])


def _rows(section: str) -> list[Row]:
    return sorted((row for row in ROWS if row.section == section), key=lambda row: row.name.lower())


def _section(name: str) -> str:
    lines = [name, "-" * len(name), "", ".. list-table::", "   :header-rows: 1", ""]
    table = [("Feature", "State", "Note")]
    table += [(row.name, row.state, row.note) for row in _rows(name)]
    for feature, state, note in table:
        lines += [f"   * - {feature}", f"     - {state}", f"     - {note}".rstrip()]
    return "\n".join([*lines, ""])


def main() -> None:
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
