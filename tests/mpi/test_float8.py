"""Quantized models: what float8 layers remember is that of the whole batch; int8, int4, LoRA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from contract import WORLD, Outcome, State, on_leader, require_none
from keras import layers, ops

import hyparflow as hf

pytestmark = [
    pytest.mark.on_ranks(2),
    pytest.mark.skipif(WORLD.size == 1, reason="one rank has the whole batch"),
]
X = (np.random.default_rng(0).normal(size=(32, 8)) * np.linspace(1, 40, 32)[:, None]).astype("f4")
ONCE = {"data": {"num_replicas": 2, "num_microbatches": 2}, "model": {"num_microbatches": 4}}
if WORLD.size > 2:
    ONCE = {"hybrid": {"num_partitions": 2, "num_replicas": 2, "num_microbatches": 2}}


# No biases: Keras rounds their gradients to bfloat16, those of each part.


def dense() -> Any:
    sizes = ((16, "relu"), (1, None))
    dense = [layers.Dense(size, name, use_bias=False) for size, name in sizes]
    return keras.Sequential([keras.Input((8,)), *dense])


def einsum() -> Any:
    inputs = keras.Input((8,))
    x = layers.Reshape((4, 4))(layers.Dense(16, "relu", use_bias=False)(inputs))
    x = layers.EinsumDense("abc,cd->abd", (4, 3))(x)
    return keras.Model(inputs, layers.Dense(1, use_bias=False)(layers.Flatten()(x)))


def twice() -> Any:
    inputs, shared = keras.Input((8,)), layers.Dense(8, "relu")
    x = shared(shared(inputs))
    return keras.Model(inputs, layers.Dense(1)(layers.Dense(4)(x)))


def train(build: Callable[[], Any], mode: str, **layout: Any) -> Outcome:
    keras.utils.set_random_seed(1)
    model = build()
    if mode == "lora":
        model.layers[-1].enable_lora(2)
    else:
        model.quantize(mode)
    optimizer = keras.optimizers.Adam(0.01, global_clipnorm=1.0)
    # XLA's float8 gives plain Keras other numbers, too.
    model.compile(optimizer, "mse", jit_compile=False)
    fit = hf.fit if layout else keras.Model.fit
    arguments = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0}
    history = fit(model, X, X[:, :1] / 40, **arguments, **layout)
    return Outcome(history.history, State.of(model))


@pytest.mark.parametrize("build", [dense, einsum])
def test_float8(build: Callable[[], Any]) -> None:
    expected = on_leader(lambda: train(build, "float8"))
    for name, layout in ONCE.items():
        actual = train(build, "float8", strategy=name, **layout)
        require_none(actual.compare(expected, 1e-4), f"{build.__name__} {name}")


@pytest.mark.parametrize(
    "mode", ["lora", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("int8", "int4"))]
)
def test_other_quantized_models(mode: str) -> None:
    expected = on_leader(lambda: train(dense, mode))
    for name, layout in ONCE.items():
        require_none(train(dense, mode, strategy=name, **layout).compare(expected, 1e-4), name)


class Remembers(layers.Layer):
    """Gives the next value of its variable as that variable's gradient."""

    def build(self, shape: Any) -> None:
        self.seen = self.add_weight(shape=(), initializer="zeros", overwrite_with_gradient=True)

    def call(self, inputs: Any) -> Any:
        return inputs + 0 * ops.sum(inputs) * self.seen


def remembers() -> Any:
    return keras.Sequential([keras.Input((8,)), Remembers(name="remembers"), layers.Dense(1)])


def test_what_cannot_be_had_from_parts_is_refused() -> None:
    layout: dict[str, Any] = {"strategy": "data"}
    keras.utils.set_random_seed(1)
    model = remembers()
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"overwrite_with_gradient=True .*remembers"):
        hf.fit(model, X, X[:, :1], verbose=0, **layout)


@pytest.mark.skipif(WORLD.size != 2, reason="cuts a model in two")
def test_a_layer_called_twice() -> None:
    """Alone a part is the whole batch; two partitions cannot have it in common."""
    expected = on_leader(lambda: train(twice, "float8"))
    layout = {"strategy": "model", "num_microbatches": 1}
    actual = train(twice, "float8", **layout, lpp=[2, 2])
    require_none(actual.compare(expected, 1e-4), "twice")
    with pytest.raises(ValueError, match="must be in one partition"):
        train(twice, "float8", **layout, lpp=[1, 3])
