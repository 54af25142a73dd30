"""Small models, one for each thing that a cut, a micro-batch or a replica could break.

Every case gives a compiled model and its data from fixed seeds, in the present float type. They are
smooth (tanh instead of relu), so that a difference in the last digit stays one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import layers, ops


@dataclass(eq=False)
class Case:
    """A model with its data and how to fit it."""

    build: Callable[[], Any]
    data: Callable[[np.random.Generator], dict[str, Any]]
    fit: dict[str, Any] = field(default_factory=dict)
    largest_split: int | None = None  # most micro-batches x replicas with plain Keras's numbers


def _classes(rng: np.random.Generator, rows: int, classes: int) -> np.ndarray:
    return rng.integers(0, classes, rows)


# --- skip connections, a layer called twice, bare operations ---


def residual() -> Any:
    x = inputs = keras.Input((6,))
    x = layers.Dense(8, activation="tanh", kernel_regularizer=keras.regularizers.L2(1e-2))(x)
    first = x
    twice = layers.Dense(8, activation="tanh", kernel_regularizer="l2", bias_regularizer="l2")
    x = twice(x)
    x = layers.Dense(8)(x)
    x = ops.tanh(x) + first * 0.5
    x = twice(x)
    x = layers.Concatenate()([x, first, inputs])
    x = layers.Dense(5, activation="tanh")(x)
    outputs = layers.Dense(3, activation="softmax")(ops.add(x, 0.1))
    model = keras.Model(inputs, outputs)
    model.compile(
        keras.optimizers.Adam(1e-2, global_clipnorm=0.3),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def residual_data(rng: np.random.Generator) -> dict[str, Any]:
    x, y = rng.normal(size=(61, 6)), _classes(rng, 61, 3)
    return {"x": x, "y": y, "validation_data": (x[:17], y[:17])}


# --- several inputs and outputs, as dicts, of several types; an output made early ---


def many() -> Any:
    number = keras.Input((4,), name="number")
    code = keras.Input((), dtype="int32", name="code")
    table = layers.Embedding(7, 4, embeddings_regularizer="l2")(code)
    a = layers.Dense(4, activation="tanh")(number)
    early = layers.Dense(1, name="early")(a)
    b = layers.Multiply()([a, table])
    rounded = ops.cast(ops.round(number * 3), "int32")  # an integer tensor that crosses cuts
    c = layers.Dense(5, activation="tanh")(layers.Concatenate()([b, a]))
    d = layers.Add()([layers.Dense(4)(c), ops.cast(rounded, c.dtype)])
    late = layers.Dense(3, name="late", kernel_constraint="max_norm")(d)
    model = keras.Model({"number": number, "code": code}, {"late": late, "early": early})
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True, clipvalue=0.05),
        {
            "late": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            "early": keras.losses.MeanSquaredError(reduction="sum"),
        },
        loss_weights={"late": 1.0, "early": 0.1},
        metrics={"late": ["accuracy"], "early": ["mae"]},
        weighted_metrics={"early": ["mse"]},
    )
    return model


def many_data(rng: np.random.Generator) -> dict[str, Any]:
    x = {"number": rng.normal(size=(37, 4)), "code": rng.integers(0, 7, 37).astype("int32")}
    y = {"late": _classes(rng, 37, 3), "early": rng.normal(size=(37, 1))}
    weights = {"late": rng.random(37), "early": rng.random(37)}
    return {"x": x, "y": y, "sample_weight": weights}


# --- models in models in models; tuples; a nested model called twice ---


def nested() -> Any:
    core = keras.Sequential(
        [keras.Input((5,)), layers.Dense(6, activation="tanh"), layers.Dense(5)], name="core"
    )
    a, b = keras.Input((5,)), keras.Input((5,))
    block = keras.Model([a, b], [core(a) + b, layers.Dense(5, activation="tanh")(core(b))])
    left, right = keras.Input((5,)), keras.Input((5,))
    x, y = block([left, right])
    x, y = block((y, x))
    outputs = (layers.Dense(2)(x), layers.Dense(1)(ops.tanh(y)))
    model = keras.Model([left, right], outputs)
    model.compile(
        keras.optimizers.AdamW(1e-2, weight_decay=0.1, clipnorm=0.2),
        ["mse", "mae"],
        metrics=[["mae"], []],
    )
    return model


def nested_data(rng: np.random.Generator) -> dict[str, Any]:
    x = [rng.normal(size=(41, 5)), rng.normal(size=(41, 5))]
    return {"x": x, "y": [rng.normal(size=(41, 2)), rng.normal(size=(41, 1))]}


# --- masks that cross the cuts and reach the loss; recurrent layers ---


def sequences() -> Any:
    inputs = keras.Input((None,), dtype="int32")
    x = layers.Embedding(11, 6, mask_zero=True)(inputs)
    x = layers.LSTM(4, return_sequences=True, use_cudnn=False)(x)
    x = layers.Dense(6, activation="tanh")(x)
    x = layers.SimpleRNN(5, return_sequences=True)(x)
    outputs = layers.Dense(4)(x)
    model = keras.Model(inputs, outputs)
    model.compile(
        keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.2, 3, 0.7)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def sequences_data(rng: np.random.Generator) -> dict[str, Any]:
    x = rng.integers(1, 11, (29, 5)).astype("int32")
    for row, length in enumerate(rng.integers(1, 6, 29)):
        x[row, length:] = 0
    return {
        "x": x,
        "y": rng.integers(0, 4, (29, 5)),
        "validation_data": (x, rng.integers(0, 4, (29, 5))),
    }


# --- attention with shared arguments, layer norm, Lambda ---
# (Without biases: softmax does not depend on the keys' bias, so its gradient is rounding alone,
# which Adam would blow up to its full step.)


def attention() -> Any:
    inputs = keras.Input((4, 6))
    x = layers.Dense(6)(inputs)
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        y = layers.MultiHeadAttention(2, 3, use_bias=False)(y, y, y, use_causal_mask=True)
        x = layers.Add()([x, y])
        y = layers.Dense(8, activation="gelu")(layers.LayerNormalization()(x))
        x = x + layers.Dense(6)(y)
    x = layers.Lambda(lambda t: ops.mean(t, axis=1))(x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    model.compile(keras.optimizers.Adam(1e-2, clipvalue=0.1), "mse", metrics=["mae"])
    return model


def attention_data(rng: np.random.Generator) -> dict[str, Any]:
    return {"x": rng.normal(size=(33, 4, 6)), "y": rng.normal(size=(33, 2))}


# --- one weight used by two partitions ---


@keras.saving.register_keras_serializable("hyparflow_tests")
class TiedHead(layers.Layer):
    """Scores against an embedding's own table."""

    def __init__(self, table: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.table = table

    def call(self, x: Any) -> Any:
        return ops.matmul(x, ops.transpose(self.table.embeddings))


def tied() -> Any:
    inputs = keras.Input((3,), dtype="int32")
    table = layers.Embedding(9, 4)
    x = layers.Flatten()(table(inputs))
    x = layers.Dense(6, activation="tanh")(x)
    x = layers.Dense(4)(x)
    model = keras.Model(inputs, TiedHead(table)(x))
    model.compile(
        keras.optimizers.Adam(1e-2, global_clipnorm=0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def tied_data(rng: np.random.Generator) -> dict[str, Any]:
    return {"x": rng.integers(0, 9, (31, 3)).astype("int32"), "y": _classes(rng, 31, 9)}


# --- sparse gradients of an embedding that two partitions use, clipped ---


def siamese() -> Any:
    left, right = keras.Input((2,), dtype="int32"), keras.Input((2,), dtype="int32")
    table = layers.Embedding(5, 4)
    a = layers.Flatten()(table(left))
    a = layers.Dense(4, activation="tanh")(a)
    a = layers.Dense(8, activation="tanh")(a)
    b = layers.Flatten()(table(right))
    model = keras.Model([left, right], layers.Dense(1)(layers.Concatenate()([a, b])))
    model.compile(keras.optimizers.SGD(0.1, global_clipnorm=0.05), "mse")
    return model


def siamese_data(rng: np.random.Generator) -> dict[str, Any]:
    x = [rng.integers(0, 5, (27, 2)).astype("int32") for _ in range(2)]
    return {"x": x, "y": rng.normal(size=(27, 1))}


# --- frozen layers; weighted means; class weights ---


def frozen() -> Any:
    inputs = keras.Input((6,))
    x = layers.Dense(7, activation="tanh", trainable=False)(inputs)
    x = layers.Dense(6, activation="tanh")(x)
    x = layers.Dense(6, activation="tanh", trainable=False, kernel_regularizer="l2")(x)
    x = layers.Dense(5, activation="tanh", activity_regularizer="l2")(x)
    model = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))
    model.compile(
        keras.optimizers.RMSprop(1e-2, use_ema=True, ema_overwrite_frequency=3),
        keras.losses.BinaryCrossentropy(reduction="mean_with_sample_weight"),
        metrics=[keras.metrics.AUC(num_thresholds=20)],
        weighted_metrics=["accuracy"],
    )
    return model


def frozen_data(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "x": rng.normal(size=(35, 6)),
        "y": rng.integers(0, 2, (35, 1)),
        "class_weight": {0: 0.3, 1: 1.7},
    }


# --- labels to ignore ---


def ignoring() -> Any:
    inputs = keras.Input((5, 3))
    x = layers.Conv1D(4, 3, padding="same", activation="tanh")(inputs)
    x = layers.Conv1D(6, 3, padding="same", activation="tanh")(x)
    x = layers.DepthwiseConv1D(3, padding="same")(x)
    model = keras.Model(inputs, layers.Dense(4)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    model.compile(keras.optimizers.SGD(0.1, clipnorm=0.5, momentum=0.5), loss)
    return model


def ignoring_data(rng: np.random.Generator) -> dict[str, Any]:
    return {"x": rng.normal(size=(26, 5, 3)), "y": rng.integers(0, 4, (26, 5))}


# --- random layers and moving statistics: the numbers of one process with one micro-batch ---


def noisy() -> Any:
    inputs = keras.Input((6,))
    x = layers.GaussianNoise(0.3, seed=3)(inputs)
    x = layers.Dense(8)(x)
    x = layers.BatchNormalization()(x)
    x = layers.Dropout(0.3, seed=5)(ops.tanh(x))
    x = layers.Dense(6, activation="tanh")(x)
    x = layers.BatchNormalization(momentum=0.8)(x)
    x = layers.Dropout(0.2, seed=7)(x)
    model = keras.Model(inputs, layers.Dense(3)(x))
    model.compile(
        keras.optimizers.Adam(1e-2),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


# Batches of at least 4 replicas x 4 micro-batches; most leave a last batch of fewer rows than there
# are replicas.
CASES: dict[str, Case] = {
    "residual": Case(residual, residual_data, {"batch_size": 20, "epochs": 2}),
    "many": Case(many, many_data, {"batch_size": 18, "epochs": 2}),
    "nested": Case(nested, nested_data, {"batch_size": 16, "epochs": 1}),
    "sequences": Case(sequences, sequences_data, {"batch_size": 16, "epochs": 1}),
    "attention": Case(attention, attention_data, {"batch_size": 16, "epochs": 1}),
    "tied": Case(tied, tied_data, {"batch_size": 17, "epochs": 2}),
    "siamese": Case(siamese, siamese_data, {"batch_size": 16, "epochs": 2}),
    "frozen": Case(frozen, frozen_data, {"batch_size": 17, "epochs": 2}),
    "ignoring": Case(ignoring, ignoring_data, {"batch_size": 16, "epochs": 1}),
    "noisy": Case(noisy, residual_data, {"batch_size": 20, "epochs": 2}, largest_split=1),
}
