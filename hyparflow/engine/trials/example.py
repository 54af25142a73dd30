"""Batches on which losses and metrics are tried: invented ones, and the user's first rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from hyparflow.engine.trials.seen import SeenLabels

__all__ = ["ROWS", "Arrays", "invented", "label_arrays", "probabilities"]

ROWS = 10  # of the batch
_LENGTH = 3  # the size for a dimension of unknown size
_LONG = 16  # labels are cut to that size, if they are longer than this along it

Arrays = Any  # (y, y_pred, sample weights) of arrays, None where there is nothing


def invented(symbolic: Any) -> Arrays:
    """Labels 0 and 1, predictions that are probabilities, weights between 0 and 1."""
    random = np.random.default_rng(0)
    labels, outputs, weights = _sized(symbolic)
    return (
        _drawn(labels, lambda shape: _zeros_and_ones(random, shape)),
        _drawn(outputs, lambda shape: probabilities(random.uniform(0.05, 0.95, shape))),
        _drawn(weights, lambda shape: random.uniform(0, 1, shape)),
    )


def label_arrays(symbolic: Any, seen: SeenLabels | None) -> Arrays | None:
    """`invented` with the first rows of the user's labels and weights; None if they do not fit."""
    if seen is None:
        return None
    parts = invented(symbolic)
    found = [keras.tree.flatten(part) for part in (parts[0], parts[2])]
    given = [keras.tree.flatten(part) for part in (seen.y, seen.sample_weight)]
    if [*map(_dimensions, found)] != [*map(_dimensions, given)]:
        return None
    y, weights = (
        keras.tree.pack_sequence_as(part, [*map(_like, models, leaves)])
        for part, models, leaves in zip((parts[0], parts[2]), found, given, strict=True)
    )
    return y, parts[1], weights


def _dimensions(leaves: list[Any]) -> list[int | None]:
    """How many dimensions each array has; -1 if one is empty."""
    return [None if x is None else x.ndim if x.size else -1 for x in leaves]


def probabilities(values: np.ndarray) -> np.ndarray:
    """Positive numbers as probabilities of several classes, if there are several."""
    several = values.ndim > 1 and values.shape[-1] > 1
    return values / values.sum(-1, keepdims=True) if several else values


def _drawn(specs: Any, make: Callable[[tuple[int, ...]], np.ndarray]) -> Any:
    def one(spec: Any) -> Any:
        if spec is None:
            return None
        return make((ROWS, *spec.shape[1:])).astype(_in_full(spec.dtype))

    return keras.tree.map_structure(one, specs)


def _sized(symbolic: Any) -> Any:
    """`symbolic` with a size for each dimension, the same for labels as for their outputs."""
    labels, outputs, weights = ([*map(_shape, keras.tree.flatten(part))] for part in symbolic)
    cut: dict[Any, int] = {}  # long dimensions of labels, for outputs of any length
    for label, output in zip(labels, outputs, strict=False) if len(labels) == len(outputs) else ():
        for axis in range(min(len(label), len(output))):
            if output[axis] is None and (label[axis] or 0) > _LONG:
                cut[label[axis]] = _LENGTH
                label[axis] = _LENGTH
            output[axis] = output[axis] or label[axis] or _LENGTH
            label[axis] = label[axis] or output[axis]
    weights = [[cut.get(size, size) for size in shape] for shape in weights]
    return tuple(
        keras.tree.pack_sequence_as(part, [*map(_size, keras.tree.flatten(part), shapes)])
        for part, shapes in zip(symbolic, (labels, outputs, weights), strict=True)
    )


def _shape(spec: Any) -> list[Any]:
    """The shape without the rows."""
    return [] if spec is None else [*spec.shape[1:]]


def _size(spec: Any, shape: list[Any]) -> _Size | None:
    sizes = (size or _LENGTH for size in shape)
    return None if spec is None else _Size((None, *sizes), spec.dtype)


@dataclass(frozen=True)
class _Size:
    """The shape and type of an array."""

    shape: tuple[Any, ...]
    dtype: Any


def _zeros_and_ones(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    limits = np.linspace(0.2, 0.9, ROWS).reshape(-1, *[1] * (len(shape) - 1))
    return (random.random(shape) < limits).astype(int)  # the later rows have more ones


def _like(model: Any, given: Any) -> Any:
    """Rows of `given`, cut or repeated to the shape of `model`."""
    if model is None:
        return None
    for axis, size in enumerate(model.shape):
        given = np.take(given, np.arange(size) % given.shape[axis], axis)
    return given.astype(model.dtype)


def _in_full(dtype: Any) -> str:
    """A type in which sums can be compared: Keras's losses convert their arguments to it."""
    name = keras.backend.standardize_dtype(dtype)
    return "float32" if name in ("float16", "bfloat16") else name
