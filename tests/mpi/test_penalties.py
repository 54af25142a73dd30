"""Weight regularization counts in every loss, whichever steps are the model's own."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from contract import on_leader
from keras import layers

import hyparflow as hf

pytestmark = [pytest.mark.on_ranks(2), pytest.mark.usefixtures("in_float64")]


class OwnTraining(keras.Model):
    """Trains by a step of its own and is evaluated by Keras's."""

    def train_step(self, data: Any) -> Any:
        return super().train_step(data)


class OwnTest(keras.Model):
    """Is evaluated by a step of its own and trained by Keras's."""

    def test_step(self, data: Any) -> Any:
        return super().test_step(data)


def build(kind: Any, optimizer: str | None = "sgd") -> Any:
    keras.utils.set_random_seed(2)
    inputs = keras.Input((4,))
    hidden = layers.Dense(6, activation="tanh", kernel_regularizer="l2")(inputs)
    outputs = layers.Dense(1, kernel_regularizer=keras.regularizers.L1(0.02))(hidden)
    model = kind(inputs, outputs)
    model.compile(optimizer, "mse", metrics=["mae"])
    return model


def data() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(22, 4))
    return x, x[:, :1]


@pytest.mark.parametrize("kind", [OwnTraining, OwnTest])
def test_the_losses_of_own_steps_are_plain_keras_s(kind: Any) -> None:
    def train(fit: Any, model: Any, **layout: Any) -> Any:
        arguments = {"batch_size": 8, "epochs": 2, "verbose": 0, "shuffle": False} | layout
        return fit(model, *data(), validation_data=data(), **arguments).history

    expected = on_leader(lambda: train(keras.Model.fit, build(kind)))
    found = train(hf.fit, build(kind), strategy="data")
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-10, err_msg=name)


@pytest.mark.parametrize("strategy", ["data", "model"])
def test_a_model_without_an_optimizer_is_evaluated_with_penalties(strategy: str) -> None:
    def loss() -> Any:
        return build(keras.Model, None).evaluate(*data(), batch_size=8, verbose=0)

    model = build(keras.Model, None)
    found = hf.evaluate(model, *data(), batch_size=8, verbose=0, strategy=strategy)
    np.testing.assert_allclose(found, on_leader(loss), rtol=1e-10)
