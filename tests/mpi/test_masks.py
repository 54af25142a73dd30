"""Models with Keras masks: plain Keras's numbers, and no rank holds more than its partition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from contract import WORLD, fit_on_leader, grids, on_leader, require_none

import hyparflow as hf
from hyparflow.model.keras_internals.deferred_variables import is_absent

pytestmark = pytest.mark.usefixtures("in_float64")

RANDOM = np.random.default_rng(3)
TOKENS = RANDOM.integers(0, 11, size=(24, 6))
TOKENS[:, 0] = 3  # no row is masked whole
PARTED = [(p, r) for p, r in grids(WORLD.size) if p > 1]
GRIDS = pytest.mark.parametrize("grid", PARTED, ids=str)
MODELS: dict[str, tuple[Callable[[], Any], Any]] = {}


def model(labels: Any) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Add a function that makes a model, with labels for it, to those that are tested."""

    def add(make: Callable[[], Any]) -> Callable[[], Any]:
        MODELS[make.__name__] = make, labels
        return make

    return add


def recurrent(widths: tuple[int, ...] = (5, 4)) -> tuple[Any, Any]:
    x = tokens = keras.Input([6], dtype="int32")
    x = keras.layers.Embedding(11, 4, mask_zero=True)(x)
    for width in widths:
        x = keras.layers.LSTM(width, return_sequences=True)(x)
    return tokens, x


@model(RANDOM.normal(size=(24, 3)))
def masks_that_end_inside() -> Any:
    tokens, x = recurrent()
    x = keras.layers.GlobalAveragePooling1D()(x)
    for width in (5, 7, 5):
        x = keras.layers.Dense(width, activation="tanh")(x)
    made = keras.Model(tokens, keras.layers.Dense(3)(x))
    made.compile("adam", "mse")
    return made


@model(RANDOM.normal(size=(24, 6, 2)))
def masks_that_reach_the_loss() -> Any:
    tokens, x = recurrent()
    for width in (5, 7, 5):
        x = keras.layers.Dense(width, activation="tanh")(x)
    made = keras.Model(tokens, keras.layers.Dense(2)(x))
    made.compile("adam", "mse", weighted_metrics=["mae"])
    return made


@model([RANDOM.normal(size=(24, 6, 2)), RANDOM.normal(size=(24, 1)), RANDOM.normal(size=(24, 1))])
def one_of_three_losses_masked() -> Any:
    tokens, x = recurrent()
    outputs = [keras.layers.Dense(2, name="a")(x)]
    x = keras.layers.GlobalAveragePooling1D()(x)
    for width in (5, 7, 5):
        x = keras.layers.Dense(width, activation="tanh")(x)
    outputs += [keras.layers.Dense(1, name=name)(x) for name in "bc"]
    made = keras.Model(tokens, outputs)
    by_weight = keras.losses.MeanAbsoluteError(reduction="mean_with_sample_weight")
    made.compile("adam", ["mse", "mse", by_weight])
    return made


@model(RANDOM.normal(size=(24, 6, 2)))
def masks_of_frozen_weights() -> Any:
    """The mask of the outputs depends on what a frozen layer of the first partition computes."""
    x = tokens = keras.Input([6], dtype="int32")
    x = keras.layers.Embedding(11, 4, trainable=False, embeddings_initializer=_some_zero())(x)
    x = keras.layers.Masking()(x)
    for width in (5, 4, 5, 4, 5, 4):
        x = keras.layers.LSTM(width, return_sequences=True)(x)
    made = keras.Model(tokens, keras.layers.Dense(2)(x))
    made.compile("adam", "mse")
    return made


def _some_zero() -> Any:
    table = np.random.default_rng(7).normal(size=(11, 4))
    table[[0, 4, 9]] = 0
    return keras.initializers.Constant(table)


def build(make: Callable[[], Any], deferred: bool) -> Any:
    keras.utils.set_random_seed(5)
    if not deferred:
        return make()
    with hf.deferred():
        return make()


def held(made: Any) -> list[int]:
    """How many weights each rank has memory for."""
    mine = sum(not is_absent(v) for v in made.trainable_variables)
    return WORLD.allgather(mine)


# What the slow ones show is in those that are not slow, or shown by test_weight_owners.
@pytest.mark.on_ranks(2)
@pytest.mark.parametrize(
    "name",
    [
        masks_that_end_inside.__name__,
        one_of_three_losses_masked.__name__,
        pytest.param(masks_that_reach_the_loss.__name__, marks=pytest.mark.slow),
        pytest.param(masks_of_frozen_weights.__name__, marks=pytest.mark.slow),
    ],
)
@GRIDS
def test_masks(name: str, grid: tuple[int, int]) -> None:
    make, labels = MODELS[name]
    plain, made = build(make, False), build(make, True)
    rows = {"batch_size": 12, "verbose": 0, "shuffle": False}
    layout = {"num_partitions": grid[0], "num_replicas": grid[1], "num_microbatches": 2}
    expected = fit_on_leader(plain, TOKENS, labels, epochs=2, **rows)
    found = hf.fit(made, TOKENS, labels, epochs=2, gather=False, **rows, **layout).history
    holding = held(made)
    evaluated = hf.evaluate(
        made, TOKENS, labels, gather=False, return_dict=True, batch_size=12, verbose=0, **layout
    )
    of_plain = on_leader(
        lambda: plain.evaluate(TOKENS, labels, return_dict=True, batch_size=12, verbose=0)
    )
    faults = [
        f"{key}: {found[key]} not {expected[key]}"
        for key in expected
        if not np.allclose(found[key], expected[key], rtol=1e-10)
    ]
    faults += [
        f"{key} evaluated: {evaluated[key]} not {of_plain[key]}"
        for key in of_plain
        if not np.isclose(evaluated[key], of_plain[key], rtol=1e-10)
    ]
    whole = len(made.trainable_variables)
    if max(holding) >= whole:
        faults.append(f"ranks have memory for {holding} of {whole} weights")
    require_none(faults, name)


@pytest.mark.on_ranks(2)
@GRIDS
def test_masks_of_weights_that_are_trained_elsewhere(grid: tuple[int, int]) -> None:
    """What the last partition divides by would be computed with weights that it does not see."""
    x = inputs = keras.Input([6, 3])
    x = keras.layers.Dense(4, activation="relu", name="first")(x)
    x = keras.layers.Masking()(x)
    for width in (5, 4, 5, 4):
        x = keras.layers.LSTM(width, return_sequences=True)(x)
    made = keras.Model(inputs, keras.layers.Dense(1)(x))
    made.compile("adam", "mse")
    rows, labels = RANDOM.normal(size=(24, 6, 3)), RANDOM.normal(size=(24, 6, 1))
    with pytest.raises(ValueError, match="masks that depend on 'first/kernel' and 1 more"):
        hf.fit(made, rows, labels, num_partitions=grid[0], num_replicas=grid[1], verbose=0)
