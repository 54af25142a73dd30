"""Faster kernels in partitions and replicas: what Keras's operations give, to rounding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from contract import WORLD, float_type, grids, on_leader, require_none
from zoo import CASES

import hyparflow as hf
from hyparflow.engine.compiled import one_dnn

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(48, 6, 6, 3)).astype("float32")
SEQUENCES = RANDOM.normal(size=(48, 64, 16)).astype("float32")
LABELS = RANDOM.integers(0, 4, 48)
GRIDS = pytest.mark.parametrize("grid", grids(WORLD.size), ids=str)
NORMALIZED = 9
LAST_PLACE = 2.0**-8  # of bfloat16
FIRST = ("attention", "nested")  # which have most of what is rewritten


def residual_network() -> Any:
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input([6, 6, 3])
    x = keras.layers.Conv2D(8, 3, padding="same")(x)
    for _ in range(4):
        y = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
        y = keras.layers.Conv2D(8, 3, padding="same")(y)
        y = keras.layers.ReLU()(keras.layers.BatchNormalization()(y))
        x = keras.layers.Add()([x, keras.layers.Conv2D(8, 3, padding="same")(y)])
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.BatchNormalization()(x))
    model = keras.Model(inputs, keras.layers.Dense(4)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss, metrics=["accuracy"])
    return model


def model_of_sequences() -> Any:
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input([64, 16])
    x = keras.layers.Dense(64)(x)
    for _ in range(3):
        y = keras.layers.LayerNormalization()(x)
        x = keras.layers.Add()([x, keras.layers.MultiHeadAttention(2, 8)(y, y)])
        y = keras.layers.Dense(96, activation="gelu")(keras.layers.RMSNormalization()(x))
        x = keras.layers.Add()([x, keras.layers.Dense(64)(y)])
    x = keras.layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, keras.layers.Dense(4)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss, metrics=["accuracy"])
    return model


def numbers(
    build: Callable[[], Any], x: np.ndarray, grid: tuple[int, int], kernels: str, **more: Any
) -> list[np.ndarray]:
    """History of two epochs, weights after them, and what the model then gives."""
    model = build()
    layout = {"num_partitions": grid[0], "num_replicas": grid[1], "num_microbatches": 2}
    given = {"batch_size": 16, "verbose": 0, "kernels": kernels, **layout}
    validation = x[:20], LABELS[:20]  # a last batch of four rows
    history = hf.fit(
        *(model, x, LABELS), shuffle=False, epochs=2, validation_data=validation, **given, **more
    ).history
    made = hf.predict(model, x[:20], **given)
    return [*map(np.array, history.values()), *model.get_weights(), made]


@pytest.mark.on_ranks(2)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"batchnorm": "deferred"},
        {"recompute": "block"},
        pytest.param({"batchnorm": "sync"}, marks=pytest.mark.slow),  # nothing is rewritten
        pytest.param({"schedule": "gpipe"}, marks=pytest.mark.slow),  # order of the same calls
        pytest.param({"recompute": "segments"}, marks=pytest.mark.slow),  # near to "block"
        pytest.param({"shard_optimizer": True}, marks=pytest.mark.slow),  # after the gradients
    ],
    ids=str,
)
@GRIDS
def test_kernels_give_what_keras_computes(more: dict[str, Any], grid: tuple[int, int]) -> None:
    compare(residual_network, IMAGES, grid, more)


@pytest.mark.on_ranks(2)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"recompute": "block"},
        # Forwards and backwards apart are the other cases'.
        pytest.param({"schedule": "interleaved"}, marks=pytest.mark.slow),
        pytest.param({"schedule": "zero-bubble"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
@GRIDS
def test_kernels_of_sequences(more: dict[str, Any], grid: tuple[int, int]) -> None:
    compare(model_of_sequences, SEQUENCES, grid, more)


@pytest.mark.on_ranks(2)
@GRIDS
def test_kernels_of_narrow_numbers(grid: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor that computes with bfloat16: as near to float32 as Keras's operations."""
    monkeypatch.setattr(one_dnn, "is_chosen", lambda: False)
    exact = numbers(model_of_sequences, SEQUENCES, grid, "keras")
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        expected = numbers(model_of_sequences, SEQUENCES, grid, "keras")
        found = numbers(model_of_sequences, SEQUENCES, grid, "auto")
    finally:
        keras.config.set_dtype_policy("float32")
    arrays = zip(found, expected, exact, strict=True)
    assert any(not np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
    errors = [[np.abs(a - right).max() / np.abs(right).max() for a in of] for *of, right in arrays]
    odd = [
        f"{n}: {one} and {other}"
        for n, (one, other) in enumerate(errors)
        if one > 2 * other + LAST_PLACE
    ]
    require_none(odd, "errors of faster kernels and of Keras's operations")


def compare(build: Any, x: np.ndarray, grid: tuple[int, int], more: dict[str, Any]) -> None:
    """Require what Keras's operations give of faster kernels, too."""
    if grid[0] == 1 and "schedule" in more:
        pytest.skip("a single partition has no schedule")
    found = numbers(build, x, grid, "auto", **more)
    expected = numbers(build, x, grid, "keras", **more)
    odd = [
        f"{n}: {np.abs(one - other).max()} of {np.abs(other).max()}"
        for n, (one, other) in enumerate(zip(found, expected, strict=True))
        if not np.allclose(one, other, rtol=2e-4, atol=2e-5)
    ]
    require_none(odd, f"{more}")


@pytest.mark.on_ranks(2)
@pytest.mark.parametrize("name", ["attention", "nested", *(n for n in CASES if n not in FIRST)])
def test_all_models_in_float32(name: str) -> None:
    """Whatever is in a model: kernels change how gradients are made of all of it."""
    found = {}
    with float_type("float32"):
        for kernels in ("auto", "keras"):
            case = CASES[name]
            keras.utils.set_random_seed(5)
            model = case.build()
            # By the gradients themselves: Adam makes steps of the smallest differences.
            model.compile(
                keras.optimizers.SGD(0.01), loss=model.loss, metrics=[], weighted_metrics=[]
            )
            given = case.data(np.random.default_rng(2)) | case.fit | {"verbose": 0}
            given.pop("validation_data", None)
            layout = {"num_partitions": WORLD.size, "num_microbatches": 1}
            history = hf.fit(model, **given, shuffle=False, kernels=kernels, **layout).history
            found[kernels] = [np.array(history["loss"]), *model.get_weights()]
    odd = [
        f"{n}: {np.abs(one - other).max()} of {np.abs(other).max()}"
        for n, (one, other) in enumerate(zip(found["auto"], found["keras"], strict=True))
        if not np.allclose(one, other, rtol=1e-4, atol=1e-5)
    ]
    require_none(odd, name)


@pytest.mark.on_ranks(2)
@GRIDS
def test_what_was_put_in_is_told(grid: tuple[int, int], tmp_path_factory: Any) -> None:
    layout = {"num_partitions": grid[0], "num_replicas": grid[1], "num_microbatches": 2}
    path = on_leader(lambda: str(tmp_path_factory.mktemp("traces") / "fit.json"))
    told = {}
    for kernels in ("auto", "keras"):
        model = residual_network()
        parallel = hf.parallelize(model, kernels=kernels, **layout)
        parallel.fit(IMAGES, LABELS, batch_size=16, verbose=0, trace=path)
        told[kernels] = "faster kernels on this rank: batch normalization" in str(parallel)
    faults = [] if told == {"auto": True, "keras": False} else [f"print: {told}"]
    if WORLD.rank == 0:
        known = json.loads(Path(path).read_text())["otherData"]
        if known["rewritten"] != [{} for _ in range(WORLD.size)]:
            faults.append(f"kernels of a trace without any: {known['kernels']}")
    parallel = hf.parallelize(residual_network(), **layout)
    parallel.fit(IMAGES, LABELS, batch_size=16, verbose=0, trace=path)
    if WORLD.rank == 0:
        known = json.loads(Path(path).read_text())["otherData"]["rewritten"]
        count = sum(of_rank.get("batch normalization", 0) for of_rank in known)
        if count != NORMALIZED * grid[1]:
            faults.append(f"kernels: {known}")
    require_none(faults, "told")
