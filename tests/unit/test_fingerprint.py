"""Differences between ranks' models and arguments are noticed; harmless ones are not."""

from __future__ import annotations

from typing import Any

import pytest

keras = pytest.importorskip("keras")

from hyparflow.fingerprint import (  # noqa: E402
    compile_fingerprint,
    digest,
    model_fingerprint,
    require_same,
)


class FakeWorld:
    """All ranks' items, as if gathered."""

    def __init__(self, others: list[dict[str, str]]) -> None:
        self.others = others

    def all_gather_objects(self, item: Any, what: str) -> list[Any]:
        return self.others


def model(units: int = 3, trainable: bool = True, features: int = 2, dtype: str = "float32") -> Any:
    return keras.Sequential(
        [
            keras.Input((features,)),
            keras.layers.Dense(units, dtype=dtype, trainable=trainable),
            keras.layers.Dense(1),
        ]
    )


def test_same_structure_same_fingerprint() -> None:
    """Names count up with every model built, and weights are random."""
    assert model_fingerprint(model()) == model_fingerprint(model())


@pytest.mark.parametrize(
    "other",
    [{"units": 4}, {"trainable": False}, {"features": 5}, {"dtype": "float64"}],
    ids=str,
)
def test_other_structure(other: dict[str, Any]) -> None:
    assert model_fingerprint(model()) != model_fingerprint(model(**other))


def compiled(optimizer: Any, loss: Any = "mse") -> str:
    made = model()
    made.compile(optimizer, loss)
    return compile_fingerprint(made)


def test_compile_settings() -> None:
    same = compiled(keras.optimizers.Adam(1e-3))
    assert compiled(keras.optimizers.Adam(1e-3, name="other")) == same
    assert compiled(keras.optimizers.Adam(2e-3)) != same
    assert compiled(keras.optimizers.Adam(1e-3, clipnorm=1.0)) != same
    assert compiled(keras.optimizers.SGD(1e-3)) != same
    assert compiled(keras.optimizers.Adam(1e-3), "mae") != same
    assert compiled(keras.optimizers.Adam(1e-3), keras.losses.MeanSquaredError()) != compiled(
        keras.optimizers.Adam(1e-3), keras.losses.MeanAbsoluteError()
    )


def test_learning_rate_schedules() -> None:
    def schedule(rate: float) -> Any:
        return keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 10, rate))

    assert compiled(schedule(0.9)) == compiled(schedule(0.9))
    assert compiled(schedule(0.9)) != compiled(schedule(0.8))


def test_not_compiled() -> None:
    assert compile_fingerprint(model()) == compile_fingerprint(model())


def test_digest() -> None:
    assert digest((1, "a")) == digest((1, "a")) != digest((1, "b"))


def test_ranks_agree() -> None:
    items = {"model": "x", "data": "y"}
    require_same(FakeWorld([items, items, items]), items)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "data, where",
    [
        (["y", "z", "y"], "on rank 1 it differs from rank 0's"),
        (["y", "z", "z"], "on ranks 1, 2 they differ from rank 0's"),
    ],
)
def test_ranks_differ(data: list[str], where: str) -> None:
    world = FakeWorld([{"model": "x", "data": value} for value in data])
    with pytest.raises(ValueError) as caught:
        require_same(world, {"model": "x", "data": "y"})  # type: ignore[arg-type]
    assert f"All ranks must be given the same data. Received: {where}" in str(caught.value)
    assert caught.value.__dict__["hyparflow_everywhere"]  # only the leader reports it
