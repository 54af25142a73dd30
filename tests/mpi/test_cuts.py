"""Small models of many kinds, cut at every place where they can be cut in two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
from contract import WORLD, Outcome, State, differences, float_type, on_leader, require_none
from keras import layers, ops

import hyparflow as hf
from hyparflow.model.graph import FlatGraph
from hyparflow.model.keras_internals.layers import opened_graph

pytestmark = pytest.mark.skipif(WORLD.size != 2, reason="cuts models in two")
ROWS = 12


@pytest.fixture(autouse=True)
def in_float64() -> Iterator[None]:
    with float_type("float64"):
        yield


def random() -> np.random.Generator:
    return np.random.default_rng(0)


def sequences() -> np.ndarray:
    """Tokens, of which the later are padding."""
    tokens = random().integers(1, 9, (ROWS, 6))
    tokens[::2, 3:] = 0
    return tokens


# Keras takes the outputs of these for floats; when the model runs they are not.


def padded_bytes() -> Any:
    inputs = keras.Input((4, 4, 1), dtype="uint8")
    x = layers.Rescaling(1 / 255.0)(layers.ZeroPadding2D(1)(inputs))
    outputs = layers.Dense(1)(layers.Flatten()(x))
    return keras.Model(inputs, outputs), random().integers(0, 255, (ROWS, 4, 4, 1)).astype("uint8")


def cropped_integers() -> Any:
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Cropping1D((1, 2))(layers.Reshape((6, 1))(inputs))
    x = layers.Embedding(10, 4)(layers.Reshape((3,))(x))
    return keras.Model(inputs, layers.Dense(1)(layers.Flatten()(x))), sequences()


def lambdas() -> Any:
    inputs = keras.Input((5,))
    x = layers.Dense(4)(inputs)
    chosen = layers.Lambda(lambda x: ops.cast(ops.argmax(x, -1), "int64"), output_shape=())(x)
    positive = layers.Lambda(lambda x: x > 0, output_shape=(4,))(x)
    either = layers.Lambda(lambda b: ops.where(b, 1.0, -2.0), output_shape=(4,))(positive)
    x = layers.Add()([layers.Dense(4)(layers.Embedding(4, 4)(chosen)), layers.Dense(4)(either)])
    return keras.Model(inputs, layers.Dense(1)(x)), random().normal(size=(ROWS, 5))


# Attention uses up the masks of its inputs.


def masked_attention() -> Any:
    inputs = keras.Input((6, 4))
    x = layers.Masking()(inputs)
    attended = layers.MultiHeadAttention(2, 3)(layers.Dense(4)(x), x)
    data = random().normal(size=(ROWS, 6, 4))
    data[::2, 3:] = 0
    return keras.Model(inputs, layers.Dense(1)(layers.GRU(2)(attended))), data


def encoder() -> Any:
    inputs = keras.Input((6,), dtype="int32")
    x = layers.LayerNormalization()(layers.Embedding(9, 4, mask_zero=True)(inputs))
    attended = layers.MultiHeadAttention(2, 3)(x, x)
    x = layers.Dense(4)(layers.LayerNormalization()(layers.Add()([x, attended])))
    outputs = layers.Dense(1)(layers.GlobalAveragePooling1D()(x))
    return keras.Model(inputs, outputs), sequences()


def recurrent_attention() -> Any:
    inputs = keras.Input((6,), dtype="int32")
    x = layers.SimpleRNN(4, return_sequences=True)(layers.Embedding(9, 4, mask_zero=True)(inputs))
    x = layers.MultiHeadAttention(2, 3)(layers.Dense(4)(x), x)
    return keras.Model(inputs, layers.Dense(1)(layers.SimpleRNN(3)(x))), sequences()


def two_readers() -> Any:
    """One tensor is read through attention and, by another branch, with its mask."""
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 4, mask_zero=True)(inputs)
    attended = layers.Attention()([layers.Embedding(9, 4)(inputs), x])
    pooled = layers.GlobalAveragePooling1D()(layers.Dense(3)(x))
    x = layers.Concatenate()([layers.Flatten()(attended), pooled])
    return keras.Model(inputs, layers.Dense(1)(x)), sequences()


# No gradient reaches some weights; AdamW must leave them alone, as plain Keras does.


def stopped() -> Any:
    inputs = keras.Input((5,))
    x = layers.Dense(7, activation="tanh")(inputs)
    x = layers.Dense(6, activation="tanh")(ops.stop_gradient(x))
    x = layers.Dense(6, activation="tanh")(x)
    return keras.Model(inputs, layers.Dense(1)(x)), random().normal(size=(ROWS, 5))


# A nested model computes all its outputs.


def output_for_nobody() -> Any:
    inner = keras.Input((4,))
    aside = layers.Dense(3, activity_regularizer="l2")(layers.Dense(2)(inner))
    nested = keras.Model(inner, [layers.Dense(4)(inner), aside])
    inputs = keras.Input((4,))
    x = layers.Dense(2)(nested(layers.Dense(4)(inputs))[0])
    return keras.Model(inputs, layers.Dense(1)(x)), random().normal(size=(ROWS, 4))


def half_stopped() -> Any:
    inputs = keras.Input((5,))
    x = layers.Dense(6, activation="tanh")(inputs)
    kept = layers.Dense(6, activation="tanh")(x)
    chosen = layers.Embedding(6, 3)(ops.argmax(layers.Dense(6)(x), -1))
    x = layers.Concatenate()([kept, chosen])
    return keras.Model(inputs, layers.Dense(1)(x)), random().normal(size=(ROWS, 5))


BUILDS = [
    *(padded_bytes, cropped_integers, lambdas),
    *(encoder, two_readers),
    # Much as others: attention under a mask, with and without two RNNs.
    *(pytest.param(f, marks=pytest.mark.slow) for f in (masked_attention, recurrent_attention)),
    *(stopped, half_stopped, output_for_nobody),
]


def trained(build: Callable[[], Any], **options: Any) -> tuple[Outcome, Any]:
    keras.utils.set_random_seed(5)
    model, x = build()
    # Key biases of attention have no gradient but rounding, which Adam would blow up.
    attends = any(isinstance(layer, layers.MultiHeadAttention) for layer in model.layers)
    optimizer = "sgd" if attends else keras.optimizers.AdamW(0.01, weight_decay=0.1)
    model.compile(optimizer, "mse")
    y = np.linspace(-1, 1, ROWS)[:, None]
    if not options:
        history = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
        return Outcome(history.history, State.of(model)), model.predict(x, verbose=0)
    history = hf.fit(model, x, y, batch_size=8, epochs=2, verbose=0, **options)
    return Outcome(history.history, State.of(model)), hf.predict(model, x, verbose=0, **options)


@pytest.mark.parametrize("build", BUILDS)
def test_every_cut(build: Callable[[], Any], request: pytest.FixtureRequest) -> None:
    expected, outputs = on_leader(lambda: trained(build))
    model, _ = build()
    size = len(FlatGraph(model, opened_graph(model)).calls)
    # Two cuts, for the time; --everything tries all.
    step = 1 if request.config.getoption("--everything") else max(3, size // 2)
    for cut in range(1, size, step):
        options = {"strategy": "model", "lpp": [cut, size - cut], "num_microbatches": 2}
        actual, predicted = trained(build, **options)
        faults = actual.compare(expected) + differences("predict", predicted, outputs, 1e-10)
        require_none(faults, f"{build.__name__}, cut after {cut} of {size} operations")
