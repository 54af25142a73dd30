"""Metric state over ranks: sums and counts, never means of means.

Each rank updates Keras's own metric objects with its micro-batches. After a step the states are
added up on the leader, where Keras and the callbacks read them; the others start the next step
from the metrics' initial state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow.comm.communicator import Communicator
from hyparflow.comm.leader import LEADER
from hyparflow.engine.compiled.fast_call import FixedFunction
from hyparflow.model.keras_internals.compiled import loss_tracker, tracked_metrics

__all__ = ["MetricState"]


class MetricState:
    """The variables of all metrics of a compiled model, as one vector.

    Args:
        model: the model; its metrics must be built.
        world: all ranks.
        updates: whether this rank updates any metric.
        further: metrics that are not in the model's list, but that its own steps use.
    """

    def __init__(
        self, model: Any, world: Communicator, updates: bool, further: Iterable[Any] = ()
    ) -> None:
        self._model = model
        self._world = world
        self._updates = updates
        self._shown = list(model.metrics)
        self._is_eager = bool(model.compiled and model.run_eagerly)
        self._results = FixedFunction(self._trace_results)
        self._metrics: list[Any] = []
        self._weights: np.ndarray | None = None
        model.reset_metrics()
        self.include([*tracked_metrics(model), *further])

    def include(self, metrics: Iterable[Any]) -> None:
        """Take in further metrics; they keep the state that they have on the leader."""
        known = {id(metric): metric for metric in [*self._metrics, *metrics]}
        self._metrics = list(known.values())
        variables = {id(v): v for metric in self._metrics for v in metric.variables}
        self.variables = list(variables.values())
        self._sizes = [int(np.prod(v.shape, dtype=np.int64)) for v in self.variables]
        ends = np.cumsum(self._sizes)
        self._places = {
            id(v): np.arange(end - size, end)
            for v, size, end in zip(self.variables, self._sizes, ends, strict=True)
        }
        self._reader = FixedFunction(self._trace_read)
        self._writer = FixedFunction(self._trace_write)
        present = self._read()
        for metric in self._metrics:
            metric.reset_state()
        self._initial = self._base = np.array(self._read())
        self._write(present)
        tracker = loss_tracker(self._model)
        self._loss_total = int(self._places[id(tracker.total)][0])

    def _trace_read(self, nothing: list[Any]) -> Any:
        flat = [tf.reshape(tf.cast(v.value, tf.float64), [-1]) for v in self.variables]
        return tf.concat(flat, 0)

    def _trace_write(self, tensors: list[Any]) -> None:
        parts = tf.split(tensors[0], self._sizes)
        for variable, part in zip(self.variables, parts, strict=True):
            variable.assign(tf.cast(tf.reshape(part, variable.shape), variable.dtype))

    def _read(self) -> Any:
        return self._reader([])

    def _write(self, flat: Any) -> None:
        self._writer([flat])

    def start(self) -> None:
        """Begin a call of `fit` or `evaluate`: all ranks but the leader reset their metrics."""
        if self._world.rank != LEADER:
            self.reset()

    def reset(self) -> None:
        """Set every metric to its initial state."""
        self._write(tf.convert_to_tensor(self._initial))

    def state(self) -> np.ndarray:
        """The states of all metrics, as a vector; right on the leader."""
        return np.array(self._read())

    def set_state(self, state: np.ndarray) -> None:
        """Let metrics go on from what `state` returned, if they are as many."""
        if state.shape == self._initial.shape:
            self._write(tf.convert_to_tensor(state))

    @contextlib.contextmanager
    def paused(self, is_paused: bool) -> Iterator[None]:
        """Undo updates of metrics when closed, if `is_paused`: placeholder rows do not count."""
        state = self._read() if is_paused else None
        yield
        if state is not None:
            self._write(state)

    # --- steps of the model's own ---

    def begin(self, weights: Sequence[float]) -> None:
        """Begin a step; for each variable, what the step adds to it is multiplied by its weight."""
        self._weights = np.repeat(np.asarray(weights, float), self._sizes)
        is_leader = self._world.rank == LEADER
        self._base = np.array(self._read()) if is_leader else self._initial

    def contribution(self, variables: Sequence[Any], values: np.ndarray) -> np.ndarray:
        """What this rank adds to metric variables in a step of the model's own.

        Args:
            variables: variables of metrics.
            values: their present values, as one flat vector.

        Returns:
            A vector like `values`; added up over the ranks it gives the values after the step.
        """
        if any(id(v) not in self._places for v in variables):
            return np.array(values)  # variables made in this step; the next step knows them
        return self._weighted(values, np.concatenate([self._places[id(v)] for v in variables]))

    def _weighted(self, values: np.ndarray, places: Any = slice(None)) -> np.ndarray:
        base = self._base[places]
        # Infinite values stay infinite: inf - inf would be NaN.
        added = np.subtract(values, base, out=np.zeros_like(values), where=values != base)
        if self._weights is not None:
            weights = self._weights[places]
            added = np.where(weights == 0, 0.0, weights * np.where(weights == 0, 0.0, added))
        return base + added if self._world.rank == LEADER else added

    # --- after a step ---

    def collect(self, added_loss: float, gradients: int = 0) -> int:
        """Add up the states of all ranks on the leader. Collective.

        Args:
            added_loss: what this rank adds to the sum of losses times rows: regularization and
                the losses that layers of earlier stages add.
            gradients: the number of gradients that this rank's optimizer was given.

        Returns:
            The number of gradients on all ranks; right on the leader only.
        """
        is_leader = self._world.rank == LEADER
        if self._weights is not None:
            state = self._weighted(np.array(self._read()))
        elif self._updates or is_leader:
            state = np.array(self._read())
            if not is_leader:
                state -= self._initial
        else:
            state = np.zeros_like(self._initial)
        state[self._loss_total] += added_loss
        self._weights = None
        state = np.append(state, gradients)
        self._world.sum_to(state, LEADER, "the sum of metric states")
        if is_leader:
            self._write(tf.convert_to_tensor(state[:-1]))
        elif self._updates:
            self.reset()
        return int(state[-1])

    def results(self, logs: dict[str, Any] | None = None) -> dict[str, Any]:
        """The present value of every metric by name, as Keras's `get_metrics_result`.

        Args:
            logs: what the model's own step returned, joined over replicas, if it has one.
        """
        if logs is not None:
            return logs
        if self._is_eager:
            return self._trace_results([])
        found: dict[str, Any] = self._results([])
        return found

    def _trace_results(self, nothing: list[Any]) -> dict[str, Any]:
        results: dict[str, Any] = {}
        for metric in self._shown:
            value = metric.result()
            results.update(value if isinstance(value, dict) else {metric.name: value})
        # Tensors, even if a metric's result is a variable.
        return keras.tree.map_structure(tf.convert_to_tensor, results)
