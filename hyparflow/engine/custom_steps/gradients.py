"""The gradients that a step of the model's own gives to optimizers, summed over replicas.

Gradients that a step gives to any optimizer are summed before the optimizer gets them: dense ones
as vectors, sparse ones by joining their rows, as `hyparflow.engine.gradients.reducer` does. The
gradient of a mean over the batch is weighted by the replica's share of the batch, that of a sum is
not; a trial has found out which it is (`hyparflow.engine.custom_steps.trial`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.comm import abort
from hyparflow.comm.communicator import Communicator
from hyparflow.engine.compiled.ordered_calls import OrderedCalls
from hyparflow.engine.custom_steps.same_calls import Exchange, SameCalls
from hyparflow.model.keras_internals.interception import given_variables
from hyparflow.model.keras_internals.optimizer import check_given

__all__ = ["StepGradients"]

_WHAT = "gives an optimizer the gradients of"


class StepGradients:
    """Sums the gradients that a step gives to optimizers.

    Attributes:
        optimizers: the optimizers that were given gradients.
        variables: call -> the variables whose gradients it gives.
        watcher: in a trial, takes (call, gradients, positions of sparse ones) in place of the
            sums; the step goes on with zeros.
        on_new: called with each optimizer when it is first used.

    Args:
        model: the user's model.
        peers: the replicas.
        order: calls the exchanges in the same order in each compiled step.
        same: compares the exchanges of the replicas.
    """

    def __init__(
        self, model: Any, peers: Communicator, order: OrderedCalls, same: SameCalls
    ) -> None:
        self._model = model
        self._peers = peers
        self._order = order
        self._same = same
        self._calls = 0
        self.optimizers: dict[int, Any] = {}
        self.variables: dict[int, list[Any]] = {}
        self.watcher: Callable[[int, list[np.ndarray], list[int]], None] | None = None
        self.on_new: Callable[[Any], None] | None = None
        self._share = 1.0
        self._sums: set[tuple[int, int]] = set()
        self._common: set[tuple[int, int]] = set()
        self._scaled: set[int] = set()
        self._part: Any = None

    def prepare(self) -> list[Any]:
        """Make the variables that belong to this object, and not to the user's step."""
        self._part = tf.Variable(1.0, trainable=False, dtype=tf.float64)
        return [self._part]

    def take(
        self, sums: set[tuple[int, int]], common: set[tuple[int, int]], scaled: set[int]
    ) -> None:
        """Take the results of a trial.

        Args:
            sums: (call, position) of gradients that are sums over rows, not means.
            common: (call, position) of sparse gradients of which all samples look up the same rows.
            scaled: calls with gradients of a mean loss that the optimizer scales: the loss is
                weighted by the replica's share before it is scaled, so that gradients overflow
                where they do in one process.
        """
        self._sums, self._common, self._scaled = sums, common, scaled

    def set_share(self, share: float) -> None:
        """Set the share of the batch that this replica has in the next step."""
        self._share = share
        self.set_part(share if self._scaled else 1.0)

    def set_part(self, part: float) -> None:
        """Multiply losses that optimizers scale by `part`."""
        self._part.assign(part)

    def begin(self) -> None:
        """Count calls from 0 again, as a step runs or is traced anew."""
        self._calls = 0

    def around(
        self, name: str, call: Any, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Give an optimizer the sums in place of this replica's gradients."""
        args = tuple(args)
        if name == "scale_loss":
            loss = tf.convert_to_tensor(call(*args, **kwargs))
            return loss * tf.cast(self._part, loss.dtype)
        if name == "update_step":
            [gradient] = self._reduced(optimizer, [args[0]], [args[1]])
            return call(gradient, *args[1:], **kwargs)
        given, args, kwargs = _first(args, kwargs)
        gradients: list[Any] = list(given)
        if not gradients:
            return call(gradients, *args, **kwargs)
        if all(isinstance(pair, list | tuple) for pair in gradients):  # (gradient, variable)
            variables = [pair[1] for pair in gradients]
            pairs = self._summed(optimizer, [pair[0] for pair in gradients], variables)
            return call(pairs, *args, **kwargs)
        named = kwargs.get("trainable_variables", args[0] if args else None)
        if named is None:
            variables = given_variables(optimizer)
        else:
            variables = list(named)
            args, kwargs = (), {"trainable_variables": variables}
        if len(gradients) != len(variables):
            return call(gradients, *args, **kwargs)  # the optimizer raises an error
        pairs = self._summed(optimizer, gradients, variables)
        if len(pairs) < len(gradients):
            args, kwargs = (), {"trainable_variables": [pair[1] for pair in pairs]}
        return call([pair[0] for pair in pairs], *args, **kwargs)

    def _summed(
        self, optimizer: Any, gradients: list[Any], variables: Sequence[Any]
    ) -> list[tuple[Any, Any]]:
        """The sums over replicas, with their variables.

        Variables without a gradient are left out, except on the leader, where Keras warns of them.
        """
        reduced = self._reduced(optimizer, gradients, variables)
        pairs = list(zip(reduced, variables, strict=True))
        quiet = self._peers.rank > 0 or self.watcher is not None
        return [pair for pair in pairs if pair[0] is not None] or pairs if quiet else pairs

    def _reduced(self, optimizer: Any, gradients: list[Any], variables: Sequence[Any]) -> list[Any]:
        """The sums over replicas; None stays None."""
        if len(gradients) != len(variables):
            return gradients  # the optimizer raises an error
        number, self._calls = self._calls, self._calls + 1
        if id(optimizer) not in self.optimizers:
            self.optimizers[id(optimizer)] = optimizer
            if not optimizer.built:
                optimizer.build(list(variables))
            if self.on_new is not None:
                self.on_new(optimizer)
        present = [n for n, gradient in enumerate(gradients) if gradient is not None]
        self.variables[number] = [variables[n] for n in present]
        overwritten = [v.path for v in variables if getattr(v, "overwrite_with_gradient", False)]
        if overwritten:
            raise ValueError(
                "A model with its own `train_step` cannot train by float8 on replicas: what its "
                f"layers give in place of gradients cannot be summed. Received: {overwritten}. "
                "Use Keras's own step, or one process."
            )
        if not present:
            self._require_none(optimizer, variables)
            return gradients
        packed = _Packed([gradients[n] for n in present], self.variables[number])
        exchange = Exchange(_WHAT, packed.names, self._keys(packed, self.variables[number]))

        def sums(*arrays: np.ndarray) -> list[np.ndarray]:
            return self._exchanged(number, packed, exchange, list(arrays))

        results = self._order.several(sums, packed.tensors(), packed.shapes)
        reduced = iter(packed.unpacked(results))
        return [None if gradient is None else next(reduced) for gradient in gradients]

    def _require_none(self, optimizer: Any, variables: Sequence[Any]) -> None:
        """Raise Keras's error on all replicas if no weight has a gradient.

        In a trace Keras raises it itself, on all replicas.
        """
        if tf.executing_eagerly() and self.watcher is None:
            self._same.require(Exchange(_WHAT, [], []))
            with abort.alike():
                check_given(optimizer, list(variables), set())

    def _keys(self, packed: _Packed, variables: Sequence[Any]) -> list[str]:
        """Keys of variables that are the same on all replicas: place in the model, and shape."""
        numbers = {id(v): n for n, v in enumerate(self._model.variables)}
        return [
            f"{numbers.get(id(v), -1)} {n if id(v) not in numbers else ''} {tuple(v.shape)} "
            f"{n in packed.sparse}"
            for n, v in enumerate(variables)
        ]

    def _exchanged(
        self, number: int, packed: _Packed, exchange: Exchange, arrays: list[np.ndarray]
    ) -> list[np.ndarray]:
        """The sums, or joined rows, of the packed gradients of all replicas. Collective."""
        if self.watcher is not None:
            self.watcher(number, packed.each(arrays), packed.sparse)
            return [x if x.dtype == np.int64 else np.zeros_like(x) for x in arrays]
        self._same.require(exchange)
        counts = self._share > 0  # placeholder rows do not count

        def weight(position: int) -> float:
            is_weighted = number in self._scaled or (number, position) in self._sums
            return (1.0 if is_weighted else self._share) if counts else 0.0

        results: list[np.ndarray] = []
        if packed.dense:
            weights = [weight(position) for position in packed.dense]
            factor: Any = weights[0]
            if len(set(weights)) > 1:
                factor = np.repeat(weights, packed.sizes).astype(arrays[0].dtype)
            total = arrays[0] * factor if counts else np.zeros_like(arrays[0])
            self._peers.sum(total, "the sum of gradients")
            results = [total]
        pairs = iter(arrays[len(results) :])
        for position in packed.sparse:
            values, rows = next(pairs), next(pairs)
            kept = slice(None) if counts else slice(0)
            values = np.array(values[kept] * weight(position), values.dtype)
            values = self._peers.all_gather_rows(values, "the values of a sparse gradient")
            joined = self._peers.all_gather_rows(rows[kept], "the rows of a sparse gradient")
            if (number, position) in self._common and len(rows):
                values = values.reshape(-1, len(rows), *values.shape[1:]).sum(0)
                joined = joined[: len(rows)]
            results += [values, joined]
        return results


class _Packed:
    """Gradients as few tensors: one vector of all dense, and (values, rows) of each sparse one.

    Attributes:
        dense, sparse: positions.
        sizes: of the dense ones.
        names: of the gradients, as messages name them.
        shapes: of the tensors.
    """

    def __init__(self, gradients: Sequence[Any], variables: Sequence[Any]) -> None:
        self._gradients = [
            g if isinstance(g, tf.IndexedSlices) else tf.convert_to_tensor(g) for g in gradients
        ]
        kinds = [isinstance(g, tf.IndexedSlices) for g in self._gradients]
        self.dense = [n for n, is_sparse in enumerate(kinds) if not is_sparse]
        self.sparse = [n for n, is_sparse in enumerate(kinds) if is_sparse]
        self._shapes = [tuple(v.shape) for v in variables]
        self.sizes = [int(np.prod(self._shapes[n], dtype=np.int64)) for n in self.dense]
        paths = [getattr(v, "path", v.name) for v in variables]
        self.names = [
            f"{path} (sparse)" if is_sparse else path
            for path, is_sparse in zip(paths, kinds, strict=True)
        ]
        self.shapes: list[list[Any]] = [[sum(self.sizes)]] if self.dense else []
        for n in self.sparse:
            self.shapes += [[None, *self._shapes[n][1:]], [None]]

    def tensors(self) -> list[Any]:
        """The tensors that are sent to the other replicas."""
        found = []
        if self.dense:
            gradients = [self._gradients[n] for n in self.dense]
            wide = tf.float64 if any(g.dtype == tf.float64 for g in gradients) else tf.float32
            found.append(tf.concat([tf.reshape(tf.cast(g, wide), [-1]) for g in gradients], 0))
        for n in self.sparse:
            gradient = self._gradients[n]
            found += [gradient.values, tf.cast(gradient.indices, tf.int64)]
        return found

    def unpacked(self, tensors: Sequence[Any]) -> list[Any]:
        """Gradients like those packed, from the exchanged tensors."""
        results: dict[int, Any] = {}
        rest = iter(tensors)
        if self.dense:
            flats = tf.split(next(rest), self.sizes)
            for n, flat in zip(self.dense, flats, strict=True):
                gradient = self._gradients[n]
                results[n] = tf.cast(tf.reshape(flat, self._shapes[n]), gradient.dtype)
        for n in self.sparse:
            values, rows = next(rest), next(rest)
            shape = tf.constant(self._shapes[n], tf.int64)
            results[n] = tf.IndexedSlices(values, rows, shape)
        return [results[n] for n in range(len(self._gradients))]

    def each(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """One array for each gradient: of a sparse one, its values."""
        results: dict[int, np.ndarray] = {}
        if self.dense:
            parts = np.split(arrays[0], np.cumsum(self.sizes)[:-1])
            results.update(zip(self.dense, parts, strict=True))
        start = 1 if self.dense else 0
        results.update({n: arrays[start + 2 * i] for i, n in enumerate(self.sparse)})
        return [results[n] for n in range(len(self._gradients))]


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """The gradients among the arguments, and the other arguments."""
    if args:
        return args[0], args[1:], kwargs
    name = next(name for name in kwargs if name != "trainable_variables")
    return kwargs[name], (), {other: value for other, value in kwargs.items() if other != name}
