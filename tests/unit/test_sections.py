"""Sections of a traced computation: what a forward keeps, and backwards with and without it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from hyparflow.engine.compiled.section_cut import Pause, Wanted
from hyparflow.engine.compiled.sections import Sections
from hyparflow.engine.sequence.kept_forwards import KeptForwards

WIDTH = 6


def sections(weights: list[tf.Variable]) -> Sections:
    """Tokens, a layer, a pause, another layer and what goes past the pause."""

    def function(tokens: Any) -> Wanted:
        embedded = tf.gather(weights[0], tokens)
        inside = tf.nn.gelu(tf.matmul(embedded, weights[1]), approximate=False)
        awaited = tf.compat.v1.placeholder(tf.float64, [None, None, WIDTH])
        result = tf.tanh(tf.matmul(awaited, weights[2])) + embedded
        return Wanted(
            results=[result],
            targets=[result],
            places=[Pause([inside], awaited)],
            tokens=[tokens],
        )

    spec = tf.TensorSpec([None, None], tf.int32)
    return Sections(function, [spec], weights, training=True)


@pytest.fixture
def weights() -> list[tf.Variable]:
    random = np.random.default_rng(0)
    shapes = [(20, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH)]
    return [tf.Variable(random.standard_normal(shape)) for shape in shapes]


def dense(gradients: list[Any]) -> list[Any]:
    return [None if g is None else tf.convert_to_tensor(g) for g in gradients]


def test_backwards_of_what_was_kept(weights: list[tf.Variable]) -> None:
    cut = sections(weights)
    tokens = tf.constant([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    made, handed, kept = cut.forward(0, None, [], [tokens], keeps=True)
    again = cut.forward(0, None, [], [tokens])
    assert [len(x) for x in again] == [len(made), len(handed), 0]
    assert kept
    awaited = made[0] * 2.0
    results, _, kept_later = cut.forward(1, awaited, handed, [tokens], keeps=True)
    seed = [tf.ones_like(results[0])]
    late = [
        cut.backward(1, awaited, handed, [tokens], seed, dense, kept=k) for k in (kept_later, None)
    ]
    _, (of_awaited, of_handed), _ = late[0]
    early = [
        cut.backward(0, None, [], [tokens], [of_awaited * 2.0, of_handed], dense, kept=k)
        for k in (kept, None)
    ]
    for one, other in (late, early):
        for mine, theirs in zip(tf.nest.flatten(one), tf.nest.flatten(other), strict=True):
            assert (mine is None) == (theirs is None)
            assert mine is None or np.array_equal(mine, theirs)

    with tf.GradientTape() as tape:
        embedded = tf.gather(weights[0], tokens)
        inside = tf.nn.gelu(tf.matmul(embedded, weights[1]), approximate=False)
        total = tf.reduce_sum(tf.tanh(tf.matmul(inside * 2.0, weights[2])) + embedded)
    expected = tape.gradient(total, weights)
    found = [early[0][2][0], early[0][2][1], late[0][2][2]]
    for mine, theirs in zip(found, expected, strict=True):
        assert np.allclose(mine, tf.convert_to_tensor(theirs), rtol=1e-12)


def test_a_backward_of_what_was_kept_runs_no_forward(weights: list[tf.Variable]) -> None:
    cut = sections(weights)
    tokens, seeds = tf.constant([[3, 1, 4]]), [tf.ones([1, 3, WIDTH], tf.float64)] * 2
    kept = cut.forward(0, None, [], [tokens], keeps=True)[2]

    def of_weights(kept: Any) -> Any:
        return cut.backward(0, None, [], [tokens], seeds, dense, kept)[2][1]

    before = of_weights(kept)
    weights[1].assign(tf.zeros_like(weights[1]))
    assert np.array_equal(of_weights(kept), before)
    assert not np.allclose(of_weights(None), before)


def test_sizes_of_what_is_kept(weights: list[tf.Variable]) -> None:
    first, last = sections(weights).bytes_kept
    # What the layer takes and makes, and the error function of it; the hyperbolic tangent.
    assert first >= 3 * WIDTH * 8
    assert last - WIDTH * 8 in range(16)  # and shapes


def test_the_last_chunks_keep_what_there_is_room_for() -> None:
    kept = KeptForwards()
    sizes = {(0, section, chunk): 10 * (section + 1) for section in (0, 1) for chunk in (0, 1)}
    kept.choose(sizes, 55)  # of 60
    assert [place for place in sizes if kept.keeps(place)] == [(0, 0, 1), (0, 1, 0), (0, 1, 1)]
    kept.choose({(1, 0, 0): 5, (1, 0, 1): 6}, 55)
    assert not kept.keeps((1, 0, 1))  # what other micro-batches keep counts
    kept.put((0, 1, 1), ["tensor"])
    assert kept.take((0, 1, 1)) == ["tensor"]
    assert kept.take((0, 0, 0)) is None
    kept.choose({(2, 0, 0): 25}, 55)
    assert kept.keeps((2, 0, 0))
    for most, count in ((60, 4), (45, 1), (30, 0)):
        kept.clear()
        kept.choose(sizes, most)
        assert sum(map(kept.keeps, sizes)) == count
