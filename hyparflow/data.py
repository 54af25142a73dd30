"""Global batch -> this replica's rows -> micro-batches; ragged batches included.

Rows are split into contiguous parts whose sizes differ by at most one, without padding. Where the
data are arrays, every rank has them and a batch is a list of row numbers (Keras's own, from the
leader), of which each rank cuts what it needs. Where they are a stream, only the leader reads it,
and sends each rank its rows: walking the stream on every rank would be wrong as soon as the
stream shuffles without a seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from hyparflow import keras_internals
from hyparflow.grid import Grid

__all__ = [
    "ArraySource",
    "Batch",
    "Spec",
    "dense",
    "microbatch_rows",
    "peek",
    "replica_rows",
    "slice_rows",
    "specs",
    "split",
]

Rows = tuple[int, int]

_WHOLE = 1 << 28  # bytes of inputs up to which all rows are compared
_SAMPLES = 1024  # rows compared beyond


def split(start: int, stop: int, parts: int) -> list[Rows]:
    """The rows ``start:stop`` in `parts` contiguous parts, larger ones first."""
    size, larger = divmod(stop - start, parts)
    bounds = [start + part * size + min(part, larger) for part in range(parts + 1)]
    return list(zip(bounds, bounds[1:], strict=False))


def replica_rows(rows: int, grid: Grid, replica: int) -> Rows:
    """The part of a global batch of `rows` rows that `replica` trains on."""
    return split(0, rows, grid.num_replicas)[replica]


def microbatch_rows(rows: int, grid: Grid, replica: int, num_microbatches: int) -> list[Rows]:
    """A replica's part of a global batch as micro-batches: as many in all replicas that have any
    rows, and fewer than M where there are fewer rows.
    """
    start, stop = replica_rows(rows, grid, replica)
    count = min(num_microbatches, max(1, rows // grid.num_replicas))
    return split(start, stop, count) if stop > start else []


def slice_rows(structure: Any, start: int, stop: int) -> Any:
    """Rows ``start:stop`` of every array in `structure`; None stays None."""
    return keras.tree.map_structure(lambda x: None if x is None else x[start:stop], structure)


class ArraySource:
    """The arrays of one call of `fit` or `evaluate`, as this rank has them.

    Args:
        x, y, sample_weight, class_weight: as for Keras's `fit`.

    Raises:
        ValueError: Keras's own, where lengths or kinds do not fit.
    """

    def __init__(
        self, x: Any, y: Any = None, sample_weight: Any = None, class_weight: Any = None
    ) -> None:
        parts, self.num_samples = keras_internals.array_sources(x, y, sample_weight, None)
        self._x, self._y, self._plain_weight = map(keras.tree.lists_to_tuples, parts)
        self._sample_weight = self._plain_weight
        if class_weight is not None:
            parts, _ = keras_internals.array_sources(x, y, sample_weight, class_weight)
            self._sample_weight = parts[2]

    def x(self, indices: np.ndarray) -> Any:
        """These rows of the inputs, as arrays in the user's structure."""
        return _take(self._x, indices)

    def y(self, indices: np.ndarray) -> Any:
        """These rows of the labels."""
        return _take(self._y, indices)

    def sample_weight(self, indices: np.ndarray, training: bool = True) -> Any:
        """These rows of the sample weights; class weights count in training only, as in Keras,
        which splits validation rows off before it applies them.
        """
        return _take(self._sample_weight if training else self._plain_weight, indices)

    def specs(self) -> Any:
        """The types of (x, y, sample weights)."""
        first = np.zeros(1, np.int64)
        return specs((self.x(first), self.y(first), self.sample_weight(first)))

    def fingerprint(self) -> list[Any]:
        """Shapes, dtypes and a few rows, to find out whether all ranks have the same data."""
        size = self.num_samples * sum(
            leaf.nbytes for leaf in keras.tree.flatten(self.x(np.zeros(1, np.int64)))
        )
        count = self.num_samples if size <= _WHOLE else _SAMPLES
        rows = np.unique(np.linspace(0, self.num_samples - 1, count).astype(int))
        samples = [part(rows) for part in (self.x, self.y, self.sample_weight)]
        return [
            None
            if leaf is None
            else (
                self.num_samples,
                leaf.shape[1:],
                str(leaf.dtype),
                hashlib.sha256(leaf).hexdigest(),
            )
            for leaf in map(_plain, keras.tree.flatten(samples))
        ]


@dataclass(frozen=True)
class Spec:
    """Type of one array of a batch: its shape, of which the first size does not count; dtype."""

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


def peek(x: Any) -> tuple[Any, Any]:
    """What to give Keras in place of the stream `x`, and the specs of (x, y, sample weights).

    A dataset tells its types and a PyDataset gives its first batch; only from an iterator must
    the first batch be taken out, and put back in front.
    """
    if hasattr(x, "element_spec"):
        first = x.element_spec
    elif isinstance(x, keras.utils.PyDataset):
        first = x[0]
    else:
        iterator = iter(x)
        first = next(iterator)
        x = _again(first, iterator)
    return x, specs(keras_internals.unpack(first))


def _again(first: Any, rest: Any) -> Any:
    yield first
    yield from rest


def _plain(leaf: Any) -> Any:
    return None if leaf is None else np.ascontiguousarray(leaf)


def _take(structure: Any, indices: np.ndarray) -> Any:
    """Rows `indices` of Keras's sliceables, as arrays."""

    def take(leaf: Any) -> Any:
        return None if leaf is None else dense(leaf[indices], leaf.convert_to_numpy)

    return keras.tree.map_structure(take, structure)


def dense(value: Any, convert: Callable[[Any], Any] | None = None) -> np.ndarray:
    """`value` as an array of numbers.

    Args:
        value: anything that Keras takes as a batch of one input.
        convert: makes it an array; Keras's `convert_to_numpy` if None.

    Raises:
        ValueError: if it is ragged, or holds strings or other objects.
    """
    if isinstance(value, np.ndarray):
        array = value
    else:
        array = np.asarray((convert or keras.ops.convert_to_numpy)(value))
    # Converting pads ragged rows, which a layer for ragged tensors would see.
    ragged = keras_internals.is_ragged(value)
    if ragged or array.dtype.kind not in "biufcV":  # V: bfloat16 and its like
        raise ValueError(
            "Over several ranks, data must be dense arrays of numbers. "
            f"Received: {type(value).__name__} of dtype {array.dtype}. "
            "Pad ragged rows and turn strings into numbers first."
        )
    return array


@dataclass
class Batch:
    """What one rank holds of one global batch.

    Attributes:
        rows: rows of the global batch, B.
        microbatches: this replica's micro-batches, as row ranges of the global batch.
        x: inputs of this replica's rows (readers) or of the whole batch (`x_is_global`).
        y, sample_weight: of the whole global batch (last partitions), or None.
        is_stand_in: whether this replica has no rows in this batch and computes with the first
            row of another, at weight 0, to take part in what all replicas do together.
    """

    rows: int
    microbatches: list[Rows]
    x: Any = None
    y: Any = None
    sample_weight: Any = None
    x_is_global: bool = False
    is_stand_in: bool = False

    @property
    def start(self) -> int:
        """The first row of this replica's part of the global batch."""
        return self.microbatches[0][0] if self.microbatches else 0

    @property
    def stop(self) -> int:
        """The row after the last of this replica's part."""
        return self.microbatches[-1][1] if self.microbatches else 0

    def inputs(self, microbatch: int) -> Any:
        """The inputs of one micro-batch."""
        start, stop = self.microbatches[microbatch]
        shift = 0 if self.x_is_global else self.start
        return slice_rows(self.x, start - shift, stop - shift)

    def labels(self, microbatch: int) -> tuple[Any, Any]:
        """The labels and sample weights of one micro-batch."""
        start, stop = self.microbatches[microbatch]
        return slice_rows(self.y, start, stop), slice_rows(self.sample_weight, start, stop)

    def size(self, microbatch: int) -> int:
        """The number of rows of one micro-batch, n."""
        start, stop = self.microbatches[microbatch]
        return stop - start

    def weight(self, microbatch: int) -> int:
        """The number of rows by which one micro-batch counts."""
        return 0 if self.is_stand_in else self.size(microbatch)

    def share(self, microbatch: int) -> float:
        """The part of the global batch in one micro-batch, n / B."""
        return self.weight(microbatch) / self.rows
