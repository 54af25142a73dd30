"""Batches that Keras's loop reads and passes over, so that it goes on where another stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["PassedOver", "passing_over"]


@dataclass(frozen=True)
class PassedOver:
    """What was trained before.

    Attributes:
        epochs: that are over.
        steps: of the next epoch.
        done: called when they have been passed over.
    """

    epochs: int
    steps: int
    done: Callable[[], object]


def passing_over(begin: Callable[[], Iterator[Any]], passed: PassedOver) -> Iterator[Any]:
    """The first epoch of a loop that goes on: its steps after those that were trained.

    Random generators of the data are then where they were, for every batch is drawn again.

    Args:
        begin: begins an epoch of Keras's iterator; its items have the numbers of their first and
            last step, and the iterator of batches.
        passed: what to pass over.
    """
    for _ in range(passed.epochs):
        for first, last, batches in begin():
            if not _read(batches, last - first + 1):
                break
    rest = begin()
    for first, last, batches in rest:
        if first >= passed.steps:
            passed.done()
            yield first, last, batches
            break
        _read(batches, last - first + 1)
    yield from rest


def _read(batches: Iterator[Any], count: int) -> bool:
    """Read so many batches; returns whether there were any."""
    return all(next(batches, None) is not None for _ in range(count))
