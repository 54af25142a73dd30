"""Attention of a chunk of queries to a chunk of keys, and what several such blocks add up to.

Softmax over keys that come in blocks (Milakov & Gimelshein, arXiv 1805.02867; FlashAttention, Dao
et al., arXiv 2205.14135): each block's result is merged with what came before by the logarithm of
the sum of exponentials, of which rows keep one number. A backward computes scores again.

Queries of one head of keys lie one after another ("folded"): (rows, heads of keys, group x
positions, size), so keys are never repeated.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from hyparflow.engine.compiled import choice
from hyparflow.engine.compiled.functions import Compiled
from hyparflow.engine.sequence.attention_core import AttentionCore
from hyparflow.engine.sequence.attention_strips import joined_queries, of_queries, on_keys
from hyparflow.engine.sequence.random_bits import dropped_scores

__all__ = ["AttentionBlocks", "Block"]

_NOT_SEEN = -1e30  # a score that no query sees
_BLIND = 1e30  # the logarithm kept for a query that sees no key at all


class Block:
    """A chunk of queries, folded, and a chunk of keys and values.

    Attributes:
        query, key, value: the tensors.
        starts: positions of the first query and of the first key.
        seed: of dropout; any two integers without.
        is_partial: whether some queries do not attend to some of the keys by their positions.
        padding: of each row and key whether it is there; None if all are.
        strips: where the strips lie that are computed one by one; None for a block in one.
    """

    def __init__(
        self,
        tensors: tuple[Any, Any, Any],
        starts: tuple[Any, Any],
        seed: Any,
        is_partial: bool,
        padding: Any = None,
        strips: Any = None,
    ) -> None:
        self.query, self.key, self.value = tensors
        self.starts, self.seed = starts, seed
        self.is_partial, self.padding, self.strips = is_partial, padding, strips

    @property
    def form(self) -> tuple[bool, bool, int]:
        """What a compiled function is for: `is_partial`, whether there is padding, and strips."""
        strips = 0 if self.strips is None else int(self.strips.shape[0])
        return self.is_partial, self.padding is not None, strips

    @property
    def tensors(self) -> tuple[Any, ...]:
        """All tensors, for a compiled function."""
        more = [x for x in (self.padding, self.strips) if x is not None]
        return self.query, self.key, self.value, *self.starts, self.seed, *more

    @classmethod
    def of(cls, tensors: tuple[Any, ...], form: tuple[bool, bool, int]) -> Block:
        """What `tensors` returned for a block of this form, as a block."""
        is_partial, is_padded, strips = form
        padding = tensors[6] if is_padded else None
        places = tf.ensure_shape(tensors[6 + is_padded], [strips, 4]) if strips else None
        return cls(tensors[:3], tensors[3:5], tensors[5], is_partial, padding, places)

    def part(self, place: Any, group: int) -> Block:
        """A strip."""
        start, stop, first, last = tf.unstack(place)
        tensors = (
            of_queries(self.query, group, start, stop),
            *(x[:, :, first:last] for x in (self.key, self.value)),
        )
        padding = None if self.padding is None else self.padding[:, first:last]
        starts = self.starts[0] + start, self.starts[1] + first
        return Block(tensors, starts, self.seed, self.is_partial, padding)

    def positions(self, group: int) -> tuple[Any, Any]:
        """Positions of the queries of one head, and of the keys."""
        queries = tf.shape(self.query)[2] // group
        return tuple(
            start + tf.range(count)
            for start, count in zip(self.starts, (queries, tf.shape(self.key)[2]), strict=True)
        )


class AttentionBlocks:
    """The compiled functions of attention layers that compute the same, for some of their heads.

    Args:
        core: what the layers compute.
        group: heads of queries for each head of keys.
        first_head: the number of this shard's first head of queries.
        dtype: of queries, keys and values.
        training: whether scores are dropped out.
    """

    def __init__(
        self, core: AttentionCore, group: int, first_head: int, dtype: Any, training: bool
    ) -> None:
        self._core, self._group, self._first_head = core, group, first_head
        self.dtype = tf.as_dtype(dtype)
        # Sums of numbers of 16 bits are kept in 32, as Keras does with scores.
        self._exact = self.dtype if self.dtype.size >= 4 else tf.float32
        self._rate = core.dropout if training else 0.0
        self._compiled: dict[Any, Any] = {}

    def forward(self, block: Block, so_far: tuple[Any, Any] | None) -> tuple[Any, Any]:
        """The results with one block more.

        Args:
            block: queries and keys.
            so_far: what this returned for the blocks before; None for the first.

        Returns:
            The weighted means of values, and the logarithms of the sums of exponentials.
        """
        add = self._function("add", block, so_far is not None)
        return add(*block.tensors, *(so_far or ()))  # type: ignore[no-any-return]

    @functools.cached_property
    def finish(self) -> Callable[[Any, Any], tuple[Any, Any]]:
        """(means, logarithms) -> the same, with zeros for queries that saw nothing."""

        def finish(means: Any, logs: Any) -> tuple[Any, Any]:
            blind = logs < 0.5 * _NOT_SEEN
            means = tf.cast(tf.where(blind, tf.zeros_like(means), means), self.dtype)
            return means, tf.where(blind, tf.constant(_BLIND, logs.dtype), logs)

        return Compiled(finish, False, choice.compiler().call)

    def backward(self, block: Block, given: tuple[Any, ...], sums: tuple[Any, ...]) -> Any:
        """The gradients of queries, keys and values, with one block more.

        Args:
            block: queries and keys.
            given: the gradient of the means; for each query the sum of that times the means;
                the logarithms that `finish` returned.
            sums: the gradients so far, or None for those that begin.
        """
        begun = tuple(x is not None for x in sums)
        back = self._function("back", block, begun)
        return back(*block.tensors, *given, *(x for x in sums if x is not None))

    def _function(self, name: str, block: Block, begun: Any) -> Any:
        form = block.form
        key = name, form, begun
        if key not in self._compiled:
            count = len(block.tensors)
            run = f"_{name}_strips" if form[2] else f"_{name}"

            def traced(*tensors: Any) -> Any:
                given = Block.of(tensors[:count], form)
                return getattr(self, run)(given, begun, *tensors[count:])

            self._compiled[key] = Compiled(traced, False, choice.compiler().call)
        return self._compiled[key]

    # --- traced ---

    def _scores(self, block: Block) -> Any:
        """The scores, and by what the backward of the cap multiplies (None without one)."""
        query = block.query * tf.cast(self._core.scale, self.dtype)
        scores = tf.cast(tf.matmul(query, block.key, transpose_b=True), self._exact)
        slope = None
        if self._core.soft_cap is not None:
            pressed = tf.tanh(scores / self._core.soft_cap)
            scores, slope = pressed * self._core.soft_cap, 1 - tf.square(pressed)
        seen = self._seen(block)
        if seen is not None:
            shape = tf.shape(scores)
            apart = self._apart(scores, block)
            hidden = tf.constant(_NOT_SEEN, scores.dtype)
            scores = tf.reshape(tf.where(seen, apart, hidden), shape)
        return scores, slope

    def _apart(self, scores: Any, block: Block) -> Any:
        """Folded scores as (rows, heads of keys, group, queries, keys)."""
        rows, heads, queries, keys = tf.unstack(tf.shape(scores))
        return tf.reshape(scores, [rows, heads, self._group, queries // self._group, keys])

    def _seen(self, block: Block) -> Any:
        """Which keys each query attends to, to be broadcast; None if all."""
        seen = None
        if block.is_partial:
            queries, keys = block.positions(self._group)
            distance = queries[:, None] - keys[None]
            first, last = self._core.pattern.distances
            seen = tf.ones_like(distance, tf.bool)
            if first is not None:
                seen &= distance >= first
            if last is not None:
                seen &= distance <= last
        if block.padding is not None:
            valid = block.padding[:, None, None, None]
            seen = valid if seen is None else seen & valid
        return seen

    def _dropped(self, block: Block) -> Any:
        """By what dropout multiplies folded weights."""
        queries, keys = block.positions(self._group)
        rows, heads = tf.unstack(tf.shape(block.key)[:2])
        numbers = self._first_head + tf.range(heads * self._group)
        factors = dropped_scores(self._rate, block.seed, queries, keys, numbers, rows)
        folded = [rows, heads, tf.shape(block.query)[2], tf.size(keys)]
        return tf.cast(tf.reshape(factors, folded), self._exact)

    def _add(self, block: Block, begun: bool, means: Any = None, logs: Any = None) -> Any:
        scores, _ = self._scores(block)
        top = tf.reduce_max(scores, -1, keepdims=True)
        if begun:
            top = tf.maximum(top, logs)
        weights = tf.exp(scores - top)
        total = tf.reduce_sum(weights, -1, keepdims=True)
        if self._rate:
            weights *= self._dropped(block)
        made = self._product(weights, block.value)
        if begun:
            before = tf.exp(logs - top)
            made, total = made + means * before, total + before
        return made / total, top + tf.math.log(total)

    def _add_strips(self, block: Block, begun: bool, *so_far: Any) -> Any:
        made = []
        for place in tf.unstack(block.strips):
            before = [of_queries(x, self._group, *tf.unstack(place[:2])) for x in so_far]
            made.append(self._add(block.part(place, self._group), begun, *before))
        return tuple(joined_queries(strips, self._group) for strips in zip(*made, strict=True))

    def _back_strips(self, block: Block, begun: tuple[bool, ...], *given: Any) -> Any:
        of_queries_, of_keys = list[Any](), list[Any]()
        for place in tf.unstack(block.strips):
            start, stop, first, last = tf.unstack(place)
            own = [of_queries(x, self._group, start, stop) for x in given[:3]]
            of_query, *others = self._back(block.part(place, self._group), (False,) * 3, *own)
            of_queries_.append(of_query)
            count = tf.shape(block.key)[2]
            of_keys.append([on_keys(x, first, last, count) for x in others])
        summed = [tf.add_n(parts) for parts in zip(*of_keys, strict=True)]
        made = joined_queries(of_queries_, self._group), *summed
        return _added(made, begun, given[3:])

    def _back(self, block: Block, begun: tuple[bool, ...], *given: Any) -> Any:
        gradient, delta, logs, *sums = given
        scores, slope = self._scores(block)
        weights = tf.exp(scores - logs)
        of_weights = tf.cast(tf.matmul(gradient, block.value, transpose_b=True), self._exact)
        kept = weights
        if self._rate:
            factors = self._dropped(block)
            kept, of_weights = weights * factors, of_weights * factors
        of_scores = weights * (of_weights - delta)
        if slope is not None:
            of_scores *= slope
        scale = tf.cast(self._core.scale, self._exact)
        made = (
            self._product(of_scores, block.key) * scale,
            self._product(of_scores, block.query, transpose_a=True) * scale,
            self._product(kept, gradient, transpose_a=True),
        )
        return _added(made, begun, sums)

    def _product(self, left: Any, right: Any, **how: Any) -> Any:
        made = tf.matmul(tf.cast(left, self.dtype), right, **how)
        return tf.cast(made, self._exact)


def _added(made: Sequence[Any], begun: Sequence[bool], sums: Sequence[Any]) -> tuple[Any, ...]:
    """Gradients, each added to the sum before if that has begun."""
    following = iter(sums)
    return tuple(x + next(following) if has else x for x, has in zip(made, begun, strict=True))
