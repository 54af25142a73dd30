"""LSTM and GRU layers by loops of their own, in a traced graph."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from rewritten import assert_close, infer, numbers, train

from hyparflow.engine.kernels import recurrent_layers
from hyparflow.engine.kernels.recurrent_layers import NAME
from hyparflow.engine.kernels.rewriter import Rewriter

SEQUENCES = (3, 5, 4)
KINDS = pytest.mark.parametrize("kind", [layers.LSTM, layers.GRU])
ONE_DNN = pytest.mark.parametrize("chosen", [True], indirect=True, ids=["oneDNN"])


def with_random_weights(layer: Any, shape: tuple[int, ...] = SEQUENCES) -> Any:
    if not layer.built:
        layer.build((None, *shape[1:]))
    random = np.random.default_rng(1)
    for weight in layer.trainable_variables:
        weight.assign(random.normal(scale=0.5, size=weight.shape))
    return layer


def both_ways(layer: Any, shape: tuple[int, ...] = SEQUENCES, **more: Any) -> Any:
    """Compare what a layer computes as it is and rewritten; what was rewritten in training."""
    x = numbers(shape, layer.compute_dtype)

    def call(inputs: Any) -> Any:
        made = layer(inputs, **more)
        return tf.concat([tf.reshape(m, [-1]) for m in keras.tree.flatten(made)], 0)

    expected, _ = train(call, layer, x, None)
    found, counts = train(call, layer, x, Rewriter())
    assert_close(found, expected)
    inferred, again = infer(call, x, Rewriter())
    assert_close(inferred, expected[:1])
    assert again[NAME] == counts[NAME]
    return counts[NAME]


USUAL = {
    "last output": {},
    "all outputs": {"return_sequences": True},
    "states": {"return_sequences": True, "return_state": True},
    "last output and states": {"return_state": True},
    "backwards": {"return_sequences": True, "go_backwards": True},
    "forgets nothing at first": {"bias_initializer": "ones"},
}


@KINDS
@pytest.mark.parametrize("name", USUAL)
def test_layers_compute_what_keras_does(kind: Any, name: str, chosen: bool) -> None:
    assert both_ways(with_random_weights(kind(6, **USUAL[name]))) == 1


@KINDS
@ONE_DNN
@pytest.mark.parametrize("rows", [0, 1])
def test_any_number_of_rows(kind: Any, rows: int, chosen: bool) -> None:
    layer = with_random_weights(kind(6, return_sequences=True))
    assert both_ways(layer, (rows, *SEQUENCES[1:])) == 1


@KINDS
@ONE_DNN
def test_layers_on_layers_and_both_ways(kind: Any, chosen: bool) -> None:
    model = keras.Sequential(
        [
            keras.Input(SEQUENCES[1:]),
            layers.Bidirectional(kind(6, return_sequences=True)),
            layers.Dense(5, activation="tanh"),
            kind(6),
        ]
    )
    assert both_ways(with_random_weights(model)) == 3


@KINDS
@ONE_DNN
def test_sequences_of_any_length(kind: Any, chosen: bool) -> None:
    layer = with_random_weights(kind(6, return_sequences=True))
    made = {}
    for rewriter in (Rewriter(), None):

        def step(x: Any, rewriter: Any = rewriter) -> Any:
            return infer_and_count(layer, x, rewriter, made)

        spec = tf.TensorSpec((None, None, SEQUENCES[-1]), tf.float32)
        compute = tf.function(step, autograph=False, input_signature=[spec])
        for steps in (1, 7):
            made[rewriter is None, steps] = np.asarray(compute(numbers((2, steps, 4))))
    for steps in (1, 7):
        assert_close([made[False, steps]], [made[True, steps]])
    assert made["counts"] == 1


def infer_and_count(layer: Any, x: Any, rewriter: Rewriter | None, made: dict[Any, Any]) -> Any:
    from hyparflow.engine.stages.recorded import rewritten

    (result,), counts = rewritten(lambda: [layer(x)], rewriter, training=False)
    if rewriter is not None:
        made["counts"] = counts[NAME]
    return result


@KINDS
@ONE_DNN
def test_a_first_state_is_given(kind: Any, chosen: bool) -> None:
    layer = with_random_weights(kind(4, return_sequences=True))

    class Started(layers.Layer):
        def build(self, shape: Any) -> None:
            self.inner = layer

        def call(self, x: Any) -> Any:
            count = 2 if kind is layers.LSTM else 1
            return self.inner(x, initial_state=[tf.tanh(x[:, n]) for n in range(count)])

    started = Started()
    started.build(SEQUENCES)
    assert both_ways(started) == 1


UNUSUAL = {
    "activation": {"activation": "relu"},
    "recurrent activation": {"recurrent_activation": "hard_sigmoid"},
    "no bias": {"use_bias": False},
    "unrolled": {"unroll": True},
    "float64": {"dtype": "float64"},
    "recurrent dropout": {"recurrent_dropout": 0.5},
    "dropout of each gate": {"dropout": 0.5, "implementation": 1},
}


@KINDS
@ONE_DNN
@pytest.mark.parametrize("name", UNUSUAL)
def test_others_are_left_alone(kind: Any, name: str, chosen: bool) -> None:
    layer = with_random_weights(kind(6, **UNUSUAL[name]))
    assert not recurrent_layers.gains(layer)
    assert both_ways(layer, training=False) == 0


@ONE_DNN
def test_a_reset_before_the_product_is_left_alone(chosen: bool) -> None:
    assert both_ways(with_random_weights(layers.GRU(6, reset_after=False))) == 0


@KINDS
@ONE_DNN
def test_dropout_is_drawn_as_by_keras(kind: Any, chosen: bool) -> None:
    layer, x = with_random_weights(kind(6, dropout=0.5)), numbers(SEQUENCES)
    found = []
    for rewriter in (Rewriter(), None):
        layer.cell.seed_generator.state.assign([3, 4])
        made, counts = train(lambda y: layer(y, training=True), layer, x, rewriter)
        found.append((made, np.asarray(layer.cell.seed_generator.state), counts[NAME]))
    assert_close(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])
    assert [count for *_, count in found] == [1, 0]
    assert both_ways(layer, training=False) == 1


MASKS = {
    "at the end": [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]],
    "at the beginning": [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]],
    "between": [[1, 0, 1, 0, 1], [0, 1, 0, 1, 0], [1, 1, 0, 0, 1]],
    "a row without any": [[0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]],
}


MASKED = [
    ("between", {"return_sequences": True, "return_state": True}),
    ("at the end", {"return_sequences": True, "go_backwards": True}),
    ("between", {"return_sequences": True, "zero_output_for_mask": True}),
    ("at the beginning", {}),
    ("a row without any", {"return_state": True}),
]


# Masks go the same way for both kinds, so in most runs one has all of them, the other the first.
@ONE_DNN
@pytest.mark.parametrize(
    ("kind", "mask", "options"),
    [
        *((layers.LSTM, *case) for case in MASKED),
        (layers.GRU, *MASKED[0]),
        *(pytest.param(layers.GRU, *case, marks=pytest.mark.slow) for case in MASKED[1:]),
    ],
    ids=str,
)
def test_masked_steps(kind: Any, options: dict[str, Any], mask: str, chosen: bool) -> None:
    layer = with_random_weights(kind(6, **options))
    given = tf.cast(MASKS[mask], tf.bool)
    assert both_ways(layer, mask=given) == 1
    first = [tf.constant(numbers((3, 6))) for _ in layer.get_initial_state(3)]
    assert both_ways(layer, mask=given, initial_state=first) == 1


@KINDS
@ONE_DNN
def test_steps_masked_by_another_layer(kind: Any, chosen: bool) -> None:
    class Ended(layers.Layer):
        def call(self, x: Any) -> Any:
            return x * tf.reshape([1.0, 1.0, 1.0, 0.0, 0.0], [1, 5, 1])

    both = layers.Bidirectional(kind(6, return_sequences=True))
    model = keras.Sequential([keras.Input(SEQUENCES[1:]), Ended(), layers.Masking(), both])
    assert both_ways(with_random_weights(model)) == 2


@KINDS
@ONE_DNN
def test_cells_of_ones_own_are_left_alone(kind: Any, chosen: bool) -> None:
    class Own(kind):  # type: ignore[misc]
        def __init__(self, units: int) -> None:
            super().__init__(units)

            class Cell(type(self.cell)):  # type: ignore[misc]
                def call(self, inputs: Any, states: Any, training: bool = False) -> Any:
                    made, state = super().call(inputs, states, training=training)
                    return 2.0 * made, state

            self.cell = Cell(units)

    assert both_ways(with_random_weights(Own(6))) == 0


@KINDS
@ONE_DNN
def test_nothing_of_the_user_s_is_changed(kind: Any, chosen: bool) -> None:
    """Neither the classes, nor what later layers are called and draw."""
    usual = kind.inner_loop
    later = []
    for rewriter in (Rewriter(), None):
        keras.utils.set_random_seed(1)
        keras.backend.clear_session()
        layer = with_random_weights(kind(6))
        infer(layer, numbers(SEQUENCES), rewriter)
        later.append((kind(2).name, np.asarray(keras.random.normal((3,))), layer.supports_jit))
    assert kind.inner_loop is usual
    assert later[0][0] == later[1][0]
    np.testing.assert_array_equal(later[0][1], later[1][1])
    assert later[0][2] == later[1][2]
