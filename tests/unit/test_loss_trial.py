"""Which losses add up over the parts of a batch, and as what."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from hyparflow.engine.loss.terms import LossTerms  # noqa: E402
from hyparflow.engine.trials.sums import require_additive  # noqa: E402
from hyparflow.model.keras_internals.compiled import build_compiled, symbolic_batch  # noqa: E402
from hyparflow.training.data.array_source import specs  # noqa: E402

pytestmark = pytest.mark.usefixtures("float64")

ops = keras.ops
ROWS = 7


def rows_of(y_true: Any, y_pred: Any) -> Any:
    return ops.mean(ops.square(y_pred - y_true), axis=(1, 2))


class OwnCall(keras.losses.Loss):  # type: ignore[misc, name-defined]
    """A class that reduces by itself."""

    def __init__(self, reduce: Any, name: str | None = None) -> None:
        super().__init__(name=name)
        self.reduce = reduce

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        return self.reduce(y_true, ops.convert_to_tensor(y_pred), sample_weight)


def mean(y: Any, p: Any, w: Any) -> Any:
    return ops.mean(ops.square(y - p))


def weighted_mean(y: Any, p: Any, w: Any) -> Any:
    values = rows_of(y, p)
    return ops.mean(values if w is None else values * ops.reshape(w, (-1,)))


def contrastive(y: Any, p: Any, w: Any) -> Any:
    flat = ops.reshape(p, (-1, 24))
    labels = ops.cast(ops.reshape(y, (-1, 24))[:, :1] > 0, "float64")
    same = ops.cast(ops.equal(labels, ops.transpose(labels)), "float64")
    target = same / ops.sum(same, 1, keepdims=True)
    logits = ops.matmul(flat, ops.transpose(flat))
    return ops.mean(ops.categorical_crossentropy(target, logits, from_logits=True))


class Scaled(keras.losses.Loss):  # type: ignore[misc, name-defined]
    """A class that changes what Keras has reduced."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return ops.square(y_pred - y_true)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return 3.0 * super().__call__(*args, **kwargs)


class Wrapping(keras.losses.Loss):  # type: ignore[misc, name-defined]
    """A class that asks another for the value."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.inner = keras.losses.Huber()

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return self.inner(y_true, y_pred)


class Remembering(keras.losses.Loss):  # type: ignore[misc, name-defined]
    """A class that divides by a moving average of its values."""

    def __init__(self) -> None:
        super().__init__()
        self.average = keras.Variable(1.0, dtype="float64")

    def call(self, y_true: Any, y_pred: Any) -> Any:
        values = ops.square(y_pred - y_true)
        self.average.assign(0.9 * self.average + 0.1 * ops.mean(values))
        return values / self.average


class Centred(keras.losses.Loss):  # type: ignore[misc, name-defined]
    """The mean of the batch is taken away from each row's value, for the gradient only."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        values = ops.mean(ops.square(y_pred - y_true), axis=(1, 2))
        centred = ops.stop_gradient(values - ops.mean(values)) * ops.mean(y_pred, axis=(1, 2))
        return values + centred - ops.stop_gradient(centred)


def arrays() -> tuple[Any, Any, Any]:
    random = np.random.default_rng(1)
    x, y, y_pred = (random.normal(size=(ROWS, *shape)) for shape in ((6, 2), (6, 4), (6, 4)))
    return x, y, y_pred


def checked(loss: Any, weights: Any = None, dtype: str = "float64") -> tuple[Any, Any]:
    """A model compiled with `loss`, and its terms after the trial."""
    inputs = keras.Input((6, 2))
    model = keras.Model(inputs, keras.layers.Dense(4, dtype=dtype)(inputs))
    model.compile("sgd", loss)
    x, y, _ = arrays()
    symbolic = symbolic_batch(model, specs((x, y, weights)))
    build_compiled(model, symbolic)
    terms = LossTerms(model, False, symbolic)
    require_additive(model, terms, symbolic)
    return model, terms


def total_of_parts(terms: Any, y: Any, y_pred: Any, ends: list[int]) -> float:
    """The loss as training adds it up."""
    total = 0.0
    for start, stop in itertools.pairwise(ends):
        share = (stop - start) / ROWS
        factors = terms.factors(stop - start, ROWS)
        scale = [ops.convert_to_tensor(value, "float64") for value in (share, factors)]
        part = ops.convert_to_tensor(y_pred[start:stop])
        total += share * float(terms.value(y[start:stop], part, None, *scale))
    return total


GOOD = {
    "own call, mean": lambda: OwnCall(mean),
    "own call, sum": lambda: OwnCall(lambda y, p, w: ops.sum(ops.abs(y - p))),
    "own call, scaled": Scaled,
    "function, mean": lambda: lambda y, p: ops.mean(ops.square(y - p)),
    "function, sum": lambda: lambda y, p: ops.sum(ops.square(y - p)),
    "function, higher rank": lambda: lambda y, p: ops.abs(y - p),
    "function, other axes first": lambda: lambda y, p: ops.transpose(ops.abs(y - p), (1, 0, 2)),
    "wrapping": Wrapping,
    "wrapping, sum": lambda: Wrapping(reduction="sum"),
}
BAD = {
    "contrastive": lambda: OwnCall(contrastive, name="contrastive"),
    "root": lambda: lambda y, p: ops.sqrt(ops.mean(ops.square(y - p))),
    "sum of squares of sums": lambda: OwnCall(lambda y, p, w: ops.sum(ops.sum(p - y, 0) ** 2)),
    "tiny": lambda: OwnCall(lambda y, p, w: 1e-6 * ops.sqrt(ops.mean(ops.square(y - p)))),
    "centred": Centred,
}


@pytest.mark.parametrize("name", GOOD)
def test_losses_that_add_up(name: str) -> None:
    model, terms = checked(GOOD[name]())
    assert not terms.one_number
    _, y, y_pred = arrays()
    expected = float(model.compute_loss(x=None, y=y, y_pred=ops.convert_to_tensor(y_pred)))
    for ends in ([0, 7], [0, 3, 7], [0, 1, 2, 7]):
        assert total_of_parts(terms, y, y_pred, ends) == pytest.approx(expected, 1e-12)


@pytest.mark.parametrize("name", BAD)
def test_losses_that_do_not(name: str) -> None:
    with pytest.raises(ValueError, match="must not depend on other rows"):
        checked(BAD[name]())


def test_weights() -> None:
    """A number for the batch times a number for each row is no sum over rows."""
    weights = np.linspace(0.5, 2, ROWS)
    checked(OwnCall(weighted_mean), weights)
    with pytest.raises(ValueError, match="other rows and their sample weights"):
        checked(lambda y, p: ops.mean(ops.square(y - p)), weights)


def test_rows_of_an_own_call() -> None:
    with pytest.raises(ValueError, match="__call__.*own_call"):
        checked(OwnCall(lambda y, p, w: rows_of(y, p)))


def test_losses_that_change_variables() -> None:
    loss = Remembering()
    with pytest.raises(ValueError, match="must not change variables.*remembering"):
        checked(loss)
    assert float(loss.average) == 1.0


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_outputs_of_16_bits(dtype: str) -> None:
    """What they are rounded to is no reason to take a loss for one that mixes rows."""
    for loss in (
        "mse",
        "kl_divergence",
        lambda y, p: ops.mean(ops.square(y - ops.cast(p, "float64"))),
    ):
        checked(loss, dtype=dtype)
    with pytest.raises(ValueError, match="must not depend on other rows"):
        checked(BAD["contrastive"](), dtype=dtype)
