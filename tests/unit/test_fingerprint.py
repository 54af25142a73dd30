"""Differences between ranks' models and arguments are noticed; harmless ones are not."""

from __future__ import annotations

from typing import Any

import pytest

keras = pytest.importorskip("keras")

from hyparflow.model.fingerprint import (  # noqa: E402
    compile_fingerprint,
    digest,
    model_fingerprint,
    values_fingerprint,
)
from hyparflow.training.agreement import Compared, require_same  # noqa: E402


class FakeWorld:
    """All ranks' items, as if gathered."""

    def __init__(self, others: list[Any]) -> None:
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
    [
        {"units": 4},
        {"trainable": False},
        {"features": 5},
        {"dtype": "float64"},
        {"dtype": "mixed_bfloat16"},
    ],
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


def loss_of(factor: float, constant: float = 1.0) -> Any:
    def loss(y: Any, y_pred: Any) -> Any:
        return factor * (y - y_pred) ** 2

    return loss


class Weighted(keras.losses.Loss):  # type: ignore[misc, name-defined]
    """Has a number that its settings do not tell."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def call(self, y: Any, y_pred: Any) -> Any:
        return self.factor * (y - y_pred) ** 2


def test_what_losses_compute() -> None:
    assert compiled("sgd", loss_of(1.0)) == compiled("sgd", loss_of(1.0))
    assert compiled("sgd", loss_of(1.0)) != compiled("sgd", loss_of(2.0))
    assert compiled("sgd", lambda y, p: 1 * (y - p)) != compiled("sgd", lambda y, p: 2 * (y - p))
    assert compiled("sgd", Weighted(1.0)) == compiled("sgd", Weighted(1.0))
    assert compiled("sgd", Weighted(1.0)) != compiled("sgd", Weighted(2.0))


class Scaled(keras.layers.Layer):  # type: ignore[misc, name-defined]
    """Reads numbers that its settings do not tell, and has one that no call reads."""

    def __init__(self, factor: float, rank: int = 0) -> None:
        super().__init__()
        self.factor = factor
        self.rank = rank
        self.label = f"{self.name}/x"

    def call(self, x: Any) -> Any:
        return keras.ops.multiply(x, self.factor, **({} if self.label else {}))


def test_what_own_layers_read() -> None:
    def values(*args: Any) -> str:
        return values_fingerprint(keras.Sequential([keras.Input((2,)), Scaled(*args)]))

    assert values(1.0) == values(1.0) == values(1.0, 7)
    assert values(1.0) != values(2.0)


def test_policies_and_lambdas() -> None:
    def wrapped(dtype: str) -> Any:
        inner = keras.layers.Dense(2, dtype=dtype)
        return keras.Sequential([keras.Input((3, 2)), keras.layers.TimeDistributed(inner)])

    assert model_fingerprint(wrapped("float32")) == model_fingerprint(wrapped("float32"))
    assert model_fingerprint(wrapped("float32")) != model_fingerprint(wrapped("mixed_float16"))

    def function(factor: float) -> Any:
        layer = keras.layers.Lambda(lambda x: x * factor)
        return model_fingerprint(keras.Sequential([keras.Input((2,)), layer]))

    assert function(1.0) == function(1.0) != function(2.0)


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
    items = {"model": Compared("x"), "data": Compared("y")}
    require_same(FakeWorld([items, items, items]), items)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "data, where",
    [
        (["y", "z", "y"], "on rank 1 it differs from rank 0's"),
        (["y", "z", "z"], "on ranks 1, 2 they differ from rank 0's"),
    ],
)
def test_ranks_differ(data: list[str], where: str) -> None:
    ranks = [{"model": Compared("x"), "data": Compared(value)} for value in data]
    with pytest.raises(ValueError) as caught:
        require_same(FakeWorld(ranks), ranks[0])  # type: ignore[arg-type]
    assert f"All ranks must be given the same data. Received: {where}" in str(caught.value)
    assert caught.value.__dict__["hyparflow_everywhere"]  # only the leader reports it


def test_short_values_that_differ_are_shown() -> None:
    ranks = [{"method": Compared.of(method)} for method in ("fit", "evaluate")]
    with pytest.raises(ValueError, match="from rank 0's: 'evaluate' in place of 'fit'. Every"):
        require_same(FakeWorld(ranks), ranks[0])  # type: ignore[arg-type]
    assert not Compared.of("x" * 50).is_shown
    assert Compared.of("x" * 50) != Compared.of("x" * 51)
