"""Measures what attention costs that is computed block by block, where sequences are divided.

(`hyparflow.engine.sequence.attention_blocks`.) A block of queries and keys is timed; all blocks of
a sequence take as long.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from hyparflow.engine.sequence.attention_blocks import AttentionBlocks, Block
from hyparflow.engine.sequence.attention_core import AttentionCore
from hyparflow.engine.sequence.position_trial import CoresFound, find_cores
from hyparflow.model.graph import FlatGraph
from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.pipeline.attention_pattern import AttentionPattern
from hyparflow.planning.costs.attention import Attention
from hyparflow.planning.costs.measure_overheads import median_seconds

__all__ = ["attention_of"]

_BLOCK = 512  # queries and keys of the block that is timed
_TIMES = 3
_FLOPS = 2e10  # per second, where nothing is measured


def attention_of(graph: FlatGraph, length: int, measured: bool) -> tuple[Attention, ...]:
    """The attention layers of a model whose sequences can be divided.

    Args:
        graph: the model's.
        length: of its sequences.
        measured: whether to time blocks; otherwise they are counted.

    Raises:
        ValueError: if sequences cannot be divided, naming what stands against it.
    """
    found = find_cores(graph, length)
    timed = functools.cache(functools.partial(_timed, measured))
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
    group = core.heads // core.key_heads
    seconds = timed(core.heads, group, key_size, value_size, core.soft_cap, core.dropout, dtype)
    return Attention(
        operation=number,
        heads=core.heads,
        key_heads=core.key_heads,
        key_size=key_size,
        value_size=value_size,
        number_size=dtype.size,
        causal=core.pattern.causal,
        window=core.pattern.window,
        forward=seconds[0],
        backward=seconds[1],
    )


def _timed(
    measured: bool,
    heads: int,
    group: int,
    key_size: int,
    value_size: int,
    soft_cap: float | None,
    dropout: float,
    dtype: Any,
) -> tuple[float, float]:
    """Seconds of forward and backward for each row, head, query and key."""
    if not measured:
        forward = 2 * (key_size + value_size) / _FLOPS
        return forward, forward + 2 * (2 * key_size + value_size) / _FLOPS
    key_heads = heads // group
    core = AttentionCore(
        name="",
        heads=heads,
        key_heads=key_heads,
        repeats=1,
        scale=1.0,
        pattern=AttentionPattern(causal=False),
        soft_cap=soft_cap,
        dropout=dropout,
    )
    blocks = AttentionBlocks(core, group, 0, dtype, training=True)
    query = tf.random.normal([1, key_heads, group * _BLOCK, key_size], dtype=dtype)
    key = tf.random.normal([1, key_heads, _BLOCK, key_size], dtype=dtype)
    value = tf.random.normal([1, key_heads, _BLOCK, value_size], dtype=dtype)
    starts, seed = (tf.constant(0), tf.constant(0)), tf.constant([0, 0], tf.int64)
    block = Block((query, key, value), starts, seed, is_partial=False)
    means, logs = blocks.forward(block, None)
    given = means, tf.zeros_like(logs), logs
    begun = blocks.backward(block, given, (None, None, None))
    forward = median_seconds(lambda: blocks.forward(block, (means, logs)), _TIMES)
    backward = median_seconds(lambda: blocks.backward(block, given, begun), _TIMES)
    pairs = heads * _BLOCK**2
    return forward / pairs, backward / pairs
