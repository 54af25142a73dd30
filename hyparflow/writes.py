"""What callbacks write to variables, noted so that it reaches all ranks before anything uses it.

Callbacks run on the leader only and may assign to any variable at any time: weights, optimizer
state, or a variable of the user's own that a loss reads. Keras has no hook for that, so `assign`
itself is wrapped while a call runs; what hyparflow and Keras's metrics write is left out.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

__all__ = ["WriteLog", "find_own"]


class WriteLog:
    """The variables that callbacks wrote since the log was last taken.

    Args:
        ignored: returns variables whose changes reach the ranks in another way.
        is_stale: whether the leader's copy of a variable is older than its owner's.
    """

    def __init__(
        self, ignored: Callable[[], Iterable[Any]], is_stale: Callable[[Any], bool]
    ) -> None:
        self._ignored = ignored
        self._is_stale = is_stale
        self._written: dict[int, Any] = {}
        self._pauses = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """While open, writes are noted."""
        original = keras.Variable.assign

        def assign(variable: Any, value: Any) -> Any:
            if self._pauses == 0 and tf.executing_eagerly():
                self._note(variable)
            return original(variable, value)

        was_own = "assign" in vars(keras.Variable)
        keras.Variable.assign = assign
        try:
            yield
        finally:
            if was_own:
                keras.Variable.assign = original
            else:
                del keras.Variable.assign

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """While open, writes are hyparflow's own."""
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1

    def _note(self, variable: Any) -> None:
        if self._is_stale(variable):
            raise ValueError(
                "A weight of another partition may be written between two steps only after "
                "`model.get_weights()`, which brings it up to date. "
                f"Received: a new value for '{variable.path}'"
            )
        self._written[id(variable)] = variable

    def take(self) -> list[Any]:
        """What was written, in order; the log is empty then."""
        if not self._written:
            return []
        written, self._written = self._written, {}
        ignored = {id(variable) for variable in self._ignored()}
        return [variable for key, variable in written.items() if key not in ignored]


def find_own(path: str, value: np.ndarray, known: set[int]) -> list[Any]:
    """The living variables of this path and shape that are none of the `known`.

    A variable of the user's own, read by a loss for example, is in no list of Keras's; it is known
    by its path on all ranks, because they run the same script.
    """
    return [
        candidate
        for candidate in gc.get_objects()
        if isinstance(candidate, keras.Variable)
        and id(candidate) not in known
        and candidate.path == path
        and tuple(candidate.shape) == value.shape
    ]
