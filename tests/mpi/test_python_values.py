"""Python values that calls read: what a callback changes of them counts on all ranks."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from contract import on_leader
from keras import layers

import hyparflow as hf

pytestmark = [pytest.mark.on_ranks(2), pytest.mark.usefixtures("in_float64")]

FACTOR = 1.0
ONES = np.ones((16, 4)), np.ones((16, 1))


class Scale(layers.Layer):
    """Reads Python values of all kinds in its call."""

    factor = 1.0
    shared = 1.0

    def __init__(self) -> None:
        super().__init__()
        self._hidden = 1.0
        self.numbers = [1.0, 2.0]
        self.table = {"a": 1.0, "function": len}
        self.inner = types.SimpleNamespace(deep={"b": 1.0})
        self.array = np.ones(3)
        self.activation: Any = keras.activations.linear

    def call(self, x: Any) -> Any:
        x = x * self.factor * type(self).shared * self._hidden * self.numbers[0]
        x = x * self.table["a"] * self.inner.deep["b"] * self.array
        return self.activation(x)


class Halved(keras.Model):
    """Has a step of its own, which reads a Python value."""

    weight = 1.0

    def train_step(self, data: Any) -> Any:
        x, y = data
        y = y * self.weight
        return super().train_step((x, y))


def make_loss() -> tuple[Callable[..., Any], Callable[[float], None]]:
    power = 1.0

    def loss(y: Any, y_pred: Any) -> Any:
        return keras.ops.mean(keras.ops.square(y - y_pred) * power * FACTOR, axis=-1)

    def change(value: float) -> None:
        nonlocal power
        power = value

    return loss, change


def set_global(value: float) -> None:
    global FACTOR
    FACTOR = value


PENALTY = "a regularizer's"
OWN = "an attribute of the model, which its own step reads"
Change = Callable[[Any, Any, float], None]  # of model, layer, to a value

CHANGES: dict[str, Change] = {
    "an attribute": lambda model, layer, v: setattr(layer, "factor", v),
    "a private attribute": lambda model, layer, v: setattr(layer, "_hidden", v),
    "an attribute of the class": lambda model, layer, v: setattr(type(layer), "shared", v),
    "a member of a list": lambda model, layer, v: layer.numbers.__setitem__(0, v),
    "a member of a mixed dict": lambda model, layer, v: layer.table.__setitem__("a", v),
    "a dict of an object": lambda model, layer, v: layer.inner.deep.__setitem__("b", v),
    "an array in place": lambda model, layer, v: layer.array.fill(v),
    "a function": lambda model, layer, v: setattr(
        layer, "activation", keras.activations.tanh if v < 1 else keras.activations.linear
    ),
    "a name around the loss": lambda model, layer, v: model.change_loss(v),
    "a global": lambda model, layer, v: set_global(v),
    "an attribute of Keras's layer": lambda model, layer, v: setattr(
        model.layers[1], "negative_slope", v
    ),
    PENALTY: lambda model, layer, v: setattr(model.layers[-1].kernel_regularizer, "l2", v),
    "the optimizer's": lambda model, layer, v: setattr(
        model.optimizer, "clipnorm", v / 100 if v < 0.6 else None
    ),
    OWN: lambda model, layer, v: setattr(model, "weight", v),
}


def build(eager: bool, own: bool) -> Any:
    keras.utils.set_random_seed(1)
    set_global(1.0)
    Scale.shared = 1.0
    inputs = keras.Input((4,))
    x = layers.LeakyReLU()(inputs)
    scale = Scale()
    x = scale(layers.Dense(3, activation="tanh")(x))
    outputs = layers.Dense(1, kernel_regularizer=None if own else keras.regularizers.L2(0.01))(x)
    model = (Halved if own else keras.Model)(inputs, outputs)
    loss, change = make_loss()
    model.compile("adam", loss, run_eagerly=eager)
    model.scale_layer, model.change_loss = scale, change
    return model


class Changing(keras.callbacks.Callback):
    """Changes a value at each begin of an epoch and in the middle of it."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change = change

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.change(self.model, self.model.scale_layer, 0.5 + 0.125 * epoch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 1:
            self.change(self.model, self.model.scale_layer, 0.25)


def train(own: bool, eager: bool, fit: Callable[..., Any]) -> list[Any]:
    model = build(eager, own)
    x = np.random.default_rng(0).normal(size=(48, 4))
    y = x[:, :1] * x[:, 1:2]
    left_out = PENALTY if own else OWN
    changes = [change for name, change in CHANGES.items() if name != left_out]
    kwargs = {"batch_size": 16, "epochs": 2, "verbose": 0}
    kwargs["callbacks"] = [Changing(change) for change in changes]
    history = fit(model, x, y, validation_data=(x, y), **kwargs).history
    return [*history["loss"], *history["val_loss"], *map(np.sum, model.get_weights())]


@pytest.mark.parametrize(
    ("strategy", "eager"),
    [
        *(("data", False), ("model", True), ("own step", False)),
        *(
            pytest.param(strategy, eager, marks=pytest.mark.slow)
            for strategy, eager in (("data", True), ("model", False), ("own step", True))
        ),
    ],
)
def test_what_a_callback_changes_counts_on_all_ranks(strategy: str, eager: bool) -> None:
    own = strategy == "own step"
    expected = on_leader(lambda: train(own, eager, lambda model, *a, **k: model.fit(*a, **k)))
    strategy = "data" if own else strategy
    found = train(own, eager, lambda *a, **k: hf.fit(*a, strategy=strategy, **k))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_what_is_trainable_is_decided_when_fit_begins() -> None:
    def freeze(model: Any, layer: Any, value: float) -> None:
        model.layers[-1].trainable = False

    for eager in (True, False):
        model = build(eager, own=False)
        with pytest.raises(ValueError, match="changed `trainable` of"):
            hf.fit(model, *ONES, verbose=0, callbacks=[Changing(freeze)])


def test_what_cannot_be_sent_is_refused_by_name_where_it_is_read() -> None:
    def change(model: Any, layer: Any, value: float) -> None:
        layer.activation = lambda x: x * value

    def fit(eager: bool) -> None:
        hf.fit(model, *ONES, verbose=0, callbacks=[Changing(change)])

    for eager in (True, False):
        model = build(eager, own=False)
        with pytest.raises(ValueError, match="attribute 'activation' of layer 'scale"):
            fit(eager)
    model = build(False, own=False)
    hf.fit(model, *ONES, verbose=0)
    fit(False)  # it was traced: as in plain Keras, the new value is never read
