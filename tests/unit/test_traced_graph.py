"""What a traced graph holds: bytes of its tensors, operations of its loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import pytest
import tensorflow as tf
from keras import layers

from hyparflow.engine.compiled.xla_function import XlaFunction
from hyparflow.engine.kernels.rewriter import Rewriter
from hyparflow.model.graph import FlatGraph
from hyparflow.model.keras_internals.layers import opened_graph
from hyparflow.planning.costs.sample import TRACED_ROWS, Sample, SampleMemory
from hyparflow.planning.costs.segments import cut_out
from hyparflow.planning.costs.traced_graph import TracedGraph

STEPS, WIDTH, NUMBER = 16, 32, 4  # of a sequence, and of a float32


def memory_of(layer: Any, rewriter: Rewriter | None = None, steps: int = STEPS) -> SampleMemory:
    """Of a layer between two others, of sequences."""
    inputs = keras.Input((steps, WIDTH))
    x = keras.ops.negative(layer(keras.ops.negative(inputs)))
    model = keras.Model(inputs, x)
    graph = FlatGraph(model, opened_graph(model))
    trained = model.trainable_variables
    operations = graph.operation_graph(trained)
    (piece,) = cut_out(operations, [1, 2])
    return Sample(graph, operations, piece, trained=trained, rewriter=rewriter).memory()


def per_row(kept: int) -> int:
    assert kept % TRACED_ROWS == 0
    return kept // TRACED_ROWS


def test_a_loop_of_keras_keeps_what_its_gradient_needs() -> None:
    memory = memory_of(layers.SimpleRNN(WIDTH, return_sequences=True))
    # The inputs and the states of all steps; shapes and lengths of lists are a few bytes more.
    both = 2 * STEPS * WIDTH * NUMBER
    assert both <= memory.kept.inside / TRACED_ROWS < both + 256
    assert memory.operations > 100  # the loops' own are among them


def test_a_kernels_loop_keeps_gates_and_states() -> None:
    memory = memory_of(layers.LSTM(WIDTH, return_sequences=True), Rewriter())
    # Four gates, the state of the cell and the output of all steps; and what came in, turned.
    known = (4 + 1 + 1) * STEPS * WIDTH * NUMBER
    assert known <= per_row(memory.kept.inside) <= known + 2 * STEPS * WIDTH * NUMBER


def test_xla_is_noticed() -> None:
    normalization = layers.LayerNormalization
    assert memory_of(normalization(), Rewriter(), steps=256).by_xla
    assert not memory_of(normalization(), steps=256).by_xla


def traced(function: Callable[..., Any], *shapes: tuple[int | None, ...]) -> Any:
    specs = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
    return tf.function(function, autograph=False).get_concrete_function(*specs).graph


def test_operations_of_functions_count_and_those_of_xla_do_not() -> None:
    inner = tf.function(lambda x: tf.sin(tf.cos(x)), autograph=False)
    inner.get_concrete_function(tf.TensorSpec([3], tf.float32))
    graph = traced(lambda x: inner(x), (3,))
    calls = [op for op in graph.get_operations() if "Call" in op.type]
    assert TracedGraph(graph).count(calls) == 1 + 2 + 1  # and an identity at the end
    square = XlaFunction("square", lambda x: [x * x], [tf.TensorSpec([3], tf.float32)])
    graph = traced(lambda x: square(x), (3,))
    calls = [op for op in graph.get_operations() if "Call" in op.type]
    assert TracedGraph(graph).count(calls) == 0


@pytest.mark.parametrize("rows", [3, None])
def test_what_is_not_known_has_no_bytes(rows: int | None) -> None:
    graph = traced(lambda x: x + 1.0, (rows, 5))
    (inputs,) = graph.inputs
    assert TracedGraph(graph).bytes_of(inputs) == (0 if rows is None else rows * 5 * NUMBER)
