"""Losses and metrics of one's own, tried on labels and predictions that come later in real data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

from hyparflow.engine.loss.terms import LossTerms  # noqa: E402
from hyparflow.engine.trials.seen import SeenLabels  # noqa: E402
from hyparflow.engine.trials.sums import require_additive  # noqa: E402
from hyparflow.model.keras_internals.compiled import build_compiled, symbolic_batch  # noqa: E402
from hyparflow.training.data.array_source import specs  # noqa: E402

ops = keras.ops
random = np.random.default_rng(3)
ROWS = 24
FLOATS = random.normal(size=(ROWS, 2)).astype("float32")
CLASSES = random.integers(0, 3, ROWS)
HOT = np.eye(3, dtype="float32")[CLASSES]
TOKENS = random.integers(1, 9, (ROWS, 5))
WEIGHTS = random.uniform(size=ROWS).astype("float32")


def model_of(y: Any, length: int | None = 5) -> Any:
    """A model whose output fits these labels."""
    if y is TOKENS:
        inputs = keras.Input((length,), dtype="int32")
        hidden = keras.layers.Embedding(9, 4)(inputs)
        return keras.Model(inputs, keras.layers.Dense(9)(hidden)), TOKENS
    inputs = keras.Input((6,))
    outputs = keras.layers.Dense(2 if y is FLOATS else 3)(inputs)
    return keras.Model(inputs, outputs), np.zeros((ROWS, 6), "float32")


def check(
    loss: Any,
    y: Any,
    metrics: Any = (),
    weights: Any = None,
    is_seen: bool = False,
    model: Any = None,
) -> None:
    """Try a loss and metrics as `fit` does, with or without a look at the labels."""
    model, x = model or model_of(y)
    model.compile("sgd", loss, metrics=list(metrics) or None)
    symbolic = symbolic_batch(model, specs((x, y, weights)))
    build_compiled(model, symbolic)
    terms = LossTerms(model, False, symbolic)
    require_additive(model, terms, symbolic, lambda: SeenLabels(y, weights) if is_seen else None)


def masked(mark: float, least: float = 0.0) -> Callable[[Any, Any], Any]:
    def loss(y: Any, p: Any) -> Any:
        there = ops.cast(ops.not_equal(y, mark), "float32")
        return ops.sum(there * ops.square(y - p)) / ops.maximum(ops.sum(there), least)

    return loss


def masked_classes(mark: int) -> Callable[[Any, Any], Any]:
    def loss(y: Any, p: Any) -> Any:
        there = tf.not_equal(y, tf.cast(mark, y.dtype))
        labels = tf.where(there, y, tf.zeros_like(y))
        values = keras.losses.sparse_categorical_crossentropy(labels, p, from_logits=True)
        there = tf.cast(there, values.dtype)
        return tf.reduce_sum(values * there) / tf.reduce_sum(there)

    return loss


def without_nan(y: Any, p: Any) -> Any:
    there = tf.math.is_finite(y)
    return tf.reduce_mean(tf.square(tf.boolean_mask(y, there) - tf.boolean_mask(p, there)))


def without_nan_by_where(y: Any, p: Any) -> Any:
    there = ops.logical_not(ops.isnan(y))
    values = ops.where(there, ops.square(ops.where(there, y, 0.0) - p), 0.0)
    return ops.sum(values) / ops.sum(ops.cast(there, "float32"))


def by_positives(y: Any, p: Any) -> Any:
    count = ops.sum(ops.cast(y > 1.5, "float32"))
    return ops.sum(ops.square(y - p)) / ops.maximum(count, 1.0)


def capped(y: Any, p: Any) -> Any:
    return ops.minimum(ops.mean(ops.square(y - p)), 1.0)


def over_margin(y: Any, p: Any) -> Any:
    return ops.relu(ops.mean(ops.abs(y - p)) - 300.0)


def pairs(y: Any, p: Any) -> Any:
    distance = ops.sum(ops.square(p[:, None] - p[None]), -1)
    return ops.mean(ops.maximum(distance - 5.0, 0.0))


def below(y: Any, p: Any) -> Any:
    there = ops.cast(y[:, :1] < 50, "float32")
    return ops.sum(there * ops.square(y - p)) / (ops.sum(there) + 1e-6)


def if_any(y: Any, p: Any) -> Any:
    value = tf.reduce_mean(tf.square(y - p))
    return tf.cond(tf.reduce_any(tf.equal(y, 7.0)), lambda: 2 * value, lambda: value)


def rows_with_a_class(y: Any, p: Any) -> Any:
    there = ops.cast(ops.sum(y, -1) > 0, "float32")
    values = ops.categorical_crossentropy(y, p, from_logits=True)
    return ops.sum(there * values) / ops.maximum(ops.sum(there), 1.0)


class OwnCall(keras.losses.Loss):  # type: ignore[misc, name-defined]
    """Leaves out rows below a mark."""

    def __call__(self, y: Any, p: Any, sample_weight: Any = None) -> Any:
        there = ops.cast(y[:, 0] > -5, "float32")
        return ops.sum(there * ops.sum((y - p) ** 2, -1)) / ops.sum(there)


class OneNumber(keras.losses.Loss):  # type: ignore[misc, name-defined]
    """A masked mean in `call`."""

    def call(self, y: Any, p: Any) -> Any:
        return masked(-9.0, 1.0)(y, p)


BAD: dict[str, Any] = {
    "NaN, by boolean_mask": (without_nan, FLOATS),
    "NaN, by where": (without_nan_by_where, FLOATS),
    **{f"label {mark}": (masked(mark), FLOATS) for mark in (-1.0, -100.0, 255.0, 0.5)},
    **{f"class {mark}": (masked_classes(mark), TOKENS) for mark in (0, -1, -100, 255)},
    "positives": (by_positives, FLOATS),
    "capped": (capped, FLOATS),
    "over a margin": (over_margin, FLOATS),
    "pairs": (pairs, FLOATS),
    "below": (below, FLOATS),
    "a branch": (if_any, FLOATS),
    "rows with a class": (rows_with_a_class, HOT),
    "own __call__": (OwnCall(), FLOATS),
    "own call": (OneNumber(), FLOATS),
    "own call, sum": (OneNumber(reduction="sum"), FLOATS),
}


def focal(y: Any, p: Any) -> Any:
    p = ops.clip(ops.softmax(p), 1e-7, 1 - 1e-7)
    return -ops.sum(y * (1 - p) ** 2 * ops.log(p), -1)


def dice(y: Any, p: Any) -> Any:
    p = ops.softmax(p)
    return 1 - (2 * ops.sum(y * p, -1) + 1) / (ops.sum(y, -1) + ops.sum(p, -1) + 1)


def smoothed(y: Any, p: Any) -> Any:
    hot = ops.one_hot(ops.cast(ops.reshape(y, (-1,)), "int32"), 3) * 0.9 + 0.1 / 3
    return ops.categorical_crossentropy(hot, p, from_logits=True)


def quantile(y: Any, p: Any) -> Any:
    return ops.mean(ops.maximum(0.9 * (y - p), -0.1 * (y - p)))


def huber(y: Any, p: Any) -> Any:
    error = ops.abs(y - p)
    return ops.where(error < 1.5, 0.5 * error**2, 1.5 * error - 1.125)


def masked_rows(y: Any, p: Any) -> Any:
    there = ops.cast(ops.not_equal(y, -1), "float32")
    return ops.sum(there * (y - p) ** 2, -1) / ops.maximum(ops.sum(there, -1), 1)


def likelihood(y: Any, p: Any) -> Any:
    scale = ops.softplus(p[:, 1:]) + 1e-3
    return ops.mean(ops.log(scale) + 0.5 * ((y[:, :1] - p[:, :1]) / scale) ** 2)


def masked_sum(y: Any, p: Any) -> Any:
    there = ops.cast(ops.not_equal(y, 255), "float32")
    return ops.sum(there * ops.square(y - p))


GOOD: dict[str, Any] = {
    "mean": (lambda y, p: ops.mean(ops.square(y - p)), FLOATS),
    "large labels": (lambda y, p: ops.mean(ops.square(y - 1e5 * p)), FLOATS),
    "difference of large means": (lambda y, p: ops.mean(1e3 * p) - ops.mean(1e3 * p * y), FLOATS),
    "sum": (lambda y, p: ops.sum(ops.abs(y - p)), FLOATS),
    "masked sum": (masked_sum, FLOATS),
    "huber": (huber, FLOATS),
    "quantile": (quantile, FLOATS),
    "log cosh": (lambda y, p: ops.mean(ops.log(ops.cosh(p - y))), FLOATS),
    "capped values": (lambda y, p: ops.mean(ops.minimum(ops.square(y - p), 4.0)), FLOATS),
    "hinge": (lambda y, p: ops.mean(ops.maximum(1.0 - y * p, 0.0)), FLOATS),
    "exponential": (lambda y, p: ops.mean(ops.exp(p) - y * p), FLOATS),
    "likelihood": (likelihood, FLOATS),
    "masked mean of each row": (masked_rows, FLOATS),
    "random": (lambda y, p: ops.mean((y - p + keras.random.normal((2,))) ** 2), FLOATS),
    "focal": (focal, HOT),
    "dice of each row": (dice, HOT),
    "label smoothing": (smoothed, CLASSES),
    "ignored class": (
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1),
        TOKENS,
    ),
}


# What is found without a look at the labels is found with one by the same trial.
LOOKED_AT = ("NaN, by where", "label 255.0", "class -1", "pairs", "a branch", "own call")


@pytest.mark.parametrize(
    ("name", "is_seen"),
    [
        *((name, False) for name in BAD),
        *((name, True) for name in LOOKED_AT),
        *(
            pytest.param(name, True, marks=pytest.mark.slow)
            for name in BAD
            if name not in LOOKED_AT
        ),
    ],
)
def test_losses_that_join_rows_at_some_values(name: str, is_seen: bool) -> None:
    with pytest.raises(ValueError, match="must not depend on other rows"):
        check(*BAD[name], is_seen=is_seen)


@pytest.mark.parametrize("name", GOOD)
def test_losses_that_add_up(name: str) -> None:
    check(*GOOD[name], is_seen=True)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["", "weights"])
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight"])
def test_subclasses(reduction: str, weights: Any) -> None:
    class Own(keras.losses.Loss):  # type: ignore[misc, name-defined]
        def call(self, y: Any, p: Any) -> Any:
            return masked_rows(y, p)

    check(Own(reduction=reduction), FLOATS, weights=weights, is_seen=True)


def functions_of_keras() -> dict[str, Any]:
    """Keras's losses as functions of one's own; Circle and Dice join rows."""
    names = [name for name in vars(keras.losses) if name.islower()]
    functions = {name: getattr(keras.losses, name) for name in names}
    others = ("get", "serialize", "deserialize", "circle", "dice", "tversky", "ctc")
    others += ("categorical_generalized_cross_entropy",)  # asks for a further argument
    return {n: f for n, f in functions.items() if n not in others and callable(f)}


@pytest.mark.parametrize("name", functions_of_keras())
def test_functions_of_keras(name: str) -> None:
    function = functions_of_keras()[name]
    y = CLASSES if "sparse" in name else HOT
    check(lambda y, p: function(y, p), y, [lambda y, p: function(y, p)], is_seen=True)
    check(lambda y, p: ops.mean(function(y, p)), y, [lambda y, p: ops.mean(function(y, p))])


class Sums(keras.metrics.Metric):  # type: ignore[misc, name-defined]
    """A mean over labels that are there."""

    def __init__(self, is_right: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.is_right = is_right
        self.total = self.add_weight(shape=(), initializer="zeros")
        self.count = self.add_weight(shape=(), initializer="zeros")

    def update_state(self, y: Any, p: Any, sample_weight: Any = None) -> None:
        there = ops.logical_not(ops.isnan(y))
        values = ops.where(there, ops.abs(ops.where(there, y, 0.0) - p), 0.0)
        count = ops.sum(ops.cast(there, "float32"))
        size = ops.cast(ops.size(y), "float32")
        self.total.assign_add(ops.sum(values) * (1 if self.is_right else count / size))
        self.count.assign_add(count)

    def result(self) -> Any:
        return self.total / self.count


@pytest.mark.parametrize(
    "metric", [without_nan, masked(-9.0), Sums(False)], ids=["NaN", "label", "class"]
)
def test_metrics_that_join_rows_at_some_values(metric: Any) -> None:
    with pytest.raises(ValueError, match="must keep sums and counts of rows"):
        check("mse", FLOATS, [metric, "mae"])


def test_metrics_that_add_up() -> None:
    own = [Sums(), masked_rows, lambda y, p: ops.mean(ops.abs(y - p))]
    check("mse", FLOATS, [*own, "mae", keras.metrics.R2Score()], is_seen=True)


def test_a_metric_of_keras_that_raises_hides_no_other() -> None:
    """A label that one metric does not take is tried with the others."""
    metrics = [keras.metrics.MeanIoU(9, sparse_y_pred=False), masked_classes(-1)]
    with pytest.raises(ValueError, match=r"metrics \['loss'\]"):
        check(keras.losses.SparseCategoricalCrossentropy(), TOKENS, metrics)


@pytest.mark.parametrize("mark", [0, -1])
def test_outputs_of_any_length(mark: int) -> None:
    """Labels of 5 tokens, and a model that takes any number of them."""
    with pytest.raises(ValueError, match="must not depend on other rows"):
        check(masked_classes(mark), TOKENS, model=model_of(TOKENS, None))
    check(keras.losses.SparseCategoricalCrossentropy(), TOKENS, model=model_of(TOKENS, None))


def several(losses: dict[str, Any], y: dict[str, Any]) -> None:
    inputs = keras.Input((6,))
    outputs = {name: keras.layers.Dense(2, name=name)(inputs) for name in "ab"}
    model = keras.Model(inputs, outputs), np.zeros((ROWS, 6), "float32")
    check(losses, y, model=model, is_seen=True)


def test_several_outputs() -> None:
    both = {"a": FLOATS, "b": FLOATS}
    with pytest.raises(ValueError, match=r"\(losses \['loss of b'\]\)"):
        several({"a": huber, "b": masked(-1.0)}, both)
    several({"a": huber, "b": "mse"}, both)
    several({"a": huber}, {"a": FLOATS})


def test_labels_of_which_only_the_data_tell() -> None:
    mark = tf.Variable(-77.25)
    y = np.where(random.random(FLOATS.shape) > 0.7, np.float32(-77.25), FLOATS)
    model = model_of(FLOATS)
    loss = masked(mark)  # type: ignore[arg-type]
    check(loss, y, model=model)
    with pytest.raises(ValueError, match="must not depend on other rows"):
        check(loss, y, model=model, is_seen=True)


def test_the_state_of_metrics_and_variables_is_as_before() -> None:
    metric = Sums()
    check("mse", FLOATS, [metric])
    assert float(metric.count) == 0.0
