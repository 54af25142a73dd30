"""All-to-all among the shards of a sequence: from all heads of some positions to some heads of all.

(DeepSpeed-Ulysses, Jacobs et al., arXiv 2309.14509, section 3.1; FPDT, arXiv 2408.16978.) Queries,
keys and values go in one exchange, their gradients in one; means of values in one; and their
gradients in one, with a number for each query that the backward needs of the means, which so need
not be kept where they were computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.comm.communicator import Communicator
from hyparflow.engine.compiled import choice
from hyparflow.engine.compiled.functions import Compiled
from hyparflow.engine.compiled.tensor_buffer import TensorBuffer
from hyparflow.engine.sequence.attention_core import AttentionCore

__all__ = ["ShardExchange", "HeadExchange"]


class ShardExchange:
    """Exchanges flat tensors among shards, and counts.

    Attributes:
        rank, size: the number of this shard, and of all.
        calls: how many exchanges there were.
        bytes_sent: to other ranks.

    Args:
        comm: the ranks that share each sequence.
    """

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self.rank, self.size = comm.rank, comm.size
        self.calls = self.bytes_sent = 0

    def __call__(self, tensor: Any, sent: Sequence[int], received: Sequence[int]) -> Any:
        """Give each shard its numbers of a flat tensor; a flat tensor of what all gave.

        Args:
            tensor: the numbers, those for shard 0 first.
            sent, received: how many numbers go to, and come from, each shard.
        """
        self.calls += 1
        if self.size == 1:
            return tensor
        array = np.asarray(tensor)
        into = TensorBuffer([sum(received)], array.dtype)
        mine, theirs = _parts(array, sent), _parts(into.array, received)
        self.bytes_sent += array.nbytes - mine[self.rank].nbytes
        self._comm.all_to_all(mine, theirs, "an exchange of heads and positions")
        return into.tensor

    def gathered(self, tensor: Any, lengths: Sequence[int]) -> Any:
        """What all shards have of (rows, positions), joined along positions.

        Args:
            tensor: this shard's.
            lengths: how many positions each shard has.
        """
        if self.size == 1:
            return tensor
        mine = np.ascontiguousarray(np.asarray(tensor))
        theirs = [np.empty((len(mine), length), mine.dtype) for length in lengths]
        self._comm.all_to_all([mine] * self.size, theirs, "the padding of a sequence")
        return tf.constant(np.concatenate(theirs, 1))

    def total(self, number: int) -> int:
        """The sum of the shards' numbers."""
        if self.size == 1:
            return number
        return sum(self._comm.all_gather_objects(number, "the lengths of parts of a sequence"))


def _parts(array: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    return np.split(array, np.cumsum(sizes)[:-1])


class HeadExchange:
    """The exchanges of one attention layer.

    On the side of positions tensors are (rows, positions of this shard, all heads, size); on the
    side of heads they are folded: (rows, heads of keys, group x positions of the chunk, size).

    Args:
        core: what the layer computes.
        sizes: of a head of keys, and of values.
        exchange: among the shards.
    """

    def __init__(
        self, core: AttentionCore, sizes: tuple[int, int], exchange: ShardExchange
    ) -> None:
        self._core, self._exchange = core, exchange
        self._key_size, self._value_size = sizes
        shards = exchange.size
        self.heads = core.heads // shards
        self.key_heads = core.sent_key_heads(shards) // shards
        self._copies = core.sent_key_heads(shards) // core.key_heads
        self._compiled: dict[str, Any] = {}

    @property
    def group(self) -> int:
        """Heads of queries for each head of keys."""
        return self.heads // self.key_heads

    def to_heads(self, tensors: Sequence[Any], lengths: Sequence[int]) -> Any:
        """Queries, keys and values of this shard's positions, as those of its heads, folded.

        Args:
            tensors: the three.
            lengths: how many positions each shard has.
        """
        width = self.heads * self._key_size + self.key_heads * (self._key_size + self._value_size)
        return self._gathered(self._pack, tensors, width, lengths, self._unpack)

    def gradients_to_heads(self, gradient: Any, means: Any, lengths: Sequence[int]) -> Any:
        """The gradient of the means, folded, and for each query the sum of it times the means."""
        exact = 1 if gradient.dtype.size >= 4 else 2  # numbers that one of them takes
        width = self.heads * (self._value_size + exact)
        given = (gradient, means)
        return self._gathered(self._pack_gradient, given, width, lengths, self._unpack_gradient)

    def to_positions(self, means: Any, lengths: Sequence[int]) -> Any:
        """The means of all heads for this shard's positions."""
        width = self.heads * self._value_size
        (made,) = self._scattered(self._pack_means, (means,), width, lengths, self._join_means)
        return made

    def gradients_to_positions(self, gradients: Sequence[Any], lengths: Sequence[int]) -> Any:
        """The gradients of queries, keys and values, of all heads for this shard's positions."""
        width = self.heads * self._key_size + self.key_heads * (self._key_size + self._value_size)
        return self._scattered(self._pack_three, gradients, width, lengths, self._join_three)

    # --- one exchange ---

    def _gathered(
        self,
        pack: Callable[..., Any],
        tensors: Sequence[Any],
        width: int,
        lengths: Sequence[int],
        unpack: Callable[..., Any],
    ) -> Any:
        rows = int(tensors[0].shape[0])
        mine = rows * lengths[self._exchange.rank] * width
        flat = self._call(pack, *tensors)
        theirs = [rows * n * width for n in lengths]
        flat = self._exchange(flat, [mine] * len(lengths), theirs)
        return self._call(unpack, flat, tf.constant(rows), tf.constant(lengths))

    def _scattered(
        self,
        pack: Callable[..., Any],
        tensors: Sequence[Any],
        width: int,
        lengths: Sequence[int],
        join: Callable[..., Any],
    ) -> Any:
        rows = int(tensors[0].shape[0])
        mine = rows * lengths[self._exchange.rank] * width
        flat = self._call(pack, tf.constant(lengths), *tensors)
        theirs = [rows * n * width for n in lengths]
        flat = self._exchange(flat, theirs, [mine] * len(lengths))
        return self._call(join, flat, tf.constant(rows))

    def _call(self, function: Callable[..., Any], *given: Any) -> Any:
        name = function.__name__
        if name not in self._compiled:
            self._compiled[name] = Compiled(function, False, choice.compiler().call)
        return self._compiled[name](*given)

    # --- traced: positions to heads ---

    def _pack(self, query: Any, key: Any, value: Any) -> Any:
        if self._copies > 1:
            key, value = (tf.repeat(x, self._copies, axis=2) for x in (key, value))
        return self._packed([query, key, value])

    def _pack_gradient(self, gradient: Any, means: Any) -> Any:
        exact = gradient.dtype if gradient.dtype.size >= 4 else tf.float32
        product = tf.cast(gradient, exact) * tf.cast(means, exact)
        delta = tf.reduce_sum(product, -1, keepdims=True)
        if exact != gradient.dtype:
            delta = tf.squeeze(tf.bitcast(delta, gradient.dtype), -2)
        return self._packed([gradient, delta])

    def _packed(self, tensors: Sequence[Any]) -> Any:
        """(rows, positions, heads, size) as numbers for each shard: of rows, heads, positions."""
        shards = self._exchange.size
        parts = []
        for x in tensors:
            rows, length = tf.unstack(tf.shape(x)[:2])
            heads, size = x.shape[2:]
            x = tf.reshape(x, [rows, length, shards, heads // shards, size])
            parts.append(tf.reshape(tf.transpose(x, [2, 0, 3, 1, 4]), [shards, -1]))
        return tf.reshape(tf.concat(parts, 1), [-1])

    def _unpack(self, flat: Any, rows: Any, lengths: Any) -> Any:
        shapes = [
            (self.heads, self._key_size),
            (self.key_heads, self._key_size),
            (self.key_heads, self._value_size),
        ]
        query, key, value = self._unpacked(flat, rows, lengths, shapes)
        return self._folded(query), key, value

    def _unpack_gradient(self, flat: Any, rows: Any, lengths: Any) -> Any:
        exact = 1 if flat.dtype.size >= 4 else 2
        shapes = [(self.heads, self._value_size), (self.heads, exact)]
        gradient, delta = self._unpacked(flat, rows, lengths, shapes)
        if exact == 2:
            delta = tf.bitcast(delta, tf.float32)[..., None]
        return self._folded(gradient), self._folded(delta)

    def _unpacked(
        self, flat: Any, rows: Any, lengths: Any, shapes: Sequence[tuple[int, int]]
    ) -> list[Any]:
        """What each shard sent, joined along positions: (rows, heads, positions, size)."""
        widths = [math.prod(shape) for shape in shapes]
        shards = self._exchange.size
        parts = tf.split(flat, rows * lengths * sum(widths), num=shards)
        columns: list[list[Any]] = [[] for _ in shapes]
        for number, part in enumerate(parts):
            length = lengths[number]
            pieces = tf.split(part, [rows * length * width for width in widths])
            for column, piece, (heads, size) in zip(columns, pieces, shapes, strict=True):
                column.append(tf.reshape(piece, [rows, heads, length, size]))
        return [tf.concat(column, 2) if shards > 1 else column[0] for column in columns]

    def _folded(self, x: Any) -> Any:
        """(rows, heads, positions, size) with the queries of a head of keys one after another."""
        return tf.reshape(x, [tf.shape(x)[0], self.key_heads, -1, x.shape[-1]])

    # --- traced: heads to positions ---

    def _pack_means(self, lengths: Any, means: Any) -> Any:
        return self._parted([self._unfolded(means)], lengths)

    def _pack_three(self, lengths: Any, query: Any, key: Any, value: Any) -> Any:
        return self._parted([self._unfolded(query), key, value], lengths)

    def _unfolded(self, x: Any) -> Any:
        return tf.reshape(x, [tf.shape(x)[0], self.heads, -1, x.shape[-1]])

    def _parted(self, tensors: Sequence[Any], lengths: Any) -> Any:
        """The positions of each shard: numbers of its rows, heads, positions, of each tensor."""
        shards = self._exchange.size
        split = [tf.split(x, lengths, axis=2, num=shards) if shards > 1 else [x] for x in tensors]
        parts = [tf.reshape(x, [-1]) for several in zip(*split, strict=True) for x in several]
        return tf.concat(parts, 0)

    def _join_means(self, flat: Any, rows: Any) -> Any:
        return self._joined(flat, rows, [(self.heads, self._value_size)])

    def _join_three(self, flat: Any, rows: Any) -> Any:
        shapes = [
            (self.heads, self._key_size),
            (self.key_heads, self._key_size),
            (self.key_heads, self._value_size),
        ]
        query, key, value = self._joined(flat, rows, shapes)
        return query, self._added(key), self._added(value)

    def _added(self, gradient: Any) -> Any:
        """The gradients of the copies of a head, added up."""
        if self._copies == 1:
            return gradient
        rows, length, heads, size = tf.unstack(tf.shape(gradient))
        apart = [rows, length, heads // self._copies, self._copies, size]
        return tf.reduce_sum(tf.reshape(gradient, apart), 3)

    def _joined(self, flat: Any, rows: Any, shapes: Sequence[tuple[int, int]]) -> list[Any]:
        """(rows, positions, all heads, size) of what each shard computed of its heads."""
        shards = self._exchange.size
        widths = [math.prod(shape) for shape in shapes]
        each = tf.reshape(flat, [shards, -1])
        numbers = tf.shape(each)[1] // sum(widths)  # rows x positions
        made = []
        pieces = tf.split(each, [numbers * width for width in widths], axis=1)
        for piece, (heads, size) in zip(pieces, shapes, strict=True):
            x = tf.reshape(piece, [shards, rows, heads, numbers // rows, size])
            x = tf.transpose(x, [1, 3, 0, 2, 4])
            made.append(tf.reshape(x, [rows, numbers // rows, shards * heads, size]))
        return made
