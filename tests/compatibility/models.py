"""Features of models: steps of their own, layers with state, frozen layers, losses inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from compatibility.rows import refused, works
from compatibility.runs import Runs, Slower, arrays, classifier, dense_model, on_replicas, one_hot

MODELS = "Models"


class OwnStep(keras.Model):
    """A model that trains, evaluates and predicts by steps of its own."""

    def train_step(self, data: Any) -> Any:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(x, y, y_pred, sample_weight)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            else:
                metric.update_state(y, y_pred, sample_weight)
        logs = {metric.name: metric.result() for metric in self.metrics}
        return logs | {"mean_of_x": ops.mean(x)}

    def test_step(self, data: Any) -> Any:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y_pred = self(x, training=False)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(self.compute_loss(x, y, y_pred, sample_weight))
            else:
                metric.update_state(y, y_pred, sample_weight)
        return self.get_metrics_result()

    def predict_step(self, data: Any) -> Any:
        return {"logits": self(data, training=False), "rows": ops.sum(data, -1)}


def own_step_model() -> Any:
    """A functional model of this class."""
    inputs = keras.Input((5,))
    x = layers.Dense(6, activation="tanh", kernel_regularizer="l2")(inputs)
    return OwnStep(inputs, layers.Dense(3)(layers.Dense(6, activation="tanh")(x)))


def fit_own(run: Any, jit_compile: bool = False) -> Any:
    model, (x, y) = own_step_model(), arrays(41)
    model.compile(
        keras.optimizers.Adam(0.01, global_clipnorm=0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=jit_compile,
    )
    weights = np.linspace(0, 2, 41)
    held = (x[:9], y[:9])
    # 41 rows in batches of 20: the last has one row, fewer than there are replicas.
    run.fit(model, x, y, batch_size=20, epochs=2, sample_weight=weights, validation_data=held)
    return model, run.predict(model, x[:7], batch_size=4)


@works(
    MODELS,
    "own train_step",
    "own test_step",
    "own predict_step",
    note='with strategy="data": on each replica\'s rows, gradients are summed in optimizer.apply',
)
def check_own_steps(runs: Runs) -> None:
    if runs.options["strategy"] != "model":
        on_replicas().compare(fit_own)


@refused(MODELS, "own steps on a cut model", note='use strategy="data"')
def check_own_steps_cut(runs: Runs) -> None:
    if runs.options["strategy"] != "data":
        runs.refuse(fit_own, "own `train_step` cannot be cut")
    else:
        runs.refuse(fit_own, "own `train_step` takes")


@refused(MODELS, "own train_step with jit_compile=True", note="jit_compile=False")
def check_own_steps_by_xla(runs: Runs) -> None:
    if runs.options["strategy"] == "data":
        on_replicas().refuse(lambda run: fit_own(run, jit_compile=True), "XLA cannot compile a")


@refused(MODELS, "own make_train_function", note="override train_step")
def check_own_functions(runs: Runs) -> None:
    class Model(keras.Model):
        def make_train_function(self, force: bool = False) -> Any:
            return super().make_train_function(force)

    def train(run: Any) -> None:
        inputs = keras.Input((5,))
        model = Model(inputs, layers.Dense(3)(layers.Dense(4)(inputs)))
        model.compile("sgd", "mse")
        run.fit(model, arrays()[0], one_hot())

    runs.refuse(train, "Override `train_step`")


class Adversaries(keras.Model):
    """Two models, two optimizers, no `call`: as generative adversarial networks are written."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = keras.Sequential([keras.Input((5,)), layers.Dense(4), layers.Dense(3)])
        self.critic = keras.Sequential([keras.Input((3,)), layers.Dense(4), layers.Dense(1)])
        self.generator_loss = keras.metrics.Mean(name="generator_loss")
        self.critic_loss = keras.metrics.Mean(name="critic_loss")

    def compile(self, generator_optimizer: Any, critic_optimizer: Any) -> None:
        super().compile()
        self.generator_optimizer = generator_optimizer
        self.critic_optimizer = critic_optimizer

    @property
    def metrics(self) -> list[Any]:
        return [self.generator_loss, self.critic_loss]

    def train_step(self, data: Any) -> Any:
        x, real = data
        with tf.GradientTape() as tape:
            made = self.critic(self.generator(x, training=True), training=True)
            loss = ops.mean(made) - ops.mean(self.critic(real, training=True))
        weights = self.critic.trainable_weights
        self.critic_optimizer.apply(tape.gradient(loss, weights), weights)
        self.critic_loss.update_state(loss)
        with tf.GradientTape() as tape:
            loss = -ops.mean(ops.tanh(self.critic(self.generator(x, training=True))))
        weights = self.generator.trainable_weights
        self.generator_optimizer.apply_gradients(
            zip(tape.gradient(loss, weights), weights, strict=True)
        )
        self.generator_loss.update_state(loss)
        return {metric.name: metric.result() for metric in self.metrics}


@works(MODELS, "several optimizers, no call", note='in an own train_step, with strategy="data"')
def check_adversaries(runs: Runs) -> None:
    def train(run: Any) -> Any:
        model = Adversaries()
        model.compile(keras.optimizers.Adam(0.01), keras.optimizers.SGD(0.05))
        slow_down = Slower(lambda model: model.critic_optimizer)
        data = arrays(41)[0], one_hot(41)
        history = run.fit(model, *data, batch_size=20, epochs=2, callbacks=[slow_down])
        return None, [history.history, [np.array(w) for w in model.get_weights()]]

    if runs.options["strategy"] != "model":
        on_replicas().compare(train)


@works(MODELS, "subclassed", note='with strategy="data"')
def check_subclassed(runs: Runs) -> None:
    class Model(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.parts = [layers.Dense(6, activation="tanh"), layers.Dense(3)]

        def call(self, x: Any) -> Any:
            for part in self.parts:
                x = part(x)
            return x

    def train(run: Any) -> Any:
        model = Model()
        model.compile("adam", "mse", metrics=["mae"])
        run.fit(model, arrays()[0], one_hot(), batch_size=20, epochs=2)
        return model

    if runs.options["strategy"] == "data":
        runs.compare(train)
    else:
        runs.refuse(train, "only if Keras knows its graph")


class Scale(layers.Layer):
    """A layer with a weight and a counter of its own, and a loss."""

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

    def call(self, x: Any) -> Any:
        self.add_loss(0.1 * ops.mean(ops.square(x)))
        return x * self.scale


def fitting(build: Callable[[], Any], **arguments: Any) -> Callable[[Runs], None]:
    """A check that a compiled model trains as with plain Keras."""

    def train(run: Any) -> Any:
        model, (x, y) = build(), arrays()
        run.fit(model, x, y, batch_size=20, epochs=2, validation_data=(x[:9], y[:9]), **arguments)
        return model

    return lambda runs: runs.compare(train)


def between(*middle: Any, **options: Any) -> Any:
    """A compiled classifier with these layers in its middle."""
    first = layers.Dense(6, activation="tanh", **options)
    model = keras.Sequential([keras.Input((5,)), first, *middle, layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    return model


works(MODELS, "custom layers", "add_loss in a layer")(
    fitting(lambda: between(Scale(), layers.Dense(4), Scale()))
)
works(MODELS, "activity regularizers")(
    fitting(lambda: between(layers.Dense(4, activity_regularizer="l2"), layers.Dense(4)))
)


class Adds(layers.Layer):
    """Adds to the loss what functions make of its inputs."""

    def __init__(self, *functions: Callable[[Any], Any]) -> None:
        super().__init__()
        self.functions = functions

    def call(self, x: Any) -> Any:
        for function in self.functions:
            self.add_loss(function(x))
        return x


works(MODELS, "add_loss of a sum over rows", "add_loss of a value for each row")(
    fitting(
        lambda: between(
            Adds(
                lambda x: 0.01 * ops.sum(ops.square(x)),
                lambda x: 0.1 * ops.mean(ops.abs(x)),
                lambda x: 0.01 * ops.mean(ops.abs(x), axis=-1),
            ),
            layers.Dense(4),
            Adds(lambda x: 0.02 * ops.sum(x)),
        )
    )
)


@refused(MODELS, "add_loss of what is neither", note="no row's value may depend on other rows")
def check_added_others(runs: Runs) -> None:
    def train(run: Any) -> Any:
        adds = Adds(lambda x: 1e-3 * ops.max(x))
        return run.fit(between(adds), *arrays(), batch_size=20)

    runs.refuse(train, "must be a mean or a sum over the rows.*'adds'")


class Watched(layers.Layer):
    """Keeps a metric of its own."""

    def __init__(self, metric: Any, see: Callable[[Any], Any]) -> None:
        super().__init__()
        self.metric, self.see = metric, see

    def call(self, x: Any) -> Any:
        self.metric.update_state(self.see(x))
        return x


works(MODELS, "metrics that layers keep", note="means, or sums and counts of rows")(
    fitting(
        lambda: between(
            Watched(keras.metrics.Mean(name="mean"), ops.mean),
            Watched(keras.metrics.Mean(name="each"), lambda x: x),
            Watched(keras.metrics.Sum(name="sum"), ops.sum),
        )
    )
)


class Calls(keras.metrics.Metric):
    """Counts its updates."""

    def __init__(self) -> None:
        super().__init__(name="calls")
        self.count = self.add_variable((), "zeros", name="count")

    def update_state(self, values: Any) -> None:
        self.count.assign_add(1.0)

    def result(self) -> Any:
        return self.count.value


@refused(MODELS, "metrics of layers that do not add up", note="keep sums and counts of rows")
def check_odd_layer_metrics(runs: Runs) -> None:
    def train(run: Any) -> Any:
        return run.fit(between(Watched(Calls(), ops.mean)), *arrays(), batch_size=20)

    runs.refuse(train, "metric of a layer must keep sums.*'calls'")


L1L2 = keras.regularizers.L1L2(0.01, 0.02)
works(MODELS, "weight regularizers", "weight constraints")(
    fitting(lambda: between(kernel_regularizer=L1L2, kernel_constraint="unit_norm"))
)


@works(MODELS, "frozen layers", "trainable changed between fits", note="after compile, as in Keras")
def check_fine_tuning(runs: Runs) -> None:
    def train(run: Any) -> Any:
        model, (x, y) = dense_model(), arrays()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        for layer in model.layers[:2]:
            layer.trainable = False
        for rate in (0.1, 0.01):
            model.compile(keras.optimizers.SGD(rate, momentum=0.9), loss)
            run.fit(model, x, y, batch_size=20, shuffle=False)
            model.trainable = True
        return model

    runs.compare(train)


@works(MODELS, "a second fit continues", note="with the optimizer's state")
def check_continues(runs: Runs) -> None:
    def train(run: Any) -> Any:
        model, (x, y) = classifier(optimizer="adam"), arrays()
        run.fit(model, x, y, batch_size=20)
        run.evaluate(model, x, y)
        run.fit(model, x, y, batch_size=20)
        return model

    runs.compare(train)


@works(MODELS, "a saved and loaded model continues", note="with the optimizer's state")
def check_loaded(runs: Runs) -> None:
    def train(run: Any) -> Any:
        model, (x, y) = classifier(optimizer="adam"), arrays()
        run.fit(model, x, y, batch_size=20)
        path = run.folder() / "model.keras"
        model.save(path)  # by every rank, which each finds it complete
        loaded = keras.models.load_model(path)
        run.fit(loaded, x, y, batch_size=20)
        return loaded

    runs.compare(train)


@works(MODELS, "the same run twice", note="gives the same bits, with the same layout and threads")
def check_reproducible(runs: Runs) -> None:
    def train(run: Any) -> Any:
        results = []
        for _ in range(2):
            keras.utils.set_random_seed(3)
            model = between(layers.Dropout(0.4), layers.BatchNormalization(), layers.Dense(5))
            x, y = arrays()
            run.fit(model, x.astype("float32"), y, batch_size=20, epochs=2)
            results.append(b"".join(w.tobytes() for w in model.get_weights()))
        assert results[0] == results[1]
        return None, [len(results)]

    runs.compare(train, dtype="float32")


@works(MODELS, "stateful layers", note="one replica and one micro-batch, else refused")
def check_stateful(runs: Runs) -> None:
    def train(run: Any, num_microbatches: int = 2) -> Any:
        inputs = keras.Input(batch_shape=(5, 6, 4))
        x = layers.SimpleRNN(3, stateful=True)(layers.Dense(4)(inputs))
        model = keras.Model(inputs, layers.Dense(1)(layers.Dense(2)(x)))
        model.compile("sgd", "mse")
        random = np.random.default_rng(0)
        if not run.is_plain:
            run = type(run)(run.options | {"num_microbatches": num_microbatches})
        run.fit(model, random.normal(size=(20, 6, 4)), random.normal(size=(20, 1)), batch_size=5)
        return model

    runs.refuse(train, "stateful=True keep a state")
    if runs.options["strategy"] == "model":
        runs.compare(lambda run: train(run, 1))


@works(MODELS, "SpectralNormalization", note="with num_microbatches=1, else refused")
def check_spectral(runs: Runs) -> None:
    def train(run: Any, num_microbatches: int = 2) -> Any:
        model = between(layers.SpectralNormalization(layers.Dense(5)), layers.Dense(4))
        if not run.is_plain:
            run = type(run)(run.options | {"num_microbatches": num_microbatches})
        run.fit(model, *arrays(), batch_size=20, epochs=2)
        return model

    runs.refuse(train, "SpectralNormalization changes its kernel")
    runs.compare(lambda run: train(run, 1))
