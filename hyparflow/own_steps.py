"""A model's own `train_step`, `test_step` and `predict_step` on replicas.

Each replica runs the model's own code on its rows. Gradients are summed over the replicas at the
moment that the code gives them to an optimizer, each weighted by the replica's share of the global
batch; so any number of optimizers and of updates per step will do. Means of losses that the code
keeps in metrics are weighted alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow import keras_internals
from hyparflow.additive import weighting
from hyparflow.batchnorm import BatchStatistics
from hyparflow.comm import Communicator
from hyparflow.head import Labels
from hyparflow.inside import OrderedCalls
from hyparflow.losses import LossTerms

__all__ = ["OwnSteps"]

_STEPS = ("train_step", "test_step", "predict_step")


class OwnSteps:
    """The steps that a model's class has in place of Keras's.

    Args:
        model: the user's model.
        peers: the replicas.
        statistics: what BatchNormalization layers normalize by.
    """

    def __init__(self, model: Any, peers: Communicator, statistics: BatchStatistics) -> None:
        self._model = model
        self._peers = peers
        self._statistics = statistics
        self._order = OrderedCalls()
        self._terms: LossTerms | None = None
        # Now, for on the leader Keras's loops run eagerly, whatever the steps do.
        self._is_eager = bool(model.compiled and model.run_eagerly)
        self._methods: dict[str, Any] = {}
        self._functions: dict[str, Any] = {}
        for name in _STEPS:
            if keras_internals.has_overridden(model, name):
                # Not the one that is in its place while a call runs.
                self._methods[name] = getattr(model, name)
                self.compile_anew(name)

    def compile_anew(self, name: str) -> None:
        """From now on, the step of this name, if there is one, reads Python's present values."""
        if name in self._methods:
            # Gradients are exchanged between ranks within `train_step`: XLA is refused there.
            by_xla = name != "train_step" and _wants_xla(self._model)
            self._functions[name] = self._compiled(self._methods[name], by_xla)

    def __contains__(self, name: str) -> bool:
        return name in self._functions

    def prepare(self, specs: Any, terms: LossTerms | None) -> None:
        """Trace the steps, so that optimizers and metrics have their variables on all ranks.

        Args:
            specs: types of (x, y, sample weights).
            terms: the model's losses.
        """
        self._terms = terms
        types = keras.tree.map_structure(
            lambda spec: None if spec is None else tf.TensorSpec(spec.shape, spec.dtype), specs
        )
        count = 0 if terms is None else terms.count
        scalars = [tf.TensorSpec([], tf.float64), tf.TensorSpec([count], tf.float64)]
        for name in ("train_step", "test_step"):
            if name in self and not self._is_eager:
                self._functions[name].get_concrete_function(_packed(*types), *scalars)

    def _compiled(self, step: Callable[[Any], Any], by_xla: bool) -> Callable[..., Any]:
        def run(data: Any, share: Any, factors: Any) -> Any:
            with self._adapted(share, factors):
                return step(data)

        if self._is_eager:
            return run
        return tf.function(run, autograph=False, reduce_retracing=True, jit_compile=by_xla or None)

    @contextlib.contextmanager
    def _adapted(self, share: Any, factors: Any) -> Iterator[None]:
        """While open, the model's parts count this replica's rows by its share."""
        with contextlib.ExitStack() as stack:
            for optimizer in keras_internals.optimizers_of(self._model):
                stack.enter_context(self._reducing(optimizer, share))
            stack.enter_context(weighting(self._means(), share))
            if self._terms is not None:
                stack.enter_context(self._terms.used_by(self._model, share, factors))
            stack.enter_context(self._statistics.observed(share))
            yield

    def _means(self) -> list[Any]:
        """The metrics that may be updated with one number for all of a replica's rows."""
        compiled = keras_internals.compile_metrics(self._model)
        metrics = keras_internals.tracked_metrics(self._model)
        metrics += [] if compiled is None else compiled.metrics
        return [
            metric
            for metric in {id(metric): metric for metric in metrics}.values()
            if type(metric) is keras.metrics.Mean or keras_internals.metric_function(metric)
        ]

    @contextlib.contextmanager
    def _reducing(self, optimizer: Any, share: Any) -> Iterator[None]:
        original = optimizer.apply

        def apply(grads: Any, trainable_variables: Any = None) -> Any:
            return original(self._reduced(grads, share), trainable_variables)

        vars(optimizer)["apply"] = apply
        try:
            yield
        finally:
            del vars(optimizer)["apply"]

    def _reduced(self, gradients: Any, share: Any) -> list[Any]:
        """The sum over replicas of gradients times shares; None stays None."""
        present = [tf.convert_to_tensor(g) for g in gradients if g is not None]
        if self._peers.size == 1 or not present:
            return list(gradients)
        wide = tf.float64 if any(g.dtype == tf.float64 for g in present) else tf.float32
        parts = [tf.reshape(tf.cast(g, wide), [-1]) * tf.cast(share, wide) for g in present]
        total = self._order(self._sum, tf.concat(parts, 0), [None])
        sizes = [tf.size(part) for part in parts]
        flats = tf.split(total, tf.stack(sizes), num=len(sizes))
        pairs = zip(flats, present, strict=True)
        summed = iter([tf.cast(tf.reshape(flat, tf.shape(g)), g.dtype) for flat, g in pairs])
        return [None if g is None else next(summed) for g in gradients]

    def _sum(self, values: np.ndarray) -> np.ndarray:
        total = np.array(values)
        self._peers.sum(total, "the sum of gradients")
        return total

    # --- what the worker calls ---

    def run(self, name: str, x: Any, labels: Labels) -> dict[str, Any]:
        """Run a step on this replica's rows; what it returned, of all replicas. Collective.

        Values that are no metrics' are averaged over the rows of all replicas.
        """
        data = _packed(x, labels.y, labels.sample_weight)
        logs = self._functions[name](data, labels.share, labels.factors)
        logs = logs if isinstance(logs, dict) else {}
        values = [np.array(value, float) for value in keras.tree.flatten(logs)]
        total = np.concatenate([np.zeros(0), *(value.ravel() for value in values)])
        total *= float(labels.share)
        self._peers.sum(total, "the values that a step returns")
        parts = np.split(total, np.cumsum([value.size for value in values]))[:-1]
        shaped = [part.reshape(v.shape) for part, v in zip(parts, values, strict=True)]
        return keras.tree.pack_sequence_as(logs, shaped)

    def predict(self, x: Any) -> Any:
        """Run the model's own `predict_step` on this replica's rows."""
        share, factors = tf.ones([], tf.float64), tf.zeros([0], tf.float64)
        return self._functions["predict_step"](_packed(x, None, None), share, factors)


def _wants_xla(model: Any) -> bool:
    return keras_internals.compile_arguments(model).get("jit_compile") is True


def _packed(x: Any, y: Any, sample_weight: Any) -> Any:
    """A batch as Keras hands it to a step."""
    return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
