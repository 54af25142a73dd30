"""Patterns of keras.io's examples: each works with Keras's numbers, or is refused or warned of.

Own steps are in `models.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from compatibility.rows import refused, warned, works
from compatibility.runs import Runs, arrays, one_hot

PATTERNS = "Patterns of keras.io"
ROWS = 40


def features(seed: int = 0, width: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(ROWS, width))


class Function(layers.Layer):
    """A layer of one's own that computes this function."""

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        super().__init__(**options)
        self.function = function

    def call(self, *args: Any) -> Any:
        return self.function(*args)


class TrainingFunction(layers.Layer):
    """The same, in training only."""

    def __init__(self, function: Callable[[Any, Any], Any], **options: Any) -> None:
        super().__init__(**options)
        self.function = function
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, x: Any, training: bool = False) -> Any:
        return self.function(x, self.seeds) if training else x


class AddLoss(layers.Layer):
    """Adds to the loss what a function makes of its inputs; passes the last of them on."""

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        super().__init__(**options)
        self.function = function

    def call(self, *args: Any) -> Any:
        self.add_loss(self.function(*args))
        return args[-1]


def tower(width: int = 4) -> Any:
    return keras.Sequential([keras.Input((5,)), layers.Dense(6, "tanh"), layers.Dense(width)])


def compiled(inputs: Any, outputs: Any, loss: Any = None) -> Any:
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.05), loss)
    return model


def with_layer(make: Callable[[], Any], loss: Any = "mse") -> Callable[[Any], Any]:
    """A training of a small model with this layer in its middle."""

    def train(run: Any) -> Any:
        inputs = keras.Input((5,))
        x = make()(layers.Dense(6, "tanh")(inputs))
        model = compiled(inputs, layers.Dense(3)(layers.Dense(6, "tanh")(x)), loss)
        run.fit(model, arrays(ROWS)[0], one_hot(ROWS), batch_size=20, epochs=2)
        return model

    return train


def distance(a: Any, b: Any) -> Any:
    return ops.sum(ops.square(a - b), axis=-1, keepdims=True)


def triplet(anchor: Any, positive: Any, negative: Any) -> Any:
    """A value for each row, which Keras adds up."""
    return ops.relu(distance(anchor, positive) - distance(anchor, negative) + 0.5)


@works(PATTERNS, "siamese towers, triplet loss by add_loss")
def check_triplet(runs: Runs) -> None:
    def train(run: Any) -> Any:
        shared = tower()
        inputs = [keras.Input((5,)) for _ in range(3)]
        model = compiled(inputs, AddLoss(triplet)(*(shared(x) for x in inputs)))
        model.compile(keras.optimizers.SGD(0.01))
        run.fit(model, [features(n) for n in range(3)], batch_size=20, epochs=2)
        return model

    runs.compare(train)


@works(PATTERNS, "siamese towers, contrastive loss of pairs")
def check_pairs(runs: Runs) -> None:
    def loss(y_true: Any, y_pred: Any) -> Any:
        near = (1 - y_true) * ops.square(y_pred)
        return ops.mean(near + y_true * ops.square(ops.relu(1.0 - y_pred)))

    def train(run: Any) -> Any:
        shared = tower()
        inputs = [keras.Input((5,)) for _ in range(2)]
        apart = Function(lambda a, b: ops.sqrt(distance(a, b) + 1e-7))(*map(shared, inputs))
        model = compiled(inputs, layers.Dense(1, "sigmoid")(apart), loss)
        run.fit(model, [features(0), features(1)], np.arange(ROWS) % 2.0, batch_size=20)
        return model

    runs.compare(train)


class OwnCall(keras.losses.Loss):
    """A loss that overrides `__call__`."""

    def __init__(self, function: Callable[[Any, Any], Any], name: str) -> None:
        super().__init__(name=name)
        self.function = function

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        return self.function(ops.cast(y_true, y_pred.dtype), y_pred)


def own_call(function: Callable[[Any, Any], Any], name: str) -> Callable[[Any], Any]:
    return with_layer(lambda: layers.Dense(4), OwnCall(function, name))


@works(PATTERNS, "loss with its own __call__", note="a mean or a sum over rows, else refused")
def check_own_call(runs: Runs) -> None:
    runs.compare(own_call(lambda y, p: ops.mean(ops.square(y - p)), "mean"))
    runs.compare(own_call(lambda y, p: 0.01 * ops.sum(ops.abs(y - p)), "sum"))


def supervised_contrastive(y_true: Any, y_pred: Any) -> Any:
    same = ops.matmul(y_true, ops.transpose(y_true))
    logits = ops.matmul(y_pred, ops.transpose(y_pred))
    target = same / ops.sum(same, 1, keepdims=True)
    return ops.mean(ops.categorical_crossentropy(target, logits, from_logits=True))


@refused(PATTERNS, "supervised contrastive loss", note="one replica, one micro-batch")
def check_contrastive(runs: Runs) -> None:
    train = own_call(supervised_contrastive, "contrastive")
    runs.refuse(train, r"must not depend on other rows \(losses \['contrastive'\]\)")


@warned(PATTERNS, "metric learning with all pairs", note="one replica, one micro-batch")
def check_all_pairs(runs: Runs) -> None:
    def pairs(x: Any) -> Any:
        return 1e-3 * ops.matmul(ops.matmul(x, ops.transpose(x)), x)

    runs.warn(with_layer(lambda: Function(pairs, name="pairs")), "mix the rows.*'pairs'")


def ctc(labels: Any, probabilities: Any) -> Any:
    """As the endpoint layers of handwriting and captcha models: a value for each row."""
    rows, steps = ops.shape(probabilities)[0], ops.shape(probabilities)[1]
    lengths = ops.ones((rows,), "int32")
    logits = ops.log(ops.transpose(probabilities, (0, 1, 2)) + 1e-7)
    labels = ops.cast(labels, "int32")
    return ops.ctc_loss(labels, logits, lengths * ops.shape(labels)[1], lengths * steps, 0)


@works(PATTERNS, "CTC endpoint layer", note="a value per row, or its mean")
def check_ctc(runs: Runs) -> None:
    def train(run: Any, reduce: Callable[[Any], Any]) -> Any:
        labels, x = keras.Input((3,)), keras.Input((8, 4))
        out = layers.Dense(5, "softmax")(layers.Dense(6, "tanh")(x))
        end = AddLoss(lambda y, p: reduce(ctc(y, p)))(labels, out)
        model = keras.Model([x, labels], end)
        model.compile(keras.optimizers.SGD(0.001))
        random = np.random.default_rng(0)
        data = [random.normal(size=(20, 8, 4)), random.integers(1, 5, (20, 3))]
        run.fit(model, data, batch_size=10, epochs=2)
        return model

    # Keras computes this loss in float32.
    for reduce in (ops.mean, lambda values: values):
        runs.compare(lambda run, r=reduce: train(run, r), tolerance=1e-4, dtype="float32")


@works(PATTERNS, "endpoint layer that adds the loss")
def check_endpoint(runs: Runs) -> None:
    def train(run: Any) -> Any:
        x, labels = keras.Input((5,)), keras.Input((4,))
        loss = AddLoss(lambda y, p: ops.square(y - p))
        model = compiled([x, labels], loss(labels, tower()(x)))
        model.compile(keras.optimizers.SGD(0.001))
        run.fit(model, [features(), features(1, 4)], batch_size=20, epochs=2)
        return model

    runs.compare(train)


@refused(PATTERNS, "layer with a fixed batch", note="-1 in a reshape")
def check_fixed(runs: Runs) -> None:
    def fixed(x: Any) -> Any:
        return ops.reshape(ops.reshape(x, (20 * 6,)), (-1, 6))

    runs.refuse(
        with_layer(lambda: Function(fixed, name="fixed")),
        "any number of rows.*layer 'fixed' that takes 20 rows of a batch, but not (10|5) of these",
    )


def switch(x: Any) -> Any:
    """Experts with room for so many rows of a batch: those that come late are left out."""
    chosen = ops.one_hot(ops.argmax(x[:, :3], axis=-1), 3, dtype=x.dtype)
    place = ops.cumsum(chosen, axis=0) * chosen
    return x * ops.sum(ops.where((place > 0) & (place <= 2), 1.0, 0.0), axis=-1, keepdims=True)


@warned(PATTERNS, "experts with a capacity (Switch)", note="one replica, one micro-batch")
def check_switch(runs: Runs) -> None:
    runs.warn(with_layer(lambda: Function(switch, name="switch")), "mix the rows.*'switch'")


@warned(PATTERNS, "mixup in a layer", note="mix the data before `fit`")
def check_mixup(runs: Runs) -> None:
    def mixup(x: Any, seeds: Any) -> Any:
        return 0.9 * x + 0.1 * keras.random.shuffle(x, axis=0, seed=seeds)

    runs.warn(with_layer(lambda: TrainingFunction(mixup, name="mixup")), "mix the rows.*'mixup'")


@warned(PATTERNS, "normalization of one's own over the batch", note="BatchNormalization")
def check_own_normalization(runs: Runs) -> None:
    def normalize(x: Any, seeds: Any) -> Any:
        return (x - ops.mean(x, axis=0)) / ops.sqrt(ops.var(x, axis=0) + 1e-3)

    layer = lambda: TrainingFunction(normalize, name="normalize")  # noqa: E731
    runs.warn(with_layer(layer), "mix the rows.*'normalize'")


class ReZero(layers.Layer):
    """Mixes rows behind a gate that is zero at first."""

    def build(self, shape: Any) -> None:
        self.gate = self.add_weight(shape=(), initializer="zeros", name="gate")

    def call(self, x: Any) -> Any:
        return x + self.gate * ops.roll(x, 1, axis=0)


@warned(PATTERNS, "rows mixed behind a gate of zero", note="one replica, one micro-batch")
def check_gate(runs: Runs) -> None:
    runs.warn(with_layer(lambda: ReZero(name="rezero")), "mix the rows.*'rezero'")


@warned(PATTERNS, "branch on the whole batch", note="`ops.where`, for each row")
def check_branch(runs: Runs) -> None:
    def branch(x: Any) -> Any:
        return tf.cond(tf.reduce_any(x > 50.0), lambda: 2.0 * x, lambda: x)

    runs.warn(with_layer(lambda: Function(branch, name="gate")), r"values of the whole.*'gate'")


@works(
    PATTERNS, "collaborative filtering", note="of each row; tensordot over all axes is warned of"
)
def check_filtering(runs: Runs) -> None:
    class Recommender(keras.Model):
        def __init__(self, axes: int | None) -> None:
            super().__init__()
            self.users, self.items = layers.Embedding(9, 4), layers.Embedding(9, 4)
            self.bias = layers.Embedding(9, 1)
            self.axes = axes

        def call(self, ids: Any) -> Any:
            users, items = self.users(ids[:, 0]), self.items(ids[:, 1])
            if self.axes:
                product = ops.tensordot(users, items, self.axes)
            else:
                product = ops.sum(users * items, axis=-1, keepdims=True)
            return ops.sigmoid(product + self.bias(ids[:, 0]))

    def train(run: Any, axes: int | None = None) -> Any:
        model = Recommender(axes)
        model.compile("adam", "mse")
        random = np.random.default_rng(0)
        run.fit(model, random.integers(0, 9, (ROWS, 2)), random.random((ROWS, 1)), batch_size=20)
        return model

    if runs.options["strategy"] == "data":
        runs.compare(train)
        runs.warn(lambda run: train(run, 2), "mix the rows.*'recommender")


@works(PATTERNS, "straight-through codebook (VQ-VAE) with add_loss")
def check_codebook(runs: Runs) -> None:
    class Codebook(layers.Layer):
        def build(self, shape: Any) -> None:
            self.codes = self.add_weight(shape=(shape[-1], 7), initializer="uniform")

        def call(self, x: Any) -> Any:
            apart = -2 * ops.matmul(x, self.codes) + ops.sum(self.codes**2, axis=0)
            nearest = ops.one_hot(ops.argmin(apart, axis=1), 7, dtype=x.dtype)
            found = ops.matmul(nearest, ops.transpose(self.codes))
            self.add_loss(0.25 * ops.mean((ops.stop_gradient(found) - x) ** 2))
            self.add_loss(ops.mean((found - ops.stop_gradient(x)) ** 2))
            return x + ops.stop_gradient(found - x)

    runs.compare(with_layer(Codebook))


@works(PATTERNS, "Kullback-Leibler divergence by add_loss", note="a mean or a sum over rows")
def check_divergence(runs: Runs) -> None:
    def divergence(x: Any) -> Any:
        return 0.01 * ops.sum(ops.exp(x) - x - 1, axis=-1)

    runs.compare(with_layer(lambda: AddLoss(lambda x: ops.mean(divergence(x)))))
    runs.compare(with_layer(lambda: AddLoss(lambda x: ops.sum(divergence(x)))))


@works(PATTERNS, "masked language model", note="sample weights mark what is masked")
def check_masked(runs: Runs) -> None:
    def train(run: Any) -> Any:
        inputs = keras.Input((6,), dtype="int32")
        x = layers.Embedding(9, 8)(inputs)
        x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model = compiled(inputs, layers.Dense(9)(layers.Dense(8, "gelu")(x)), loss)
        random = np.random.default_rng(0)
        tokens = random.integers(0, 9, (ROWS, 6))
        masked = (random.random((ROWS, 6)) < 0.3).astype("float64")
        run.fit(model, tokens, tokens, batch_size=20, sample_weight=masked)
        return model

    runs.compare(train)
