"""Writes docs/compatibility.rst from the rows: python tests/compatibility/write.py.

For each topic a list of what simply works, and a table of the rest: what is refused or warned of
stands first and in bold, then what works with something to know.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from compatibility.every import ROWS
from compatibility.rows import SECTIONS, Row

PAGE = Path(__file__).resolve().parents[2] / "docs" / "compatibility.rst"
INTRODUCTION = """\
What of Keras works
===================

Each feature that is named here has a test that runs it on several ranks, data-parallel and cut
into partitions, with two micro-batches, and compares History, weights, optimizer state and files
with plain Keras: to 1e-10 in float64 where nothing else is said. **Refused** means an error at the
start, the same on every rank, that names the feature and what to do; **warned** that a warning
does. This page is written from the tests (``python tests/compatibility/write.py``); one of them
fails when it is stale.
"""
# The sections of a topic, each with what stands before its features.
TOPICS = {
    "Arguments": {
        "Arguments of fit": "``fit``",
        "Arguments of evaluate": "``evaluate``",
        "Arguments of predict": "``predict``",
        "Arguments of compile": "``compile``",
    },
    "Data": {"Data": ""},
    "Losses": {"Losses": ""},
    "Metrics": {"Metrics": ""},
    "Optimizers": {
        "Optimizers": "",
        "Arguments of optimizers": "arguments",
        "Learning rate schedules": "learning rate schedules",
        "Precision": "precision",
    },
    "Callbacks": {"Callbacks": "", "What callbacks do": "callbacks that"},
    "Models": {"Models": "", "BatchNormalization": "", "Models of KerasHub": "KerasHub"},
    "Patterns of keras.io": {"Patterns of keras.io": ""},
}
ORDER = ("refused", "warned", "works")
PLAIN = ("works", "")  # without anything to know


def page() -> str:
    """The text of the page."""
    known = [section for sections in TOPICS.values() for section in sections]
    if sorted(known) != sorted(SECTIONS):
        raise ValueError(f"TOPICS must have each section once. Received: {known}")
    return "\n".join([INTRODUCTION, *map(_topic, TOPICS)])


def _topic(topic: str) -> str:
    merged = list(_merged(TOPICS[topic]))
    lines = [topic, "-" * len(topic), ""]
    if plain := [features for features, *rest in merged if tuple(rest) == PLAIN]:
        lines += ["These work as in plain Keras:", "", *(f"- {features}" for features in plain), ""]
    lines += [".. list-table::", "   :header-rows: 1", "   :widths: 46 10 44", "   :class: states"]
    lines += ["", *_cells("Feature", "State", "What to know")]
    for features, state, note in merged:
        if (state, note) != PLAIN:
            shown = state if state == "works" else f"**{state}**"
            lines += _cells(features, shown, note)
    return "\n".join([*lines, ""])


def _cells(*cells: str) -> list[str]:
    return [f"   {mark} {cell}" for mark, cell in zip(("* -", "  -", "  -"), cells, strict=True)]


def _merged(sections: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """Features, state and note; features of a section with the same state and note are one."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for section in sections:
        for row in _rows(section):
            groups.setdefault((row.state, row.note, section), []).append(row.name)
    for state, note, section in sorted(groups, key=_weight):
        label = sections[section]
        found = groups[state, note, section]
        has_commas = any(", " in re.sub(r"\(.*?\)", "", name) for name in found)
        names = ("; " if has_commas else ", ").join(found)
        between = "" if not label else " " if label.endswith("that") else ": "
        yield f"{label}{between}{names}", state, note


def _weight(group: tuple[str, str, str]) -> int:
    return ORDER.index(group[0])


def _rows(section: str) -> list[Row]:
    return sorted((row for row in ROWS if row.section == section), key=lambda row: row.name.lower())


def main() -> None:
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
