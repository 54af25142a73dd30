"""A stage of several units computes what one of a single unit does."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from keras import layers  # noqa: E402

from hyparflow.engine.compiled.tensors import as_share  # noqa: E402
from hyparflow.engine.stages.chained_stage import ChainedStage, Unit  # noqa: E402
from hyparflow.engine.stages.stage import Stage  # noqa: E402
from hyparflow.engine.stages.stage_call import graph_body  # noqa: E402
from hyparflow.model.graph import FlatGraph  # noqa: E402
from hyparflow.model.keras_internals.layers import opened_graph  # noqa: E402
from hyparflow.pipeline.partition import Partitioning, make_partitioning  # noqa: E402

ROWS = 6


def skipping() -> Any:
    """Tensors that pass over several units, one that two read, and one without a gradient."""
    inputs = keras.Input((8,))
    a = layers.Dense(8, activation="tanh")(inputs)
    b = layers.Dense(8)(a)
    c = layers.Add()([a, layers.LayerNormalization()(b)])
    d = layers.Dense(8, activation="tanh")(keras.ops.stop_gradient(c))
    x = layers.Concatenate()([c, d, inputs])
    return keras.Model(inputs, [layers.Dense(3)(x), layers.Dense(2)(b)])


def made_of(model: Any, boundaries: tuple[int, ...]) -> tuple[Any, list[Any], Partitioning]:
    """A stage that is the whole model but for its first call; its weights; how it is cut."""
    graph = FlatGraph(model, opened_graph(model))
    operations = graph.operation_graph(model.trainable_variables)
    table = make_partitioning(operations, (0, 1, *boundaries, len(graph.calls)))
    whole = make_partitioning(operations, (0, 1, len(graph.calls)))
    weights: list[Any] = []
    units = []
    for number in range(1, table.num_stages):
        known = {id(v) for v in graph.variables(table.operations(number))}
        mine = [v for v in model.trainable_variables if id(v) in known]
        inputs, outputs = table.stage_inputs[number], table.stage_outputs[number]
        gradient_inputs = tuple(edge.tensor for edge in table.gradient_inputs(number))
        gradient_outputs = tuple(table.gradient_outputs(number))
        if number == table.num_stages - 1:
            gradient_outputs = outputs
        stage = Stage(
            graph_body(graph, table, number, frozenset()),
            mine,
            [inputs.index(n) for n in gradient_inputs],
            [outputs.index(n) for n in gradient_outputs],
        )
        positions = tuple(range(len(weights), len(weights) + len(mine)))
        weights += mine
        units.append(
            Unit(
                stage=stage,
                inputs=inputs,
                outputs=outputs,
                gradient_inputs=gradient_inputs,
                gradient_outputs=gradient_outputs,
                weights=positions,
            )
        )
    chained = ChainedStage(
        units,
        whole.stage_inputs[1],
        whole.stage_outputs[1],
        [edge.tensor for edge in whole.gradient_inputs(1)],
        whole.stage_outputs[1],
        takes_data=False,
        num_weights=len(weights),
    )
    return chained, weights, whole


def run(model: Any, boundaries: tuple[int, ...], halves: bool, microbatches: int) -> list[Any]:
    """Outputs, gradients of the inputs, and of the weights."""
    stage, weights, table = made_of(model, boundaries)
    chance = np.random.default_rng(3)
    share, found = as_share(1.0), []
    stage.begin(several=microbatches > 1)
    for _ in range(microbatches):
        inputs = [
            tf.constant(chance.normal(size=(ROWS, 8)), "float32") for _ in table.stage_inputs[1]
        ]
        saved = stage.forward(inputs, share)
        found += saved.outputs
        seeds = [tf.ones_like(x) * (n + 1.0) for n, x in enumerate(saved.outputs)]
        if halves:
            found += stage.input_backward(saved, seeds, share)
            stage.weight_backward(saved)
        else:
            found += stage.backward(saved, seeds, share)
        outputs, _ = stage.infer(inputs, share)
        found += outputs
    values = stage.gradients().values
    order = {id(v): n for n, v in enumerate(weights)}
    found += [values[order[id(v)]] for v in model.trainable_variables if id(v) in order]
    return [None if x is None else np.asarray(x) for x in found]


def _cases() -> Iterator[Any]:
    """Both halves and whole backwards, one and several micro-batches, each with a few units."""
    for boundaries in ((3,), (2, 4), (2, 3, 4, 5, 6, 7)):
        for halves in (False, True):
            for microbatches in (1, 3):
                usual = (microbatches == 3) != (boundaries == (2, 4))
                marks = [] if usual else pytest.mark.slow
                yield pytest.param(boundaries, halves, microbatches, marks=marks)


@pytest.mark.parametrize(("boundaries", "halves", "microbatches"), _cases())
def test_units_compute_the_same(
    boundaries: tuple[int, ...], halves: bool, microbatches: int
) -> None:
    keras.utils.set_random_seed(1)
    model = skipping()
    expected = run(model, (), halves, microbatches)
    actual = run(model, boundaries, halves, microbatches)
    assert [x is None for x in actual] == [x is None for x in expected]
    for a, b in zip(actual, expected, strict=True):
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_backward_lets_go_of_what_it_has_used(monkeypatch: pytest.MonkeyPatch) -> None:
    x = inputs = keras.Input((8,))
    for _ in range(6):
        x = layers.Dense(8, activation="tanh")(x)
    stage, _, _ = made_of(keras.Model(inputs, x), (2, 3, 4, 5))
    stage.begin(several=False)
    saved = stage.forward([tf.ones([ROWS, 8])], as_share(1.0))
    given: list[weakref.ref[Any]] = []
    alive = []
    real = Stage.backward

    def watched(self: Any, of_unit: Any, gradients: Any, seed: Any) -> Any:
        alive.append(sum(gradient() is not None for gradient in given))
        given.extend(map(weakref.ref, gradients if alive[1:] else []))  # the first are the caller's
        return real(self, of_unit, gradients, seed)

    monkeypatch.setattr(Stage, "backward", watched)
    stage.backward(saved, [tf.ones([ROWS, 8])], as_share(1.0))
    assert alive == [0] * 5
    assert [unit.state for unit in saved.units] == [None] * 5


def test_a_forward_keeps_only_what_backwards_need(monkeypatch: pytest.MonkeyPatch) -> None:
    x = inputs = keras.Input((8,))
    for _ in range(4):  # each unit begins with ReLU, whose gradient needs what it returns
        x = layers.Dense(8)(keras.ops.relu(x))
    stage, _, _ = made_of(keras.Model(inputs, x), (2, 4, 6))
    stage.begin(several=False)
    made: list[weakref.ref[Any]] = []
    real = Stage.forward

    def watched(self: Any, values: Any, share: Any) -> Any:
        saved = real(self, values, share)
        made.extend(map(weakref.ref, saved.outputs))
        return saved

    monkeypatch.setattr(Stage, "forward", watched)
    saved = stage.forward([tf.ones([ROWS, 8])], as_share(1.0))
    assert [output() is not None for output in made] == [False] * 3 + [True]
    stage.backward(saved, [tf.ones([ROWS, 8])], as_share(1.0))
    assert all(gradient is not None for gradient in stage.gradients().values)
