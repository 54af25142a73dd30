"""Experts on several ranks compute what all of them compute in one process, gradients too."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from hyparflow.comm.ledger import Collective
from hyparflow.comm.ranks import world
from hyparflow.engine.compiled.ordered_calls import OrderedCalls
from hyparflow.engine.experts.parallel_mixture import ParallelMixture
from hyparflow.engine.experts.row_exchange import FROM_EXPERTS, TO_EXPERTS
from hyparflow.model.experts.sparse_mixture import mixed

EXPERTS, WIDTH, HIDDEN = 8, 6, 10


@pytest.fixture
def ranks() -> Any:
    """A communicator of all ranks, with an empty ledger."""
    everyone = world()
    if everyone is None:
        pytest.skip("one rank has all experts")
    group = everyone.group(0)
    yield group
    group.free()


def weights_of_all() -> list[np.ndarray]:
    draw = np.random.default_rng(3)
    shapes = [(EXPERTS, WIDTH, HIDDEN), (EXPERTS, HIDDEN, WIDTH), (EXPERTS, WIDTH)]
    return [draw.normal(size=shape) for shape in shapes]


def expert(rows: Any, first: Any, second: Any, bias: Any) -> Any:
    return tf.matmul(tf.tanh(tf.matmul(rows, first[0])), second[0]) + bias[0]


def tokens_of(rank: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a rank, and their routing; as many as the kind says, which may be none."""
    draw = np.random.default_rng([rank, len(kind)])
    count = {"even": 9, "uneven": 3 * rank, "one expert": 5}[kind]
    shares = draw.uniform(0.1, 1, (EXPERTS, count))
    shares *= draw.uniform(size=(EXPERTS, count)) < 0.3
    if kind == "one expert":
        shares[:5], shares[6:] = 0, 0
    return draw.normal(size=(count, WIDTH)), shares


def gradients(compute: Any, given: list[Any]) -> tuple[Any, list[Any]]:
    """What is made, and gradients of a sum in which each number of it counts otherwise."""
    with tf.GradientTape() as tape:
        tape.watch(given)
        made = compute(*given)
        factors = tf.reshape(tf.cos(tf.cast(tf.range(tf.size(made)), made.dtype)), tf.shape(made))
        loss = tf.reduce_sum(made * factors)
    found = tape.gradient(loss, given, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return made, [tf.convert_to_tensor(gradient) for gradient in found]


@pytest.mark.parametrize("kind", ["even", "uneven", "one expert"])
@pytest.mark.parametrize("placed", ["in order", "mixed up", "uneven"])
@pytest.mark.parametrize("traced", [True, False])
def test_values_and_gradients(ranks: Any, kind: str, placed: str, traced: bool) -> None:
    """Of rows, shares and weights; what other ranks have is NaN here."""
    rank_of = np.arange(EXPERTS) * ranks.size // EXPERTS
    if placed == "mixed up":
        rank_of = np.random.default_rng(5).permutation(rank_of)
    if placed == "uneven":
        rank_of = np.minimum(np.arange(EXPERTS) // 2 * 2 // 3, ranks.size - 1)
    rows, shares = (tf.constant(x) for x in tokens_of(ranks.rank, kind))
    mine = [tf.constant(w[rank_of == ranks.rank]) for w in weights_of_all()]
    mixture = {}

    def parallel(rows: Any, shares: Any, *own: Any) -> Any:
        mixture["weights"] = own
        return layer(rows, shares, expert)

    held = [functools.partial(lambda n: mixture["weights"][n], n) for n in range(len(mine))]
    layer = ParallelMixture(ranks, rank_of, held, OrderedCalls())
    run = tf.function(lambda *given: gradients(parallel, list(given)), autograph=False)
    run = run if traced else lambda *given: gradients(parallel, list(given))
    made, found = run(rows, shares, *mine)
    # In one process: the gradients of weights are those of the rows of all ranks.
    whole = [tf.constant(w) for w in weights_of_all()]
    total = [tf.zeros_like(w) for w in whole]
    for rank in range(ranks.size):
        theirs = [tf.constant(x) for x in tokens_of(rank, kind)]
        plain, expected = gradients(
            lambda rows, shares, *all_: mixed(rows, shares, all_, expert), [*theirs, *whole]
        )
        if rank == ranks.rank:
            np.testing.assert_allclose(made, plain, rtol=0, atol=1e-13)
            for one, other in zip(found[:2], expected[:2], strict=True):
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-13)
        total = [a + b for a, b in zip(total, expected[2:], strict=True)]
    for one, other in zip(found[2:], total, strict=True):
        np.testing.assert_allclose(one, other.numpy()[rank_of == ranks.rank], rtol=0, atol=1e-12)
    there = ranks.ledger.total(Collective.ALL_TO_ALL, TO_EXPERTS)
    back = ranks.ledger.total(Collective.ALL_TO_ALL, FROM_EXPERTS)
    assert (there.calls, back.calls) == (2, 2)
    # Bytes: each choice of an expert elsewhere is a row there and a gradient back; the counts of
    # all experts elsewhere go once in front of the rows.
    away = np.count_nonzero(shares.numpy()[rank_of != ranks.rank])
    heads = 4 * np.count_nonzero(rank_of != ranks.rank)
    assert there.off_rank == 2 * away * WIDTH * 8 + heads
