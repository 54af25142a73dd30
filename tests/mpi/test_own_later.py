"""Steps of a model's own that do something else later, or with rows that the first batch lacks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import WORLD
from keras import layers, ops

import hyparflow as hf

pytestmark = pytest.mark.on_ranks(2)
ROWS, BATCH = 24, 8
SGD = keras.optimizers.SGD
Given = tuple[Any, Any]  # x and y


def slow(*arguments: Any) -> Any:
    """Arguments for which another test shows nearly the same."""
    return pytest.param(*arguments, marks=pytest.mark.slow)


class Own(keras.Model):
    """A step in parts, which kinds of steps change."""

    def __init__(self) -> None:
        super().__init__()
        self.net = keras.Sequential([keras.Input((6,)), layers.Dense(5, "tanh"), layers.Dense(2)])
        self.steps = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.count = 0
        self.prepare()

    def prepare(self) -> None: ...

    def call(self, x: Any) -> Any:
        return self.net(x)

    def rows(self, data: Given) -> Any:
        return ops.mean(ops.square(data[1] - self.net(data[0])), -1)

    def error(self, data: Given) -> Any:
        return ops.mean(self.rows(data))

    def changed(self, gradients: list[Any], loss: Any) -> list[Any]:
        return gradients

    def note(self, data: Given, loss: Any) -> dict[str, Any]:
        return {"mse": loss}

    def train_step(self, data: Given) -> dict[str, Any]:
        self.count += 1
        weights = self.net.trainable_variables
        with tf.GradientTape() as tape:
            loss = self.error(data)
        gradients = self.changed(tape.gradient(loss, weights), loss)
        self.optimizer.apply(gradients, weights)
        self.steps.assign_add(1.0)
        return self.note(data, loss)


def fitted(
    kind: type[Own], steps: int = 6, eager: bool = False, change: Any = None, **layout: Any
) -> list[str]:
    """The warnings about the step, on the leader, of a training of so many steps."""
    keras.utils.set_random_seed(1)
    random = np.random.default_rng(3)
    x, y = random.normal(size=(ROWS, 6)), random.normal(size=(ROWS, 2))
    x, y = x.astype("float32"), y.astype("float32")
    if change is not None:
        change(x, y)
    model = kind()
    model.compile(layout.pop("optimizer", None) or SGD(0.05), run_eagerly=eager)
    layout |= {"batch_size": BATCH, "epochs": steps // 3, "shuffle": False, "verbose": 0}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hf.fit(model, x, y, strategy="data", **layout)
    said = [str(w.message) for w in caught]
    return [words for words in said if "model's own" in words or "own `" in words]


def require(said: list[str], *words: str) -> None:
    """Each of the warnings once, on the leader alone, and no others."""
    expected = words if WORLD.rank == 0 else ()
    assert len(said) == len(expected), said
    assert all(any(word in one for one in said) for word in expected), said


def rate_from(step: int) -> type[Own]:
    class Rate(Own):
        """The learning rate follows the loss of a replica's rows from some step on."""

        def changed(self, gradients: list[Any], loss: Any) -> list[Any]:
            rate = self.optimizer.learning_rate
            rate.assign(tf.where(self.steps >= step, 0.05 / (1 + loss), rate))
            return gradients

    return Rate


def hand_from(step: int) -> type[Own]:
    class Hand(Own):
        """A weight follows the loss of a replica's rows from some step on."""

        def prepare(self) -> None:
            hidden = SGD(0.1)
            self.change = hidden.apply

        def train_step(self, data: Given) -> dict[str, Any]:
            weights = self.net.trainable_variables
            with tf.GradientTape() as tape:
                loss = self.error(data)
            self.change(tape.gradient(loss, weights), weights)
            kernel = self.net.layers[0].kernel
            kernel.assign(kernel * tf.where(self.steps >= step, 1 - 0.1 * loss, 1.0))
            self.steps.assign_add(1.0)
            return {"mse": loss}

    return Hand


class Quiet(keras.callbacks.Callback):
    """Before its methods the leader's weights go to all ranks."""


@pytest.mark.parametrize(
    ("kind", "steps", "eager", "callbacks"),
    [
        (rate_from(4), 6, False, []),
        slow(rate_from(5), 6, False, [Quiet()]),
        (rate_from(11), 18, True, []),
        slow(hand_from(4), 9, False, []),
        (hand_from(5), 6, True, [Quiet()]),
        (hand_from(12), 18, False, [Quiet()]),
    ],
)
def test_replicas_that_part_late(
    kind: type[Own], steps: int, eager: bool, callbacks: list[Any]
) -> None:
    keras.utils.clear_session(free_memory=False)
    with pytest.raises(ValueError, match=r"hold the same weights.*differ in '\S*kernel'"):
        fitted(kind, steps, eager, callbacks=callbacks)


class RatesOfSteps(keras.callbacks.Callback):
    """Sets a rate that reaches the other ranks with their next step."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.model.optimizer.learning_rate = 0.05 / (2 + batch)


class Counted(Own):
    """A count of rows, in a variable without a name."""

    def prepare(self) -> None:
        self.kept = {"all": [tf.Variable(0.0, trainable=False)]}

    def note(self, data: Given, loss: Any) -> dict[str, Any]:
        self.kept["all"][0].assign_add(loss)
        return {"mse": loss}


def test_rates_that_callbacks_set_are_no_difference() -> None:
    require(fitted(Own, 18, callbacks=[RatesOfSteps()], validation_split=0.2))


def test_a_variable_without_a_name() -> None:
    require(fitted(Counted, 9), "train_step` changes ('kept['all'][0]')")


def metric_that(update: Callable[[Any, Any], Any], initial: float, rows: bool) -> type[Own]:
    class Kept(keras.metrics.Metric):
        def __init__(self) -> None:
            super().__init__(name="kept")
            make = keras.initializers.Constant(initial)
            self.value = self.add_weight(shape=(), initializer=make, name="value")

        def update_state(self, values: Any) -> None:
            self.value.assign(update(self.value, values))

        def reset_state(self) -> None:
            self.value.assign(initial)

        def result(self) -> Any:
            return ops.convert_to_tensor(self.value)

    class WithMetric(Own):
        def prepare(self) -> None:
            self.kept = Kept()

        def note(self, data: Given, loss: Any) -> dict[str, Any]:
            self.kept.update_state(self.rows(data) if rows else loss)
            return {"kept": self.kept.result()}

    return WithMetric


METRICS: dict[str, type[Own]] = {
    "maximum": metric_that(ops.maximum, 0.0, rows=False),
    "maximum of rows": metric_that(lambda v, y: ops.maximum(v, ops.max(y)), -np.inf, rows=True),
    "minimum": metric_that(ops.minimum, np.inf, rows=False),
    "product": metric_that(ops.multiply, 1.0, rows=False),
    "average": metric_that(lambda v, y: 0.9 * v + 0.1 * y, 0.0, rows=False),
    "last": metric_that(lambda v, y: y, 0.0, rows=False),
}


@pytest.mark.parametrize(
    ("name", "eager"),
    [
        *((name, False) for name in METRICS),
        ("maximum of rows", True),
        *(slow(name, True) for name in METRICS if name != "maximum of rows"),
    ],
)
def test_a_metric_that_does_not_add_up(name: str, eager: bool) -> None:
    require(fitted(METRICS[name], eager=eager), "of a batch (metric 'kept')")


class Metrics(Own):
    """Metrics of Keras, by rows and by numbers."""

    def prepare(self) -> None:
        kinds = keras.metrics
        self.by_rows = [
            kinds.MeanSquaredError(),
            kinds.R2Score(),
            kinds.PearsonCorrelation(),
            kinds.ConcordanceCorrelation(),
            kinds.RootMeanSquaredError(),
        ]
        self.by_classes = [
            kinds.AUC(),
            kinds.AUC(multi_label=True, num_labels=2),
            kinds.F1Score(),
            kinds.BinaryAccuracy(),
            kinds.CategoricalAccuracy(),
            kinds.PrecisionAtRecall(0.5),
            kinds.SensitivityAtSpecificity(0.5),
            kinds.TruePositives(),
            kinds.OneHotMeanIoU(2),
        ]
        self.by_number = [kinds.Mean(), kinds.Sum()]
        self.of_sparse = kinds.MeanIoU(2)

    def note(self, data: Given, loss: Any) -> dict[str, Any]:
        y, y_pred = data[1], self.net(data[0])
        for metric in self.by_rows:
            metric.update_state(y, y_pred)
        true, found = ops.cast(y > 0, "float32"), ops.sigmoid(y_pred)
        for metric in self.by_classes:
            metric.update_state(true, found)
        for metric in self.by_number:
            metric.update_state(loss)
        self.of_sparse.update_state(true[:, 0], ops.cast(found[:, 0] > 0.5, "int32"))
        return {"loss": self.by_number[0].result()}


class Root(Own):
    def error(self, data: Given) -> Any:
        loss = super().error(data)
        return tf.cond(self.steps < 3, lambda: loss, lambda: ops.sqrt(loss))


class EagerRoot(Own):
    def error(self, data: Given) -> Any:
        loss = super().error(data)
        return loss if self.count <= 12 else ops.sqrt(loss)


class Clipped(Own):
    def changed(self, gradients: list[Any], loss: Any) -> list[Any]:
        return [tf.clip_by_value(gradient, -20.0, 20.0) for gradient in gradients]


class ClippedNorm(Own):
    def changed(self, gradients: list[Any], loss: Any) -> list[Any]:
        return tf.clip_by_global_norm(gradients, 50.0)[0]


class Skipping(Own):
    def changed(self, gradients: list[Any], loss: Any) -> list[Any]:
        fine = tf.reduce_all([tf.reduce_all(tf.math.is_finite(each)) for each in gradients])
        return [tf.where(fine, each, 0.0) for each in gradients]


class Masked(Own):
    def error(self, data: Given) -> Any:
        mask = ops.cast(data[0][:, 0] > -5000, "float32")
        return ops.sum(self.rows(data) * mask) / ops.sum(mask)


class Summing(Own):
    def error(self, data: Given) -> Any:
        losses = self.rows(data)
        return tf.cond(self.steps < 3, lambda: ops.mean(losses), lambda: 0.01 * ops.sum(losses))


def mask(x: np.ndarray, y: np.ndarray) -> None:
    x[-1, 0] = -6000


@pytest.mark.parametrize(
    ("kind", "steps", "eager", "change", "words"),
    [
        (Root, 6, False, None, "computes, after step 3, is neither"),
        (EagerRoot, 18, True, None, "computes, after step 18, is neither"),
        slow(Clipped, 3, False, None, "computes for rows of large values is neither"),
        (ClippedNorm, 3, False, None, "computes for rows of large values is neither"),
        (Skipping, 3, False, None, "computes for rows that are not finite is neither"),
        slow(Skipping, 3, True, None, "computes for rows that are not finite is neither"),
        (Masked, 3, False, mask, "computes, after step 3, is neither"),
        (Summing, 6, False, None, "first and is a sum, after step 3, or"),
    ],
)
def test_what_begins_late(
    kind: type[Own], steps: int, eager: bool, change: Any, words: str
) -> None:
    said = fitted(kind, steps, eager, change)
    assert bool(said) == (WORLD.rank == 0)
    assert not said or any(words in one for one in said), said


FAR = 1e12  # a limit that no rows of a trial pass


class Capped(Own):
    def error(self, data: Given) -> Any:
        loss = super().error(data)
        return tf.cond(loss < FAR, lambda: loss, lambda: tf.sqrt(loss))


class Leaving(Own):
    """Leaves out updates of a large loss, by zeros."""

    def changed(self, gradients: list[Any], loss: Any) -> list[Any]:
        return [tf.where(loss > FAR, 0.0, each) for each in gradients]


class FarClipped(Own):
    def changed(self, gradients: list[Any], loss: Any) -> list[Any]:
        return [ops.clip(gradient, -FAR, FAR) for gradient in gradients]


class Slower(Own):
    """Sets what later steps use."""

    def note(self, data: Given, loss: Any) -> dict[str, Any]:
        rate = self.optimizer.learning_rate
        tf.cond(loss > FAR, lambda: rate.assign(0.5 * rate), lambda: tf.identity(rate))
        return super().note(data, loss)


class EagerLeaving(Own):
    """Leaves the step by an `if` of Python's."""

    def train_step(self, data: Given) -> dict[str, Any]:
        loss = ops.mean(ops.square(data[1] - self.net(data[0])))
        if loss > FAR:
            return {"mse": loss}
        return super().train_step(data)


class EagerCounting(Own):
    """Decides by the number of rows and of steps, and by what a row is."""

    def train_step(self, data: Given) -> dict[str, Any]:
        x = tf.where(data[0] > FAR, 0.0, data[0])
        if len(x) > 100 or self.steps > 100:
            x = 2 * x
        tf.debugging.assert_less(tf.reduce_max(x), FAR)
        return super().train_step((x, data[1]))


@pytest.mark.parametrize("kind", [Capped, Leaving, FarClipped, Slower, EagerLeaving])
def test_decisions_that_no_trial_sees(kind: type[Own]) -> None:
    said = fitted(kind, 3, kind is EagerLeaving)
    require(said, "own `train_step` decides by values of the whole batch")


class Accumulating(Own):
    """Sums of the gradients of four steps, by hand."""

    def prepare(self) -> None:
        weights = self.net.trainable_variables
        self.sums = [tf.Variable(tf.zeros(w.shape), trainable=False) for w in weights]

    def error(self, data: Given) -> Any:
        return 0.01 * ops.sum(self.rows(data))

    def train_step(self, data: Given) -> dict[str, Any]:
        weights = self.net.trainable_variables
        with tf.GradientTape() as tape:
            loss = self.error(data)
        for total, gradient in zip(self.sums, tape.gradient(loss, weights), strict=True):
            total.assign_add(gradient)
        self.steps.assign_add(1.0)

        def applied() -> Any:
            self.optimizer.apply([tf.identity(total) for total in self.sums], weights)
            for total in self.sums:
                total.assign(tf.zeros_like(total))
            return 0.0

        tf.cond(self.steps % 4 == 0, applied, lambda: 0.0)
        return {"sse": loss}


class Warming(Own):
    """A schedule of one's own, by the count of steps."""

    def changed(self, gradients: list[Any], loss: Any) -> list[Any]:
        self.optimizer.learning_rate.assign(0.1 * ops.minimum(1.0, (self.steps + 1) / 4))
        return gradients

    def error(self, data: Given) -> Any:
        scale = ops.minimum(1.0, (self.steps + 1) / 5)
        return scale * super().error(data) + (1 - scale) * ops.mean(ops.abs(self.net(data[0])))


class EagerWarming(Own):
    def error(self, data: Given) -> Any:
        return super().error(data) * min(1.0, self.count / 5)


class Noisy(Own):
    def changed(self, gradients: list[Any], loss: Any) -> list[Any]:
        return [g + tf.random.normal(g.shape, stddev=0.01, seed=3) for g in gradients]


class Attending(Own):
    """The gradient of the bias of keys is zero but for rounding."""

    def prepare(self) -> None:
        inputs = keras.Input((6,))
        tokens = layers.Dense(8)(layers.Reshape((6, 1))(inputs))
        tokens = layers.MultiHeadAttention(2, 4)(tokens, tokens)
        self.net = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(tokens)))


def easy(x: np.ndarray, y: np.ndarray) -> None:
    """What the model learns until nothing but rounding is left."""
    x[:] = x[np.arange(ROWS) % 2]
    y[:] = y[np.arange(ROWS) % 2]


@pytest.mark.parametrize(
    ("kind", "steps", "eager", "change"),
    [
        (Own, 300, False, easy),
        (Metrics, 6, False, None),
        (Attending, 12, False, None),
        (Warming, 12, False, None),
        slow(EagerWarming, 12, True, None),
        (EagerCounting, 3, True, None),
        (Noisy, 12, False, None),
    ],
)
def test_ordinary_steps_are_not_warned_of(
    kind: type[Own], steps: int, eager: bool, change: Any
) -> None:
    require(fitted(kind, steps, eager, change))


def test_sums_of_several_steps() -> None:
    """The sums differ between replicas, which is said; what they are summed from is not."""
    said = fitted(Accumulating, 12)
    require(said, "train_step` changes ('sums[0]', 'sums[1]', 'sums[2]' and 1 more)")


class Tracing(Own):
    """Changes attributes whenever its code runs, which a compiled step does once."""

    factor, started = 1.0, False

    def changed(self, gradients: list[Any], loss: Any) -> list[Any]:
        if not self.started:
            self.started, self.first = True, self.count
        return [self.factor * gradient / (self.count + self.first) for gradient in gradients]


class Halves(keras.callbacks.Callback):
    """Changes what the step reads before it is traced."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.model.factor = 0.5


@pytest.mark.parametrize("callbacks", [(), (Halves,)])
def test_attributes_that_a_step_changes_as_it_is_traced(callbacks: Any) -> None:
    x = np.random.default_rng(1).normal(size=(ROWS, 6))

    def train(fit: Any, **layout: Any) -> tuple[list[Any], list[float]]:
        keras.utils.set_random_seed(3)
        model = Tracing()
        model.compile(SGD(0.1))
        given = {"batch_size": BATCH, "epochs": 2, "shuffle": False, "verbose": 0} | layout
        fit(model, x, x[:, :2], callbacks=[kind() for kind in callbacks], **given)
        return [model.count, model.first, model.factor], [float(np.sum(w)) for w in model.weights]

    attributes, sums = train(hf.fit, strategy="data")
    expected, plain = train(keras.Model.fit)
    assert attributes == expected
    np.testing.assert_allclose(sums, plain, rtol=1e-5)


class Collecting(Own):
    """Collects in lists and the like what eager steps compute."""

    def prepare(self) -> None:
        self.losses_of_steps: list[float] = []
        self.table: dict[str, Any] = {"rows": [], "names": set()}

    def note(self, data: Given, loss: Any) -> dict[str, Any]:
        self.losses_of_steps.append(float(loss))
        self.table["rows"].append(len(data[0]))
        self.table["names"].add(f"step {self.count}")
        self.table[f"step {self.count}"] = float(loss)
        return {"mse": loss}


def test_trials_leave_nothing_in_containers() -> None:
    """The step is tried before the first step, after three, and at the end."""
    keras.utils.set_random_seed(1)
    x, y = np.zeros((ROWS, 6), "float32"), np.ones((ROWS, 2), "float32")
    model = Collecting()
    model.compile(SGD(0.05), run_eagerly=True)
    hf.fit(model, x, y, strategy="data", batch_size=BATCH, epochs=2, shuffle=False, verbose=0)
    names = [f"step {number}" for number in range(1, 7)]
    assert len(model.losses_of_steps) == 6
    assert model.table["rows"] == [BATCH // 2] * 6
    assert sorted(model.table["names"]) == names
    assert [name for name in model.table if name.startswith("step")] == names
