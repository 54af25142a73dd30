"""What a step has that the first had not: gradients, sparse ones, masks, types, as plain Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import WORLD, Outcome, State, on_leader, require_none
from keras import layers, ops

import hyparflow as hf

pytestmark = [
    pytest.mark.skipif(WORLD.size == 1, reason="one rank has nobody to agree with"),
    pytest.mark.usefixtures("in_float64"),
]
BATCH, STEPS = 8, 4
FLAGS = {"late": [0, 0, 1, 1], "early": [1, 1, 0, 0], "in turns": [0, 1, 0, 1]}
LAYOUTS: dict[str, dict[str, Any]] = {
    "data": {"strategy": "data", "num_microbatches": 2},
    "gpipe": {"strategy": "model", "schedule": "gpipe", "num_microbatches": 4},
    "1f1b": {"strategy": "model", "schedule": "1f1b", "num_microbatches": 2},
    "zero-bubble": {"strategy": "model", "schedule": "zero-bubble", "num_microbatches": 2},
    "interleaved": {
        **{"strategy": "model", "schedule": "interleaved"},
        **{"stages_per_partition": 2, "num_microbatches": 2},
    },
}
if WORLD.size > 2:
    hybrid = {"num_partitions": 2, "num_replicas": WORLD.size // 2, "num_microbatches": 2}
    LAYOUTS = {"hybrid": {"strategy": "hybrid", "schedule": "1f1b", **hybrid}}


class Flagged(layers.Layer):
    """Does more where a flag is set; for symbolic tensors it does all it can."""

    def is_set(self, flag: Any) -> bool:
        return not tf.is_tensor(flag) or not tf.executing_eagerly() or bool(np.any(flag.numpy()))

    def build(self, shapes: Any) -> None:
        self.make(shapes[0][-1])
        super().build(shapes)

    def make(self, size: int) -> None: ...

    def compute_output_spec(self, inputs: Any) -> Any:
        return keras.KerasTensor(inputs[0].shape, inputs[0].dtype)

    def call(self, inputs: Any) -> Any:
        return self.more(*inputs) if self.is_set(inputs[1]) else self.less(*inputs)

    def less(self, x: Any, flag: Any) -> Any:
        return x


class Adapter(Flagged):
    """Takes part where the flag is set."""

    def make(self, size: int) -> None:
        self.dense = layers.Dense(size)
        self.dense.build((None, size))

    def more(self, x: Any, flag: Any) -> Any:
        return x + self.dense(x) * flag


class Table(Flagged):
    """Looks rows up in a table where the flag is set, and else takes them all, times 0.1."""

    def make(self, size: int) -> None:
        self.table = self.add_weight(shape=(5, size), initializer="glorot_uniform")

    def more(self, x: Any, flag: Any) -> Any:
        return x + ops.take(self.table, ops.argmax(x, -1), axis=0)

    def less(self, x: Any, flag: Any) -> Any:
        return x + 0.1 * ops.matmul(
            ops.softmax(ops.matmul(x, ops.transpose(self.table))), self.table
        )


class Half(Flagged):
    """Its outputs are of another type where the flag is not set."""

    def more(self, x: Any, flag: Any) -> Any:
        return ops.cast(x, "float64")

    def less(self, x: Any, flag: Any) -> Any:
        return ops.cast(ops.round(x), "int32")


class Padding(Flagged):
    """Its outputs have a mask where the flag is set."""

    def compute_mask(self, inputs: Any, previous: Any) -> Any:
        x, flag = inputs
        return ops.any(ops.not_equal(x, 0), -1) if self.is_set(flag) else None

    def more(self, x: Any, flag: Any) -> Any:
        self.supports_masking = True
        return x

    less = more


def chain(layer: Callable[..., Any], **more: Any) -> Any:
    x, flag = keras.Input((6,)), keras.Input((1,))
    h = layers.Dense(4, "tanh")(x)
    h = layer(name="flagged", **more)([h, flag])
    return keras.Model([x, flag], layers.Dense(1)(layers.Dense(3, "tanh")(h)))


def adapter() -> Any:
    return chain(Adapter)


def table() -> Any:
    return chain(Table)


def half() -> Any:
    x, flag = keras.Input((6,)), keras.Input((1,))
    h = Half(dtype="float64")([layers.Dense(4, "tanh")(x), flag])
    h = layers.Lambda(lambda x: ops.cast(x, "float64"), output_shape=(4,))(h)
    return keras.Model([x, flag], layers.Dense(1)(layers.Dense(3, "tanh")(h)))


def padded() -> Any:
    x, flag = keras.Input((6,)), keras.Input((1,))
    h = Padding()([layers.Reshape((3, 2))(ops.maximum(x, 0)), flag])
    h = layers.GlobalAveragePooling1D()(layers.Dropout(0.0)(h))
    return keras.Model([x, flag], layers.Dense(1)(layers.Dense(3, "tanh")(h)))


class Again(Flagged):
    """Uses a layer of another partition once more where the flag is set."""

    def __init__(self, dense: Any, **more: Any) -> None:
        super().__init__(**more)
        self.dense = dense

    def make(self, size: int) -> None:
        if not self.dense.built:
            self.dense.build((None, size))

    def more(self, x: Any, flag: Any) -> Any:
        return x + self.dense(x) * flag


def shared() -> Any:
    x, flag = keras.Input((4,)), keras.Input((1,))
    dense = layers.Dense(4)
    h = Again(dense)([x, flag])
    h = layers.Dense(4, "tanh")(layers.Dense(4, "tanh")(h))
    return keras.Model([x, flag], layers.Dense(1)(Again(dense)([h, flag])))


def train(build: Callable[[], Any], flags: np.ndarray, **layout: Any) -> Outcome:
    keras.utils.set_random_seed(3)
    model = build()
    model.compile(keras.optimizers.AdamW(0.01, clipnorm=1.0), "mse", run_eagerly=True)
    random = np.random.default_rng(0)
    x = random.normal(size=(BATCH * STEPS, model.inputs[0].shape[-1]))
    x[:, 0], x[::3, 2:4] = 1.0, -1.0  # what `padded` masks
    y = random.normal(size=(BATCH * STEPS, 1))
    fit = hf.fit if layout else keras.Model.fit
    arguments = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
    history = fit(model, [x, flags], y, **arguments, **layout)
    return Outcome(history.history, State.of(model))


def compare(build: Callable[[], Any], flags: np.ndarray, names: Any = None) -> None:
    expected = on_leader(lambda: train(build, flags))
    for name in names or LAYOUTS:
        actual = train(build, flags, **LAYOUTS[name])
        require_none(actual.compare(expected), f"{build.__name__} {name}")


def of_steps(flags: list[int]) -> np.ndarray:
    return np.repeat(np.array(flags, float), BATCH)[:, None]


@pytest.mark.on_ranks(2)
@pytest.mark.parametrize(
    "when",
    ["in turns", *(pytest.param(when, marks=pytest.mark.slow) for when in ("late", "early"))],
)
def test_weights_that_take_part_in_some_steps(when: str) -> None:
    """Else neither they nor their moments change, and no weight decays."""
    compare(adapter, of_steps(FLAGS[when]))


@pytest.mark.on_ranks(2)
@pytest.mark.parametrize("build", [table, half, padded, shared])
def test_later_steps_differ(build: Callable[[], Any], request: pytest.FixtureRequest) -> None:
    """A sparse gradient after a dense one; types; masks; a second use of a shared weight."""
    everything = request.config.getoption("--everything")
    for when in ("late", "in turns") if everything else ("in turns",):
        compare(build, of_steps(FLAGS[when]), None if everything else ("data", "interleaved"))


@pytest.mark.on_ranks(2)
def test_parts_of_a_batch_differ(request: pytest.FixtureRequest) -> None:
    """A weight has a gradient if any micro-batch of any replica gives it one."""
    everything = request.config.getoption("--everything")
    names = None if everything else ("data", "gpipe")  # schedules have their turns above
    flags = of_steps([0, 1, 1, 0])
    flags.reshape(STEPS, BATCH)[1, :6] = 0
    flags.reshape(STEPS, BATCH)[2, 2:] = 0
    compare(adapter, flags, names)


def test_a_replica_without_rows() -> None:
    """It goes by what the others have."""
    flags = of_steps(FLAGS["in turns"])[: BATCH * STEPS - BATCH + 1]
    flags[-1] = 1

    def short(build: Callable[[], Any], **layout: Any) -> Outcome:
        keras.utils.set_random_seed(3)
        model = build()
        model.compile("adam", "mse", run_eagerly=True)
        x = np.random.default_rng(0).normal(size=(len(flags), 6))
        fit = hf.fit if layout else keras.Model.fit
        arguments = {"batch_size": BATCH, "shuffle": False, "verbose": 0, "epochs": 2}
        history = fit(model, [x, flags], x[:, :1], **arguments, **layout)
        return Outcome(history.history, State.of(model))

    expected = on_leader(lambda: short(adapter))
    name = "data" if WORLD.size == 2 else "hybrid"
    require_none(short(adapter, **LAYOUTS[name]).compare(expected), name)
