"""The batches on which a user's own loss or metric is tried besides the first.

What joins rows only at some values is seen only with them: labels that stand for missing ones, of
which parts of a batch have different numbers, and predictions beyond a threshold.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from hyparflow.engine.trials.example import ROWS, Arrays, probabilities
from hyparflow.engine.trials.seen import SeenLabels

__all__ = ["FIRST_PART", "variants"]

FIRST_PART = 3  # rows; the other rows of a batch are its second part
_MOST_LABELS = 20
_THRESHOLDS = 3  # constants that are tried as sizes of predictions, too
_LARGEST = 1e4  # such size
_VALUES = 1 << 23  # in all batches that are tried, but of large ones
_FEW = 4  # at least

# How much of each row is replaced: 1 all of it, 2 the first half of its values.
_MIXED = np.array([0, 1, 2, 0, 1, 0, 1, 1, 1, 2])
_ONLY_SECOND = np.where(np.arange(ROWS) < FIRST_PART, 0, _MIXED)
_ALL_OF_FIRST = np.where(np.arange(ROWS) < FIRST_PART, 1, _MIXED)


def variants(
    example: Arrays, own: Arrays | None, seen: SeenLabels | None, constants: Sequence[float]
) -> Iterator[Arrays]:
    """Batches of `ROWS` rows; fewer of them if they are large.

    Args:
        example: the invented batch.
        own: the same with the user's labels, or None.
        seen: the labels of which `own` has the first rows, or None.
        constants: what the function compares with.
    """
    batch = example if own is None else own
    size = sum(x.size for x in keras.tree.flatten(batch) if x is not None)
    found = itertools.chain([] if own is None else [own], _varied(batch, seen, constants))
    return itertools.islice(found, max(_FEW, _VALUES // max(1, size)))


def _varied(batch: Arrays, seen: SeenLabels | None, constants: Sequence[float]) -> Iterator[Arrays]:
    """The batches, those that find most first."""
    labels = _labels(seen, constants)
    limits = [abs(x) for x in constants if 0 < abs(x) <= _LARGEST][:_THRESHOLDS]
    yield from _with_labels(batch, labels[:1], _MIXED)
    yield from _sizes(batch, (0.01, 10.0))
    yield from _with_labels(batch, labels[1:], _MIXED)
    yield from _sizes(batch, (1.0, 1.0), (10.0, 0.01), *((0.1 * x, 4 * x) for x in limits))
    yield from _spreads(batch)
    for rows in (_ONLY_SECOND, _ALL_OF_FIRST):
        yield from _with_labels(batch, [np.nan, 0.0, *constants[:_THRESHOLDS]], rows)


def _labels(seen: SeenLabels | None, constants: Sequence[float]) -> list[float]:
    """Labels that may have a meaning of their own; beside the constants, those beyond them."""
    near = [constant + step for constant in constants for step in (1, -1)]
    others = [] if seen is None else seen.values()
    some = [*constants[:1], np.nan, *constants[1:], -1.0, 0.0, *others, *near, 1.0]
    return list(dict.fromkeys(some))[:_MOST_LABELS]


def _with_labels(batch: Arrays, values: Sequence[float], rows: np.ndarray) -> Iterator[Arrays]:
    """The batch with each of the values in some places of the labels, where their type has it."""
    y, y_pred, sample_weight = batch
    for value in values:
        flat = [_replaced(leaf, value, rows) for leaf in keras.tree.flatten(y)]
        pairs = zip(flat, keras.tree.flatten(y), strict=True)
        if any(new is not old for new, old in pairs):
            yield keras.tree.pack_sequence_as(y, flat), y_pred, sample_weight


def _replaced(leaf: Any, value: float, rows: np.ndarray) -> Any:
    if leaf is None or not _holds(leaf.dtype, value):
        return leaf
    flat = leaf.reshape(ROWS, -1).copy()
    size = flat.shape[1]
    ends = np.choose(rows, [0, size, size // 2])
    flat[np.arange(size) < ends[:, None]] = value
    return flat.reshape(leaf.shape)


def _holds(dtype: np.dtype, value: float) -> bool:
    """Whether a type has this value."""
    if dtype.kind == "f":
        return True
    if dtype.kind == "b":
        return value in (0, 1)
    if dtype.kind not in "iu" or not np.isfinite(value) or value != int(value):
        return False
    limits = np.iinfo(dtype)
    return bool(limits.min <= value <= limits.max)


def _sizes(batch: Arrays, *pairs: tuple[float, float]) -> Iterator[Arrays]:
    """Predictions as far from 0, or from labels of their shape, as a pair says of the parts."""
    random = np.random.default_rng(1)
    y, y_pred, sample_weight = batch
    labels, outputs = keras.tree.flatten(y), keras.tree.flatten(y_pred)
    for pair in pairs:
        drawn = _outputs(outputs, random, pair)
        for index, (output, label) in enumerate(zip(drawn, labels, strict=False)):
            if output is not None and label is not None and label.shape == output.shape:
                drawn[index] = (output + np.nan_to_num(label)).astype(output.dtype)
        yield y, keras.tree.pack_sequence_as(y_pred, drawn), sample_weight


def _spreads(batch: Arrays) -> Iterator[Arrays]:
    """Predictions that are probabilities: undecided in one part, near 0 and 1 in the other."""
    random = np.random.default_rng(2)
    y, y_pred, sample_weight = batch

    outputs = keras.tree.flatten(y_pred)
    drawn = _outputs(outputs, random, (0.1, 4.0))
    drawn = [
        x if x is None or x.dtype.kind != "f" else probabilities(1 / (1 + np.exp(-x)))
        for x in drawn
    ]
    yield y, keras.tree.pack_sequence_as(y_pred, drawn), sample_weight


def _outputs(
    outputs: list[Any], random: np.random.Generator, sizes: tuple[float, float]
) -> list[Any]:
    """Random numbers for each output of floats, times the size of each part."""

    def one(output: Any) -> Any:
        if output is None or output.dtype.kind != "f":
            return output
        factors = np.where(np.arange(ROWS) < FIRST_PART, *sizes)
        drawn = random.normal(size=output.shape) * factors.reshape(-1, *[1] * (output.ndim - 1))
        return drawn.astype(output.dtype)

    return [one(output) for output in outputs]
