"""BatchNormalization over micro-batches and replicas.

============  ======================================  =========================================
mode          normalizes over                         moving statistics
============  ======================================  =========================================
"local"       a micro-batch of one replica            of each micro-batch; replicas agree on
                                                      their mean before the model is used
"deferred"    a micro-batch of one replica            of the whole global batch, once per step
"sync"        a micro-batch of all replicas           of the whole global batch, once per step
============  ======================================  =========================================

Sources: deferred statistics are those of GPipe (Huang et al., 2019, section 2.3); synchronized
ones those of Peng et al., "MegDet" (2018), section 4.2. Replicas exchange count, sum and squared
deviations, which gives the exact statistics without the cancellation of a mean of squares.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow.comm.communicator import Communicator
from hyparflow.engine.compiled.fast_call import FixedFunction
from hyparflow.engine.compiled.ordered_calls import OrderedCalls
from hyparflow.engine.stages.stage_call import StageCall
from hyparflow.model.graph import FlatGraph
from hyparflow.model.keras_internals.layers import moment_weight, replace_moments, restore_moments
from hyparflow.model.keras_internals.layers import moments as keras_moments
from hyparflow.model.normalization import normalized_layers

__all__ = ["BatchStatistics"]


_ONLY = -1  # in place of the number of a stage or unit: the layer is called in no other


class _Sum:
    """The sums of one call of one layer over the micro-batches of a step.

    Attributes:
        state: (weight, sum, sum of squares) of the values of each channel.
        mean, variance: the layer's moving statistics before the step.
    """

    def __init__(self, layer: Any, epsilon: float) -> None:
        self.layer = layer
        self.epsilon = epsilon
        self.state = tf.Variable(tf.zeros([3, *layer.moving_mean.shape], tf.float64))
        self.mean = tf.Variable(layer.moving_mean.value)
        self.variance = tf.Variable(layer.moving_variance.value)


class BatchStatistics:
    """The statistics of the BatchNormalization layers of one stage.

    Attributes:
        order: calls the exchanges between replicas in the same order in each compiled step.
        alone: whether replicas exchange nothing for now, as if all had the same rows.
        aside: whether layers report nothing for now, because the calls are trials.

    Args:
        model: the user's model.
        batchnorm: one of the modes; a layer made with ``synchronized=True`` is synchronized in
            any case.
        peers: the ranks with the same partition.
    """

    def __init__(self, model: Any, batchnorm: str, peers: Communicator) -> None:
        self._peers = peers
        layers = normalized_layers(model)
        self._synced = [x for x in layers if batchnorm == "sync" or x.synchronized]
        self._layers = layers if batchnorm != "local" else self._synced
        # (layer, body or -1 for the only one, number of the layer's call in it) -> sum
        self._sums: dict[tuple[int, int, int], _Sum] = {}
        self._once = False  # whether each layer is called once
        self._bodies = 0  # stages and units so far
        self._body = 0  # the one that is traced
        self._calls: dict[int, int] = {}
        self.order = OrderedCalls()
        self.alone = False
        self.aside = False
        self._remember = FixedFunction(self._trace_remember)
        self._read = FixedFunction(self._trace_read)
        self._write = FixedFunction(self._trace_write)

    @property
    def active(self) -> bool:
        """Whether this object has to do more than the layers do themselves."""
        return bool(self._layers)

    @property
    def exchanges(self) -> bool:
        """Whether replicas exchange statistics in the middle of a stage."""
        return bool(self._synced) and self._peers.size > 1

    def allows_sharing(self, graph: FlatGraph) -> bool:
        """Whether blocks of a model may be compiled once for all that are alike.

        They may if replicas exchange nothing in the middle, and each layer is called once, by the
        graph itself: then each call has one sum, which is known before it is traced.
        """
        watched = {id(layer) for layer in self._layers}
        called = [id(call.operation) for call in graph.calls if id(call.operation) in watched]
        self._once = not self.exchanges and len(called) == len(watched) == len(set(called))
        return self._once

    def sums(self, operations: Sequence[Any]) -> list[Any]:
        """The variables (TensorFlow's) to which the calls of these operations add."""
        if not self._once:
            return []
        watched = {id(layer): layer for layer in self._layers}
        found = [watched[id(each)] for each in operations if id(each) in watched]
        return [self._sum_of(layer, _ONLY, 0, 0.0).state for layer in found if not layer.renorm]

    # --- while a stage is traced ---

    def around(self, body: StageCall) -> StageCall:
        """`body`, with its BatchNormalization layers reporting to this object."""
        if not self.active:
            return body
        self._bodies += 1
        number = self._bodies

        def watched(values: Any, training: bool, share: Any) -> tuple[list[Any], list[Any]]:
            if self.aside:
                return body(values, training, share)
            with self.observed(share, number):
                return body(values, training, share)

        return watched

    @contextlib.contextmanager
    def observed(self, share: Any, body: int = 0) -> Iterator[None]:
        """While open, the layers report to this object.

        Args:
            share: the micro-batch's part of the batch.
            body: the number of the stage or unit that is traced.
        """
        self._calls, self._body = {}, body
        for layer in self._layers:
            replace_moments(layer, self._moments(layer, share))
        try:
            yield
        finally:
            for layer in self._layers:
                restore_moments(layer)

    def _moments(self, layer: Any, share: Any) -> Callable[[Any, Any], tuple[Any, Any]]:
        original = keras_moments(layer)
        is_synced = any(layer is other for other in self._synced)

        def moments(inputs: Any, mask: Any) -> tuple[Any, Any]:
            mean, variance = original(inputs, mask)
            mean, variance = tf.reshape(mean, [-1]), tf.reshape(variance, [-1])
            epsilon = 0.0 if mask is None else keras.config.epsilon()  # as Keras divides
            # A stand-in for a replica without rows has share 0 and must not count.
            weight = moment_weight(layer, inputs, mask)
            counts = tf.cast(share > 0, weight.dtype)
            total = (weight + epsilon) * counts
            local = tf.stack([weight * counts, mean * total, variance * total, mean])
            self._add(layer, epsilon, local)
            if not is_synced or self._peers.size == 1:
                return mean, variance
            return _joined(self._gathered(local), epsilon)

        return moments

    def _add(self, layer: Any, epsilon: float, local: Any) -> None:
        """Add one call's (weight, sum, squared deviations, mean) to the sums of its step."""
        if layer.renorm:
            return  # its statistics correct each other from batch to batch
        call = self._calls[id(layer)] = self._calls.get(id(layer), -1) + 1
        only = self._sums.get((id(layer), _ONLY, 0))
        sums = only or self._sum_of(layer, self._body, call, epsilon)
        weight, total, deviations, mean = tf.unstack(tf.cast(local, tf.float64))
        squares = deviations + mean * (2.0 * total - weight * mean)
        sums.state.assign_add(tf.stack([weight, total, squares]))

    def _sum_of(self, layer: Any, body: int, call: int, epsilon: float) -> _Sum:
        """The sum of a call of a layer, made when it is first asked for."""
        key = id(layer), body, call
        if key not in self._sums:
            with tf.init_scope():
                self._sums[key] = _Sum(layer, epsilon)
        return self._sums[key]

    def _gathered(self, local: Any) -> Any:
        """`local` of all replicas, on a new first axis; the gradient is summed over replicas."""
        shape = [self._peers.size, *local.shape]

        @tf.custom_gradient
        def gather(values: Any) -> Any:
            def gradient(upstream: Any) -> Any:
                return self.order(self._sum, upstream, shape)[self._peers.rank]

            return self.order(self._gather, values, shape), gradient

        return gather(local)

    def _gather(self, values: np.ndarray) -> np.ndarray:
        rows = np.ascontiguousarray(values)[np.newaxis]
        if self.alone:
            return np.repeat(rows, self._peers.size, 0)
        return self._peers.all_gather_rows(rows, "the statistics of a synchronized layer")

    def _sum(self, values: np.ndarray) -> np.ndarray:
        total = np.array(values, order="C")
        if self.alone:
            return total * self._peers.size
        self._peers.sum(total, "the gradients of a synchronized layer's statistics")
        return total

    # --- before and after a step ---

    def begin(self) -> None:
        """Remember the moving statistics before a training step."""
        if self._sums:
            self._remember([], len(self._sums))

    def forget(self) -> None:
        """Drop the sums since the last step."""
        for sums in self._sums.values():
            sums.state.assign(tf.zeros_like(sums.state))

    def finish(self) -> None:
        """Move the moving statistics by those of the whole global batch. Collective."""
        if not self._sums:
            return
        flat = np.array(self._read([], len(self._sums)))
        self._peers.sum(flat, "the statistics of the global batch")
        self._write([tf.convert_to_tensor(flat)], len(self._sums))

    # The count is an argument so that the function is traced again when there are more layers.

    def _trace_remember(self, nothing: list[Any], count: int) -> None:
        for sums in self._sums.values():
            sums.mean.assign(sums.layer.moving_mean.value)
            sums.variance.assign(sums.layer.moving_variance.value)

    def _trace_read(self, nothing: list[Any], count: int) -> Any:
        return tf.concat([tf.reshape(sums.state, [-1]) for sums in self._sums.values()], 0)

    def _trace_write(self, tensors: list[Any], count: int) -> None:
        sizes = [sums.state.shape.num_elements() for sums in self._sums.values()]
        moved: dict[int, tuple[Any, Any]] = {}
        for sums, part in zip(self._sums.values(), tf.split(tensors[0], sizes), strict=True):
            layer = sums.layer
            mean, variance = moved.get(id(layer), (sums.mean.value(), sums.variance.value()))
            weight, total, squares = tf.unstack(tf.reshape(part, sums.state.shape))
            new_mean = total / (weight + sums.epsilon)
            deviations = squares + new_mean * (weight * new_mean - 2.0 * total)
            new_variance = tf.maximum(deviations, 0.0) / (weight + sums.epsilon)
            seen = weight > 0  # a frozen layer is not called for its statistics
            moved[id(layer)] = (
                tf.where(seen, _moved(mean, new_mean, layer.momentum), mean),
                tf.where(seen, _moved(variance, new_variance, layer.momentum), variance),
            )
            layer.moving_mean.assign(moved[id(layer)][0])
            layer.moving_variance.assign(moved[id(layer)][1])
            sums.state.assign(tf.zeros_like(sums.state))


def _joined(parts: Any, epsilon: float) -> tuple[Any, Any]:
    """Mean and variance over all replicas from (weight, sum, squared deviations, mean) of each."""
    weight, total, deviations, mean = (parts[:, i] for i in range(4))
    divisor = tf.reduce_sum(weight, 0) + epsilon
    joined = tf.reduce_sum(total, 0) / divisor
    shift = mean - joined
    deviations += shift * (2.0 * (total - weight * mean) + weight * shift)
    return joined, tf.reduce_sum(deviations, 0) / divisor


def _moved(old: Any, new: Any, momentum: float) -> Any:
    return old * momentum + tf.cast(new, old.dtype) * (1.0 - momentum)
