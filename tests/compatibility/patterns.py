"""More patterns of keras.io: tables, text, sequences, stochastic depth."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from compatibility.keras_io import PATTERNS, compiled, with_layer
from compatibility.rows import works
from compatibility.runs import Runs, arrays, one_hot

ROWS = 40


def table() -> dict[str, np.ndarray]:
    """Columns of numbers, of whole numbers and of categories."""
    random = np.random.default_rng(0)
    return {
        "numbers": random.normal(2.0, 3.0, (ROWS, 3)),
        "age": random.uniform(0, 90, (ROWS, 1)),
        "city": random.integers(100, 105, (ROWS, 1)),
        "code": random.integers(0, 1000, (ROWS, 1)),
        "tags": random.integers(0, 6, (ROWS, 4)),
    }


def preprocessed(columns: dict[str, np.ndarray]) -> tuple[dict[str, Any], Any]:
    """Inputs for the columns, and features made of them by Keras's layers."""
    inputs = {
        name: keras.Input(x.shape[1:], dtype="int32" if x.dtype.kind == "i" else None, name=name)
        for name, x in columns.items()
    }
    normalize = layers.Normalization()
    normalize.adapt(columns["numbers"])
    parts = [
        normalize(inputs["numbers"]),
        layers.CategoryEncoding(4, "one_hot")(layers.Discretization([18, 40, 65])(inputs["age"])),
        layers.Flatten()(
            layers.Embedding(7, 2)(layers.IntegerLookup(vocabulary=[100, 101, 102])(inputs["city"]))
        ),
        layers.Flatten()(layers.Embedding(8, 2)(layers.Hashing(8)(inputs["code"]))),
        layers.CategoryEncoding(6, "multi_hot")(inputs["tags"]),
    ]
    return inputs, layers.Concatenate()(parts)


class Reports(keras.metrics.Metric):
    """A metric whose result has several numbers, by name."""

    def __init__(self) -> None:
        super().__init__(name="reports")
        self.hits = self.add_variable((), "zeros", name="hits")
        self.count = self.add_variable((), "zeros", name="count")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        hits = ops.cast(ops.cast(y_pred > 0.5, y_true.dtype) == y_true, self.hits.dtype)
        self.hits.assign_add(ops.sum(hits))
        self.count.assign_add(ops.cast(ops.size(hits), self.count.dtype))

    def result(self) -> dict[str, Any]:
        return {"right": self.hits / self.count, "wrong": 1 - self.hits / self.count}


def focal(y_true: Any, y_pred: Any) -> Any:
    """The binary focal loss of each row."""
    right = ops.clip(y_true * y_pred + (1 - y_true) * (1 - y_pred), 1e-7, 1.0)
    return ops.mean(-((1 - right) ** 2) * ops.log(right), axis=-1)


class Orthogonal(keras.regularizers.Regularizer):
    """Draws the columns of a kernel apart."""

    def __call__(self, x: Any) -> Any:
        products = ops.matmul(ops.transpose(x), x)
        return 1e-3 * ops.sum(ops.square(products - ops.eye(x.shape[1], dtype=x.dtype)))


class Centred(keras.constraints.Constraint):
    """Takes the mean out of each column."""

    def __call__(self, w: Any) -> Any:
        return w - ops.mean(w, axis=0, keepdims=True)


@works(
    PATTERNS,
    "tables through preprocessing layers",
    "outputs of which some have a loss",
    "focal loss",
    "label smoothing",
    "metric with a dict of results",
    "regularizer and constraint of one's own",
)
def check_table(runs: Runs) -> None:
    def train(run: Any) -> Any:
        columns = table()
        inputs, x = preprocessed(columns)
        x = layers.Dense(6, "tanh", kernel_regularizer=Orthogonal(), kernel_constraint=Centred())(x)
        outputs = {
            "buys": layers.Dense(1, "sigmoid", name="buys")(layers.Dense(4, "tanh")(x)),
            "kind": layers.Dense(3, "softmax", name="kind")(layers.Dense(4, "tanh")(x)),
            "hidden": x,
        }
        model = keras.Model(inputs, outputs)
        smooth = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
        thresholds = keras.metrics.Precision(thresholds=[0.3, 0.6], name="precision")
        model.compile(
            keras.optimizers.SGD(0.05),
            {"buys": focal, "kind": smooth, "hidden": None},
            loss_weights={"buys": 2.0, "kind": 0.5, "hidden": None},
            metrics={
                "buys": [Reports(), thresholds, keras.metrics.AUC(num_thresholds=9, name="auc")],
                "kind": [
                    keras.metrics.F1Score("macro", name="f1"),
                    keras.metrics.OneHotMeanIoU(3, name="iou"),
                ],
            },
        )
        buys = (np.arange(ROWS) % 3 == 0).astype(float)[:, None]
        y = {"buys": buys, "kind": one_hot(ROWS), "hidden": np.zeros((ROWS, 6))}
        run.fit(model, columns, y, batch_size=20, epochs=2)
        return model

    # Thresholds of Keras's metrics are compared in float32.
    runs.compare(train, tolerance=1e-6)


@works(PATTERNS, "StringLookup and TextVectorization in a dataset", note="before the model")
def check_text(runs: Runs) -> None:
    def train(run: Any) -> Any:
        texts = np.array(["a red fox", "the blue sea", "a sea", "red red"] * 10)
        kinds = np.array(["x", "y", "z", "x"] * 10)
        words = layers.TextVectorization(output_sequence_length=4)
        words.adapt(texts)
        lookup = layers.StringLookup(vocabulary=["x", "y", "z"], num_oov_indices=0)
        data = tf.data.Dataset.from_tensor_slices((texts, kinds)).batch(20)
        data = data.map(lambda text, kind: (words(text), lookup(kind)))
        inputs = keras.Input((4,), dtype="int64")
        x = layers.Embedding(words.vocabulary_size(), 4, mask_zero=True)(inputs)
        x = layers.Dense(5, "tanh")(layers.GlobalAveragePooling1D()(x))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model = compiled(inputs, layers.Dense(3)(x), loss)
        run.fit(model, data, epochs=2)
        return model

    runs.compare(train)


class Tied(layers.Layer):
    """Scores of words by the weights of their embedding."""

    def __init__(self, embedding: Any, **options: Any) -> None:
        super().__init__(**options)
        self.embedding = embedding

    def call(self, x: Any) -> Any:
        return ops.matmul(x, ops.transpose(self.embedding.embeddings))


@works(
    PATTERNS,
    "time series under a mask, bidirectional",
    "attention under a causal mask",
    "sample weights of time steps",
)
def check_sequences(runs: Runs) -> None:
    def train(run: Any) -> Any:
        random = np.random.default_rng(0)
        x, y = random.normal(size=(ROWS, 5, 3)), random.normal(size=(ROWS, 5, 2))
        x[::3, 3:] = 0
        inputs = keras.Input((5, 3))
        h = layers.Bidirectional(layers.GRU(3, return_sequences=True))(layers.Masking()(inputs))
        h = h + layers.MultiHeadAttention(2, 3)(h, h, use_causal_mask=True)
        model = compiled(inputs, layers.TimeDistributed(layers.Dense(2))(h), "mse")
        run.fit(model, x, y, batch_size=20, epochs=2, sample_weight=random.random((ROWS, 5)))
        return model

    runs.compare(train)


@works(PATTERNS, "weights tied between embedding and output")
def check_tied(runs: Runs) -> None:
    def train(run: Any) -> Any:
        tokens = np.random.default_rng(0).integers(0, 9, (ROWS, 6))
        inputs, embedding = keras.Input((6,), dtype="int32"), layers.Embedding(9, 4)
        x = layers.Dense(4, "tanh")(layers.Dense(5, "tanh")(embedding(inputs)))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model = compiled(inputs, Tied(embedding)(x), loss)
        run.fit(model, tokens, tokens, batch_size=20, epochs=2)
        return model

    runs.compare(train)


@works(PATTERNS, "inputs with a batch size", note="which Keras does not insist on")
def check_batch_size(runs: Runs) -> None:
    def train(run: Any) -> Any:
        inputs = keras.Input(batch_shape=(20, 5))
        x = layers.Dense(5, "tanh")(layers.Dense(6, "tanh")(inputs))
        model = compiled(inputs, layers.Dense(3)(x), "mse")
        run.fit(model, arrays(ROWS)[0], one_hot(ROWS), batch_size=20, epochs=2)
        return model

    runs.compare(train)


class DropPath(layers.Layer):
    """Stochastic depth: leaves out a row's branch by chance."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, x: Any, training: bool = False) -> Any:
        if not training:
            return x
        shape = (ops.shape(x)[0],) + (1,) * (len(x.shape) - 1)
        kept = keras.random.uniform(shape, seed=self.seeds, dtype=x.dtype) >= self.rate
        return ops.where(kept, x / max(1 - self.rate, 1e-3), 0.0)


@works(PATTERNS, "stochastic depth", note="other rows are left out, as with Dropout")
def check_drop_path(runs: Runs) -> None:
    def train(run: Any, rate: float) -> Any:
        model = with_layer(lambda: DropPath(rate))(run)
        # Without the state of the generator, which each micro-batch moves on.
        return None, [model.history.history, model.get_weights()]

    for rate in (0.0, 1.0):  # nothing, and everything, whatever is drawn
        runs.compare(lambda run, rate=rate: train(run, rate))
    runs.quiet(with_layer(lambda: DropPath(0.5)))
