"""A forward and its backward, traced as one and run as two, give what they give together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from hyparflow.engine.compiled.split_function import Split
from hyparflow.engine.compiled.split_pair import SplitPair


class Counter(layers.Layer):
    """Multiplies by the number of its calls so far."""

    def build(self, shape: Any) -> None:
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x: Any) -> Any:
        self.count.assign_add(1.0)
        return x * self.count


class Branch(layers.Layer):
    """Computes one of two things, as the values say."""

    def call(self, x: Any) -> Any:
        return tf.cond(tf.reduce_sum(x) > 0, lambda: x * 2, lambda: tf.sin(x))


class Python(layers.Layer):
    """Runs Python in its forward and its backward."""

    def call(self, x: Any) -> Any:
        @tf.custom_gradient
        def double(x: Any) -> Any:
            y = tf.numpy_function(lambda a: 2 * a, [x], x.dtype)
            y.set_shape(x.shape)

            def backward(gradient: Any) -> Any:
                z = tf.numpy_function(lambda a: 2 * a, [gradient], gradient.dtype)
                z.set_shape(gradient.shape)
                return z

            return y, backward

        return double(x)


def images() -> Any:
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(inputs))
    x = layers.Dropout(0.3)(layers.ReLU()(x))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def attention() -> Any:
    inputs = keras.Input((6, 4))
    x = layers.MultiHeadAttention(2, 3, dropout=0.1)(inputs, inputs)
    return keras.Model(inputs, layers.LayerNormalization()(layers.Add()([x, inputs])))


def chain(shape: tuple[int | None, ...], *parts: Any, dtype: str | None = None) -> Any:
    return keras.Sequential([keras.Input(shape, dtype=dtype), *parts])


MODELS: dict[str, Callable[[], Any]] = {
    "images": images,
    "attention": attention,
    "lstm": lambda: chain((6, 3), layers.LSTM(4), layers.Dense(2)),
    "any length": lambda: chain(
        (None, 3), layers.Bidirectional(layers.GRU(4, recurrent_dropout=0.2))
    ),
    "tokens": lambda: chain(
        (6,), layers.Embedding(9, 4, mask_zero=True), layers.LSTM(4), dtype="int32"
    ),
    "weights that change": lambda: chain((6,), layers.SpectralNormalization(layers.Dense(3))),
    "counter": lambda: chain((6,), layers.Dense(3), Counter()),
    "branch": lambda: chain((6,), layers.Dense(3), Branch()),
    "python": lambda: chain((6,), layers.Dense(3), Python()),
}


def functions(model: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Forward and backward of a model, for inputs and weights."""
    weights = weights_of(model)

    def first(x: Any) -> tuple[Any, Any]:
        sources = weights + [x] * x.dtype.is_floating
        tape = tf.GradientTape(watch_accessed_variables=False)
        with tape:
            tape.watch(sources)
            y = model(x, training=True)
        return y, (tape, y, sources)

    def second(state: Any, seed: Any) -> Any:
        tape, y, sources = state
        return tape.gradient(y, sources, output_gradients=seed)

    return first, second


def split_of(model: Any, first: Any, second: Any, inputs: Any) -> Split:
    """The split of a model's forward and backward, for inputs like these."""
    types = (tf.TensorSpec([None, *inputs.shape[1:]], inputs.dtype),)
    return Split(first, second, types, lambda y: (y,), weights_of(model))


def weights_of(model: Any) -> list[Any]:
    return [variable.value for variable in model.trainable_weights]


def rows_for(model: Any) -> Any:
    random = np.random.default_rng(0)
    shape = [5, *(4 if size is None else size for size in model.inputs[0].shape[1:])]
    if "int" in model.inputs[0].dtype:
        return tf.constant(random.integers(0, 9, shape), model.inputs[0].dtype)
    return tf.constant(random.normal(size=shape), model.inputs[0].dtype)


def distance(a: Any, b: Any) -> float:
    assert (a is None) == (b is None)
    left, right = (np.asarray(tf.convert_to_tensor(x), np.float64) for x in (a, b))
    return float(np.abs(left - right).max(initial=0.0))


@pytest.mark.parametrize("name", MODELS)
def test_two_calls_are_as_one(name: str) -> None:
    """Two forwards, then their backwards: outputs, gradients, and what the layers remember."""
    keras.utils.set_random_seed(1)
    model = MODELS[name]()
    x = rows_for(model)
    first, second = functions(model)
    split = split_of(model, first, second, x)
    seed = tf.random.normal(model(x).shape)
    before = [v.numpy() for v in model.variables]

    @tf.function(autograph=False)
    def together(x: Any) -> Any:
        outputs, state = first(x)
        return outputs, second(state, seed)

    expected = [together(x) for _ in range(2)]
    remembered = [v.numpy() for v in model.variables]
    for variable, value in zip(model.variables, before, strict=True):
        variable.assign(value)
    forwards = [split.forward((x,)) for _ in range(2)]
    actual = [(outputs, split.backward(kept, (seed,))) for outputs, kept in forwards]
    for one, other in zip(expected, actual, strict=True):
        pairs = zip([one[0], *one[1]], [other[0], *other[1]], strict=True)
        assert max(distance(a, b) for a, b in pairs) < 1e-5
    after = [v.numpy() for v in model.variables]
    assert max(distance(a, b) for a, b in zip(remembered, after, strict=True)) < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_inputs_can_come_before_those_of_weights(name: str) -> None:
    keras.utils.set_random_seed(1)
    model = MODELS[name]()
    x = rows_for(model)
    first, second = functions(model)

    def halves(state: Any, seed: Any) -> Any:
        gradients = second(state, seed)
        count = len(model.trainable_weights)
        return gradients[count:], gradients[:count]

    split = split_of(model, first, halves, x)
    outputs, kept = split.forward((x,))
    seed = tf.random.normal(outputs.shape)
    expected = split.backward(kept, (seed,))
    early, rest = split.early(kept, (seed,))
    nothing, late = split.late(rest)
    assert nothing == []
    pairs = zip([*expected[0], *expected[1]], [*early, *late], strict=True)
    assert max(distance(a, b) for a, b in pairs) < 1e-6


def test_a_backward_in_two_parts_may_have_nothing_to_give() -> None:
    """A stage without weights, whose inputs need no gradient."""
    model = chain((4,), layers.Reshape((2, 2)))
    first, _ = functions(model)
    x = tf.ones([3, 4])
    split = split_of(model, first, lambda state, seed: ([], []), x)
    outputs, kept = split.forward((x,))
    early, rest = split.early(kept, (tf.ones_like(outputs),))
    assert (early, rest) == ([], [])
    assert split.late(rest) == ([], [])


def test_shapes_are_kept_and_weights_are_read_again() -> None:
    """Of a sum the backward needs only the shapes; of a product the kernel, which is there."""
    inputs = keras.Input((6,))
    x = layers.Dense(5, use_bias=False)(inputs)
    model = keras.Model(inputs, layers.Add()([x, keras.ops.sum(x, axis=1, keepdims=True)]))
    first, second = functions(model)
    x = tf.ones([2, 6])
    _, kept = split_of(model, first, second, x).forward((x,))
    large = [x for x in kept if x.dtype.is_floating]
    assert [tuple(x.shape) for x in large] == [(2, 6)]  # the inputs


def test_gradients_can_be_added_up_inside() -> None:
    model = chain((4,), layers.Dense(3))
    first, second = functions(model)
    total = tf.Variable(tf.zeros([4, 3]))

    def add(gradients: Any) -> Any:
        total.assign_add(gradients[0])
        return gradients[2]

    pair = SplitPair(first, second, (list, add), lambda y: (y,), weights_of(model), False)
    x = tf.ones([2, 4])
    for rows in (x, x, tf.ones([3, 4])):
        outputs, saved = pair.forward((rows,))
        of_inputs = pair.backward(saved, (tf.ones_like(outputs),), 1)
        assert of_inputs.shape == rows.shape
    assert np.array_equal(total, np.full((4, 3), 7.0))


@pytest.mark.parametrize("build", [images, attention])
def test_functions_serve_for_another_model_of_the_same_kind(build: Callable[[], Any]) -> None:
    """With its variables: weights, moving statistics, and the states of random numbers."""
    keras.utils.set_random_seed(1)
    model, other = build(), build()
    inputs = rows_for(model)
    handles = {
        id(a.value.handle): b.value.handle
        for a, b in zip(model.variables, other.variables, strict=True)
    }

    def found(split: Split) -> list[Any]:
        outputs, kept = split.forward((inputs,))
        return [outputs, *split.backward(kept, (tf.ones_like(outputs),))]

    split = split_of(model, *functions(model), inputs)
    twin = split.on(lambda tensor: handles.get(id(tensor), tensor))
    state = [v.numpy() for v in model.variables]
    before = [v.numpy() for v in other.variables]
    actual = found(twin)
    after = [v.numpy() for v in other.variables]
    assert all(
        np.array_equal(v.numpy(), old) for v, old in zip(model.variables, state, strict=True)
    )
    for variable, value in zip(other.variables, before, strict=True):
        variable.assign(value)
    expected = found(split_of(other, *functions(other), inputs))
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, variable in zip(after, other.variables, strict=True):
        np.testing.assert_array_equal(a, variable.numpy())


# --- recomputation ---


class Drawing(layers.Layer):
    """Draws by an operation that has a state of its own, and by a generator."""

    def build(self, shape: Any) -> None:
        self.generator = tf.random.Generator.from_seed(3)

    def call(self, x: Any) -> Any:
        return x * tf.random.uniform([4]) * self.generator.normal([4])


class Counting(layers.Layer):
    """Calls Python, which gives another number each time."""

    calls = 0

    def count(self) -> Any:
        Counting.calls += 1
        return np.float32(Counting.calls)

    def call(self, x: Any) -> Any:
        factor = tf.numpy_function(self.count, [], tf.float32)
        factor.set_shape([])
        return tf.sin(x * factor)


def remembered() -> Any:
    """Built in Keras's own scope of rematerialization."""
    with keras.RematScope("activations"):
        hidden = layers.Dense(5, activation="tanh")
    return chain((4,), hidden, layers.Dropout(0.3))


ALL: dict[str, Callable[[], Any]] = MODELS | {
    "drawing": lambda: chain((4,), Drawing(), layers.Dense(3, activation="tanh")),
    "counting": lambda: chain((4,), Counting(), layers.Dense(3, activation="tanh")),
    "remat": remembered,
}
LONGEST = "any length"  # to compile


def in_halves(model: Any) -> tuple[Any, Any]:
    first, second = functions(model)
    count = len(model.trainable_weights)

    def halves(state: Any, seed: Any) -> Any:
        gradients = second(state, seed)
        return gradients[count:], gradients[:count]

    return first, halves


def recomputed(name: str, recompute: str | None, in_two: bool = False) -> list[Any]:
    """Of two forwards, then their backwards; and what the layers remember."""
    keras.utils.set_random_seed(1)
    Counting.calls = 0
    model = ALL[name]()
    x = rows_for(model)
    first, second = in_halves(model)
    types = (tf.TensorSpec([None, *x.shape[1:]], x.dtype),)
    constant = weights_of(model)
    split = Split(first, second, types, lambda y: (y,), constant, recompute=recompute)
    found: list[Any] = []
    forwards = [split.forward((x,)) for _ in range(2)]
    for outputs, kept in forwards:
        found.append(outputs)
        if recompute == "segments":
            outputs, kept = split.again((x,), kept)
        found.append(outputs)
        if in_two:
            early, rest = split.early(kept, (tf.ones_like(outputs),))
            found += [*early, *split.late(rest)[1]]
        else:
            of_inputs, of_weights = split.backward(kept, (tf.ones_like(outputs),))
            found += [*of_inputs, *of_weights]
    return [*found, *(v.value for v in model.variables)]


@functools.cache
def of_what_is_kept(name: str) -> list[Any]:
    """The same where nothing is computed again."""
    return recomputed(name, None)


def _ways() -> Iterator[Any]:
    """What is computed again does not depend on how many calls ask for gradients of it."""
    for name in ALL:
        for way in (("block", False), ("block", True), ("segments", False), ("segments", True)):
            usual = way == ("block", False) or (way == ("segments", True) and name != LONGEST)
            yield pytest.param(name, *way, marks=[] if usual else pytest.mark.slow)


@pytest.mark.parametrize(("name", "recompute", "in_two"), _ways())
def test_numbers_are_the_same(name: str, recompute: str, in_two: bool) -> None:
    actual = recomputed(name, recompute, in_two)
    assert max(distance(a, b) for a, b in zip(of_what_is_kept(name), actual, strict=True)) < 1e-6


def numbers_kept(model: Any, recompute: str | None) -> int:
    """How many numbers are kept of five rows."""
    x = rows_for(model)
    first, second = functions(model)
    types = (tf.TensorSpec([None, *x.shape[1:]], x.dtype),)
    split = Split(first, second, types, lambda y: (y,), weights_of(model), recompute=recompute)
    return sum(int(tf.size(tensor)) for tensor in split.forward((x,))[1] if tensor is not x)


def test_less_is_kept() -> None:
    hidden = [
        x for _ in range(4) for x in (layers.Dense(64, activation="tanh"), layers.Dropout(0.2))
    ]
    model = chain((4,), *hidden, layers.LayerNormalization())
    assert numbers_kept(model, None) > 4 * 5 * 64
    assert numbers_kept(model, "block") < 100  # the rows, shapes, and the seeds of what is drawn
    assert numbers_kept(model, "segments") < 80


def test_loops_that_only_read_weights_run_again() -> None:
    assert numbers_kept(MODELS["lstm"](), "segments") < 8
