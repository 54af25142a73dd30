"""Patterns of keras.io that look at the whole batch: augmentation, losses of many rows, centres."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from compatibility.keras_io import (
    PATTERNS,
    AddLoss,
    TrainingFunction,
    compiled,
    features,
    own_call,
    tower,
    with_layer,
)
from compatibility.rows import refused, warned, works
from compatibility.runs import Runs, on_replicas, one_hot

ROWS = 40


def cutmix(x: Any, seeds: Any) -> Any:
    return ops.concatenate([x[:, :4], ops.flip(x, axis=0)[:, 4:]], axis=1)


def image_layer(make: Callable[[], Any]) -> Callable[[Any], Any]:
    """A training of a small model of images with this layer first."""

    def train(run: Any) -> Any:
        inputs = keras.Input((6, 6, 1))
        x = layers.Flatten()(make()(inputs))
        model = compiled(inputs, layers.Dense(3)(layers.Dense(4, "tanh")(x)), "mse")
        x = np.random.default_rng(0).random((ROWS, 6, 6, 1))
        run.fit(model, x, one_hot(ROWS), batch_size=20)
        return model

    return train


@warned(
    PATTERNS, "cutmix in a layer", "MixUp and CutMix of Keras", note="mix the data before `fit`"
)
def check_cutmix(runs: Runs) -> None:
    if runs.options["strategy"] == "model":
        own = lambda: TrainingFunction(cutmix, name="mixes")  # noqa: E731
        runs.warn(with_layer(own), "mix the rows.*'mixes'")
        return
    for layer in (layers.MixUp, layers.CutMix):
        runs.warn(image_layer(lambda layer=layer: layer(name="mixes")), "mix the rows.*'mixes'")


@warned(PATTERNS, "Keras's layers over the rows", note="an axis of 0, a function of one's own")
def check_axis(runs: Runs) -> None:
    def centred(x: Any) -> Any:
        return x - ops.mean(x, axis=0)

    def make() -> Any:
        if runs.options["strategy"] == "model":
            return layers.Softmax(axis=0, name="mixes")
        return layers.Dense(4, activation=centred, name="mixes")

    runs.warn(with_layer(make), "mix the rows.*'mixes'")


def hardest(y_true: Any, y_pred: Any) -> Any:
    """The batch-hard triplet loss."""
    same = ops.matmul(y_true, ops.transpose(y_true))
    apart = ops.sum(ops.square(y_pred[:, None] - y_pred[None]), axis=-1)
    far, near = ops.max(apart * same, axis=1), ops.min(apart + 1e3 * same, axis=1)
    return ops.mean(ops.relu(far - near + 0.2))


@refused(PATTERNS, "batch-hard triplet loss", note="one replica, one micro-batch")
def check_hardest(runs: Runs) -> None:
    train = own_call(hardest, "hardest")
    runs.refuse(train, r"must not depend on other rows \(losses \['hardest'\]\)")


def balance(x: Any) -> Any:
    """The loss that lets experts share their work: a product of two means over the batch."""
    chosen = ops.one_hot(ops.argmax(x[:, :3], axis=-1), 3, dtype=x.dtype)
    return 0.01 * ops.sum(ops.mean(chosen, axis=0) * ops.mean(ops.softmax(x[:, :3]), axis=0))


def agreement(x: Any) -> Any:
    """A contrastive loss (NT-Xent) of the halves of the features."""
    left, right = x[:, :3], x[:, 3:]
    logits = ops.matmul(left, ops.transpose(right))
    return -ops.mean(ops.diagonal(ops.log_softmax(logits)))


@refused(
    PATTERNS,
    "experts balanced by add_loss",
    "contrastive loss by add_loss",
    note="one replica, one micro-batch",
)
def check_added(runs: Runs) -> None:
    for function in (balance, agreement):
        layer = lambda f=function: AddLoss(f, name="adds")  # noqa: E731
        runs.refuse(with_layer(layer), "must be a mean or a sum over the rows.*'adds'")


class Centres(layers.Layer):
    """A centre loss: centres that are trained, or moved by hand."""

    def __init__(self, by_hand: bool, **options: Any) -> None:
        super().__init__(**options)
        self.by_hand = by_hand

    def build(self, shape: Any) -> None:
        self.centres = self.add_weight(shape=(3, shape[-1]), trainable=not self.by_hand)

    def call(self, x: Any) -> Any:
        nearest = ops.one_hot(ops.argmax(x[:, :3], axis=-1), 3, dtype=x.dtype)
        apart = x - ops.matmul(nearest, self.centres)
        self.add_loss(0.1 * ops.mean(ops.sum(ops.square(apart), axis=-1)))
        if self.by_hand:
            move = ops.matmul(ops.transpose(nearest), apart) / 20.0
            self.centres.assign_add(ops.stop_gradient(0.1 * move))
        return x


@works(PATTERNS, "centre loss with trained centres")
def check_centres(runs: Runs) -> None:
    runs.compare(with_layer(lambda: Centres(by_hand=False)))


@warned(PATTERNS, "centre loss with centres moved by hand", note="one replica, one micro-batch")
def check_moved(runs: Runs) -> None:
    layer = lambda: Centres(by_hand=True, name="centres")  # noqa: E731
    runs.warn(with_layer(layer), "change in each call.*centres/")


@refused(PATTERNS, "loss that keeps centres of its own", note="one replica, one micro-batch")
def check_state(runs: Runs) -> None:
    class Kept(keras.losses.Loss):
        def __init__(self) -> None:
            super().__init__(name="kept")
            self.centre = keras.Variable(np.zeros(3), trainable=False, dtype=self.dtype)

        def call(self, y_true: Any, y_pred: Any) -> Any:
            self.centre.assign(0.9 * self.centre + 0.1 * ops.mean(y_pred, axis=0))
            return ops.mean(ops.square(y_pred - self.centre), axis=-1)

    def train(run: Any) -> Any:
        return with_layer(lambda: layers.Dense(4), Kept())(run)

    runs.refuse(train, r"must not change variables .*\['kept'\]")


class Diffusion(keras.Model):
    """Learns to take noise out; an average of its network is what makes images."""

    def __init__(self) -> None:
        super().__init__()
        self.network = keras.Sequential(
            [keras.Input((6,)), layers.Dense(8, "tanh"), layers.Dense(5)]
        )
        self.average = keras.models.clone_model(self.network)
        self.normalizer = layers.Normalization()
        self.seeds = keras.random.SeedGenerator(3)
        self.noise_loss = keras.metrics.Mean(name="n_loss")
        self.image_loss = keras.metrics.Mean(name="i_loss")

    def call(self, x: Any) -> Any:
        return self.average(x)

    @property
    def metrics(self) -> list[Any]:
        return [self.noise_loss, self.image_loss]

    def train_step(self, data: Any) -> Any:
        images = self.normalizer(data, training=True)
        noise = keras.random.normal(ops.shape(images), seed=self.seeds)
        times = keras.random.uniform((ops.shape(images)[0], 1), seed=self.seeds)
        noisy = ops.cos(times) * images + ops.sin(times) * noise
        with tf.GradientTape() as tape:
            found = self.network(ops.concatenate([noisy, times], axis=1), training=True)
            clean = (noisy - ops.sin(times) * found) / ops.cos(times)
            noise_loss, image_loss = self.loss(noise, found), self.loss(images, clean)
        gradients = tape.gradient(noise_loss, self.network.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.network.trainable_weights, strict=True))
        self.noise_loss.update_state(noise_loss)
        self.image_loss.update_state(image_loss)
        for weight, average in zip(self.network.weights, self.average.weights, strict=True):
            average.assign(0.9 * average + 0.1 * weight)
        return {metric.name: metric.result() for metric in self.metrics}


@works(
    PATTERNS,
    "diffusion (DDIM): noise drawn in the step, an average of the network",
    note='an own train_step, with strategy="data"',
)
def check_diffusion(runs: Runs) -> None:
    def train(run: Any) -> Any:
        model = Diffusion()
        model(np.zeros((1, 6)))
        data = features()
        model.normalizer.adapt(data)
        model.compile(optimizer=keras.optimizers.AdamW(0.01), loss=keras.losses.mean_absolute_error)
        run.fit(model, data, batch_size=20, epochs=2)
        return model

    if runs.options["strategy"] == "data":
        on_replicas().compare(train)


class Contrast(keras.Model):
    """Two noisy views of each row, told apart from those of all others: SimCLR."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = tower()
        self.seeds = keras.random.SeedGenerator(3)

    def view(self, x: Any) -> Any:
        noise = keras.random.normal(ops.shape(x), seed=self.seeds)
        return ops.normalize(self.encoder(x + 0.1 * noise), axis=-1)

    def train_step(self, data: Any) -> Any:
        with tf.GradientTape() as tape:
            alike = ops.matmul(self.view(data), ops.transpose(self.view(data))) / 0.1
            target = ops.arange(ops.shape(data)[0])
            losses = ops.sparse_categorical_crossentropy(target, alike, from_logits=True)
            loss = ops.mean(losses)
        weights = self.encoder.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return {"c_loss": loss}


@warned(PATTERNS, "contrastive learning (SimCLR) in an own train_step", note="one process")
def check_contrast(runs: Runs) -> None:
    def train(run: Any) -> Any:
        model = Contrast()
        model.compile("sgd")
        run.fit(model, features(), batch_size=20)
        return model

    if runs.options["strategy"] == "data":
        on_replicas().warn(train, "neither a mean nor a sum.*gradient of")
