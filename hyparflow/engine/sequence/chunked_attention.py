"""One attention layer, chunk after chunk, with what waits in a store. (FPDT, sections 4.2 and 4.3.)

A forward takes the queries, keys and values of one chunk after the other, and gives the weighted
means of values for a chunk when all keys are there that its queries attend to. A backward goes over
chunks of keys, and within over the chunks of queries that attend to them; so what it adds up for
keys and values is complete at once, and for causal attention what it adds up for queries as well.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from hyparflow.engine.sequence.attention_blocks import AttentionBlocks, Block
from hyparflow.engine.sequence.attention_core import AttentionCore
from hyparflow.engine.sequence.attention_strips import places_of
from hyparflow.engine.sequence.chunks import HeadSizes
from hyparflow.engine.sequence.exchange import HeadExchange, ShardExchange
from hyparflow.engine.sequence.shared_blocks import SharedBlocks
from hyparflow.engine.sequence.store import Store
from hyparflow.pipeline.token_layout import TokenLayout

__all__ = ["AttentionRun", "ChunkedAttention"]


class ChunkedAttention:
    """Attention layers of a stage that compute the same, on one shard: what is compiled for them.

    Args:
        core: what a layer computes.
        sizes: of a head of keys, and of values.
        dtype: of queries, keys and values.
        exchange: among the shards.
        blocks: what the stages of a rank share.
    """

    def __init__(
        self,
        core: AttentionCore,
        sizes: tuple[int, int],
        dtype: Any,
        exchange: ShardExchange,
        blocks: SharedBlocks,
    ) -> None:
        self.core = core
        self.heads = HeadExchange(core, sizes, exchange)
        self.sizes = HeadSizes(
            heads=self.heads.heads,
            key_heads=self.heads.key_heads,
            key_size=sizes[0],
            value_size=sizes[1],
            number_size=max(4, tf.as_dtype(dtype).size),
        )
        first = exchange.rank * self.heads.heads
        self._blocks = {
            training: blocks.of(core, sizes, self.heads.group, first, dtype, training)
            for training in (True, False)
        }

    def run(
        self,
        number: int,
        layout: TokenLayout,
        store: Store,
        padding: Sequence[Any] | None,
        seed: Any,
        training: bool,
    ) -> AttentionRun:
        """The attention of one layer for one micro-batch.

        Args:
            number: of the layer, for keys of the store.
            layout: chunks and shards.
            store: keeps tensors.
            padding: of each chunk, which positions of each row are there; None if all are. It is
                filled in while chunks come.
            seed: of dropout, two integers.
            training: whether a backward follows.
        """
        return AttentionRun(self, self._blocks[training], number, layout, store, padding, seed)


class AttentionRun:
    """The attention of one layer for one micro-batch: its forward, then its backward.

    Args are those of `ChunkedAttention.run`, with the layer and its blocks.
    """

    def __init__(
        self,
        layer: ChunkedAttention,
        blocks: AttentionBlocks,
        number: int,
        layout: TokenLayout,
        store: Store,
        padding: Sequence[Any] | None,
        seed: Any,
    ) -> None:
        self._heads, self._blocks, self._pattern = layer.heads, blocks, layer.core.pattern
        self._number, self._layout, self._store = number, layout, store
        self._padding, self._seed = padding, seed
        chunks = range(layout.num_chunks)
        self._keys_of = [[j for j in chunks if self._attends(i, j)] for i in chunks]

    def _attends(self, queries: int, keys: int) -> bool:
        return self._pattern.attends(self._layout.chunk(queries), self._layout.chunk(keys))

    def _key(self, name: str, chunk: int) -> Hashable:
        return name, self._number, chunk

    # --- forward ---

    def put(self, chunk: int, tensors: Sequence[Any]) -> None:
        """Take queries, keys and values of this shard's positions of a chunk. Collective."""
        query, *others = self._heads.to_heads(tensors, self._layout.lengths(chunk))
        self._store.put(self._key("query", chunk), [query])
        self._store.put(self._key("keys", chunk), others)

    def needs(self, chunk: int) -> int:
        """The last chunk that must be there before `means` of a chunk."""
        return max([chunk, *self._keys_of[chunk]])

    def means(self, chunk: int, keeps: bool) -> Any:
        """The weighted means of values for this shard's positions of a chunk. Collective.

        Args:
            chunk: the chunk of queries.
            keeps: whether to keep what a backward needs.
        """
        store, keys_of = self._store, self._keys_of[chunk]
        (query,) = store.get(self._key("query", chunk))
        so_far = None
        for j, following in zip(keys_of, [*keys_of[1:], None], strict=True):
            if following is not None:
                store.prefetch(self._key("keys", following))
            key, value = store.get(self._key("keys", j))
            so_far = self._blocks.forward(self._block(chunk, j, (query, key, value)), so_far)
        means, logs = self._blocks.finish(*so_far)  # type: ignore[misc]
        if keeps:
            store.put(self._key("logs", chunk), [logs])
        else:
            store.drop(self._key("query", chunk))
        return self._heads.to_positions(means, self._layout.lengths(chunk))

    def drop(self) -> None:
        """Keep nothing of a forward that no backward follows."""
        for chunk in range(self._layout.num_chunks):
            for name in ("query", "keys"):
                if self._store.has(self._key(name, chunk)):
                    self._store.drop(self._key(name, chunk))

    def _block(self, i: int, j: int, tensors: tuple[Any, Any, Any]) -> Block:
        queries, keys = self._layout.chunk(i), self._layout.chunk(j)
        starts = tf.constant(queries[0]), tf.constant(keys[0])
        is_partial = not self._pattern.attends_to_all(queries, keys)
        padding = None if self._padding is None else self._padding[j]
        strips = self._pattern.strips(queries, keys)
        places = places_of(strips, queries, keys) if len(strips) > 1 else None
        return Block(tensors, starts, self._seed, is_partial, padding, places)

    # --- backward ---

    def put_gradient(self, chunk: int, gradient: Any, means: Any) -> None:
        """Take the gradient of what `means` returned for a chunk, and that. Collective."""
        lengths = self._layout.lengths(chunk)
        given = self._heads.gradients_to_heads(gradient, means, lengths)
        self._store.put(self._key("given", chunk), given)

    def gradients(self) -> Iterator[tuple[int, Any]]:
        """The gradients of queries, keys and values, chunk by chunk as they are ready. Collective.

        Yields:
            A chunk, and the three gradients for this shard's positions of it.
        """
        chunks = range(self._layout.num_chunks)
        queries_of = [[i for i in chunks if j in self._keys_of[i]] for j in chunks]
        waiting = list(chunks)
        for j in chunks:
            self._add_up(j, queries_of[j])
            ready = [i for i in waiting if max([i, *self._keys_of[i]]) <= j]
            for i in ready:
                waiting.remove(i)
                yield i, self._sent_back(i)

    def _add_up(self, j: int, queries_of: Sequence[int]) -> None:
        """The gradients that a chunk of keys gets, and gives to the queries that attend to it."""
        store = self._store
        key, value = store.take(self._key("keys", j))
        of_key: Any = None
        of_value: Any = None
        names = ("query", "given", "logs", "of query")
        for i, following in zip(queries_of, [*queries_of[1:], None], strict=True):
            if following is not None:
                store.prefetch(*(self._key(name, following) for name in names))
            (query,), given = store.get(self._key("query", i)), store.get(self._key("given", i))
            block = self._block(i, j, (query, key, value))
            of_query = None
            if store.has(self._key("of query", i)):
                (of_query,) = store.take(self._key("of query", i))
            of_query, of_key, of_value = self._blocks.backward(
                block, (*given, *store.get(self._key("logs", i))), (of_query, of_key, of_value)
            )
            store.put(self._key("of query", i), [of_query])
        if of_key is None:  # no query attends to them
            of_key, of_value = tf.zeros_like(key), tf.zeros_like(value)
        store.put(self._key("of keys", j), [of_key, of_value])

    def _sent_back(self, chunk: int) -> Any:
        store = self._store
        for name in ("query", "given", "logs"):
            store.drop(self._key(name, chunk))
        (of_query,) = store.take(self._key("of query", chunk))
        of_keys = store.take(self._key("of keys", chunk))
        dtype = self._blocks.dtype
        made = [tf.cast(x, dtype) for x in (of_query, *of_keys)]
        return self._heads.gradients_to_positions(made, self._layout.lengths(chunk))
