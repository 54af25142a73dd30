"""Measures what attention costs that is computed block by block, where sequences are divided.

(`hyparflow.engine.sequence.attention_blocks`.) A block of queries and keys is timed; all blocks of
a sequence take as long.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from hyparflow.engine.sequence.attention_blocks import AttentionBlocks, Block
from hyparflow.engine.sequence.attention_core import AttentionCore
from hyparflow.engine.sequence.cores_found import CoresFound
from hyparflow.model.graph import FlatGraph
from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.pipeline.attention_pattern import AttentionPattern
from hyparflow.planning.costs.attention import Attention
from hyparflow.planning.costs.measure_overheads import median_seconds

__all__ = ["attention_of", "block_seconds"]

BLOCK = 512  # queries and keys of the block that is timed
_FULL = AttentionPattern(causal=False)
_FLOPS = 2e10  # per second, where nothing is measured


def attention_of(graph: FlatGraph, found: CoresFound, measured: bool) -> tuple[Attention, ...]:
    """The attention layers of a model whose sequences can be divided.

    Args:
        graph: the model's.
        found: what its attention layers compute.
        measured: whether to time blocks; otherwise they are counted.
    """
    timed = functools.cache(block_seconds if measured else _counted)
    made = []
    for number, call in enumerate(graph.calls):
        layers = all_layers(call.operation) if hasattr(call.operation, "call") else []
        for layer in layers:
            if id(layer) in found.cores:
                made.append(_attention(number, layer, found, timed))
    return tuple(made)


def _attention(number: int, layer: Any, found: CoresFound, timed: Callable[..., Any]) -> Attention:
    core, (key_size, value_size) = found.cores[id(layer)], found.sizes[id(layer)]
    dtype = tf.as_dtype(layer.compute_dtype)
    alike = dataclasses.replace(core, name="", pattern=_FULL, is_padded=False)
    pairs = core.heads * BLOCK**2
    forward, backward = timed(alike, key_size, value_size, dtype)
    return Attention(
        operation=number,
        heads=core.heads,
        key_heads=core.key_heads,
        key_size=key_size,
        value_size=value_size,
        number_size=dtype.size,
        causal=core.pattern.causal,
        window=core.pattern.window,
        forward=forward / pairs,
        backward=backward / pairs,
    )


def _counted(
    core: AttentionCore, key_size: int, value_size: int, dtype: Any
) -> tuple[float, float]:
    """The seconds of `block_seconds`, if matrix products alone take time."""
    product = 2 * core.heads * BLOCK**2 / _FLOPS
    forward = product * (key_size + value_size)
    return forward, forward + product * (2 * key_size + value_size)


def block_seconds(
    core: AttentionCore,
    key_size: int,
    value_size: int,
    dtype: Any,
    block: int = BLOCK,
    times: int = 3,
) -> tuple[float, float]:
    """Seconds of a forward and a backward of one block, all of whose queries see all its keys.

    Args:
        core: what the layer computes.
        key_size, value_size: numbers of a head.
        dtype: of queries, keys and values.
        block: how many queries and keys there are.
        times: how often each is timed.
    """
    group = core.heads // core.key_heads
    blocks = AttentionBlocks(core, group, 0, dtype, training=True)
    sizes = (group * block, key_size), (block, key_size), (block, value_size)
    query, key, value = (
        tf.random.normal([1, core.key_heads, *each], dtype=dtype) for each in sizes
    )
    starts, seed = (tf.constant(0), tf.constant(0)), tf.constant([0, 0], tf.int64)
    tried = Block((query, key, value), starts, seed, is_partial=False)
    means, logs = blocks.forward(tried, None)
    given = means, tf.zeros_like(logs), logs
    begun = blocks.backward(tried, given, (None, None, None))
    return (
        median_seconds(lambda: blocks.forward(tried, (means, logs)), times),
        median_seconds(lambda: blocks.backward(tried, given, begun), times),
    )
