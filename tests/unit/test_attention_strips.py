"""Blocks of attention that are computed strip by strip: the same numbers, of fewer scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from hyparflow.engine.sequence.attention_blocks import AttentionBlocks, Block
from hyparflow.engine.sequence.attention_core import AttentionCore
from hyparflow.engine.sequence.attention_strips import places_of
from hyparflow.pipeline.attention_pattern import AttentionPattern

ROWS, KEY_HEADS, SIZE = 2, 2, 3
SEED = tf.constant([3, 7], tf.int64)
# Positions of queries and of keys, and what attends to what.
CASES = {
    "causal": ((0, 1100), (0, 1100), AttentionPattern(True)),
    "causal, later keys": ((1000, 1530), (700, 1400), AttentionPattern(True)),
    "window": ((1000, 1530), (300, 1400), AttentionPattern(True, 200)),
    "band": ((0, 700), (0, 700), AttentionPattern(False, 300)),
    "a strip that sees nothing": ((600, 1200), (0, 500), AttentionPattern(True, 350)),
}


def random(*shape: int) -> Any:
    numbers = np.random.default_rng(len(shape) + sum(shape)).standard_normal(shape)
    return tf.constant(numbers, tf.float64)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("group", "dropout", "padded"), [(1, 0.0, False), (2, 0.3, True)])
def test_strips_compute_what_the_whole_block_does(
    case: str, group: int, dropout: float, padded: bool
) -> None:
    queries, keys, pattern = CASES[case]
    heads = group * KEY_HEADS
    core = AttentionCore("a", heads, KEY_HEADS, 1, 0.5, pattern, 9.0, padded, dropout)
    blocks = AttentionBlocks(core, group, 0, tf.float64, training=True)
    count, length = group * (queries[1] - queries[0]), keys[1] - keys[0]
    tensors = (
        random(ROWS, KEY_HEADS, count, SIZE),
        *(random(ROWS, KEY_HEADS, length, n) for n in (SIZE, SIZE + 1)),
    )
    starts = tf.constant(queries[0]), tf.constant(keys[0])
    there = tf.constant(np.arange(length)[None] >= [[30], [0]]) if padded else None
    strips = pattern.strips(queries, keys)
    assert len(strips) > 1
    places = places_of(strips, queries, keys)

    def computed(places: Any) -> list[Any]:
        block = Block(tensors, starts, SEED, True, there, places)
        first = blocks.forward(block, None)
        both = blocks.forward(block, first)
        means, logs = blocks.finish(*both)
        gradient = random(ROWS, KEY_HEADS, count, SIZE + 1)
        given = gradient, tf.reduce_sum(gradient * means, -1, keepdims=True), logs
        begun = blocks.backward(block, given, (None,) * 3)
        return [*first, means, logs, *begun, *blocks.backward(block, given, begun)]

    found, expected = computed(places), computed(None)
    for place in (0, 2):  # what queries that see nothing have so far means nothing
        seen = expected[place + 1] > -1e20
        assert np.array_equal(found[place + 1] > -1e20, seen)
        found[place : place + 2] = [tf.where(seen, x, 0) for x in found[place : place + 2]]
        expected[place : place + 2] = [tf.where(seen, x, 0) for x in expected[place : place + 2]]
    for mine, theirs in zip(found, expected, strict=True):
        assert np.allclose(mine, theirs, rtol=1e-12, atol=1e-10)


def test_strips_have_the_keys_that_their_queries_attend_to() -> None:
    causal = AttentionPattern(True)
    assert causal.strips((0, 1024), (0, 1024)) == [
        ((n * 256, n * 256 + 256), (0, n * 256 + 256)) for n in range(4)
    ]
    assert causal.strips((1024, 2048), (0, 1024)) == [((1024, 2048), (0, 1024))]
    assert causal.strips((0, 500), (0, 500)) == [((0, 500), (0, 500))]  # too few to part
    window = AttentionPattern(True, 100)
    assert window.strips((512, 1024), (0, 700)) == [
        ((512, 768), (413, 700)),
        ((768, 1024), (669, 700)),
    ]
    (_, keys) = window.strips((600, 1200), (0, 500))[1]
    assert keys[1] - keys[0] == 1  # it sees none of them
