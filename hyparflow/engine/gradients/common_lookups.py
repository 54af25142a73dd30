"""Which embeddings are looked up once for all samples, as positions are, not by each sample.

The gradient of a lookup is sparse: rows and values. Rows that each sample looks up for itself are
joined over micro-batches and replicas, as in one process. Rows that all samples have in common are
looked up once by one process, so their values must be added up: optimizers square values row by
row.

The number of rows looked up for twice as many samples shows the case: as many, or twice as many.
For a compiled call, traces for two numbers of samples tell it. A call that runs as Python may
depend on values and not only on types, and so may one that looks up a number of rows that depends
on values (`tf.unique`): these are called with a micro-batch and with the same micro-batch twice
over, which leaves nearly all decisions by values unchanged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

__all__ = ["Aside", "Gradients", "Lookups", "lookups_of_types", "lookups_of_values", "rows_of"]

_SAMPLES = (7, 11)  # two numbers of samples that no other size is likely to follow
_UNKNOWN = -1

# (inputs, share) -> the gradients of the weights.
Gradients = Callable[..., list[Any]]
# Makes a context for trial calls of the model, whose effects (on metrics, moving statistics, other
# ranks) are undone when it closes; the function that it gives undoes those of the calls so far.
Aside = Callable[[], contextlib.AbstractContextManager[Callable[[], None]]]


@dataclass(frozen=True)
class Lookups:
    """The kinds of the sparse gradients of weights, by the positions of the weights.

    Attributes:
        common: weights of which all samples look up the same rows.
        unclear: weights of which each sample looks up some of the rows, or whose kind is unknown.
    """

    common: frozenset[int] = frozenset()
    unclear: frozenset[int] = frozenset()


def lookups_of_types(gradients: Gradients, types: Any) -> Lookups:
    """The kinds, found by traces; nothing is computed.

    Args:
        gradients: the function to trace.
        types: its arguments, with a TensorSpec for each tensor.
    """
    few, many = (_traced(gradients, types, samples) for samples in _SAMPLES)
    return _lookups(few, many, _SAMPLES)


def lookups_of_values(
    gradients: Gradients, example: tuple[Any, Any], compiled: bool, aside: Aside
) -> Lookups | None:
    """The kinds, found by calls with a micro-batch and with twice or half of its rows.

    Args:
        gradients: the function to call.
        example: inputs and share of a micro-batch.
        compiled: whether to compile the function.
        aside: makes the context of a trial.

    Returns:
        The kinds; None if the function cannot be called with another number of rows.
    """
    inputs, share = example
    rows = rows_of(inputs)
    count = _counting(gradients, compiled)
    with aside() as undo:
        for other, part in ((2 * rows, _twice), (rows // 2, _half)):
            try:
                first = count(inputs, share)
                undo()
                second = count(keras.tree.map_structure(part, inputs), share)
            except Exception:  # a layer takes this number of rows only
                undo()
                continue
            if other:
                return _lookups(first, second, (rows, other))
    return None


def rows_of(inputs: Any) -> int:
    """How many rows a micro-batch has."""
    return next((int(x.shape[0]) for x in keras.tree.flatten(inputs) if _has_rows(x)), 0)


def _lookups(first: dict[int, int], second: dict[int, int], samples: tuple[int, int]) -> Lookups:
    """The kinds, from the numbers of rows looked up, by position, for two numbers of samples."""
    common, unclear = set(), set()
    for position in {**first, **second}:
        one, other = first.get(position, _UNKNOWN), second.get(position, _UNKNOWN)
        if _UNKNOWN in (one, other):
            unclear.add(position)
        elif one == other:
            common.add(position)
        elif one * samples[1] != other * samples[0]:
            unclear.add(position)
    return Lookups(frozenset(common), frozenset(unclear))


def _traced(gradients: Gradients, types: Any, samples: int) -> dict[int, int]:
    """How many rows of each sparse gradient are looked up for `samples` samples."""
    found: dict[int, int] = {}

    def trace(*args: Any) -> None:
        for position, gradient in enumerate(gradients(*args)):
            if isinstance(gradient, tf.IndexedSlices):
                rows = gradient.values.shape[0]
                found[position] = _UNKNOWN if rows is None else rows

    def with_samples(spec: Any) -> Any:
        if not isinstance(spec, tf.TensorSpec) or not spec.shape.rank:
            return spec
        return tf.TensorSpec([samples, *spec.shape[1:]], spec.dtype)

    types = keras.tree.map_structure(with_samples, types)
    tf.function(trace, autograph=False).get_concrete_function(*types)
    return found


def _counting(gradients: Gradients, compiled: bool) -> Callable[..., dict[int, int]]:
    """A function from arguments of `gradients` to the number of rows of each sparse one."""

    def count(*args: Any) -> dict[int, Any]:
        return {
            position: tf.shape(gradient.indices)[0]
            for position, gradient in enumerate(gradients(*args))
            if isinstance(gradient, tf.IndexedSlices)
        }

    run = tf.function(count, autograph=False) if compiled else count
    return lambda *args: {position: int(rows) for position, rows in run(*args).items()}


def _has_rows(x: Any) -> bool:
    return isinstance(x, tf.Tensor) and bool(x.shape.rank)


def _twice(x: Any) -> Any:
    return tf.concat([x, x], 0) if _has_rows(x) else x


def _half(x: Any) -> Any:
    return x[: x.shape[0] // 2] if _has_rows(x) else x
