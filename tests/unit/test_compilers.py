"""The two compilers of stages: alike in what they give, and chosen by a self-test."""

from __future__ import annotations

from typing import Any

import borders
import numpy as np
import pytest
import tensorflow as tf

from hyparflow.engine.compiled import choice, self_test
from hyparflow.engine.compiled.compiler import Compiler, Computation
from hyparflow.engine.compiled.fast_call import FixedFunction
from hyparflow.engine.compiled.functions import Compiled
from hyparflow.engine.compiled.plain import Plain
from hyparflow.engine.compiled.surgery import Surgery
from hyparflow.engine.compiled.tensor_buffer import TensorBuffer

BOTH = pytest.mark.parametrize("compiler", [Surgery(), Plain()], ids=["surgery", "plain"])


def computation(weights: list[Any]) -> Computation:
    """Looks rows up, multiplies them, and gives a whole number beside; one weight is unused."""

    def compute(x: Any, rows: Any) -> Any:
        found = tf.gather(weights[0], rows)
        return [x * found * weights[1], tf.size(rows)]

    def first(compute: Any, x: Any, rows: Any) -> Any:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([x, *weights])
            outputs = compute(x, rows)
        return outputs, (tape, [x, *weights], outputs)

    def second(state: Any, seed: Any) -> Any:
        tape, sources, outputs = state
        of_input, *of_weights = tape.gradient(outputs[:1], sources, [seed])
        return [of_input], of_weights

    def further(outputs: Any) -> Any:
        return (outputs[0],)

    return Computation(compute, first, second, further)


def some_weights() -> list[Any]:
    table = tf.Variable(tf.reshape(tf.range(8.0), [4, 2]))
    return [table, tf.Variable([2.0, 3.0]), tf.Variable(1.0)]


@BOTH
@pytest.mark.parametrize("halves", [False, True], ids=["one", "two"])
def test_a_forward_and_its_backward(compiler: Compiler, halves: bool) -> None:
    """Two forwards of other numbers of rows, then the backwards, in one call or in two."""
    weights = some_weights()
    kinds: list[Any] = []

    def finish(results: Any) -> Any:
        kinds.append([type(gradient) for gradient in results[1]])
        return results

    pair = compiler.pair(computation(weights), (finish,), weights, False)
    saved = []
    for rows in ([1, 3], [2, 0, 1]):
        x = tf.ones([len(rows), 2])
        outputs, state = pair.forward((x, tf.constant(rows)))
        table = np.arange(8.0).reshape(4, 2)
        assert np.array_equal(outputs[0], table[rows] * [2.0, 3.0])
        assert int(outputs[1]) == len(rows)
        saved.append((rows, x, state))
    for rows, x, state in saved:
        seed = tf.ones_like(x)
        if halves:
            (of_x,), rest = pair.early(state, (seed,))
            nothing, of_weights = pair.late(rest, 0)
            assert nothing == []
        else:
            (of_x,), of_weights = pair.backward(state, (seed,), 0)
        assert np.array_equal(of_x, table[rows] * [2.0, 3.0])
        of_table, of_factor, of_unused = of_weights
        assert isinstance(of_table, tf.IndexedSlices) and of_unused is None
        assert np.array_equal(of_table.indices, rows)
        assert np.array_equal(of_table.values, np.tile([2.0, 3.0], (len(rows), 1)))
        assert np.array_equal(of_factor, table[rows].sum(0))
    assert kinds[0][0] is tf.IndexedSlices


@BOTH
def test_what_is_compiled_serves_any_number_of_rows(compiler: Compiler) -> None:
    traces: list[None] = []

    def function(x: Any, nothing: Any, named: Any, flag: bool) -> Any:
        traces.append(None)
        return {"sum": x + named["b"] if flag else x, "none": nothing}

    compiled = Compiled(function, False, compiler.call)
    for rows in (3, 2, 5):
        x = tf.ones([rows, 2])
        result = compiled(x, None, {"a": x, "b": 2 * x}, True)
        assert np.array_equal(result["sum"], np.full((rows, 2), 3.0))
        assert result["none"] is None
    assert len(traces) == 1
    assert np.array_equal(compiled(x, None, {"a": x, "b": x}, False)["sum"], x)


@BOTH
def test_memory(compiler: Compiler) -> None:
    memory = compiler.memory((2, 2), np.dtype(np.float32))
    memory.array[...] = [[1, 2], [3, 4]]
    assert np.array_equal(memory.tensor(), [[1, 2], [3, 4]])


@BOTH
@pytest.mark.parametrize("seed", [3, 2**31 - 2])
def test_seed(compiler: Compiler, seed: int) -> None:
    try:
        tf.random.set_seed(seed)
        assert compiler.seed() == seed
        drawn = tf.random.uniform([3])
        tf.random.set_seed(seed)
        compiler.seed()  # draws nothing
        assert np.array_equal(tf.random.uniform([3]), drawn)
    finally:
        tf.random.set_seed(0)


@BOTH
def test_a_variable_made_while_something_is_traced(compiler: Compiler) -> None:
    """In a second trace as well where backwards add gradients up, for one may come late."""
    made: dict[int, Any] = {}

    def add(x: Any, number: int) -> Any:
        if number not in made:
            made[number] = compiler.variable(lambda: tf.Variable(0.0, trainable=False))
        return made[number].assign_add(x)

    function = tf.function(add, autograph=False)
    numbers = (0, 1) if compiler.adds else (0,)
    for number in (*numbers, *numbers):
        function(tf.constant(2.0), number)
    assert [float(made[n]) for n in numbers] == [4.0] * len(numbers)


def test_the_road_without_surgery_compiles_all(monkeypatch: pytest.MonkeyPatch) -> None:
    borders.choose_anew(monkeypatch)
    monkeypatch.setenv("HYPARFLOW_COMPILED", " plain ")
    borders.refuse_surgery(monkeypatch)
    with pytest.raises(AssertionError, match="has come to surgery"):
        Surgery().memory((), np.dtype(np.float32))
    assert isinstance(choice.compiler(), Plain)
    fixed = FixedFunction(
        lambda tensors, factor: factor * tf.add_n([x for x in tensors if x is not None])
    )
    for _ in range(2):
        assert float(fixed([tf.constant(1.0), None, tf.constant(2.0)], 3.0)) == 9.0
    buffer = TensorBuffer([3], np.dtype(np.float64))
    buffer.array[:] = 7
    assert float(tf.reduce_sum(buffer.tensor)) == 21.0


def test_nothing_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    borders.choose_anew(monkeypatch)
    monkeypatch.delenv("HYPARFLOW_COMPILED", raising=False)
    assert self_test.faults() == []
    assert isinstance(choice.compiler(), Surgery)


@pytest.mark.parametrize("what", borders.BREAKS)
def test_the_self_test_finds(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is taken away, by its name; then this process compiles without it."""
    borders.choose_anew(monkeypatch)
    monkeypatch.delenv("HYPARFLOW_COMPILED", raising=False)
    take_away, part = borders.BREAKS[what]
    take_away(monkeypatch)
    assert any(fault.startswith(part) for fault in self_test.faults())
    assert isinstance(choice.compiler(), Plain)


@pytest.mark.parametrize("text", ["fast", "Plain", "1"])
def test_what_there_is_not_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    borders.choose_anew(monkeypatch)
    monkeypatch.setenv("HYPARFLOW_COMPILED", text)
    rule = rf"HYPARFLOW_COMPILED takes plain\. Received: HYPARFLOW_COMPILED='{text}'\. Unset it"
    with pytest.raises(ValueError, match=rule):
        choice.compiler()
