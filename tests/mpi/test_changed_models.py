"""Models and optimizers that changed since the fit before, and names, as plain Keras has them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from contract import WORLD, Outcome, State, on_leader, require_none
from keras import layers

import hyparflow as hf

pytestmark = [
    pytest.mark.on_ranks(2),
    pytest.mark.skipif(WORLD.size == 1, reason="one process is Keras's own"),
    pytest.mark.usefixtures("in_float64"),
]
# Replicas hold all weights, as one process does; partitions have each a part of what changed.
OF_PARTITIONS = pytest.mark.parametrize("partitions", [pytest.param(1, marks=pytest.mark.slow), 2])
X = np.random.default_rng(0).normal(size=(16, 6))


def build(**more: Any) -> Any:
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [keras.Input((6,)), *(layers.Dense(8, "tanh", **more) for _ in range(3)), layers.Dense(1)]
    )


def fitter(partitions: int) -> Callable[[Any], Any]:
    """`hf.fit` on that many partitions, plain `fit` on none."""
    arguments = {"batch_size": 8, "shuffle": False, "verbose": 0}
    if not partitions:
        return lambda model: model.fit(X, X[:, :1], **arguments)
    layout = {"num_partitions": partitions, "num_replicas": WORLD.size // partitions}
    return lambda model: hf.fit(model, X, X[:, :1], **arguments, **layout)


def two_models(fit: Callable[[Any], Any], eager: bool) -> None:
    optimizer = keras.optimizers.Adam()
    for _ in range(2):
        model = build()
        model.compile(optimizer, "mse", run_eagerly=eager)
        fit(model)


def unfrozen(fit: Callable[[Any], Any], eager: bool) -> None:
    model, optimizer = build(), keras.optimizers.Adam()
    for trainable in (False, True):
        model.layers[1].trainable = trainable
        if not (eager and trainable):  # run eagerly, that counts without `compile`
            model.compile(optimizer, "mse", run_eagerly=eager)
        fit(model)


@pytest.mark.parametrize(
    ("eager", "partitions"),
    # Of eager partitions, that the compiled ones refuse it and that eager replicas do.
    [(False, 1), (False, 2), (True, 1), pytest.param(True, 2, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("change", [two_models, unfrozen])
def test_optimizer_of_other_variables(
    change: Callable[..., None], eager: bool, partitions: int
) -> None:
    # Or names count what was made before, which is more on the leader.
    keras.utils.clear_session(free_memory=False)
    with pytest.raises(ValueError, match="Unknown variable") as caught:
        change(fitter(partitions), eager)
    assert all(text == str(caught.value) for text in WORLD.allgather(str(caught.value)))


@OF_PARTITIONS
def test_an_optimizer_that_is_exchanged_without_compile_is_said(partitions: int) -> None:
    """Plain Keras would not notice; compiled again, and after predictions only, all is well."""

    def warned(change: Callable[[Any], None]) -> int:
        model = build()
        model.compile("adam", "mse")
        change(model)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fitter(partitions)(model)
        return sum("exchanged without `compile`" in str(w.message) for w in caught)

    def exchange(model: Any) -> None:
        model.optimizer = keras.optimizers.SGD()

    def after_fit(model: Any) -> None:
        fitter(partitions)(model)
        exchange(model)

    def compiled(model: Any) -> None:
        fitter(partitions)(model)
        model.compile(keras.optimizers.SGD(), "mse")

    found = [warned(change) for change in (exchange, after_fit, compiled)]
    assert found == [0, 0 if WORLD.rank else 1, 0]


def frozen(fit: Callable[[Any], Any], eager: bool) -> Outcome:
    """More is frozen before the second fit, with and without `compile`."""
    model, optimizer = build(), keras.optimizers.Adam()
    model.compile(optimizer, "mse", run_eagerly=eager)
    fit(model)
    model.layers[0].trainable = False
    fit(model)
    model.layers[2].trainable = False
    model.compile(optimizer, "mse", run_eagerly=eager)
    return Outcome(fit(model).history, State.of(model))


@pytest.mark.parametrize("eager", [False, pytest.param(True, marks=pytest.mark.slow)])
@OF_PARTITIONS
def test_freezing_more(eager: bool, partitions: int) -> None:
    expected = on_leader(lambda: frozen(fitter(0), eager))
    require_none(frozen(fitter(partitions), eager).compare(expected), str(partitions))


@OF_PARTITIONS
def test_weights_that_are_exchanged(partitions: int) -> None:
    fit, model = fitter(partitions), build()
    model.compile("sgd", "mse")
    fit(model)
    model.add(layers.Dense(1))
    with pytest.raises(ValueError, match="must be compiled again"):
        fit(model)
    model.compile("sgd", "mse")
    before = model.layers[-1].get_weights()[0].copy()
    fit(model)
    assert not np.array_equal(before, model.layers[-1].get_weights()[0])


@pytest.mark.parametrize("eager", [False, pytest.param(True, marks=pytest.mark.slow)])
@OF_PARTITIONS
def test_names_that_keras_takes(eager: bool, partitions: int) -> None:
    names = ["_hidden", "-x", ".dot", "a.b-c>d", "n" * 300]
    names += ["two words", "größe", "a:b"] if eager else []  # TensorFlow's graphs take no others

    def train(fit: Callable[[Any], Any]) -> Outcome:
        keras.utils.set_random_seed(1)
        inputs = x = keras.Input((6,), name=names[0] + "0")
        for name in names:
            nested = [keras.Input((6,)), layers.Dense(6, name=name)]
            x = keras.Sequential(nested, name=name + "m")(layers.Dense(6, "tanh", name=name)(x))
        model = keras.Model(inputs, layers.Dense(1)(x), name="model")
        model.compile("adam", "mse", run_eagerly=eager)
        return Outcome(fit(model).history, State.of(model))

    expected = on_leader(lambda: train(fitter(0)))
    require_none(train(fitter(partitions)).compare(expected), "names")
