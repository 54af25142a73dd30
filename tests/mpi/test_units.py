"""Blocks that are alike are compiled once, and train as in plain Keras."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from contract import Outcome, State, on_leader, require_none
from keras import layers

import hyparflow as hf
from hyparflow.engine.compiled import functions
from hyparflow.engine.stages.stage_functions import StageFunctions
from hyparflow.model.unit_layout import UNITS

pytestmark = [pytest.mark.usefixtures("in_float64")]

ROWS = 12


@pytest.fixture(autouse=True)
def _units_of_single_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(UNITS, "all")


def residual(x: Any) -> Any:
    y = layers.LayerNormalization()(x)
    y = layers.Dense(8, activation="tanh", kernel_regularizer="l2")(y)
    return layers.Add()([x, layers.Dense(8)(y)])


def attention(x: Any) -> Any:
    y = layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True)
    return layers.LayerNormalization()(layers.Add()([x, y]))


def convolution(x: Any) -> Any:
    y = layers.Activation("relu")(layers.BatchNormalization()(x))
    return layers.Add()([x, layers.Conv2D(4, 3, padding="same")(y)])


def random(x: Any) -> Any:
    return layers.Dropout(0.3)(layers.Dense(8, activation="tanh")(x))


BLOCKS: dict[str, tuple[tuple[int, ...], Callable[[Any], Any]]] = {
    "residual": ((8,), residual),
    "attention": ((5, 8), attention),
    "recurrent": ((4, 8), lambda x: layers.GRU(8, return_sequences=True)(x)),
    "images": ((6, 6, 4), convolution),
    "random": ((8,), random),
}
WHOLE = ("accumulating", "nadam")
OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "sgd": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1, global_clipnorm=0.5),
    "averaged": lambda: keras.optimizers.RMSprop(0.01, use_ema=True, clipnorm=0.3),
    "accumulating": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2),
    # Changes a variable that all weights have in common: its steps cannot be made one by one.
    "nadam": lambda: keras.optimizers.Nadam(0.01),
}


def build(name: str, blocks: int, optimizer: str = "sgd") -> Any:
    keras.utils.set_random_seed(5)
    shape, block = BLOCKS[name]
    inputs = x = keras.Input(shape)
    for _ in range(blocks):
        x = block(x)
    outputs = layers.Dense(2)(layers.Flatten()(x))
    model = keras.Model(inputs, outputs)
    made = OPTIMIZERS[optimizer]()
    if optimizer == "adamw":
        made.exclude_from_weight_decay(var_names=["bias"])
    model.compile(made, "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def data(name: str) -> tuple[Any, Any]:
    chance = np.random.default_rng(2)
    return chance.normal(size=(2 * ROWS, *BLOCKS[name][0])), chance.normal(size=(2 * ROWS, 2))


def train(fit: Callable[..., Any], model: Any, name: str, **layout: Any) -> Outcome:
    x, y = data(name)
    keras.utils.set_random_seed(11)
    arguments = {"batch_size": ROWS, "epochs": 2, "shuffle": False, "verbose": 0}
    history = fit(model, x, y, validation_data=(x[:8], y[:8]), **arguments, **layout)
    return Outcome(history.history, State.of(model))


@functools.cache
def plain_outcome(name: str, optimizer: str) -> Outcome:
    """What plain Keras leaves, for all layouts."""
    return on_leader(lambda: train(keras.Model.fit, build(name, 4, optimizer), name))


def compare(name: str, optimizer: str = "sgd", **layout: Any) -> None:
    """Training with units leaves behind what plain Keras leaves."""
    expected = plain_outcome(name, optimizer)
    found = train(hf.fit, build(name, 4, optimizer), name, **layout)
    require_none(found.compare(expected), f"{name}, {optimizer}, {layout}")


@pytest.mark.on_ranks(2)
@pytest.mark.parametrize(
    "name",
    # Other blocks are tried in partitions.
    ["residual", *(pytest.param(n, marks=pytest.mark.slow) for n in ("attention", "recurrent"))],
)
def test_replicas(name: str) -> None:
    compare(name, strategy="data")


@pytest.mark.parametrize(
    "schedule",
    # As those after them, with other stages.
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("1f1b", "zero-bubble")),
        *("interleaved", "zero-bubble-v"),
    ],
)
@pytest.mark.on_ranks(2)
def test_partitions(schedule: str) -> None:
    compare("residual", strategy="model", num_microbatches=2, schedule=schedule)


@pytest.mark.parametrize("name", ["attention", "recurrent", "images", "random"])
@pytest.mark.on_ranks(2)
def test_blocks_of_other_kinds(name: str) -> None:
    compare(name, strategy="model", num_microbatches=1)


@pytest.mark.parametrize(
    "layout",
    [
        {"num_partitions": 2, "batchnorm": "deferred", "num_microbatches": 2},
        {"num_replicas": 2, "batchnorm": "deferred"},
    ],
    ids=["partitions", "replicas"],
)
@pytest.mark.on_ranks(2)
def test_statistics_of_the_global_batch(
    layout: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole stages are the measure: plain Keras has no micro-batches."""
    found = train(hf.fit, build("images", 3), "images", **layout)
    monkeypatch.setenv("HYPARFLOW_UNITS", "0")
    expected = train(hf.fit, build("images", 3), "images", **layout)
    require_none(found.compare(expected), f"{layout}")


@pytest.mark.on_ranks(4)
def test_both() -> None:
    compare("residual", num_partitions=2, num_replicas=2, num_microbatches=2)


@pytest.mark.parametrize(
    "optimizer",
    # Steps that are not made group by group, as with any other optimizer.
    ["adamw", "averaged", *(pytest.param(n, marks=pytest.mark.slow) for n in WHOLE)],
)
@pytest.mark.on_ranks(2)
def test_optimizers(optimizer: str) -> None:
    compare("residual", optimizer, strategy="model", num_microbatches=2)


def noted(function: Callable[..., Any], name: str, calls: list[str]) -> Callable[..., Any]:
    """`function`, which notes its calls."""

    def noting(*args: Any) -> Any:
        calls.append(name)
        return function(*args)

    return noting


@pytest.mark.on_ranks(2)
# Replicas have the units of one process.
@pytest.mark.parametrize("strategy", ["data", pytest.param("model", marks=pytest.mark.slow)])
def test_tracing_does_not_grow_with_the_blocks(
    strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced: list[str] = []
    for method in ("outputs", "training_loss", "infer", "infer_loss", "backward"):
        noting = noted(getattr(StageFunctions, method), method, traced)
        monkeypatch.setattr(StageFunctions, method, noting)
    counts = []
    for blocks in (4, 8):
        traced.clear()
        train(hf.fit, build("residual", blocks), "residual", strategy=strategy, num_microbatches=2)
        counts.append(len(traced))
    assert counts[0] == counts[1] > 0


@pytest.mark.on_ranks(2)
def test_a_block_that_takes_anothers_trace_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layout = {"strategy": "model", "num_microbatches": 2}
    taken: list[bool] = []

    def compared(*args: Any) -> Any:
        found = same_graphs(*args)
        taken.append(bool(found))
        return found

    same_graphs = functions.same_graphs
    monkeypatch.setattr(functions, "same_graphs", compared)
    shared = train(hf.fit, build("attention", 6), "attention", **layout)
    assert any(taken)
    monkeypatch.setattr(functions, "same_graphs", lambda *args: False)
    own = train(hf.fit, build("attention", 6), "attention", **layout)
    assert shared.history == own.history
    for key, value in own.state.values.items():
        np.testing.assert_array_equal(shared.state.values[key], value)


@pytest.mark.on_ranks(2)
def test_weights_that_are_set_apart_by_hand_are_updated_apart() -> None:
    """A constraint and a regularizer that the settings of layers do not tell of."""

    def made() -> Any:
        model = build("residual", 4)
        kernels = [v for v in model.trainable_variables if v.name == "kernel"]
        kernels[2].constraint = keras.constraints.MaxNorm(0.4)
        kernels[4].regularizer = keras.regularizers.L1(0.05)
        return model

    expected = on_leader(lambda: train(keras.Model.fit, made(), "residual"))
    found = train(hf.fit, made(), "residual", strategy="model", num_microbatches=2)
    require_none(found.compare(expected), "by hand")
