"""Global batch -> this replica's rows -> micro-batches; ragged batches included.

Rows are split into contiguous parts whose sizes differ by at most one, without padding. If the data
are arrays, every rank has them, and a batch is a list of row numbers (Keras's own, from the
leader), of which each rank takes its part. If they are a stream, only the leader reads it, and
sends each rank its rows: if every rank read a stream that shuffles without a seed, samples would
differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from hyparflow.model.keras_internals.data import array_sources, is_ragged, open_stream, unpack

__all__ = ["ArraySource", "Spec", "dense", "peek", "specs"]


_WHOLE = 1 << 28  # bytes; of smaller inputs all rows are compared
_SAMPLES = 1024  # number of rows compared of larger inputs
_FIRST = 10  # rows on which losses are tried
_VALUES = 1 << 18  # of labels that are looked at
_CHUNK = 1 << 21  # bytes that are copied at a time for the comparison


class ArraySource:
    """The arrays of one call of `fit` or `evaluate`, as this rank has them.

    Args:
        x, y, sample_weight, class_weight: as for Keras's `fit`.

    Raises:
        ValueError: Keras's own, if lengths or kinds do not fit.
    """

    def __init__(
        self, x: Any, y: Any = None, sample_weight: Any = None, class_weight: Any = None
    ) -> None:
        parts, self.num_samples = array_sources(x, y, sample_weight, None)
        self._x, self._y, self._plain_weight = map(keras.tree.lists_to_tuples, parts)
        self._sample_weight = self._plain_weight
        if class_weight is not None:
            parts, _ = array_sources(x, y, sample_weight, class_weight)
            self._sample_weight = parts[2]

    def x(self, indices: np.ndarray) -> Any:
        """These rows of the inputs, as arrays in the user's structure."""
        return _take(self._x, indices)

    def y(self, indices: np.ndarray) -> Any:
        """These rows of the labels."""
        return _take(self._y, indices)

    def sample_weight(self, indices: np.ndarray, training: bool = True) -> Any:
        """These rows of the sample weights. Class weights count in training only, as in Keras,
        which splits off validation rows before it applies them.
        """
        return _take(self._sample_weight if training else self._plain_weight, indices)

    def first_labels(self) -> Any:
        """The first rows of (y, sample weights), and further ones from all over the arrays."""
        first = np.zeros(1, np.int64)
        row = sum(x.size for x in keras.tree.flatten(self.y(first)) if x is not None)
        count = max(_FIRST, min(_SAMPLES, _VALUES // max(1, row)))
        others = np.linspace(0, self.num_samples - 1, count).astype(int)
        rows = np.unique(np.concatenate([np.arange(min(_FIRST, self.num_samples)), others]))
        return self.y(rows), self.sample_weight(rows)

    def specs(self) -> Any:
        """The types of (x, y, sample weights)."""
        first = np.arange(min(1, self.num_samples))
        return specs((self.x(first), self.y(first), self.sample_weight(first)))

    def fingerprint(self) -> list[Any]:
        """Shapes, dtypes and a few rows, to find out whether all ranks have the same data."""
        if self.num_samples == 0:  # of validation data, which no step uses
            return [(0, str(spec)) for spec in keras.tree.flatten(self.specs())]
        first = np.zeros(1, np.int64)
        row = sum(leaf.nbytes for leaf in keras.tree.flatten(self.x(first)))
        is_whole = row * self.num_samples <= _WHOLE and not self._is_mapped()
        count = self.num_samples if is_whole else min(_SAMPLES, self.num_samples)
        rows = np.unique(np.linspace(0, self.num_samples - 1, count).astype(int))
        hashes: list[Any] = []
        step = max(1, _CHUNK // max(1, row))
        for start in range(0, len(rows), step):
            chunk = rows[start : start + step]
            samples = [part(chunk) for part in (self.x, self.y, self.sample_weight)]
            leaves = keras.tree.flatten(samples)
            hashes = hashes or [None if leaf is None else hashlib.sha256() for leaf in leaves]
            for sha, leaf in zip(hashes, leaves, strict=True):
                if leaf is not None:
                    sha.update(np.ascontiguousarray(leaf))
        types = keras.tree.flatten(self.specs())
        return [
            None if sha is None else (self.num_samples, str(spec), sha.hexdigest())
            for spec, sha in zip(types, hashes, strict=True)
        ]

    def _is_mapped(self) -> bool:
        """Whether some arrays are in files: then only a few rows are compared."""
        leaves = keras.tree.flatten((self._x, self._y, self._plain_weight))
        return any(isinstance(getattr(leaf, "array", None), np.memmap) for leaf in leaves)


@dataclass(frozen=True)
class Spec:
    """Type of one array of a batch: shape, whose first size does not count, and dtype."""

    shape: tuple[int | None, ...]
    dtype: str

    def zeros(self) -> np.ndarray:
        """One row of zeros of this type."""
        return np.zeros([1, *(size or 1 for size in self.shape[1:])], self.dtype)


def specs(structure: Any) -> Any:
    """The `Spec` of every array in `structure`; None stays None."""

    def spec(leaf: Any) -> Spec | None:
        if leaf is None:
            return None
        shape = tuple(None if size is None else int(size) for size in leaf.shape)
        return Spec((None, *shape[1:]), keras.backend.standardize_dtype(leaf.dtype))

    return keras.tree.map_structure(spec, structure)


def peek(x: Any, **arguments: Any) -> tuple[Any, Any, int | None]:
    """Open a stream. No batch is read that Keras would not read, nor twice: see `open_stream`.

    Args:
        x: the stream.
        **arguments: the arguments of Keras's method that say how it is read.

    Returns:
        The opened stream, to be given to Keras in place of `x`; the specs of (x, y, sample
        weights); and the rows of the first batch, or None if they are not known.

    Raises:
        ValueError: Keras's own, if `x` cannot be read.
    """
    try:
        stream = open_stream(x, **arguments)
    except ValueError as error:
        if not str(error).startswith("Invalid dtype"):
            raise
        raise ValueError(
            "Over several ranks, data must be dense arrays of numbers. Received: a stream of type "
            f"{type(x).__name__} whose batches have another type ({error}). "
            "Turn strings and objects into numbers first."
        ) from error
    return stream, specs(unpack(stream.spec)), stream.rows


def _take(structure: Any, indices: np.ndarray) -> Any:
    """Rows `indices` of Keras's sliceables, as arrays."""

    def take(leaf: Any) -> Any:
        return None if leaf is None else dense(leaf[indices], leaf.convert_to_numpy)

    return keras.tree.map_structure(take, structure)


def dense(
    value: Any, convert: Callable[[Any], Any] | None = None, what: str | None = None
) -> np.ndarray:
    """`value` as an array of numbers.

    Args:
        value: anything that Keras takes as a batch of one input.
        convert: makes it an array; Keras's `convert_to_numpy` if None.
        what: the argument that it comes from, for messages.

    Raises:
        ValueError: if it is ragged, or holds strings or other objects.
    """
    if isinstance(value, np.ndarray):
        array = value
    else:
        array = np.asarray((convert or keras.ops.convert_to_numpy)(value))
    # Converting pads ragged rows, which a layer for ragged tensors would see.
    ragged = is_ragged(value)
    is_number = array.dtype.kind in "biufcV" and not array.dtype.names  # V: bfloat16 and its like
    if ragged or not is_number:
        raise ValueError(
            "Over several ranks, data must be dense arrays of numbers. "
            f"Received: {f'{what}, ' if what else ''}{type(value).__name__} of dtype "
            f"{array.dtype}. "
            "Pad ragged rows and turn strings into numbers first."
        )
    return array
