"""Which calls of a model are of one kind, and which blocks of a model repeat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

keras = pytest.importorskip("keras")

from keras import layers, ops  # noqa: E402

from hyparflow.model.call_kinds import call_kinds  # noqa: E402
from hyparflow.model.graph import FlatGraph  # noqa: E402
from hyparflow.model.keras_internals.layers import opened_graph  # noqa: E402
from hyparflow.model.layout import ModelCut  # noqa: E402
from hyparflow.model.unit_layout import units_of  # noqa: E402
from hyparflow.pipeline.partition import Partitioning  # noqa: E402
from hyparflow.pipeline.repeats import Repeat, repeats  # noqa: E402


def kinds_of(model: Any) -> list[int]:
    return call_kinds(FlatGraph(model, opened_graph(model)))


def repeats_of(model: Any) -> list[Repeat]:
    kinds = kinds_of(model)
    return repeats(kinds, [0.0] * (len(kinds) + 1))


def chain(block: Callable[[Any], Any], times: int, shape: tuple[int, ...]) -> Any:
    inputs = keras.Input(shape)
    x = layers.Dense(shape[-1])(inputs)
    for _ in range(times):
        x = block(x)
    return keras.Model(inputs, layers.Dense(3)(x))


def residual(x: Any) -> Any:
    y = layers.Conv2D(4, 3, padding="same", kernel_regularizer="l2")(x)
    y = layers.BatchNormalization()(y)
    return layers.Add()([x, layers.Activation("relu")(y)])


def encoder(x: Any) -> Any:
    y = layers.MultiHeadAttention(2, 4)(x, x)
    x = layers.LayerNormalization()(layers.Add()([x, layers.Dropout(0.1)(y)]))
    return x + 0.5 * layers.Dense(8)(layers.Dense(16, activation="gelu")(x))


def recurrent(x: Any) -> Any:
    return layers.Bidirectional(layers.LSTM(4, return_sequences=True))(x)


@pytest.mark.parametrize(
    ("block", "shape", "length"),
    [(residual, (6, 6, 4), 4), (encoder, (5, 8), 8), (recurrent, (5, 8), 1)],
)
def test_blocks_repeat(block: Callable[[Any], Any], shape: tuple[int, ...], length: int) -> None:
    model = chain(block, 5, shape)
    longest = max(repeats_of(model), key=lambda repeat: repeat.saved)
    assert (longest.length, longest.count) in {(length, 5), (length, 4)}


CHANGED: dict[str, Callable[[int], Callable[[Any], Any]]] = {
    "units": lambda n: lambda x: layers.Dense(8)(layers.Dense(4 + n)(x)),
    "activation": lambda n: layers.Dense(8, activation=["relu", "tanh"][n % 2]),
    "bias": lambda n: layers.Dense(8, use_bias=n % 2 == 0),
    "rate": lambda n: layers.Dropout(0.1 * (n + 1)),
    "type": lambda n: layers.Dense(8, dtype=["float32", "float64"][n % 2]),
    "constant": lambda n: lambda x: x * (n + 1.0),
    "shape": lambda n: layers.ZeroPadding1D(1),
    "trainable": lambda n: layers.Dense(8, trainable=n % 2 == 0),
    "code": lambda n: layers.Lambda(lambda x: x + 1),
    "function": lambda n: layers.Dense(8, activation=lambda x: x * 2),
}


@pytest.mark.parametrize("name", CHANGED)
def test_what_differs_is_of_another_kind(name: str) -> None:
    x = inputs = keras.Input((5, 8))
    for number in range(3):
        x = CHANGED[name](number)(x)
    kinds = kinds_of(keras.Model(inputs, x))
    assert all(a != b for a, b in zip(kinds, kinds[1:], strict=False))


def test_names_seeds_and_first_values_do_not_matter() -> None:
    x = inputs = keras.Input((8,))
    for number in range(3):
        x = layers.Dense(8, name=f"of_{number}", kernel_initializer=["zeros", "ones"][number % 2])(
            x
        )
        x = layers.Dropout(0.5, seed=number)(x)
    kinds = kinds_of(keras.Model(inputs, x))
    assert kinds[2:4] == kinds[4:6]


def test_layers_that_are_called_twice_are_alone() -> None:
    shared, inputs = layers.Dense(8), keras.Input((8,))
    x = shared(layers.Dense(8)(inputs))
    x = shared(layers.Dense(8)(x))
    assert len(set(kinds_of(keras.Model(inputs, x)))) == 4


def test_where_tensors_come_from_matters() -> None:
    """A skip over one layer is not one over two."""
    inputs = keras.Input((8,))
    a = layers.Dense(8)(inputs)
    b = layers.Dense(8)(a)
    x = ops.add(a, b)
    c = layers.Dense(8)(x)
    d = layers.Dense(8)(c)
    kinds = kinds_of(keras.Model(inputs, ops.add(x, d)))
    assert kinds[2] != kinds[5]


def test_a_setting_that_means_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPARFLOW_UNITS", "2")
    with pytest.raises(ValueError, match=r"takes 0 or all\. Received: HYPARFLOW_UNITS='2'"):
        units_of(ModelCut(None, None, Partitioning((0, 1), (), ((0,),), ((0,),)), frozenset()), 1)
