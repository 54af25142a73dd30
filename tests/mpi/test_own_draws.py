"""What steps of a model's own draw at random, and the state that they begin with, on replicas."""

from __future__ import annotations

import functools
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import WORLD, differences, float_type, on_leader, require_none
from keras import layers, ops

import hyparflow as hf

pytestmark = [pytest.mark.on_ranks(2), pytest.mark.usefixtures("in_float64")]
ROWS, BATCH = 21, 8  # the last batch has rows of different numbers for the replicas
SGD, Adam = keras.optimizers.SGD, keras.optimizers.Adam
HIDDEN: dict[str, Any] = {}


class Own(keras.Model):
    """A small network and a step of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = keras.Sequential([keras.Input((4,)), layers.Dense(3, "tanh"), layers.Dense(1)])
        self.seeds = keras.random.SeedGenerator(7)
        self.prepare()

    def prepare(self) -> None: ...

    def call(self, x: Any, training: bool = False) -> Any:
        return self.net(x, training=training)

    def optimizers(self) -> list[Any]:
        return [self.optimizer]

    def error(self, x: Any, y: Any) -> Any:
        return ops.mean(ops.square(self(x, training=True) - y))

    def train_step(self, data: Any) -> Any:
        for optimizer in self.optimizers():
            with tf.GradientTape() as tape:
                loss = self.error(*data)
            weights = self.net.trainable_variables
            optimizer.apply(tape.gradient(loss, weights), weights)
        return {"error": ops.mean(loss)}


class ByTensorFlow(Own):
    """Draws with seeds and without: one number for all rows, and numbers for each row."""

    def prepare(self) -> None:
        self.generator = tf.random.Generator.from_seed(3)

    def error(self, x: Any, y: Any) -> Any:
        scalar = tf.random.uniform([], dtype=x.dtype) + tf.random.normal((), seed=3, dtype=x.dtype)
        rows = tf.random.normal(tf.shape(x), dtype=x.dtype) * self.generator.normal(
            tf.shape(x), dtype=x.dtype
        )
        rate = tf.random.gamma((), 2.0, seed=3, dtype=x.dtype) + self.generator.uniform(
            (), dtype=x.dtype
        )
        kinds = tf.cast(tf.random.categorical(x, 1, seed=5), x.dtype)
        return super().error(x * scalar + 0.1 * rate * rows + 0.1 * kinds, y)


class ByKeras(Own):
    """Draws of Keras's, by seeds of the model and of nobody, in layers and of other sizes."""

    def prepare(self) -> None:
        self.drop = keras.Sequential([layers.Dropout(0.3), layers.GaussianNoise(0.1)])

    def error(self, x: Any, y: Any) -> Any:
        count = ops.shape(x)[0]
        step = keras.random.randint((count, 1), 0, 9, seed=self.seeds) / 9
        kept = keras.random.uniform(ops.shape(x)) < keras.random.uniform(())
        pairs = keras.random.normal((2 * count, 4), seed=self.seeds)
        # As many rows as a replica has, but not for its rows.
        turn = keras.random.normal((4, 4), seed=self.seeds)
        scale = keras.random.gamma((count, 1), 2.0, seed=self.seeds)
        x = self.drop(ops.where(kept, x, 0.0), training=True) * ops.cast(step, x.dtype)
        return super().error(ops.matmul(x, turn) * scale + pairs[:count] - pairs[count:], y)


class ByPython(Own):
    """What only an eager step draws anew."""

    def error(self, x: Any, y: Any) -> Any:
        return super().error(x * np.random.normal() + random.random(), y)  # noqa: NPY002


class Penalized(Own):
    """A gradient penalty between rows and others made of noise; several steps for a batch."""

    def optimizers(self) -> list[Any]:
        return [self.optimizer] * 2

    def error(self, x: Any, y: Any) -> Any:
        made = keras.random.normal(ops.shape(x), seed=self.seeds)
        between = x + keras.random.normal((ops.shape(x)[0], 1), seed=self.seeds) * (made - x)
        with tf.GradientTape() as tape:
            tape.watch(between)
            outputs = self(between)
        slope = ops.sqrt(ops.sum(ops.square(tape.gradient(outputs, between)), axis=1))
        penalty = 10 * ops.mean(ops.square(slope - 1))
        return ops.mean(self(made)) - ops.mean(self(x)) + penalty


class Dead(Own):
    """A hinge for each row, which the tape adds up, and which has no slope at first."""

    def error(self, x: Any, y: Any) -> Any:
        return ops.relu(ops.square(self(x)) * (ops.abs(x[:, :1]) - 1.5))


class Hidden(Own):
    """Optimizers in a container, in a layer, in a closure, and made in the first step."""

    def prepare(self) -> None:
        HIDDEN.clear()
        self.held = {"all": [Adam(0.01)]}
        vars(self.net.layers[0])["its_own"] = SGD(0.05, momentum=0.9)
        hidden = Adam(0.02)
        self.others = lambda: [hidden]
        scale = tf.Variable(0.1 * (1 + WORLD.rank), trainable=False, dtype="float64")
        self.scale = lambda: scale

    def optimizers(self) -> list[Any]:
        if "late" not in HIDDEN:
            HIDDEN["late"] = Adam(0.01)
        held = [*self.held["all"], vars(self.net.layers[0])["its_own"], *self.others()]
        return [*held, HIDDEN["late"]]

    def error(self, x: Any, y: Any) -> Any:
        return self.scale() * super().error(x, y)

    def differ(self) -> None:
        """Give the optimizers another state on each rank, as if loaded."""
        for optimizer in self.optimizers():
            optimizer.build(self.net.trainable_variables)
            for number, variable in enumerate(optimizer.variables[2:]):
                variable.assign(variable + 0.01 * (number + 1) * (1 + 3 * WORLD.rank))


class Unwanted(Own):
    """A step of evaluation that nobody asks for, and that does not work without a loss."""

    def test_step(self, data: Any) -> Any:
        return {"loss": self.compute_loss(*data, self(data[0]))}


class Evaluated(keras.Model):
    """Draws when it is evaluated; Keras's own step trains it."""

    seeds: Any

    def test_step(self, data: Any) -> Any:
        x, y = data
        x = x * keras.random.uniform((), seed=self.seeds)
        noise = keras.random.normal(ops.shape(x), seed=self.seeds)
        return {"error": ops.mean(ops.square(self(x + noise) - y))}


KINDS: dict[str, tuple[type[Own], bool]] = {
    "tf.random": (ByTensorFlow, False),
    "tf.random, eager": (ByTensorFlow, True),
    "keras.random": (ByKeras, False),
    "keras.random, eager": (ByKeras, True),
    "random and numpy.random, eager": (ByPython, True),
    "a gradient penalty": (Penalized, False),
    "a sum that is zero at first": (Dead, False),
    "optimizers that differ": (Hidden, False),
    "optimizers that differ, eager": (Hidden, True),
    "an unwanted step": (Unwanted, False),
}


def data() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(ROWS, 4))
    x[:BATCH] = np.clip(x[:BATCH], -1, 1)
    return x, x[:, :1] * 2 + 0.3


class Draws(keras.callbacks.Callback):
    """Draws on the leader what its steps must not miss."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        random.random()
        np.random.normal()  # noqa: NPY002
        tf.random.normal(())


def train(model: Any, fit: Callable[..., Any], **layout: Any) -> list[Any]:
    """History, and the weights and optimizers' state that a training leaves."""
    x, y = data()
    arguments: dict[str, Any] = {"batch_size": BATCH, "shuffle": False, "verbose": 0} | layout
    for _ in range(2):
        history = fit(model, x, y, callbacks=[Draws()], **arguments).history
    optimizers = model.optimizers() if isinstance(model, Own) else []
    state = [*model.variables, *(v for o in optimizers for v in o.variables)]
    return [*history.values(), *(np.array(v.numpy(), float) for v in state)]


def made(kind: str) -> Any:
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(5)
    make, eager = KINDS[kind]
    model = make()
    model(data()[0][:1])
    model.compile(SGD(0.05), run_eagerly=eager)
    if isinstance(model, Hidden):
        model.differ()
    return model


def compare(make: Callable[[], Any], tolerance: float = 1e-10, **options: Any) -> None:
    expected = on_leader(lambda: train(make(), keras.Model.fit, **options))
    found = train(make(), hf.fit, strategy="data", **options)
    assert len(found) == len(expected)
    faults = []
    for number, (actual, wanted) in enumerate(zip(found, expected, strict=True)):
        faults += differences(f"value {number}", actual, wanted, tolerance)
    require_none(faults, "own step")


# Much as those that are compiled; what only Python draws is tried eagerly.
ALSO_EAGER = ("tf.random, eager", "keras.random, eager", "optimizers that differ, eager")


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow) if k in ALSO_EAGER else k for k in KINDS]
)
def test_numbers_of_one_process(kind: str) -> None:
    compare(lambda: made(kind))


def test_an_evaluation_that_draws() -> None:
    def make() -> Any:
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(5)
        inputs = keras.Input((4,))
        model = Evaluated(inputs, layers.Dense(1)(inputs))
        model.seeds = keras.random.SeedGenerator(3)
        model.compile(SGD(0.05), "mse")
        return model

    x, y = data()
    compare(make, validation_data=(x[:13], y[:13]))


class Predicting(keras.Model):
    """Draws when it predicts: one number for all rows, and some for each."""

    seeds: Any

    def predict_step(self, data: Any) -> Any:
        x = data * keras.random.uniform((), seed=self.seeds)
        return self(x) + keras.random.normal((ops.shape(x)[0], 2), seed=self.seeds)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_predictions_that_draw(jit_compile: bool) -> None:
    def predicted(predict: Callable[..., Any], jit_compile: bool) -> Any:
        keras.utils.set_random_seed(5)
        inputs = keras.Input((4,))
        model = Predicting(inputs, layers.Dense(2)(inputs))
        model.seeds = keras.random.SeedGenerator(3)
        model.compile(jit_compile=jit_compile)
        x, _ = data()
        return [predict(model, x[:rows], batch_size=BATCH, verbose=0) for rows in (17, ROWS)]

    expected = on_leader(lambda: predicted(keras.Model.predict, False))
    found = predicted(functools.partial(hf.predict, strategy="data"), jit_compile)
    faults = []
    for number, (actual, wanted) in enumerate(zip(found, expected, strict=True)):
        faults += differences(f"call {number}", actual, wanted, 1e-10)
    require_none(faults, "own predict_step")


class Both(ByKeras):
    """Trains and predicts by steps of its own, which draw from one generator."""

    def predict_step(self, data: Any) -> Any:
        return self(data) + keras.random.normal((ops.shape(data)[0], 1), seed=self.seeds)


def test_training_goes_on_from_what_predictions_drew() -> None:
    """One replica had no rows in the last batch that was predicted."""

    def make() -> Any:
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(5)
        model = Both()
        model(data()[0][:1])
        model.compile(SGD(0.05))
        return model

    class Predicts(keras.callbacks.Callback):
        """In the middle of a training."""

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.model.predict(data()[0][:17], batch_size=BATCH, verbose=0)

    def fitted(model: Any, fit: Callable[..., Any], **layout: Any) -> list[Any]:
        arguments = {"batch_size": BATCH, "shuffle": False, "verbose": 0, "epochs": 2} | layout
        history = fit(model, *data(), callbacks=[Predicts()], **arguments).history
        return [*history.values(), *(np.array(v) for v in model.get_weights())]

    expected = on_leader(lambda: fitted(make(), keras.Model.fit))
    found = fitted(make(), hf.fit, strategy="data")
    faults = []
    for number, (actual, wanted) in enumerate(zip(found, expected, strict=True)):
        faults += differences(f"value {number}", actual, wanted, 1e-10)
    require_none(faults, "predictions within training")


class Scaled(Own):
    """Gradients that overflow: in half of a batch at another scale of the loss."""

    def error(self, x: Any, y: Any) -> Any:
        return 300.0 * ops.mean(ops.square(ops.cast(self(x, training=True), y.dtype) - y))

    def train_step(self, data: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = self.error(*data)
            scaled = self.optimizer.scale_loss(loss)
        weights = self.trainable_variables
        self.optimizer.apply(tape.gradient(scaled, weights), weights)
        return {"error": loss}


@pytest.fixture
def in_float16() -> Iterator[None]:
    with float_type("float32"):
        keras.config.set_dtype_policy("mixed_float16")
        yield


@pytest.mark.usefixtures("in_float16")
def test_scaled_losses_overflow_as_in_one_process() -> None:
    """A mean is weighted by the replica's share before it is scaled."""

    def make() -> Any:
        keras.utils.set_random_seed(5)
        model = Scaled()
        model(data()[0][:1])
        model.compile(Adam(0.01))  # Keras wraps it
        return model

    compare(make, tolerance=3e-3)


class Contrasted(Own):
    """Views of all rows against all others, made with noise."""

    def error(self, x: Any, y: Any) -> Any:
        noise = keras.random.normal(ops.shape(x), seed=self.seeds)
        here, there = self(x), self(x + 0.1 * noise)
        target = ops.arange(ops.shape(x)[0])
        pairs = ops.matmul(here, ops.transpose(there))
        return ops.mean(ops.sparse_categorical_crossentropy(target, pairs, from_logits=True))


class Turned(Own):
    """Noise of which the rows are not the first axis."""

    def error(self, x: Any, y: Any) -> Any:
        noise = keras.random.normal((4, ops.shape(x)[0]), seed=self.seeds)
        return super().error(x + ops.transpose(noise), y)


@pytest.mark.parametrize("kind", [Contrasted, Turned])
def test_what_is_of_one_replica_is_said(kind: type[Own]) -> None:
    """Chance does not hide it."""
    model, (x, y) = kind(), data()
    model(x[:1])
    model.compile(SGD(0.01))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hf.fit(model, x, y, batch_size=BATCH, verbose=0, strategy="data")
    said = [str(w.message) for w in caught if "neither a mean nor a sum" in str(w.message)]
    assert len(said) == (WORLD.rank == 0)


def test_ranks_that_lead_to_other_variables_are_refused() -> None:
    model, (x, y) = Hidden(), data()
    model(x[:1])
    model.compile(SGD(0.01), run_eagerly=True)
    model.further = {"all": [tf.Variable(np.zeros(3 + WORLD.rank))]}
    with pytest.raises(ValueError, match="same variables on all ranks.*3.*4"):
        hf.fit(model, x, y, batch_size=BATCH, verbose=0, strategy="data")
