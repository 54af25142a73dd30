"""The compatibility table is written from the tests and leaves nothing of Keras out."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import keras
import pytest
from compatibility import callbacks, losses, metrics, optimizers
from compatibility.every import ROWS
from compatibility.write import PAGE, page


def rows(section: str) -> set[str]:
    return {row.name for row in ROWS if row.section == section}


def test_page_is_not_stale() -> None:
    assert PAGE.read_text() == page(), "run: python tests/compatibility/write.py"


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict", "compile"])
def test_every_argument_has_a_row(method: str) -> None:
    names = set(inspect.signature(getattr(keras.Model, method)).parameters)
    assert names - {"self", "kwargs"} <= rows(f"Arguments of {method}")


def missing(names: Iterable[str], section: str) -> set[str]:
    """Names of which no row of the section speaks."""
    return {name for name in names if not any(name in row for row in rows(section))}


def test_every_class_has_a_row() -> None:
    assert not missing(callbacks.names(), "Callbacks")
    assert not missing(losses.names(), "Losses")
    assert not missing(metrics.names(), "Metrics")
    assert not missing(optimizers.names(), "Optimizers")
    assert not missing(optimizers.schedule_names(), "Learning rate schedules")


def test_every_optimizer_argument_has_a_row() -> None:
    arguments = set(inspect.signature(keras.optimizers.AdamW.__init__).parameters)
    own = {"self", "kwargs", "beta_1", "beta_2", "epsilon", "amsgrad"}
    assert not missing(arguments - own, "Arguments of optimizers")


def test_no_row_is_twice() -> None:
    names = [(row.section, row.name) for row in ROWS]
    assert len(names) == len(set(names))
