"""Every loss of Keras, all in one model with an output for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from compatibility.rows import refused, works
from compatibility.runs import Runs, arrays, dense_model, one_hot

SPARSE = ("CategoricalGeneralizedCrossEntropy", "SparseCategoricalCrossentropy")
COUPLED = ("Dice", "Tversky")  # by default they sum over the whole batch
SPECIAL = ("CTC", "Circle", *COUPLED)  # labels of another shape; compares the rows of a batch


def names() -> list[str]:
    """The loss classes of this Keras."""
    return sorted(
        name
        for name in dir(keras.losses)
        if isinstance(getattr(keras.losses, name), type) and name != "Loss"
    )


def together(kinds: list[str], reduction: str | None = None) -> Callable[[Runs], None]:
    """A check of these losses, each on an output of its own."""

    def train(run: Any) -> Any:
        inputs = keras.Input((5,))
        x = keras.layers.Dense(8, activation="tanh")(inputs)
        outputs, losses, labels = {}, {}, {}
        for kind in kinds:
            x = keras.layers.Dense(8, activation="tanh")(x)
            outputs[kind] = keras.layers.Dense(3, activation="softmax", name=kind)(x)
            arguments = {} if reduction is None else {"reduction": reduction}
            losses[kind] = getattr(keras.losses, kind)(**arguments)
            labels[kind] = arrays()[1] if kind in SPARSE else one_hot()
        model = keras.Model(inputs, outputs)
        model.compile("sgd", losses)
        weights = {kind: np.linspace(0, 2, 45) for kind in kinds}
        run.fit(model, arrays()[0], labels, batch_size=20, epochs=2, sample_weight=weights)
        return model

    return lambda runs: runs.compare(train)


ordinary = [name for name in names() if name not in SPECIAL]
works("Losses", *ordinary)(together(ordinary))
works("Losses", 'reduction="sum"')(together(ordinary[:3], "sum"))
works("Losses", 'reduction="mean_with_sample_weight"')(
    together(ordinary[:3], "mean_with_sample_weight")
)


@refused("Losses", 'reduction="none"', note="its gradient is a sum over rows, its value a mean")
def check_unreduced(runs: Runs) -> None:
    def train(run: Any) -> Any:
        model = dense_model(3, "softmax")
        model.compile("sgd", keras.losses.MeanSquaredError(reduction="none"))
        return run.fit(model, arrays()[0], one_hot(), batch_size=20)

    runs.refuse(train, r"must be reduced to a number.*\['mean_squared_error'\]")


@works("Losses", "CTC")
def check_ctc(runs: Runs) -> None:
    def train(run: Any) -> Any:
        inputs = keras.Input((12, 4))
        x = keras.layers.Dense(8, activation="tanh")(inputs)
        model = keras.Model(inputs, keras.layers.Dense(5)(keras.layers.Dense(8)(x)))
        model.compile("sgd", keras.losses.CTC())
        random = np.random.default_rng(0)
        run.fit(model, random.normal(size=(20, 12, 4)), random.integers(1, 5, (20, 3)))
        return model

    # Keras computes this loss in float32.
    runs.compare(train, tolerance=1e-4, dtype="float32")


@works("Losses", "a function", "a class of your own", note="one value per row, or a mean of rows")
def check_own(runs: Runs) -> None:
    class Own(keras.losses.Loss):
        def call(self, y_true: Any, y_pred: Any) -> Any:
            return keras.ops.mean(keras.ops.abs(y_true - y_pred) ** 3, axis=-1)

    def function(y_true: Any, y_pred: Any) -> Any:
        return keras.ops.max(keras.ops.abs(y_true - y_pred), axis=-1)

    def train(run: Any) -> Any:
        inputs = keras.Input((5,))
        x = keras.layers.Dense(8, activation="tanh")(inputs)
        first, second = keras.layers.Dense(3)(x), keras.layers.Dense(3)(keras.layers.Dense(4)(x))
        model = keras.Model(inputs, [first, second])
        model.compile("sgd", [Own(), function])
        run.fit(model, arrays()[0], [one_hot(), one_hot()], batch_size=20, epochs=2)
        return model

    runs.compare(train)


def embeddings(run: Any, **options: Any) -> Any:
    inputs = keras.Input((5,))
    x = keras.layers.Dense(8, activation="tanh")(inputs)
    model = keras.Model(inputs, keras.layers.UnitNormalization()(keras.layers.Dense(4)(x)))
    model.compile("sgd", keras.losses.Circle())
    if not run.is_plain:
        run = type(run)(run.options | options)
    run.fit(model, *arrays(), batch_size=20)
    return model


ONE_PART = "sees the batch as a whole: works where it has one part, else refused"


@works("Losses", "Circle", note=ONE_PART)
def check_circle(runs: Runs) -> None:
    if runs.options["strategy"] == "model":
        runs.compare(lambda run: embeddings(run, num_microbatches=1))
    else:
        runs.refuse(embeddings, r"must not depend on other rows .*circle")


def coupled(kind: str) -> Callable[[Runs], None]:
    """A check of a loss over the whole batch, and over each row."""

    def train(run: Any, num_microbatches: int = 2, **arguments: Any) -> Any:
        model = dense_model(3, "softmax")
        model.compile("sgd", getattr(keras.losses, kind)(**arguments))
        if not run.is_plain:
            run = type(run)(run.options | {"num_microbatches": num_microbatches})
        run.fit(model, arrays()[0], one_hot(), batch_size=20)
        return model

    def check(runs: Runs) -> None:
        runs.compare(lambda run: train(run, axis=(1,)))
        if runs.options["strategy"] == "model":
            runs.compare(lambda run: train(run, num_microbatches=1))
        else:
            runs.refuse(train, f"must not depend on other rows .*{kind.lower()}")

    return check


for kind in COUPLED:
    works("Losses", f"{kind}(axis=(1, ...))")(coupled(kind))
    works("Losses", kind, note=ONE_PART)(coupled(kind))


def dice(y_true: Any, y_pred: Any) -> Any:
    """One number for a batch that is no mean over its rows."""
    overlap = keras.ops.sum(y_true * y_pred)
    return 1.0 - overlap / (keras.ops.sum(y_true) + keras.ops.sum(y_pred))


@refused(
    "Losses", "losses that depend on other rows", note="return a value per row, or a mean of such"
)
def check_coupling(runs: Runs) -> None:
    def train(run: Any) -> None:
        model = dense_model(3, "softmax")
        model.compile("sgd", dice)
        run.fit(model, arrays()[0], one_hot())

    runs.refuse(train, "must not depend on other rows.*dice")


@works("Losses", "one number for a batch", note="that is a mean over rows")
def check_mean(runs: Runs) -> None:
    def train(run: Any) -> Any:
        model = dense_model(3, "softmax")
        model.compile("sgd", lambda y, p: keras.ops.mean(keras.ops.square(y - p)))
        run.fit(model, arrays()[0], one_hot(), batch_size=20, epochs=2)
        return model

    runs.compare(train)
