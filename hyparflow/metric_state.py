"""Metric state over ranks: sums and counts, never means of means.

Each rank updates Keras's own metric objects with its micro-batches. After a step the states are
added up on the leader, where Keras and the callbacks read them; the others start the next step
from the metrics' initial state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow import keras_internals
from hyparflow.comm import Communicator
from hyparflow.flat_call import FixedFunction
from hyparflow.grid import LEADER

__all__ = ["MetricState"]


class MetricState:
    """The variables of all metrics of a compiled model, as one vector.

    Args:
        model: the model; its metrics must be built.
        world: all ranks.
        updates: whether this rank updates any metric.
    """

    def __init__(self, model: Any, world: Communicator, updates: bool) -> None:
        self._world = world
        self._updates = updates
        self._shown = list(model.metrics)
        self._metrics = keras_internals.tracked_metrics(model)
        variables = {id(v): v for metric in self._metrics for v in metric.variables}
        self._variables = list(variables.values())
        self._sizes = [int(np.prod(v.shape, dtype=np.int64)) for v in self._variables]
        model.reset_metrics()
        self._reader = FixedFunction(self._trace_read)
        self._writer = FixedFunction(self._trace_write)
        self._initial = np.asarray(self._read())
        tracker = keras_internals.loss_tracker(model)
        at = [v is tracker.total for v in self._variables].index(True)
        self._loss_total = sum(self._sizes[:at])

    def _trace_read(self, nothing: list[Any]) -> Any:
        flat = [tf.reshape(tf.cast(v.value, tf.float64), [-1]) for v in self._variables]
        return tf.concat(flat, 0)

    def _trace_write(self, tensors: list[Any]) -> None:
        parts = tf.split(tensors[0], self._sizes)
        for variable, part in zip(self._variables, parts, strict=True):
            variable.assign(tf.cast(tf.reshape(part, variable.shape), variable.dtype))

    def _read(self) -> Any:
        return self._reader([])

    def _write(self, flat: Any) -> None:
        self._writer([flat])

    def reset(self) -> None:
        """Set every metric to its initial state."""
        self._write(tf.convert_to_tensor(self._initial))

    @contextlib.contextmanager
    def paused(self, is_paused: bool) -> Iterator[None]:
        """Forget what is updated meanwhile, if `is_paused`: rows that stand in do not count."""
        state = self._read() if is_paused else None
        yield
        if state is not None:
            self._write(state)

    def collect(self, added_loss: float) -> None:
        """Add up the states of all ranks on the leader. Collective.

        Args:
            added_loss: what this rank adds to the sum of losses times rows: regularization and
                the losses that layers of earlier stages add.
        """
        is_leader = self._world.rank == LEADER
        if self._updates or is_leader:
            state = np.array(self._read())
            if not is_leader:
                state -= self._initial
        else:
            state = np.zeros_like(self._initial)
        state[self._loss_total] += added_loss
        self._world.sum_to(state, LEADER, "the sum of metric states")
        if is_leader:
            self._write(tf.convert_to_tensor(state))
        elif self._updates:
            self.reset()

    def results(self, logs: dict[str, Any] | None = None) -> dict[str, Any]:
        """The present value of every metric by name, as Keras's `get_metrics_result`.

        Args:
            logs: what the model's own step returned: its names count then, and those of its
                values that belong to no metric.
        """
        results: dict[str, Any] = {}
        for metric in self._shown if logs is None else self._metrics:
            value = metric.result()
            results.update(value if isinstance(value, dict) else {metric.name: value})
        return _filled(results if logs is None else logs, results)


def _filled(logs: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """`logs`, which may be nested, with the values of `results` where these have the name.

    Values are tensors, as a compiled step returns them even where a metric's result is a variable.
    """
    return {
        name: _filled(value, results)
        if isinstance(value, dict)
        else tf.convert_to_tensor(results.get(name, value))
        for name, value in logs.items()
    }
