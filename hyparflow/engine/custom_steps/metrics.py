"""The metrics that a step of the model's own updates and reads, over all replicas.

A step may return a metric's result under any name, or compute something from several results. So
`result` itself, called within a step, joins the states of all replicas and returns their result;
then all that the step computes from it is right.

What a batch adds to a variable of a metric is weighted: by 1 if the metric counts or adds up rows,
by the replica's share of the batch if a step updates the metric with one number, a mean over its
rows. A trial has found out which it is (`hyparflow.engine.custom_steps.trial`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow.comm.communicator import Communicator
from hyparflow.engine.compiled.ordered_calls import OrderedCalls
from hyparflow.engine.custom_steps.same_calls import Exchange, SameCalls
from hyparflow.engine.loss.metric_state import MetricState

__all__ = ["StepMetrics"]


class StepMetrics:
    """Joins the metrics of a step.

    Attributes:
        used: the metrics that steps update or read, by id.
        scalar: ids of those that were updated with one number for all rows.
        on_new: called with each metric before it is first used.
        tried: whether a trial runs, in which nothing is joined.
        disturbed: whether results are made wrong, in a trial that finds values that depend on them.

    Args:
        peers: the replicas.
        order: calls the exchanges in the same order in each compiled step.
        same: compares the exchanges of the replicas.
    """

    def __init__(self, peers: Communicator, order: OrderedCalls, same: SameCalls) -> None:
        self._peers = peers
        self._order = order
        self._same = same
        self.used: dict[int, Any] = {}
        self.scalar: set[int] = set()
        self._state: MetricState | None = None
        self.on_new: Callable[[Any], None] | None = None
        self.tried = False
        self.disturbed = False

    def attach(self, state: MetricState) -> None:
        """Take the state of the model's metrics. To be called before any step runs."""
        self._state = state

    @property
    def state(self) -> MetricState:
        """The variables of all metrics, those of `compile` included."""
        if self._state is None:
            raise RuntimeError("Steps must have the metrics' state. Received: none yet")
        return self._state

    def around(
        self, name: str, call: Any, metric: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call a metric's method; `result` returns the result of all replicas."""
        if id(metric) not in self.used:
            self.used[id(metric)] = metric
            if self.on_new is not None:
                self.on_new(metric)
        number = list(self.used).index(id(metric))
        if name == "update_state":
            given = [x for x in (*args, *kwargs.values()) if x is not None]
            if all(np.ndim(x) == 0 if not hasattr(x, "shape") else not len(x.shape) for x in given):
                self.scalar.add(id(metric))
        if name != "result" or not metric.variables:
            return call(*args, **kwargs)
        variables = list(metric.variables)
        exchange = Exchange("reads the metric", [metric.name], [f"{number}"])

        def joined(values: np.ndarray) -> np.ndarray:
            return self._joined(variables, exchange, values)

        flat = [tf.reshape(tf.cast(v.value, tf.float64), [-1]) for v in variables]
        sizes = [int(np.prod(v.shape, dtype=np.int64)) for v in variables]
        total = self._order(joined, tf.concat(flat, 0), [sum(sizes)])
        pairs = zip(variables, tf.split(total, sizes), strict=True)
        mapping = [(v, tf.cast(tf.reshape(part, v.shape), v.dtype)) for v, part in pairs]
        with keras.StatelessScope(state_mapping=mapping):
            result = call(*args, **kwargs)
            return keras.tree.map_structure(
                lambda x: x.value if isinstance(x, keras.Variable) else x, result
            )

    def _joined(self, variables: list[Any], exchange: Exchange, values: np.ndarray) -> np.ndarray:
        """The state of all replicas, from this one's. Collective, but not in a trial."""
        if self.tried:
            return values * 1.7 + np.linspace(0.3, 0.9, len(values)) if self.disturbed else values
        self._same.require(exchange)
        total = self.state.contribution(variables, values)
        self._peers.sum(total, "the sum of a metric's state")
        return total
