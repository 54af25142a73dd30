"""Steps of a model's own, as Keras's guides write them, on two replicas against plain Keras."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import WORLD, differences, on_leader, require_none
from keras import layers, ops

import hyparflow as hf

pytestmark = [pytest.mark.on_ranks(2), pytest.mark.usefixtures("in_float64")]
ROWS, BATCH = 44, 8  # the last batch has four rows
SGD, Adam = keras.optimizers.SGD, keras.optimizers.Adam


class Own(keras.Model):
    """Two layers and a step; kinds of steps are derived from it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = layers.Dense(4, "tanh"), layers.Dense(1)
        self.prepare()

    def prepare(self) -> None: ...

    def call(self, x: Any) -> Any:
        return self.second(self.first(x))

    def error(self, data: Any) -> Any:
        return ops.mean(ops.square(self(data[0], training=True) - data[1]))

    def descend(self, optimizer: Any, loss: Callable[[], Any], weights: Any = None) -> Any:
        weights = self.trainable_variables if weights is None else weights
        with tf.GradientTape() as tape:
            value = loss()
        optimizer.apply(tape.gradient(value, weights), weights)
        return value


class Unnamed(Own):
    """A metric that `metrics` does not name, its result under another name and in expressions."""

    def prepare(self) -> None:
        self.kept = {"inside": [keras.metrics.Mean(name="loss")]}
        self.rms = keras.metrics.RootMeanSquaredError()

    def train_step(self, data: Any) -> Any:
        loss = self.descend(self.optimizer, lambda: self.error(data))
        self.kept["inside"][0].update_state(loss)
        self.rms.update_state(data[1], self(data[0]))
        result = self.kept["inside"][0].result()
        nested = {"twice": 2 * result, "rms": self.rms.result()}
        return {
            "loss": loss,
            "mse": result,
            "nested": nested,
            "count": 3.0,
            "sum": ops.sum(data[0]),
        }


class SeveralOptimizers(Own):
    """Optimizers in a dict of lists, in a layer's attribute, and in a closure."""

    def prepare(self) -> None:
        self.held = {"all": [SGD(0.1), Adam(0.01)]}
        vars(self.second)["its_own"] = SGD(0.05, momentum=0.9)
        hidden = Adam(0.02)
        self.last = lambda loss: self.descend(hidden, loss, self.second.trainable_variables)

    def train_step(self, data: Any) -> Any:
        def loss() -> Any:
            return self.error(data)

        self.descend(self.held["all"][0], loss, self.first.trainable_variables)
        self.descend(self.held["all"][1], loss, self.second.trainable_variables)
        self.descend(vars(self.second)["its_own"], loss, self.second.trainable_variables)
        return {"mse": self.last(loss)}


class LossOfRows(Own):
    """A loss for each row, which the tape adds up."""

    def train_step(self, data: Any) -> Any:
        x, y = data
        loss = self.descend(
            self.optimizer, lambda: ops.squeeze(ops.square(self(x, training=True) - y), -1)
        )
        return {"mse": ops.mean(loss)}


class SumOfRows(Own):
    """A loss that is a sum, with a regularizer that is none, in one gradient."""

    def train_step(self, data: Any) -> Any:
        x, y = data
        loss = self.descend(self.optimizer, lambda: ops.sum(ops.square(self(x) - y)))
        return {"sse": loss}


class Variational(Own):
    """Losses of a layer in `call`, and trackers of its own."""

    def prepare(self) -> None:
        names = ("loss", "kl_loss", "reconstruction_loss")
        self.trackers = [keras.metrics.Mean(name=name) for name in names]

    @property
    def metrics(self) -> list[Any]:
        return self.trackers

    def train_step(self, data: Any) -> Any:
        x, _ = data
        with tf.GradientTape() as tape:
            code = self.first(x)
            reconstruction = ops.mean(ops.sum(ops.square(self.second(code) - x[:, :1]), axis=1))
            kl = ops.mean(ops.sum(1 - code + ops.square(code), axis=1)) / 7
            total = reconstruction + kl
        gradients = tape.gradient(total, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        for tracker, value in zip(self.trackers, (total, kl, reconstruction), strict=True):
            tracker.update_state(value)
        return {metric.name: metric.result() for metric in self.metrics}


class Distilled(Own):
    """A teacher that is not trained, Keras's own losses and metrics."""

    def prepare(self) -> None:
        self.teacher = keras.Sequential([keras.Input((5,)), layers.Dense(1)])
        self.teacher.trainable = False

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        teachers = keras.losses.MeanAbsoluteError()(self.teacher(x), y_pred)
        return 0.3 * super().compute_loss(x, y, y_pred, sample_weight) + 0.7 * teachers

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(x, y, y_pred)
        self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        return self.compute_metrics(x, y, y_pred)


class Averaged(Own):
    """A moving average of the weights, by hand, as diffusion models have it."""

    def prepare(self) -> None:
        self.average = keras.Sequential([keras.Input((5,)), layers.Dense(4), layers.Dense(1)])
        self.average.trainable = False

    def train_step(self, data: Any) -> Any:
        loss = self.descend(self.optimizer, lambda: self.error(data))
        pairs = zip(self.average.weights, self.first.weights + self.second.weights, strict=True)
        for average, weight in pairs:
            average.assign(0.9 * average + 0.1 * weight)
        return {"loss": loss}


class Accumulated(Own):
    """Gradients of several steps, added up by Keras's optimizer."""

    def train_step(self, data: Any) -> Any:
        return {"mse": self.descend(self.optimizer, lambda: self.error(data))}


class Lookups(Own):
    """An embedding, whose gradient is sparse."""

    def prepare(self) -> None:
        self.table = layers.Embedding(9, 5)

    def call(self, x: Any) -> Any:
        rows = ops.cast(ops.floor(ops.abs(x) * 3) % 9, "int32")
        return self.second(self.first(ops.mean(self.table(rows), axis=1)))

    train_step = Accumulated.train_step


class Siamese(Own):
    """Triplets through one tower."""

    def prepare(self) -> None:
        self.tracker = keras.metrics.Mean(name="loss")

    def train_step(self, data: Any) -> Any:
        x, _ = data

        def loss() -> Any:
            anchor, positive, negative = (self.first(x + shift) for shift in (0.0, 0.1, 1.0))
            near = ops.sum(ops.square(anchor - positive), -1)
            far = ops.sum(ops.square(anchor - negative), -1)
            return ops.mean(ops.maximum(near - far + 0.5, 0.0))

        self.tracker.update_state(
            self.descend(self.optimizer, loss, self.first.trainable_variables)
        )
        return {"loss": self.tracker.result()}


class Partial(Own):
    """Both steps: evaluation counts by another metric."""

    def prepare(self) -> None:
        self.mae = keras.metrics.MeanAbsoluteError(name="mae")

    def train_step(self, data: Any) -> Any:
        loss = self.descend(self.optimizer, lambda: self.error(data))
        self.mae.update_state(data[1], self(data[0]))
        return {"loss": loss, "mae": self.mae.result()}

    def test_step(self, data: Any) -> Any:
        self.mae.update_state(data[1], self(data[0]))
        return {"mae": self.mae.result()}


class OwnLoss(Own):
    """Keras's step with a loss of its own, with and without Keras's, and one more log."""

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        return 2.0 * super().compute_loss(x, y, y_pred) + ops.mean(ops.abs(y_pred))

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        logs = super().compute_metrics(x, y, y_pred, sample_weight)
        return logs | {"twice": 2 * logs["loss"], "output": ops.mean(y_pred)}


KINDS: dict[str, tuple[type[Own], Callable[[], Any]]] = {
    "metrics that are not named": (Unnamed, lambda: SGD(0.1)),
    "optimizers anywhere": (SeveralOptimizers, lambda: None),
    "a loss for each row": (LossOfRows, lambda: SGD(0.01)),
    "a sum over rows": (SumOfRows, lambda: Adam(0.01, clipnorm=0.1)),
    "a variational autoencoder": (Variational, lambda: Adam(0.01)),
    "distillation": (Distilled, lambda: Adam(0.01)),
    "a moving average": (Averaged, lambda: Adam(0.01)),
    "accumulated gradients": (Accumulated, lambda: Adam(0.01, gradient_accumulation_steps=2)),
    "lookups, Adam": (Lookups, lambda: Adam(0.01)),
    "lookups, clipped values": (Lookups, lambda: SGD(0.1, clipvalue=0.001)),
    "lookups, clipped norm": (Lookups, lambda: SGD(0.1, global_clipnorm=0.01)),
    "a siamese network": (Siamese, lambda: Adam(0.01)),
    "a loss and logs of its own": (OwnLoss, lambda: Adam(0.01)),
    "steps of both kinds": (Partial, lambda: Adam(0.01)),
}


def data() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(ROWS, 5))
    return x, x[:, :1] * 2 + 0.3


def train(
    kind: str, eager: bool, fit: Callable[..., Any], **layout: Any
) -> tuple[dict[str, Any], list[Any], list[np.ndarray]]:
    """History, the logs of every batch, and the weights."""
    keras.utils.set_random_seed(5)
    make, optimizer = KINDS[kind]
    model, (x, y) = make(), data()
    model(x[:1])
    losses = "mse" if make in (Distilled, OwnLoss, Partial) else None
    model.compile(optimizer() or "sgd", losses, run_eagerly=eager)
    seen: list[Any] = []
    note = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(keras.tree.map_structure(float, logs))
    )
    arguments: dict[str, Any] = {"batch_size": BATCH, "epochs": 2, "verbose": 0, "shuffle": False}
    if make in (OwnLoss, Partial):
        arguments["validation_data"] = (x[:13], y[:13])
    history = fit(model, x, y, callbacks=[note], **arguments, **layout).history
    return history, seen, [np.array(w) for w in model.get_weights()]


def flat(values: Any) -> list[Any]:
    return [np.asarray(leaf, float) for leaf in keras.tree.flatten(values)]


CLIPPED = "lookups, clipped values"
EAGER = ("optimizers anywhere", "lookups, Adam", "metrics that are not named")


@pytest.mark.parametrize(
    ("kind", "eager"),
    [
        *((kind, False) for kind in KINDS if kind != CLIPPED),
        pytest.param(CLIPPED, False, marks=pytest.mark.slow),  # as clipped norms
        (EAGER[0], True),
        *(pytest.param(kind, True, marks=pytest.mark.slow) for kind in EAGER[1:]),
    ],
)
def test_own_step(kind: str, eager: bool) -> None:
    history, logs, weights = on_leader(lambda: train(kind, eager, keras.Model.fit))
    found = train(kind, eager, hf.fit, strategy="data")
    assert list(found[0]) == list(history)
    faults = differences("History", flat(found[0]), flat(history), 1e-10)
    for number, (actual, expected) in enumerate(zip(found[2], weights, strict=True)):
        faults += differences(f"weight {number}", actual, expected, 1e-10)
    if WORLD.rank == 0:
        faults += differences("logs of batches", flat(found[1]), flat(logs), 1e-10)
    require_none(faults, kind)


class ByHand(Own):
    """Weights that no optimizer changes."""

    def train_step(self, data: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = self.error(data)
        gradients = tape.gradient(loss, self.trainable_variables)
        for gradient, weight in zip(gradients, self.trainable_variables, strict=True):
            weight.assign_sub(0.1 * gradient)
        return {"loss": loss}


class Branching(Own):
    """Gives gradients of what its own rows use."""

    def train_step(self, data: Any) -> Any:
        weights = self.trainable_variables
        if not bool(ops.any(data[0] > 2)):
            weights = self.first.trainable_variables
        return {"loss": self.descend(self.optimizer, lambda: self.error(data), weights)}


@pytest.mark.parametrize(
    ("kind", "eager", "words"),
    [
        (ByHand, False, r"hold the same weights.*differ in '\S*kernel'"),
        (Branching, True, r"'\S*kernel' is missing on rank 1"),
    ],
)
def test_what_replicas_do_apart_is_refused(kind: type[Own], eager: bool, words: str) -> None:
    """Alike on all ranks, before anything of it is learnt."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(5)
    model, (x, y) = kind(), data()
    x[:] = np.clip(x, -1, 1)
    x[1] = 5  # a row of the first replica
    model(x[:1])
    model.compile(SGD(0.1), run_eagerly=eager)
    with pytest.raises(ValueError, match=words):
        hf.fit(model, x, y, batch_size=BATCH, shuffle=False, verbose=0, strategy="data")


class SumOfLoss(Own):
    """A loss of its own that is a sum over the rows."""

    def compute_loss(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        return ops.sum(ops.square(y - y_pred))


class RootOfLoss(Own):
    """A loss of its own that no parts of a batch add up to."""

    def compute_loss(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        return ops.sqrt(ops.mean(ops.square(y - y_pred)))


def fitted(
    kind: type[Own], fit: Callable[..., Any], validated: int = 0, **layout: Any
) -> list[np.ndarray]:
    """The weights and logged losses after two epochs, validated on so many rows."""
    keras.utils.set_random_seed(5)
    model, (x, y) = kind(), data()
    model(x[:1])
    model.compile(SGD(0.001))
    layout |= {"validation_data": (x[:validated], y[:validated])} if validated else {}
    layout |= {"batch_size": BATCH, "epochs": 2, "shuffle": False, "verbose": 0}
    history = fit(model, x, y, **layout).history
    return [np.array(value) for value in (*model.get_weights(), *history.values())]


def test_an_own_loss_that_is_a_sum() -> None:
    """Keras logs the mean of the sums of the batches."""
    expected = on_leader(lambda: fitted(SumOfLoss, keras.Model.fit, 5))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = fitted(SumOfLoss, hf.fit, 5, strategy="data")
    assert not [w for w in caught if "own `compute_loss` computes" in str(w.message)]
    for number, (actual, wanted) in enumerate(zip(found, expected, strict=True)):
        limit = 1e-10 if number < len(found) - 2 else 1e-6  # what is logged is float32
        require_none(differences(f"value {number}", actual, wanted, limit), "sum")


def test_an_own_loss_that_does_not_add_up() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted(RootOfLoss, hf.fit, strategy="data")
    said = [str(w.message) for w in caught if "own `compute_loss` computes" in str(w.message)]
    assert len(said) == (WORLD.rank == 0)
    with pytest.raises(ValueError, match="own `compute_loss` takes a replica's rows at once"):
        fitted(RootOfLoss, hf.fit, strategy="data", num_microbatches=2)
