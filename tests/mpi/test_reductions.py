"""Sums of gradients over replicas: begun early, rounded, or made by Horovod."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import WORLD, Outcome, State, differences, float_type, require_none
from references import plain_outcome
from zoo import CASES, Case

import hyparflow as hf
from hyparflow.comm.ranks import world as all_ranks
from hyparflow.engine.gradients.flat_buffer import adder

# On 4 ranks two partitions of two replicas each; what there is without partitions, 2 ranks show.
PARTITIONS = (1,) if WORLD.size < 4 else (2,)

several = pytest.mark.skipif(WORLD.size == 1, reason="one rank has no replicas")
with_horovod = pytest.mark.skipif(
    importlib.util.find_spec("horovod") is None,
    reason="Horovod is not installed (scripts/install_horovod.sh)",
)


def train(case: Case, dtype: str, **layout: Any) -> Outcome:
    """What training with hyparflow leaves."""
    with float_type(dtype):
        keras.utils.set_random_seed(7)
        model, data = case.build(), case.data(np.random.default_rng(1))
        keras.utils.set_random_seed(11)
        arguments = data | case.fit | {"verbose": 0}
        history = hf.fit(model, **arguments, **layout)
        return Outcome(history.history, State.of(model))


def hybrid(partitions: int, **more: Any) -> dict[str, Any]:
    replicas = WORLD.size // partitions
    return {"num_partitions": partitions, "num_replicas": replicas, "num_microbatches": 2} | more


@pytest.mark.skipif(WORLD.size != 2, reason="on 4 ranks the contract test has this layout")
# The next test cuts "residual" by hand.
@pytest.mark.parametrize("name", [pytest.param("residual", marks=pytest.mark.slow), "siamese"])
def test_sums_begun_while_others_compute(name: str) -> None:
    """Two stages per rank: the sum of the second begins before the backward of the first."""
    case = CASES[name]
    expected = plain_outcome(case)
    actual = train(case, "float64", **hybrid(1, schedule="interleaved", stages_per_partition=2))
    require_none(actual.compare(expected), name)


@several
def test_a_layer_that_two_stages_of_a_rank_use() -> None:
    """Its gradient is complete with the last of them."""
    case = CASES["residual"]
    expected = plain_outcome(case)
    layout = hybrid(1, schedule="interleaved", stages_per_partition=2, lpp=[4, 7])
    require_none(train(case, "float64", **layout).compare(expected), "residual")


def build_wide() -> Any:
    """A weight of 5 MB among small ones: it travels alone, and is not copied."""
    model = keras.Sequential([keras.Input((30,)), keras.layers.Dense(800, "relu")])
    model.add(keras.layers.Dense(800, "tanh"))
    model.add(keras.layers.Dense(3))
    model.compile("adam", "mse")
    return model


WIDE = Case(
    build_wide,
    lambda random: {"x": random.normal(size=(24, 30)), "y": random.normal(size=(24, 3))},
    {"batch_size": 8, "epochs": 2},
)


def build_many() -> Any:
    """Six layers of two sizes, trained fast enough that a mixed-up sum shows."""
    model = keras.Sequential([keras.Input((30,))])
    for units in (64, 64, 64, 900, 300, 3):
        model.add(keras.layers.Dense(units, "tanh"))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


MANY = Case(build_many, WIDE.data, {"batch_size": 8, "epochs": 3, "shuffle": False})


@several
@pytest.mark.parametrize("microbatches", [pytest.param(1, marks=pytest.mark.on_ranks(2)), 2])
@pytest.mark.parametrize("partitions", PARTITIONS)
def test_large_weights(microbatches: int, partitions: int) -> None:
    expected = plain_outcome(WIDE)
    actual = train(WIDE, "float64", **hybrid(partitions, num_microbatches=microbatches))
    require_none(actual.compare(expected), f"{microbatches} micro-batches")


@several
@pytest.mark.parametrize(("name", "digits"), [("bf16", 8), ("fp16", 11)])
def test_rounded_sums(name: str, digits: int) -> None:
    """What travels has the bits of the type; what is added up, those of float32."""
    world = all_ranks()
    assert world is not None
    dtype = np.dtype({"bf16": tf.bfloat16, "fp16": tf.float16}[name].as_numpy_dtype)
    for size in (1, world.size - 1, 1000, 4099):
        everyone = np.random.default_rng(size).normal(size=(world.size, size)).astype(np.float32)
        total = np.zeros(size, dtype)
        mine = everyone[world.rank].astype(dtype)
        world.start_rounded_sum(total, "the sum", mine, adder(dtype)).wait()
        exact = everyone.astype(dtype).astype(np.float32).sum(0).astype(dtype)
        assert np.array_equal(total, exact)
        error = np.abs(total.astype(float) - everyone.sum(0))
        assert error.max() <= 2.0**-digits * (np.abs(everyone).sum(0) + np.abs(exact)).max()


@several
def test_rounded_sums_under_way_together() -> None:
    """Each rank goes on with several in an order of its own, and they do not mix."""
    world = all_ranks()
    assert world is not None
    dtype = np.dtype(tf.bfloat16.as_numpy_dtype)
    sizes = (1000, 1000, 17, 300_000)
    for turn in range(20):
        totals = [np.zeros(size, dtype) for size in sizes]
        ones = [np.full(size, 1 + i + turn, dtype) for i, size in enumerate(sizes)]
        sums = [
            world.start_rounded_sum(total, "the sum", one, adder(one.dtype))
            for total, one in zip(totals, ones, strict=True)
        ]
        order = np.random.default_rng((turn, world.rank)).permutation(len(sizes))
        while sum(sums[i].advance() for i in order) < len(sums):
            pass
        for total, one in zip(totals, ones, strict=True):
            assert np.array_equal(total, (one.astype(np.float32) * world.size).astype(dtype))


@several
@pytest.mark.parametrize("stages", [3, pytest.param(6, marks=pytest.mark.slow)])
def test_compressed_sums_begun_early_are_the_same_in_each_run(stages: int) -> None:
    """Also those of a weight that travels alone."""
    layout = hybrid(PARTITIONS[0], compression="bf16", schedule="interleaved")
    layout["stages_per_partition"] = stages // PARTITIONS[0]
    expected = plain_outcome(MANY, "float32")
    first, second = (train(MANY, "float32", **layout) for _ in range(2))
    require_none(second.compare(first, 0.0), "the second run")
    losses, others = (outcome.history["loss"] for outcome in (first, expected))
    require_none(differences("loss", losses, others, 0.002), "bf16")


@several
@pytest.mark.parametrize("compression", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("partitions", PARTITIONS)
def test_compression_changes_little_and_all_ranks_alike(compression: str, partitions: int) -> None:
    case = CASES["residual"]
    expected = plain_outcome(case, "float32")
    actual = train(case, "float32", **hybrid(partitions, compression=compression))
    losses, others = (outcome.history["loss"] for outcome in (actual, expected))
    require_none(differences("loss", losses, others, 0.02), compression)
    assert losses != others  # it was on
    states = WORLD.allgather(actual.state.values)
    for state in states[1:]:
        for key, value in state.items():
            if not key.startswith("seed"):
                assert np.array_equal(value, states[0][key]), key


@several
@with_horovod
@pytest.mark.parametrize("name", ["residual", "sequences"])
@pytest.mark.parametrize("partitions", PARTITIONS)
def test_horovod_gives_the_same_sums(name: str, partitions: int) -> None:
    case = CASES[name]
    expected = plain_outcome(case)
    actual = train(case, "float64", **hybrid(partitions, allreduce="horovod"))
    require_none(actual.compare(expected), f"{name} on {partitions} partitions")


@several
@with_horovod
def test_horovod_that_one_rank_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other rank waits for it, and all can go on."""
    last = WORLD.size - 1
    with monkeypatch.context() as patch:
        if WORLD.rank == last:
            patch.setitem(sys.modules, "horovod.tensorflow", None)
        with pytest.raises(ValueError, match=rf'"horovod" needs Horovod.*on rank {last}: '):
            train(CASES["residual"], "float32", strategy="data", allreduce="horovod")
    train(CASES["residual"], "float32", strategy="data", allreduce="horovod")


@several
@pytest.mark.skipif(
    importlib.util.find_spec("horovod") is not None, reason="Horovod is installed here"
)
def test_horovod_that_is_not_installed() -> None:
    with pytest.raises(ValueError, match=r"allreduce=\"horovod\" needs Horovod.*install_horovod"):
        train(CASES["residual"], "float32", strategy="data", allreduce="horovod")
