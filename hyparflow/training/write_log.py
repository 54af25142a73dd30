"""Logs the variables that callbacks write, so that all ranks get the values before using them.

How changes by callbacks on the leader are noticed, when they reach the others, and what that costs
(seconds of CPU on one core of a Xeon):

=============================  ============================  ================  ===================
what is changed                who notices                   reaches others    costs
=============================  ============================  ================  ===================
a variable, by `assign`        `WriteLog`, as it is written  the next command  2 us each
a weight, past `assign`        `WeightSync.checksums` around ends of epochs,   0.4 ms for 1 MiB
                               callbacks                     evaluations
weights by `set_weights` and   `keras_bridge`, which wraps   at once           a broadcast
the like                       these methods
learning rates, settings of    `Tuning`                      the next step     0.4 ms a step
the optimizer
Python values that calls read  `PythonFollower`              the first step of 0.1 ms a layer
                                                             a kind; all if
                                                             eager
=============================  ============================  ================  ===================

Callbacks run on the leader only and may assign to any variable at any time: weights, optimizer
state, or a variable of the user's own that a loss reads, Keras's or TensorFlow's. There is no hook
for that, so `assign` itself is wrapped while a call runs; writes of hyparflow and of Keras's
metrics are left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

from hyparflow.model.keras_internals.patched import patched

__all__ = ["WriteLog"]


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
        """While open, writes are logged."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._wrapped(keras.Variable, "assign"))
            # Keras's variables write to TensorFlow's, which are logged already.
            for name in ("assign", "assign_add", "assign_sub"):
                stack.enter_context(self._wrapped(type(tf.Variable(0.0)), name))
            yield

    @contextlib.contextmanager
    def _wrapped(self, kind: type, name: str) -> Iterator[None]:
        original = getattr(kind, name)

        def write(variable: Any, *args: Any, **kwargs: Any) -> Any:
            if self._pauses == 0 and tf.executing_eagerly():
                self._note(variable)
            with self.paused():
                return original(variable, *args, **kwargs)

        with patched(kind, **{name: write}):
            yield

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """While open, writes are hyparflow's own, and are not logged."""
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
                f"Received: a new value for '{getattr(variable, 'path', variable.name)}'"
            )
        self._written[id(variable)] = variable

    def take(self) -> list[Any]:
        """The variables that were written, in order; empties the log."""
        if not self._written:
            return []
        written, self._written = self._written, {}
        ignored = {id(v) for variable in self._ignored() for v in (variable, variable.value)}
        return [variable for key, variable in written.items() if key not in ignored]
