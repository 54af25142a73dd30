"""Variables of the user's own are found from what reads them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import pytest
import tensorflow as tf

from hyparflow.model.reachable_variables import reachable_variables

GLOBAL = tf.Variable(1.0)


class Holder:
    """Keeps a variable in a list, and reads it in a method."""

    def __init__(self, variable: Any) -> None:
        self.kept = {"a": [variable]}

    def __call__(self, y: Any, y_pred: Any) -> Any:
        return self.kept["a"][0] * y


class Scaled(keras.layers.Layer):
    """Has a variable that Keras does not know."""

    def __init__(self, variable: Any) -> None:
        super().__init__()
        self.factor = variable

    def call(self, x: Any) -> Any:
        return x * self.factor


def read_global(y: Any) -> Any:
    return (lambda: GLOBAL * y)()


def model_with(variable: Any) -> Any:
    inputs = keras.Input((2,))
    return keras.Model(inputs, Scaled(variable)(keras.layers.Dense(2)(inputs)))


def scale(variable: Any, y: Any) -> Any:
    return variable * y


WAYS: dict[str, Callable[[Any], Any]] = {
    "closure": lambda variable: lambda y: variable * y,
    "default": lambda variable: lambda y, factor=variable: factor * y,
    "partial": lambda variable: functools.partial(scale, variable),
    "object": Holder,
    "method": lambda variable: Holder(variable).__call__,
    "metric": lambda variable: keras.metrics.MeanMetricWrapper(Holder(variable)),
    "layer": model_with,
    "arguments": lambda variable: {"loss": [None, Holder(variable)]},
}


@pytest.mark.parametrize("kind", [tf.Variable, keras.Variable])
@pytest.mark.parametrize("way", WAYS)
def test_found(way: str, kind: Callable[[float], Any]) -> None:
    variable = kind(0.5)
    found = reachable_variables([WAYS[way](variable)])
    assert any(other is variable for other in found)


def test_globals_are_found_in_functions_inside_functions() -> None:
    assert reachable_variables([read_global]) == [GLOBAL]


def test_the_order_is_that_of_the_script() -> None:
    variables = [tf.Variable(float(n)) for n in range(5)]
    found = reachable_variables([Holder(v) for v in variables])
    assert [float(v) for v in found] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_circles_and_libraries_end_the_search() -> None:
    circle: list[Any] = [keras, tf, pytest]
    circle.append(circle)
    assert reachable_variables([circle, keras.losses.mean_squared_error, tf.reduce_mean]) == []
