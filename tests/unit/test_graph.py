"""Flattened models: cut anywhere, the stages give the bits of the model, which stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras")
pytest.importorskip("tensorflow")

from keras import layers, ops  # noqa: E402
from zoo import CASES  # noqa: E402

from hyparflow.model.graph import FlatGraph  # noqa: E402
from hyparflow.model.graph_call import CallContext  # noqa: E402
from hyparflow.model.keras_internals.layers import (  # noqa: E402
    opened_graph,
    output_structure,
    standardize_inputs,
)
from hyparflow.pipeline.partition import divide  # noqa: E402

STAGES = (2, 3, 4)


def flat_graph(model: Any) -> FlatGraph:
    return FlatGraph(model, opened_graph(model))


def run_stages(
    model: Any, graph: FlatGraph, x: Any, stages: int, context: CallContext | None = None
) -> Any:
    """The outputs of `model`, computed stage by stage from what the edges bring."""
    table = divide(graph.operation_graph(model.trainable_variables), stages)
    entries = standardize_inputs(graph.functional, x)
    mail = {(tensor, 0): value for tensor, value in zip(graph.inputs, entries, strict=True)}
    for stage in range(stages):
        takes, gives = table.stage_inputs[stage], table.stage_outputs[stage]
        values = graph.function(takes, gives, table.operations(stage))(
            [mail[tensor, stage] for tensor in takes], context or CallContext()
        )
        made = dict(zip(gives, values, strict=True))
        for edge in table.edges:
            if edge.producer == stage:
                mail[edge.tensor, edge.consumer] = made[edge.tensor]
    return output_structure(graph.functional, list(values))


def assert_same_bits(actual: Any, expected: Any) -> None:
    keras.tree.assert_same_structure(actual, expected)
    pairs = zip(keras.tree.flatten(actual), keras.tree.flatten(expected), strict=True)
    for a, b in pairs:
        assert a.dtype == b.dtype
        assert np.array_equal(np.asarray(a), np.asarray(b))


def links(model: Any) -> dict[str, int]:
    """How many calls each layer of `model` knows of."""
    return {layer.path: len(layer._inbound_nodes) for layer in model._flatten_layers()}


def check(model: Any, x: Any) -> None:
    """Cut `model` at every number of stages; same outputs, and the model is left alone."""
    before, expected = links(model), model(x)
    graph = flat_graph(model)
    for stages in STAGES:
        assert_same_bits(run_stages(model, graph, x, stages), expected)
    assert links(model) == before
    assert_same_bits(model(x), expected)


@pytest.mark.parametrize("name", CASES)
def test_zoo(name: str) -> None:
    model = CASES[name].build()
    check(model, CASES[name].data(np.random.default_rng(1))["x"])


# --- models in models ---


def mlp(size: int, name: str) -> Any:
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(size, activation="tanh"), layers.Dense(4)], name=name
    )


def deep() -> Any:
    """Depth 2: a Sequential in a Functional in a Functional."""
    inputs = keras.Input((4,))
    x = mlp(3, "inner")(inputs)
    block = keras.Model(inputs, layers.Add()([x, inputs]), name="block")
    outer = keras.Input((4,))
    x = block(layers.Dense(4)(outer))
    return keras.Model(outer, layers.Dense(2)(block(x) * 2.0))  # the block twice


def rank() -> Any:
    """The nested model has an axis more and another dtype than what it is given."""
    inner = keras.Input((4, 1), dtype="float32")
    nested = keras.Model(inner, layers.Flatten()(ops.tanh(inner)), name="nested")
    outer = keras.Input((4,), dtype="int32")
    return keras.Model(outer, layers.Dense(3)(layers.Dense(5)(nested(outer))))


def by_name() -> Any:
    """A nested model fed and answering with dicts, in another order than its inputs."""
    a, b = keras.Input((4,), name="a"), keras.Input((2,), name="b")
    outputs = {"sum": layers.Dense(4)(a) + layers.Dense(4)(b), "a": ops.tanh(a)}
    nested = keras.Model({"a": a, "b": b}, outputs, name="nested")
    left, right = keras.Input((4,)), keras.Input((2,))
    made = nested({"b": ops.sin(right), "a": left})
    late = layers.Dense(3)(ops.exp(made["sum"]))
    return keras.Model([left, right], {"out": layers.Dense(2)(late), "early": made["a"]})


def bare() -> Any:
    """Operations of keras.ops on symbolic tensors, with constants, several outputs and indices."""
    inputs = keras.Input((6,))
    first, second = ops.split(inputs, 2, axis=-1)
    x = ops.where(first > 0, first, ops.exp(second))
    x = ops.concatenate([x, 1.0 - second, ops.cumsum(first, axis=-1)], axis=-1)
    top, where = ops.top_k(x, 3)
    return keras.Model(inputs, [layers.Dense(2)(top), where, x[:, 1:3]])


def twice() -> Any:
    """One layer called three times, on tensors of different stages."""
    inputs = keras.Input((4,))
    shared = layers.Dense(4, activation="tanh")
    x = shared(inputs)
    y = shared(layers.Dense(4)(x))
    return keras.Model(inputs, layers.Dense(2)(layers.Concatenate()([x, shared(y), y])))


def one_element() -> Any:
    """A list of one output comes out as Keras's call gives it."""
    inputs = keras.Input((4,))
    return keras.Model(inputs, [layers.Dense(2)(ops.tanh(mlp(3, "inner")(inputs)))])


@pytest.mark.parametrize(
    "build, shapes, dtype",
    [
        (deep, [(4,)], "float32"),
        (rank, [(4,)], "int32"),
        (by_name, [(4,), (2,)], "float32"),
        (bare, [(6,)], "float32"),
        (twice, [(4,)], "float32"),
        (one_element, [(4,)], "float32"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_kinds_of_models(build: Callable[[], Any], shapes: list[Any], dtype: str) -> None:
    rng = np.random.default_rng(2)
    x = [(5 * rng.normal(size=(7, *shape))).astype(dtype) for shape in shapes]
    check(build(), x if len(x) > 1 else x[0])


def test_nested_models_are_opened() -> None:
    model = deep()
    graph = flat_graph(model)
    block = model.get_layer("block")
    inner = block.get_layer("inner")
    called = [call.operation for call in graph.calls]
    assert block not in called and inner not in called
    assert len(called) == 9  # nothing is added where shapes and dtypes fit
    for layer in inner.layers:
        assert called.count(layer) == 2


@pytest.mark.parametrize("build", [by_name, CASES["nested"].build], ids=["dict", "list"])
def test_nested_models_of_several_inputs_are_opened(build: Callable[[], Any]) -> None:
    """Keras passes them a mask per input: a structure of None."""
    called = [call.operation for call in flat_graph(build()).calls]
    assert not [operation.name for operation in called if isinstance(operation, keras.Model)]


def test_a_shared_layer_is_one_layer_in_several_calls() -> None:
    model = twice()
    graph = flat_graph(model)
    shared = next(layer for layer in model.layers if isinstance(layer, layers.Dense))
    numbers = [n for n, call in enumerate(graph.calls) if call.operation is shared]
    assert len(numbers) == 3
    assert [id(v) for v in graph.variables(numbers)] == [id(v) for v in shared.variables]


def test_a_model_with_its_own_call_has_no_graph() -> None:
    class Own(keras.Model):  # type: ignore[misc, name-defined]
        def call(self, x: Any) -> Any:
            return x

    class OwnFunctional(keras.Model):  # type: ignore[misc, name-defined]
        def call(self, x: Any) -> Any:
            return super().call(x) + 1

    inputs = keras.Input((4,))
    assert opened_graph(Own()) is None
    assert opened_graph(OwnFunctional(inputs, layers.Dense(2)(inputs))) is None


def test_a_nested_model_with_its_own_call_is_kept_whole() -> None:
    class Own(keras.Sequential):  # type: ignore[misc, name-defined]
        def call(self, x: Any, training: bool | None = None) -> Any:
            return 2 * super().call(x)

    inputs = keras.Input((4,))
    x = layers.Dense(4)(inputs)
    own = Own([keras.Input((4,)), layers.Dense(4)], name="own")
    model = keras.Model(inputs, layers.Dense(2)(ops.tanh(own(x))))
    assert own in [call.operation for call in flat_graph(model).calls]
    check(model, np.random.default_rng(3).normal(size=(5, 4)).astype("float32"))


# --- the graph as data ---


def test_which_tensors_need_a_gradient() -> None:
    """Not what comes before the first trained weight, not integers."""
    inputs = keras.Input((4,))
    frozen = layers.Dense(4, trainable=False, name="frozen")
    trained = layers.Dense(4, name="trained")
    x = trained(frozen(inputs))
    codes = ops.argmax(x, axis=-1)
    model = keras.Model(inputs, [layers.Activation("tanh", name="after")(x), codes])
    graph = flat_graph(model)
    data = graph.operation_graph(model.trainable_variables)
    names = [
        operation.name
        for operation in data.operations
        if data.gradient_tensors.intersection(operation.outputs)
    ]
    assert names == ["trained", "after"]
    assert not flat_graph(model).operation_graph([]).gradient_tensors


def test_state_keeps_calls_together() -> None:
    """A random layer called twice changes one seed; a frozen layer may be on two stages."""
    inputs = keras.Input((4,))
    dropout, frozen = layers.Dropout(0.5), layers.Dense(4, trainable=False)
    x = frozen(dropout(inputs))
    model = keras.Model(inputs, dropout(frozen(layers.Activation("tanh")(x))))
    operations = flat_graph(model).operation_graph([]).operations
    changed = [operation.state for operation in operations]
    assert changed[0] == changed[-1] != frozenset()
    assert changed[1:-1] == [frozenset()] * 3


def test_costs_follow_the_work() -> None:
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same", name="wide")(inputs)
    x = layers.Conv2D(8, 3, padding="same", strides=4, name="strided")(x)
    model = keras.Model(inputs, layers.Dense(2, name="small")(layers.Flatten(name="flat")(x)))
    costs = costs_of(model)
    call = 1e6 / 16  # what a call costs in each micro-batch, dealt out to 16 rows
    wide, strided = 3 * 3 * 3 * 8, 3 * 3 * 8 * 8  # weights of the kernels; each has 8 biases
    assert costs["wide"] == wide * 256 + 30 * 8 * 256 + 40 * (wide + 8) / 16 + call
    assert costs["strided"] == strided * 16 + 30 * 8 * 16 + 40 * (strided + 8) / 16 + call
    assert costs["flat"] == 30 * 128 + call


def test_gradients_that_are_not_kept_cost_nothing() -> None:
    """Neither those of frozen weights nor the rows of a table that nothing looked up."""
    inputs = keras.Input((4,), dtype="int32")
    x = layers.Embedding(1000, 8, name="table")(inputs)
    model = keras.Model(inputs, layers.Dense(8, name="frozen", trainable=False)(x))
    costs = costs_of(model)
    assert costs["table"] == 30 * 32 + 1e6 / 16
    assert costs["frozen"] == 8 * 8 * 4 + 30 * 32 + 1e6 / 16


def costs_of(model: keras.Model) -> dict[str, float]:
    operations = flat_graph(model).operation_graph(model.trainable_variables).operations
    return {operation.name: operation.cost for operation in operations}


def test_wide_tensors_cost_more_where_they_cross() -> None:
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(16, 3), layers.Flatten(), layers.Dense(2)]
    )
    operations = flat_graph(model).operation_graph([]).operations
    conv, flatten, dense = (operation.crossing[0] for operation in operations)
    assert conv == flatten > dense > 0


def test_an_output_that_nobody_takes_is_computed_like_in_keras() -> None:
    """Its layers change their state, and add to the loss, in each call of the nested model."""
    inner = keras.Input((4,))
    aside = layers.Dense(3, activity_regularizer="l2")(layers.BatchNormalization()(inner))
    nested = keras.Model(inner, [layers.Dense(4)(inner), aside])
    outer = keras.Input((4,))
    model = keras.Model(outer, layers.Dense(2)(nested(layers.Dense(4)(outer))[0]))
    x = np.random.default_rng(0).random((8, 4), "float32")
    start = model.get_weights()
    model(x, training=True)
    expected, losses = model.get_weights(), [float(loss) for loss in model.losses]
    assert len(losses) == 1 and any((a != b).any() for a, b in zip(start, expected, strict=True))
    for stages in STAGES:
        model.set_weights(start)
        context = CallContext(training=True)
        run_stages(model, flat_graph(model), x, stages, context)
        assert_same_bits(model.get_weights(), expected)
        assert [float(loss) for loss in context.losses] == losses
