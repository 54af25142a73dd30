"""Every metric of Keras, as many as possible in one training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from compatibility.rows import refused, works
from compatibility.runs import Runs, arrays, classifier, dense_model, one_hot

ABSTRACT = ("Metric", "MeanMetricWrapper")
WITHOUT_LABELS = ("Mean", "Sum")  # take values, not labels and predictions
SPARSE = (
    "SparseCategoricalAccuracy",
    "SparseCategoricalCrossentropy",
    "SparseTopKCategoricalAccuracy",
)
BINARY = ("BinaryIoU", "IoU", "MeanIoU")
ARGUMENTS: dict[str, dict[str, Any]] = {
    "BinaryIoU": {"target_class_ids": [0, 1], "threshold": 0.4},
    "IoU": {"num_classes": 2, "target_class_ids": [0]},
    "MeanIoU": {"num_classes": 2},
    "MeanRelativeError": {"normalizer": [1.0, 2.0, 3.0]},
    "OneHotIoU": {"num_classes": 3, "target_class_ids": [0, 2]},
    "OneHotMeanIoU": {"num_classes": 3},
    "PrecisionAtRecall": {"recall": 0.5},
    "RecallAtPrecision": {"precision": 0.3},
    "SensitivityAtSpecificity": {"specificity": 0.5},
    "SpecificityAtSensitivity": {"sensitivity": 0.5},
}


def names() -> list[str]:
    """The metric classes of this Keras."""
    metric = keras.metrics.Metric
    return sorted(
        name
        for name in dir(keras.metrics)
        if isinstance(kind := getattr(keras.metrics, name), type) and issubclass(kind, metric)
        if name not in ABSTRACT
    )


def together(kinds: list[str], labels: np.ndarray, outputs: int) -> Callable[[Runs], None]:
    """A check of these metrics, without and with sample weights."""

    def make() -> list[Any]:
        return [getattr(keras.metrics, kind)(**ARGUMENTS.get(kind, {})) for kind in kinds]

    def train(run: Any) -> Any:
        model = dense_model(outputs, "softmax" if outputs > 1 else "sigmoid")
        loss = "mse" if labels.ndim > 1 else "sparse_categorical_crossentropy"
        model.compile("sgd", loss, metrics=make(), weighted_metrics=make())
        weights = np.linspace(0, 2, 45)
        run.fit(model, arrays()[0], labels, 20, 2, sample_weight=weights)
        return model

    # Some of these metrics take float32 predictions only.
    return lambda runs: runs.compare(train, tolerance=2e-5, dtype="float32")


one_hots = [n for n in names() if n not in (*SPARSE, *BINARY, *WITHOUT_LABELS)]
works("Metrics", *one_hots)(together(one_hots, one_hot(), 3))
works("Metrics", *SPARSE)(together(list(SPARSE), arrays()[1], 3))
works("Metrics", *BINARY)(together(list(BINARY), (arrays()[1][:, None] > 0).astype(float), 1))


class RowMean(keras.metrics.Mean):
    """A mean over rows of a value of one's own."""

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        super().update_state(keras.ops.max(y_pred, axis=-1), sample_weight)


class RowSum(keras.metrics.Sum):
    """A sum over rows."""

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        super().update_state(keras.ops.max(y_pred, axis=-1), sample_weight)


@works("Metrics", "Mean", "Sum", "a class of your own", note="whose state adds up over rows")
def check_own(runs: Runs) -> None:
    def train(run: Any) -> Any:
        model, (x, y) = classifier(metrics=[RowMean(name="m"), RowSum(name="s")]), arrays()
        run.fit(model, x, y, batch_size=20, epochs=2)
        return model

    runs.compare(train)


def spread(y_true: Any, y_pred: Any) -> Any:
    """One number for a batch that is a mean over its rows."""
    return keras.ops.mean(keras.ops.max(y_pred, -1) - keras.ops.min(y_pred, -1))


@works("Metrics", "a function", note="one value per row, or one for a batch that is their mean")
def check_function(runs: Runs) -> None:
    def train(run: Any) -> Any:
        model, (x, y) = classifier(metrics=[spread]), arrays()
        run.fit(model, x, y, batch_size=20, epochs=2)
        return model

    runs.compare(train)


class Largest(keras.metrics.Metric):
    """Its state is no sum."""

    def __init__(self) -> None:
        super().__init__(name="largest")
        self.value = self.add_variable((), initializer="zeros", name="value")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.value.assign(keras.ops.maximum(self.value, keras.ops.max(y_pred)))

    def result(self) -> Any:
        return self.value.value


def deviation(y_true: Any, y_pred: Any) -> Any:
    """One number for a batch that is no mean over its rows."""
    return keras.ops.std(y_pred)


@refused("Metrics", "metrics whose state does not add up", note="keep sums and counts of rows")
def check_refused(runs: Runs) -> None:
    x, y = arrays()
    for metric, name in ((Largest(), "largest"), (deviation, "deviation")):
        runs.refuse(
            lambda run, metric=metric: run.fit(classifier(metrics=["accuracy", metric]), x, y),
            rf"must keep sums and counts of rows \(metrics \['{name}'\]",
        )
