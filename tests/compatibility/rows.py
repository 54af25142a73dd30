"""The rows of the compatibility table. A row cannot be without a check.

A check is run by `tests/mpi/test_compatibility.py` on every layout of its ranks; the table in
`docs/compatibility.rst` is written from the rows (`python tests/compatibility/write.py`), and a
unit test fails when it is stale or when Keras has something that no row names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["ROWS", "SECTIONS", "Row", "refused", "warned", "works"]

SECTIONS = (
    "Arguments of fit",
    "Arguments of evaluate",
    "Arguments of predict",
    "Arguments of compile",
    "Data",
    "Losses",
    "Metrics",
    "Optimizers",
    "Arguments of optimizers",
    "Learning rate schedules",
    "Precision",
    "Callbacks",
    "What callbacks do",
    "Models",
    "Patterns of keras.io",
    "Models of KerasHub",
    "BatchNormalization",
)


@dataclass(frozen=True)
class Row:
    """One feature of Keras and what becomes of it.

    Attributes:
        section: one of `SECTIONS`.
        name: the feature.
        state: "works", "refused" or "warned".
        note: for the table.
        check: takes a `Runs` (see `runs.py`) and fails if the state is not true.
    """

    section: str
    name: str
    state: str
    note: str
    check: Callable[[Any], None]


ROWS: list[Row] = []

Check = Callable[[Any], None]


def works(section: str, *names: str, note: str = "") -> Callable[[Check], Check]:
    """Declare that these features work as in plain Keras, which the decorated function checks."""
    return _declare(section, names, "works", note)


def refused(section: str, *names: str, note: str) -> Callable[[Check], Check]:
    """Declare that these are refused with an error that names them; `note` says what to do."""
    return _declare(section, names, "refused", note)


def warned(section: str, *names: str, note: str) -> Callable[[Check], Check]:
    """Declare that these train otherwise, and that a warning at the start names them."""
    return _declare(section, names, "warned", note)


def _declare(section: str, names: tuple[str, ...], state: str, note: str) -> Any:
    if section not in SECTIONS:
        raise ValueError(f"The section must be one of {SECTIONS}. Received: {section!r}")

    def declare(check: Check) -> Check:
        ROWS.extend(Row(section, name, state, note, check) for name in names)
        return check

    return declare
