"""Which branches and loops depend on values of the whole batch."""

from __future__ import annotations

from typing import Any

import pytest

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from hyparflow.model.branches import branching_operations, branching_step  # noqa: E402

ROWS = tf.TensorSpec([None, 6])


def double(x: Any) -> Any:
    return 2.0 * x


def halve(x: Any) -> Any:
    """Halves until no number is large."""
    return tf.while_loop(lambda x: tf.reduce_any(x > 1.0), lambda x: [x / 2.0], [x])[0]


def to_the_longest(x: Any) -> Any:
    """As many steps as the longest row has."""
    lengths = tf.reduce_sum(tf.cast(x > 0, tf.int32), 1)
    last = tf.reduce_max(lengths)
    step = lambda n, x: (n + 1, tf.where((n < lengths)[:, None], x + 1.0, x))  # noqa: E731
    return tf.while_loop(lambda n, x: n < last, step, [0, x])[1]


def checked(x: Any) -> Any:
    tf.debugging.assert_less(x, 3.0)
    with tf.control_dependencies([tf.debugging.assert_all_finite(x, "finite")]):
        return tf.identity(x)


def in_function(x: Any) -> Any:
    inner = tf.function(lambda x: tf.cond(tf.norm(x) > 1.0, lambda: double(x), lambda: x))
    return inner(x)


def in_recurrence(x: Any) -> Any:
    """A cell that branches on all rows, at each of its steps."""
    steps = tf.transpose(x)

    def step(state: Any, now: Any) -> Any:
        return tf.cond(tf.reduce_all(state + now > 0), lambda: state + now, lambda: state)

    return tf.scan(step, steps, tf.zeros_like(x[:, 0]))[-1]


def of_layer(make: Any, **arguments: Any) -> Any:
    """A call of a layer that is made at the first call."""
    made: list[Any] = []

    def call(x: Any) -> Any:
        if not made:
            made.append(make())
        return made[0](x, **arguments)

    return call


ALARMS = {
    "any": lambda x: tf.cond(tf.reduce_any(x > 2), lambda: double(x), lambda: x),
    "mean": lambda x: tf.cond(tf.reduce_mean(x) > 0, lambda: double(x), lambda: x),
    "first row": lambda x: tf.cond(x[0, 0] > 0, lambda: double(x), lambda: x),
    "keras cond": lambda x: keras.ops.cond(keras.ops.max(x) > 2, lambda: double(x), lambda: x),
    "case": lambda x: tf.switch_case(
        tf.cast(tf.reduce_max(x), tf.int32), [lambda: x, lambda: double(x)]
    ),
    "while": halve,
    "in a function": in_function,
    "in a recurrence": in_recurrence,
    "nested": lambda x: tf.cond(
        tf.shape(x)[0] > 4,
        lambda: tf.cond(tf.reduce_sum(x) > 0, lambda: double(x), lambda: x),
        lambda: x,
    ),
}
QUIET = {
    "where": lambda x: tf.where(x > 2, double(x), x),
    "map of rows": lambda x: tf.map_fn(
        lambda row: tf.cond(row[0] > 0, lambda: double(row), lambda: row), x
    ),
    "number of rows": lambda x: tf.cond(tf.shape(x)[0] > 4, lambda: double(x), lambda: x),
    "random": lambda x: tf.cond(tf.random.uniform([]) > 0.5, lambda: double(x), lambda: x),
    "checks": checked,
    "longest row": to_the_longest,
    "lstm": of_layer(
        lambda: keras.Sequential(
            [
                keras.layers.Masking(),
                keras.layers.Reshape((6, 1)),
                keras.layers.LSTM(3, return_sequences=True),
                keras.layers.GRU(2, unroll=True),
            ]
        )
    ),
    "dropout": of_layer(lambda: keras.layers.Dropout(0.5), training=True),
    "vectorized map": lambda x: tf.vectorized_map(lambda row: row / tf.norm(row), x),
    "ctc": lambda x: keras.ops.ctc_loss(
        tf.ones([tf.shape(x)[0], 2], tf.int32),
        tf.stack([x, x, x], 1),
        tf.fill([tf.shape(x)[0]], 2),
        tf.reduce_sum(tf.cast(x > 9, tf.int32), 1) + 3,
    ),
}


@pytest.mark.parametrize("name", ALARMS)
def test_branches_on_the_whole_batch(name: str) -> None:
    assert len(branching_operations(ALARMS[name], ROWS) or []) == 1


@pytest.mark.parametrize("name", QUIET)
def test_other_branches(name: str) -> None:
    QUIET[name](tf.ones([3, 6]))  # layers make their variables
    assert branching_operations(QUIET[name], ROWS) == []


def test_what_must_run_uncompiled() -> None:
    assert branching_operations(lambda x: x if x[0, 0] > 0 else -x, ROWS) is None


def written(change: Any) -> Any:
    """A step that writes what `change` makes of the mean over rows; its output is a count."""
    made: list[Any] = []

    def step(x: Any) -> Any:
        if not made:
            made.append(tf.Variable(0.0))
        made[0].assign(change(tf.reduce_mean(x)))
        return tf.shape(x)[0]

    return step


def joined(mean: Any) -> Any:
    """The value of all replicas, which a Python function brings."""
    return tf.reshape(tf.numpy_function(lambda x: x, [mean], tf.float32), [])


def noted(x: Any) -> Any:
    """Prints on a condition, and writes in any case."""
    tf.cond(tf.reduce_max(x) > 9, lambda: tf.print(x), lambda: tf.no_op())
    return tf.reduce_mean(x)


STEPS = {
    "cond": (written(lambda mean: tf.cond(mean > 9, lambda: 0.0, lambda: mean)), 1),
    "where": (written(lambda mean: tf.where(mean > 9, 0.0, mean)), 1),
    "clip": (written(lambda mean: tf.clip_by_value(mean, -9.0, 9.0)), 2),
    "written in a branch": (
        written(lambda mean: tf.cond(mean > 9, lambda: mean, lambda: tf.minimum(mean, 3.0))),
        2,
    ),
    "returned": (lambda x: tf.where(tf.norm(x) > 9, 0.0, 1.0), 1),
    "where of rows": (lambda x: tf.reduce_mean(tf.where(x > 9, 0.0, x)), 0),
    "maximum of rows": (lambda x: tf.reduce_mean(tf.maximum(x, 0.0)), 0),
    "of all replicas": (written(lambda mean: tf.minimum(joined(mean), 9.0)), 0),
    "rows in a loop": (
        lambda x: tf.reduce_mean(
            tf.map_fn(lambda row: tf.cond(row[0] > 0, lambda: 2 * row, lambda: row), x)
        ),
        0,
    ),
    "only printed": (noted, 0),
    "count of rows": (lambda x: tf.cond(tf.shape(x)[0] > 4, lambda: 1.0, lambda: 2.0), 0),
}


@pytest.mark.parametrize("name", STEPS)
def test_decisions_of_a_step(name: str) -> None:
    step, count = STEPS[name]
    traced = tf.function(step, autograph=False).get_concrete_function(ROWS)
    given = traced.inputs[: len(traced.inputs) - len(traced.captured_inputs)]
    assert len(branching_step(traced, given)) == count
