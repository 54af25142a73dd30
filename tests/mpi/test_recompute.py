"""Forwards that are computed again give the numbers of those that are kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from contract import Outcome, State, on_leader, require_none
from keras import layers

import hyparflow as hf

pytestmark = [pytest.mark.usefixtures("in_float64")]

ROWS = 12
WAYS = ("block", "segments")
OTHERS = ("attention", "different", "masked", "remat")
REST = ("attention", "different", "masked", "joined", "remat")


def residual(x: Any) -> Any:
    y = layers.BatchNormalization()(x)
    y = layers.Conv2D(4, 3, padding="same", activation="tanh", kernel_regularizer="l2")(y)
    return layers.Add()([x, layers.Dropout(0.2)(y)])


def attention(x: Any) -> Any:
    y = layers.MultiHeadAttention(2, 4, dropout=0.1)(x, x, use_causal_mask=True)
    x = layers.LayerNormalization()(layers.Add()([x, y]))
    y = layers.Dense(8, activation="gelu", activity_regularizer="l2")(x)
    return layers.Add()([x, layers.Dropout(0.2)(y)])


def repeated(shape: tuple[int, ...], block: Callable[[Any], Any]) -> Any:
    inputs = x = keras.Input(shape)
    for _ in range(4):
        x = block(x)
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))


def different() -> Any:
    """A chain of which nothing repeats."""
    parts: list[Any] = [keras.Input((8,))]
    for width in (7, 9, 6, 10, 5):
        parts += [layers.Dense(width, activation="tanh"), layers.Dropout(0.2)]
    return keras.Sequential([*parts, layers.BatchNormalization(), layers.Dense(2)])


def masked() -> Any:
    inputs = keras.Input((5, 4))
    x = layers.Masking()(inputs)
    x = layers.GRU(6, return_sequences=True)(x)
    x = layers.Dense(5)(layers.Dropout(0.2)(x))
    x = layers.LSTM(4, return_sequences=True)(x)
    return keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))


def joined() -> Any:
    """Two inputs, two outputs, a layer that is shared, and tensors that pass over blocks."""
    a, b = keras.Input((8,), name="a"), keras.Input((8,), name="b")
    shared = layers.Dense(8, activation="tanh")
    x, y = shared(a), layers.Dropout(0.2)(shared(b))
    x = layers.Add()([x, layers.Dense(8)(y)])
    y = layers.LayerNormalization()(shared(x))
    return keras.Model(
        [a, b], [layers.Dense(2, name="c")(layers.Add()([y, a])), layers.Dense(2, name="d")(x)]
    )


def remembered() -> Any:
    """With layers made in Keras's own scope of rematerialization."""
    with keras.RematScope("activations"):
        hidden = [layers.Dense(8, activation="tanh") for _ in range(4)]
    return keras.Sequential([keras.Input((8,)), *hidden, layers.Dense(2)])


MODELS: dict[str, Callable[[], Any]] = {
    "images": lambda: repeated((6, 6, 4), residual),
    "attention": lambda: repeated((5, 8), attention),
    "different": different,
    "masked": masked,
    "joined": joined,
    "remat": remembered,
}


def build(name: str) -> Any:
    keras.utils.set_random_seed(5)
    model = MODELS[name]()
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        "mse",
        metrics=[["mae"]] * 2 if name == "joined" else None,
    )
    return model


def data(model: Any) -> tuple[Any, Any]:
    chance = np.random.default_rng(2)
    x, y = (
        [chance.normal(size=(2 * ROWS, *tensor.shape[1:])) for tensor in tensors]
        for tensors in (model.inputs, model.outputs)
    )
    if model.inputs[0].shape[1:] == (5, 4):
        x[0][::3, 3:] = 0.0  # masked
    return (x if len(x) > 1 else x[0]), (y if len(y) > 1 else y[0])


def train(fit: Callable[..., Any], name: str, **layout: Any) -> Outcome:
    model = build(name)
    x, y = data(model)
    keras.utils.set_random_seed(11)
    arguments = {"batch_size": ROWS, "epochs": 2, "shuffle": False, "verbose": 0}
    history = fit(model, x, y, validation_data=(x, y), **arguments, **layout)
    return Outcome(history.history, State.of(model))


def plainly(model: Any, *args: Any, **kwargs: Any) -> Any:
    return model.fit(*args, **kwargs)


def require_contract(name: str, **layout: Any) -> None:
    """Numbers are those of plain Keras."""
    expected = on_leader(lambda: train(plainly, name))
    for recompute in WAYS:
        found = train(hf.fit, name, recompute=recompute, **layout)
        require_none(found.compare(expected), f"{name}, {recompute}, {layout}")


def require_the_same(name: str, ways: tuple[str, ...] = WAYS, **layout: Any) -> None:
    """Numbers do not depend on what is kept."""
    expected = train(hf.fit, name, **layout)
    for recompute in ways:
        found = train(hf.fit, name, recompute=recompute, **layout)
        require_none(found.compare(expected), f"{name}, {recompute}, {layout}")


@pytest.mark.on_ranks(2)
@pytest.mark.parametrize(
    "name",
    # As the others, with other layers.
    ["images", "joined", *(pytest.param(n, marks=pytest.mark.slow) for n in OTHERS)],
)
def test_partitions(name: str) -> None:
    require_contract(name, strategy="model", num_microbatches=1)


@pytest.mark.on_ranks(1)
# As in partitions.
@pytest.mark.parametrize(
    "name", ["images", *(pytest.param(n, marks=pytest.mark.slow) for n in REST)]
)
def test_one_rank(name: str) -> None:
    require_contract(name)


@pytest.mark.on_ranks(2)
@pytest.mark.parametrize(
    "schedule",
    # As those after them, with other stages.
    [
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("gpipe", "interleaved")),
        *("zero-bubble", pytest.param("zero-bubble-v", marks=pytest.mark.slow)),
    ],
)
def test_schedules(schedule: str) -> None:
    ways = WAYS if schedule == "zero-bubble" else ("segments",)
    require_the_same("images", ways, strategy="model", num_microbatches=3, schedule=schedule)


@pytest.mark.on_ranks(2)
@pytest.mark.slow  # the next test has replicas, and both ways
@pytest.mark.parametrize("name", ["images", "different"])
def test_replicas(name: str) -> None:
    require_the_same(name, strategy="data")


@pytest.mark.on_ranks(2)
@pytest.mark.parametrize(
    ("batchnorm", "recompute"),
    # In both ways the same layers are called twice.
    [
        *(("sync", "block"), ("deferred", "segments")),
        pytest.param("sync", "segments", marks=pytest.mark.slow),
        pytest.param("deferred", "block", marks=pytest.mark.slow),
    ],
)
def test_statistics_of_the_batch_move_once(batchnorm: str, recompute: str) -> None:
    layout: dict[str, Any] = {"strategy": "data", "num_microbatches": 2}
    require_the_same("different", (recompute,), batchnorm=batchnorm, **layout)


@pytest.mark.on_ranks(4)
def test_both() -> None:
    require_the_same("images", num_partitions=2, num_replicas=2, num_microbatches=2)


@pytest.mark.on_ranks(2)
@pytest.mark.slow  # three trainings, of which nothing is special to recomputation
def test_mixed_precision() -> None:
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        require_the_same("attention", ("block",), strategy="model", num_microbatches=2)
    finally:
        keras.config.set_floatx("float64")
        keras.config.set_dtype_policy("float64")


def test_what_cannot_be_computed_again_is_refused() -> None:
    model = build("different")
    model.compile("sgd", "mse", run_eagerly=True)
    x, y = data(model)
    with pytest.raises(ValueError, match="`recompute` is for stages that hyparflow compiles"):
        hf.fit(model, x, y, strategy="data", recompute="block", verbose=0)


def test_a_model_that_cannot_be_divided_is_said() -> None:
    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = layers.Dense(2)

        def call(self, x: Any) -> Any:
            return self.dense(x)

    model = Own()
    model.compile("sgd", "mse")
    x, y = np.ones((8, 4)), np.ones((8, 2))
    noticed = pytest.warns(UserWarning, match="`recompute` saves nothing")
    with noticed if hf.is_leader() else contextlib.nullcontext():
        hf.fit(model, x, y, batch_size=8, strategy="data", recompute="block", verbose=0)


@pytest.mark.on_ranks(2)
def test_it_is_shown() -> None:
    inputs = keras.Input([4])
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Dense(3)(inputs)))
    shown = hf.parallelize(model, strategy="model", recompute="block")
    assert "forwards computed again: block" in str(shown)
    assert "again" not in str(hf.parallelize(model, strategy="model"))
    assert "sharded" in str(hf.parallelize(model, strategy="data", shard_optimizer=True))
