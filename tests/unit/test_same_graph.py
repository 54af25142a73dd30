"""Traced functions are compared without the names in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from hyparflow.engine.compiled.choice import compiler  # noqa: E402
from hyparflow.engine.compiled.fast_call import FixedFunction  # noqa: E402
from hyparflow.engine.compiled.functions import Compiled  # noqa: E402
from hyparflow.engine.compiled.likeness import Likeness  # noqa: E402
from hyparflow.engine.compiled.same_graph import same_graphs  # noqa: E402


def traced(function: Callable[..., Any]) -> Any:
    spec = tf.TensorSpec([None, 3], tf.float32)
    return tf.function(function, autograph=False).get_concrete_function(spec).graph


def branching(limit: float) -> Callable[[Any], Any]:
    return lambda x: tf.cond(tf.reduce_sum(x) > 0, lambda: x * limit, lambda: x - 1.0)


def looping(steps: int) -> Callable[[Any], Any]:
    return lambda x: tf.while_loop(lambda n, y: n < steps, lambda n, y: (n + 1, y * 2.0), [0, x])


def named(name: str) -> Callable[[Any], Any]:
    def function(x: Any) -> Any:
        with tf.name_scope(name):
            return tf.nn.relu(x + 1.0)

    return function


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (named("a"), named("b"), True),
        (named("a"), lambda x: tf.nn.relu(x + 2.0), False),
        (named("a"), lambda x: tf.nn.elu(x + 1.0), False),
        (lambda x: x - x * 2.0, lambda x: x * 2.0 - x, False),
        (lambda x: tf.reduce_sum(x, 0), lambda x: tf.reduce_sum(x, 1), False),
        (branching(2.0), branching(2.0), True),
        (branching(2.0), branching(3.0), False),
        (looping(3), looping(3), True),
        (looping(3), looping(4), False),
        (lambda x: (x, x + 1.0), lambda x: (x + 1.0, x + 1.0), False),
    ],
)
def test_functions(left: Any, right: Any, same: bool) -> None:
    assert same_graphs(traced(left), traced(right), lambda handle: None) is same


def test_captured_variables_must_correspond() -> None:
    a, b, c, d = (tf.Variable(np.ones(3, np.float32) * n) for n in range(4))
    left = traced(lambda x: x * a + b)
    likeness = Likeness([a, b], [c, d])
    assert same_graphs(left, traced(lambda x: x * c + d), likeness.find)
    assert not same_graphs(left, traced(lambda x: x * d + c), likeness.find)
    assert not same_graphs(left, traced(lambda x: x * c + b), likeness.find)
    assert not same_graphs(left, traced(lambda x: x * c + 1.0), likeness.find)


def scaled(variable: Any, factor: float, calls: list[float]) -> Compiled:
    def function(x: Any) -> Any:
        calls.append(factor)
        return x * variable * factor

    return Compiled(function, False, compiler().call)


def test_a_function_that_is_not_the_same_is_compiled_itself() -> None:
    calls: list[float] = []
    a, b, c = (tf.Variable(n) for n in (2.0, 3.0, 5.0))
    first = scaled(a, 1.0, calls)
    alike = scaled(b, 1.0, calls).like(first, Likeness([a], [b]))
    assert float(first(tf.constant(1.0))) == 2.0 and float(alike(tf.constant(1.0))) == 3.0
    third = scaled(c, 1.0, calls).like(first, Likeness([a], [c]))
    assert float(third(tf.constant(1.0))) == 5.0
    assert calls == [1.0, 1.0]  # the first, and to compare

    other = scaled(a, 1.0, calls)
    another = scaled(b, 2.0, calls).like(other, Likeness([a], [b]))
    assert float(another(tf.constant(1.0))) == 6.0


def test_what_has_no_counterpart_is_not_shared() -> None:
    a, b = tf.Variable(2.0), tf.Variable(3.0)
    likeness = Likeness([], [])
    first = scaled(a, 1.0, [])
    other = scaled(b, 1.0, []).like(first, likeness)
    assert float(other(tf.constant(1.0))) == 3.0
    with pytest.raises(LookupError, match="must have a counterpart"):
        likeness.replace(a.handle)


def test_a_fixed_function_for_other_variables_takes_dense_tensors() -> None:
    a, b = tf.Variable(2.0), tf.Variable(3.0)
    function = FixedFunction(lambda tensors: tensors[0] * a)
    other = function.on(Likeness([a], [b]).replace)
    assert float(function([tf.constant(2.0)])) == 4.0 and float(other([tf.constant(2.0)])) == 6.0
    sparse = tf.IndexedSlices(tf.ones([1]), tf.constant([0]), tf.constant([1]))
    with pytest.raises(TypeError, match="takes dense tensors"):
        other([sparse])
