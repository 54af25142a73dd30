"""What a trial on a few rows finds, and that it leaves no trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

from hyparflow.engine.trials.row_findings import find_row_faults  # noqa: E402
from hyparflow.model.layer_names import layer_of_operation, layer_that_failed  # noqa: E402
from hyparflow.model.own_layers import own_layers  # noqa: E402

layers, ops = keras.layers, keras.ops


class Own(layers.Layer):  # type: ignore[misc, name-defined]
    """A layer that computes this function of inputs, `training` and itself."""

    def __init__(self, function: Callable[[Any, bool, Any], Any]) -> None:
        super().__init__(name="own")
        self.function = function
        self.seeds = keras.random.SeedGenerator(3)
        self.seen = keras.metrics.Mean(name="seen")
        self.calls = 0

    def build(self, shape: Any) -> None:
        self.gate = self.add_weight(shape=(), initializer="zeros", name="gate")
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, x: Any, training: bool = False) -> Any:
        self.seen.update_state(x)
        self.calls += 1
        return self.function(x, training, self)


def model_with(function: Callable[[Any, bool, Any], Any]) -> Any:
    inputs = keras.Input((5,))
    x = layers.BatchNormalization()(layers.Dense(6, "tanh")(inputs))
    return keras.Model(inputs, layers.Dense(2)(layers.Dropout(0.3)(Own(function)(x))))


def in_training(change: Callable[[Any], Any]) -> Callable[[Any, bool, Any], Any]:
    return lambda x, training, own: change(x) if training else x


MIXING = {
    "mean": lambda x, training, own: x - 1e-4 * ops.mean(x, axis=0),
    "halves": lambda x, training, own: x + 1e-3 * ops.roll(x, 2, axis=0),
    "first row": lambda x, training, own: x - 1e-3 * x[:1],
    "sum before": lambda x, training, own: x + 1e-3 * ops.flip(ops.cumsum(ops.flip(x, 0), 0), 0),
    "behind a gate": lambda x, training, own: x + own.gate * ops.max(x, axis=0),
    "in training": in_training(lambda x: x - ops.mean(x, axis=0)),
    "shuffled": lambda x, training, own: x + keras.random.shuffle(x, 0, seed=own.seeds),
    "sorted": lambda x, training, own: ops.sort(x, axis=0),
}
ALONE = {
    "scaled": lambda x, training, own: x * own.scale,
    "large": lambda x, training, own: 1e6 + x,
    "noise": lambda x, training, own: x + keras.random.normal(ops.shape(x), seed=own.seeds),
    "noise of TensorFlow": lambda x, training, own: x + tf.random.normal(tf.shape(x)),
    "softmax of a row": lambda x, training, own: ops.softmax(1e3 * x, axis=-1),
    "depth dropped": in_training(
        lambda x: x * tf.floor(0.8 + tf.random.uniform([tf.shape(x)[0], 1]))
    ),
    "normalized": lambda x, training, own: x / ops.norm(x, axis=-1, keepdims=True),
}
TYPES = tf.TensorSpec([None, 5], "float32")


@pytest.mark.parametrize("name", MIXING)
def test_mixed_rows_are_found(name: str) -> None:
    found = find_row_faults(model_with(MIXING[name]), TYPES)
    assert found.mixed
    assert found.mixing == ["own"]


class Outer(layers.Layer):  # type: ignore[misc, name-defined]
    """Treats each row alone, but for what a layer within it does."""

    def __init__(self, inner: Any, **more: Any) -> None:
        super().__init__(**more)
        self.inner = inner
        self.dense = layers.Dense(5)

    def call(self, x: Any) -> Any:
        return self.dense(self.inner(x))


class Whole(keras.Model):  # type: ignore[misc, name-defined]
    """Mixes rows in its own call."""

    def __init__(self) -> None:
        super().__init__(name="whole")
        self.dense = layers.Dense(5)

    def call(self, x: Any) -> Any:
        return self.dense(x) - ops.mean(x, axis=0)


def test_which_layers_mix_rows() -> None:
    """Each that does, and of layers within layers the innermost."""
    mean = lambda x: x - 1e-3 * ops.mean(x, axis=0)  # noqa: E731
    inputs = keras.Input((5,))
    x = layers.Lambda(mean, name="first")(layers.Dense(5)(inputs))
    x = Outer(layers.Lambda(mean, name="inner"), name="outer")(layers.Dense(5, "tanh")(x))
    x = keras.Sequential([keras.Input((5,)), layers.Lambda(mean, name="nested")], name="steps")(x)
    model = keras.Model(inputs, layers.Dense(2)(x - ops.max(x, axis=0, keepdims=True)))
    (name,) = [o.name for o in model.operations if type(o).__name__ == "Max"]
    assert find_row_faults(model, TYPES).mixing == ["first", "inner", "nested", name]
    whole = Whole()
    whole.build((None, 5))
    assert find_row_faults(whole, TYPES).mixing == ["whole"]


def test_a_batch_that_becomes_one_number() -> None:
    inputs = keras.Input((5,))
    x = layers.Lambda(lambda x: ops.mean(x), output_shape=(), name="all")(layers.Dense(3)(inputs))
    assert find_row_faults(keras.Model(inputs, x), TYPES).mixing == ["all"]


@pytest.mark.parametrize("name", ALONE)
def test_rows_alone_give_no_alarm(name: str) -> None:
    found = find_row_faults(model_with(ALONE[name]), TYPES)
    assert not found.mixed and not found.branches and not found.state and not found.error
    assert not found.added and not found.sums and not found.metrics


def adding(*functions: Callable[[Any], Any]) -> Any:
    def add(x: Any, training: bool, own: Any) -> Any:
        for function in functions:
            own.add_loss(function(x))
        return x

    return model_with(add)


def test_added_losses() -> None:
    noisy = lambda x: x + 0.1 * tf.random.normal(tf.shape(x))  # noqa: E731
    model = adding(ops.mean, ops.sum, lambda x: ops.sum(x, -1), lambda x: 0.1 + 0.0 * x[0, 0])
    number = [layer.name for layer in model._flatten_layers()].index("own")
    assert find_row_faults(model, TYPES).sums == [(number, 1), (number, 2)]
    model = adding(lambda x: ops.sum(ops.square(noisy(x))), lambda x: ops.mean(noisy(x) ** 2))
    assert find_row_faults(model, TYPES).sums == [(number, 0)]
    assert find_row_faults(adding(ops.max), TYPES).added == ["own"]


def test_it_leaves_no_trace() -> None:
    model = model_with(MIXING["shuffled"])
    model(np.ones((3, 5)), training=True)
    own = model.get_layer("own")
    kept = [*model.variables, *own.seen.variables, own.seeds.state]
    before = [v.numpy() for v in kept]
    random, calls = np.random.get_state()[1].copy(), own.calls
    find_row_faults(model, TYPES)
    for variable, value in zip(kept, before, strict=True):
        assert np.array_equal(variable.numpy(), value), variable.path
    assert np.array_equal(np.random.get_state()[1], random)
    assert own.calls == calls


def test_layers_of_one_number_of_rows() -> None:
    fixed = lambda x, training, own: ops.reshape(ops.reshape(x, (48,)), (-1, 6))  # noqa: E731
    found = find_row_faults(model_with(fixed), TYPES, 8, [3, 5])
    assert (found.fixed, found.failed) == (3, "own")

    def in_groups(x: Any, training: bool, own: Any) -> Any:
        groups = ops.reshape(x, (ops.shape(x)[0] // 8, 8, 6))
        return ops.reshape(groups - ops.mean(groups, axis=1, keepdims=True), (-1, 6))

    found = find_row_faults(model_with(in_groups), TYPES, 16, [8])
    assert found.mixed and not found.error
    assert find_row_faults(model_with(fixed), TYPES).error


def tried(*stack: Any) -> list[str]:
    """Which of these layers of Keras are tried out."""
    keras.utils.clear_session(free_memory=False)  # names are counted anew
    return own_layers(keras.Sequential([keras.Input((5, 4)), *stack]))


def test_layers_of_keras_that_may_join_rows() -> None:
    def own(x: Any) -> Any:
        return x - ops.mean(x, axis=0)

    assert tried(layers.Softmax(axis=0, name="a")) == ["a"]
    assert tried(layers.Softmax(axis=[-3, 2], name="a")) == ["a"]
    assert tried(layers.Activation(own, name="a")) == ["a"]
    assert tried(layers.SimpleRNN(3, activation=own)) == ["simple_rnn_cell"]
    assert tried(layers.Dense(3, activity_regularizer=own, name="a")) == ["a"]
    assert tried(layers.TimeDistributed(layers.Dense(3, own), name="a")) == ["dense"]
    assert tried(layers.MixUp(name="a")) == ["a"]


def test_layers_of_keras_that_may_not() -> None:
    known = [layers.Softmax(), layers.Dense(3, "gelu"), layers.Dense(3, keras.activations.relu)]
    known += [layers.Dense(3, layers.LeakyReLU(), activity_regularizer="l2"), layers.LSTM(3)]
    assert tried(*known) == []


class Reads(layers.Layer):  # type: ignore[misc, name-defined]
    """Fails in TensorFlow's graph, or in Python's code."""

    def __init__(self, in_python: bool, **options: Any) -> None:
        super().__init__(**options)
        self.in_python = in_python

    def call(self, x: Any) -> Any:
        if self.in_python:
            raise KeyError("missing")
        return tf.debugging.check_numerics(x, "not finite")

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(x.shape, x.dtype)


@pytest.mark.parametrize("in_python", [False, True])
def test_the_layer_that_failed(in_python: bool) -> None:
    inputs = keras.Input((5,))
    model = keras.Model(inputs, layers.Dense(1)(Reads(in_python, name="reads")(inputs)))
    with pytest.raises((KeyError, tf.errors.OpError)) as caught:
        tf.function(model)(tf.constant(np.full((2, 5), np.nan)))
    assert layer_that_failed(caught.value, model.layers) == "reads"
    assert layer_that_failed(ValueError("of nobody"), model.layers) == ""


def test_a_scope_that_two_layers_may_have() -> None:
    names = {"dense", "dense_1", "block"}
    assert layer_of_operation("model/block/dense_1_1/Add", names) == "dense_1"
    assert layer_of_operation("model/block_2/Add", names) == "block"
    assert layer_of_operation("model/dense_1/Add", names) == "dense' or 'dense_1"
    assert layer_of_operation("loss/Mean", names) == ""


def test_inputs_of_one_shape_differ() -> None:
    """What a layer makes of two inputs is not hidden by their being alike."""
    a, b = keras.Input((5,)), keras.Input((5,))
    model = keras.Model([a, b], Own(lambda x, training, own: x + ops.max(x, 0))(a - b))
    assert find_row_faults(model, [TYPES, TYPES]).mixed
