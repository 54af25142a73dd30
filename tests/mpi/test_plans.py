"""Plans as arguments of `fit`: the numbers stay those of plain Keras."""

from __future__ import annotations

import functools
import tempfile
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from contract import WORLD, Outcome, State, on_leader, require_none
from keras import layers, ops

import hyparflow as hf
from hyparflow.model.graph import FlatGraph
from hyparflow.model.keras_internals.layers import opened_graph
from hyparflow.planning import costs_of_model
from hyparflow.planning.costs.measure import measure
from hyparflow.training import auto
from hyparflow.training.make_parallel import Sessions

pytestmark = pytest.mark.usefixtures("in_float64")


def build() -> Any:
    """Small layers, the same on every rank and every time."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input((5,))
    x = layers.Dense(8, activation="tanh")(inputs)
    for _ in range(3):
        x = layers.Add()([x, layers.Dense(8, activation="tanh")(x)])
    model = keras.Model(inputs, layers.Dense(3)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    return model


def data() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.normal(size=(45, 5)), random.integers(0, 3, 45)


def train(fit: Any, model: Any, **more: Any) -> Outcome:
    keras.utils.set_random_seed(3)
    history = fit(model, *data(), batch_size=20, epochs=2, verbose=0, **more).history
    return Outcome(dict(history), State.of(model))


@functools.cache
def plain_outcome() -> Outcome:
    """What plain Keras leaves, for all plans."""
    return on_leader(lambda: train(keras.Model.fit, build()))


def compare(**arguments: Any) -> Any:
    """Train as plain Keras did, and compare; the trained model."""
    expected, model = plain_outcome(), build()
    actual = train(hf.fit, model, **arguments)
    require_none(actual.compare(expected, 1e-10), f"{arguments}")
    return model


@pytest.mark.parametrize("partitions", [p for p in (1, 2, 4) if WORLD.size % p == 0])
def test_a_plan_trains_as_plain_keras(partitions: int) -> None:
    plan = hf.plan(
        build(), batch_size=20, num_ranks=WORLD.size, num_partitions=partitions, costs="estimate"
    )
    assert plan.num_partitions == partitions <= WORLD.size
    with tempfile.TemporaryDirectory() as folder:  # each rank its own
        path = Path(folder) / "plan.json"
        plan.save(path)
        compare(plan=path if partitions > 1 else plan)


@pytest.mark.parametrize("replicas", [n for n in (1, 2) if WORLD.size % n == 0])
def test_a_plan_that_saves_memory_trains_as_plain_keras(replicas: int) -> None:
    wishes = {"num_replicas": replicas, "num_microbatches": 1, "costs": "estimate"}
    wishes |= {"batch_size": 20, "num_ranks": WORLD.size, "recompute": "segments"}
    plan = hf.plan(build(), shard_optimizer=True, **wishes)
    assert (plan.recompute, plan.shard_optimizer) == ("segments", replicas > 1)
    compare(plan=plan)


@pytest.mark.skipif(WORLD.size == 4, reason="measures for long where four ranks share two cores")
# Without a limit "auto" plans as the other tests of plans do: the one that saves is enough.
@pytest.mark.parametrize("chosen", [pytest.param(None, marks=pytest.mark.slow), "block"])
def test_auto_computes_forwards_again_where_memory_is_short(
    chosen: str | None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    planned = []

    def plan(*args: Any, **kwargs: Any) -> Any:
        """What fits in a memory that only some of the layouts fit in."""
        if chosen is not None:
            rival = real(*args, **kwargs | {"recompute": chosen, "memory_limit": None})
            kwargs["memory_limit"] = max(part.memory.total for part in rival.partitions)
        planned.append(real(*args, **kwargs))
        return planned[-1]

    real = auto.plan
    monkeypatch.setattr(auto, "plan", plan)
    monkeypatch.setattr(auto, "costs_of_model", lambda *args: "estimate")
    model = compare(recompute="auto", strategy="model")
    planned = WORLD.bcast(planned)  # the leader plans, once for both epochs
    assert [(p.recompute, p.num_partitions) for p in planned] == [(chosen, WORLD.size)]
    expected = on_leader(lambda: model.evaluate(*data(), batch_size=20, verbose=0))
    found = hf.evaluate(model, *data(), batch_size=20, verbose=0, recompute="auto")
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_auto_is_for_fit() -> None:
    with pytest.raises(ValueError, match=r"`recompute='auto'` plans for the batches"):
        hf.parallelize(build(), recompute="auto")


def test_batches_that_were_not_planned_are_warned_of() -> None:
    plan = hf.plan(build(), batch_size=64, num_ranks=WORLD.size, costs="estimate")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hf.fit(build(), *data(), batch_size=20, verbose=0, plan=plan)
    said = [
        str(w.message) for w in caught if "The plan is for batches of 64 rows" in str(w.message)
    ]
    assert len(said) == int(hf.is_leader() and WORLD.size > 1)


def test_something_else_than_a_plan_is_refused() -> None:
    with pytest.raises(ValueError, match="must be what hyparflow.plan returned.*Received: plan=3"):
        hf.fit(build(), *data(), plan=3)


@pytest.mark.skipif(WORLD.size == 4, reason="measures for long where four ranks share two cores")
def test_automatic_trains_as_plain_keras(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The numbers do not depend on how exactly it measures.
    monkeypatch.setattr(
        costs_of_model, "measure", functools.partial(costs_of_model.measure, budget=0.01)
    )
    model = compare(strategy="auto")
    hf.fit(model, *data(), batch_size=20, verbose=0, strategy="auto", num_microbatches=2)
    capfd.readouterr()
    hf.fit(model, *data(), batch_size=20, verbose=2, strategy="auto")  # planned already
    assert "hyparflow plans" not in capfd.readouterr().out
    x, y = data()
    expected = model.evaluate(x, y, batch_size=20, verbose=0)
    found = hf.evaluate(model, x, y, batch_size=20, verbose=0, strategy="auto")
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    found = hf.predict(model, x, batch_size=20, verbose=0, strategy="auto")
    np.testing.assert_allclose(found, model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)


@pytest.mark.on_ranks(2)
def test_memory_that_does_not_depend_on_rows_is_measured() -> None:
    """As convolutions have it for their gradients; here of a million numbers."""
    inputs = keras.Input((6,))

    def scratch(last: Any) -> float:
        model = keras.Model(inputs, last(layers.Dense(5)(inputs)))
        return measure(FlatGraph(model, opened_graph(model)), (2, 4), budget=0.01).overheads.scratch

    assert scratch(layers.Activation("tanh")) < 1 << 14
    numbers = np.arange(1 << 20) / (1 << 20)
    wide = layers.Lambda(lambda x: x + ops.max(ops.exp(numbers * x[0, 0])))
    assert 8 << 20 <= scratch(wide) < 33 << 20


@pytest.mark.on_ranks(2)
def test_what_cannot_be_planned_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(auto, "costs_of_model", lambda *args: pytest.fail("measured"))
    with pytest.raises(ValueError, match=r"num_partitions=3 for num_ranks=2"):
        hf.fit(build(), *data(), verbose=0, strategy="auto", num_partitions=3)


@pytest.mark.skipif(WORLD.size == 1, reason="one process plans nothing")
def test_automatic_is_refused_where_there_is_nothing_to_plan_for() -> None:
    for call in (hf.parallelize, lambda model, **parallel: hf.evaluate(model, *data(), **parallel)):
        with pytest.raises(ValueError, match="Received: strategy='auto' before any `fit`"):
            call(build(), strategy="auto")


@pytest.mark.skipif(WORLD.size == 1, reason="one process plans nothing")
def test_automatic_trains_a_model_without_a_graph(capfd: pytest.CaptureFixture[str]) -> None:
    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__(name="own")
            self.dense = layers.Dense(3)

        def call(self, x: Any) -> Any:
            return self.dense(x)

    model = Own()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = hf.fit(model, *data(), batch_size=20, verbose=2, strategy="auto").history
    assert np.isfinite(history["loss"]).all()
    said = "hyparflow plans nothing: model 'own'" in capfd.readouterr().out
    assert said == hf.is_leader()


@pytest.mark.skipif(WORLD.size != 2, reason="one process plans nothing, and 2 ranks show it")
def test_all_ranks_hear_that_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "costs_of_model", lambda *args: "estimate")
    monkeypatch.setattr(auto, "_SHARE", 1e-8)
    with pytest.raises(ValueError, match="No layout fits in the memory limit") as caught:
        hf.fit(build(), *data(), batch_size=20, verbose=0, strategy="auto")
    assert len(set(WORLD.allgather(str(caught.value)))) == 1


def test_a_plan_and_its_arguments_are_too_much() -> None:
    plan = hf.plan(build(), batch_size=20, num_ranks=WORLD.size, costs="estimate")
    with pytest.raises(ValueError, match="Received: plan and num_microbatches=2, lpp=") as caught:
        hf.fit(build(), *data(), plan=plan, num_microbatches=2, lpp=[1, 8])
    assert len(set(WORLD.allgather(str(caught.value)))) == 1


@pytest.mark.skipif(WORLD.size == 1, reason="one process has the plan for one")
def test_a_plan_for_other_ranks_is_refused() -> None:
    plan = hf.plan(build(), batch_size=20, num_ranks=8, costs="estimate")
    with pytest.raises(ValueError, match=f"a plan for 8 ranks on {WORLD.size}"):
        hf.fit(build(), *data(), plan=plan)


def test_a_plan_of_another_model_is_refused() -> None:
    plan = hf.plan(build(), batch_size=20, num_ranks=WORLD.size, costs="estimate")
    other = build()
    other.layers[1].trainable = False
    with pytest.raises(ValueError, match="A plan must be of the model"):
        hf.fit(other, *data(), plan=plan)


@pytest.mark.skipif(WORLD.size != 2, reason="two ranks share a sequence")
def test_automatic_shares_a_sequence_that_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "costs_of_model", lambda *args: "estimate")
    random = np.random.default_rng(0)
    x, y = random.integers(0, 20, (2, 2, 1500)).astype("int32")

    def language_model() -> Any:
        keras.utils.set_random_seed(0)
        tokens = keras.Input((None,), dtype="int32")
        h = layers.Embedding(20, 8, dtype="float64")(tokens)
        attention = layers.MultiHeadAttention(2, 4, dtype="float64")
        h = layers.Add(dtype="float64")([h, attention(h, h, use_causal_mask=True)])
        model = keras.Model(tokens, layers.Dense(20, dtype="float64")(h))
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model

    given = {"batch_size": 1, "epochs": 2, "verbose": 0, "shuffle": False}
    model, expected = language_model(), language_model()
    history = hf.fit(model, x, y, strategy="auto", **given).history
    known = Sessions.of(model).known
    assert known is not None
    assert known.last["plan"].num_sequence_shards == 2
    assert history["loss"] == pytest.approx(expected.fit(x, y, **given).history["loss"], rel=1e-9)
