"""Variables without memory: nothing but their memory tells them from others."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import psutil
import pytest
import tensorflow as tf
from tensorflow.python.ops import gen_resource_variable_ops

import hyparflow as hf
from hyparflow.engine.weights.pieces import value_of
from hyparflow.model.keras_internals.deferred_variables import (
    is_absent,
    overwrite,
    raw_variable,
    release,
    source_of,
    was_read,
)
from hyparflow.model.keras_internals.initial_values import Initial
from hyparflow.model.keras_internals.shared_kernel_name import sharing_kernel_names


def build(deferred: bool, make: Callable[[], Any]) -> Any:
    keras.utils.set_random_seed(7)
    if not deferred:
        return make()
    with hf.deferred():
        return make()


def pair(make: Callable[[], Any]) -> tuple[Any, Any]:
    """A deferred model and a plain one."""
    return build(True, make), build(False, make)


def dense() -> Any:
    layers = [keras.layers.Dense(8, activation="relu"), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input([4]), *layers])
    model.compile(keras.optimizers.Adam(), "mse", metrics=["mae"])
    return model


def every_layer() -> Any:
    tokens = keras.Input([6], dtype="int32")
    x = keras.layers.Embedding(11, 8)(tokens)
    x = x + keras.layers.MultiHeadAttention(2, 4)(x, x)
    x = keras.layers.LayerNormalization()(x)
    x = keras.layers.Conv1D(5, 3, kernel_initializer="orthogonal", use_bias=False)(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.LSTM(4, return_sequences=True)(x)
    x = keras.layers.Bidirectional(keras.layers.GRU(3))(x)
    x = keras.layers.Dropout(0.3)(x)
    x = keras.layers.SpectralNormalization(keras.layers.Dense(4))(x)
    model = keras.Model(tokens, keras.layers.Dense(2, bias_initializer="ones")(x))
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    return model


def same(first: list[Any], second: list[Any]) -> bool:
    return len(first) == len(second) and all(map(np.array_equal, first, second))


def absent(variables: list[Any]) -> int:
    return sum(is_absent(variable) for variable in variables)


@pytest.mark.parametrize("make", [dense, every_layer])
def test_values_are_those_of_plain_keras(make: Callable[[], Any]) -> None:
    mine, plain = pair(make)
    assert absent(mine.weights) > 0 and absent(plain.weights) == 0
    assert same(mine.get_weights(), plain.get_weights())
    assert absent(mine.weights) == 0
    paths = [re.sub(r"_\d+", "", v.path) for model in (mine, plain) for v in model.weights]
    assert paths[: len(paths) // 2] == paths[len(paths) // 2 :]


def test_in_any_order() -> None:
    mine, plain = pair(every_layer)
    for one, other in reversed(list(zip(mine.variables, plain.variables, strict=True))):
        assert np.array_equal(one.numpy(), other.numpy()), one.path


@pytest.mark.parametrize(
    "initializer",
    [
        keras.initializers.Zeros(),
        keras.initializers.Constant(2.5),
        keras.initializers.Identity(),
        keras.initializers.TruncatedNormal(seed=3),
        keras.initializers.RandomUniform(),
        keras.initializers.LecunNormal(),
        keras.initializers.Orthogonal(),
        "he_uniform",
    ],
    ids=str,
)
def test_initializers(initializer: Any) -> None:
    with hf.deferred():
        mine = keras.Variable(initializer, shape=(4, 4))
    assert is_absent(mine)
    if not isinstance(initializer, str):  # by its name it draws a seed
        assert np.array_equal(mine.numpy(), keras.Variable(initializer, shape=(4, 4)).numpy())
    assert mine.numpy().size == 16
    assert not is_absent(mine)


class Counting(keras.initializers.Initializer):
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        self.calls += 1
        return keras.ops.full(shape, self.calls, dtype)


def test_what_may_depend_on_the_order_is_drawn_at_once() -> None:
    """Initializers that share a generator, hold an array, or are of the user's own."""
    array = np.ones(3, "float32")
    seeds = keras.random.SeedGenerator(5)
    with hf.deferred():
        made = [
            keras.Variable(keras.initializers.RandomNormal(seed=seeds), shape=(3,)),
            keras.Variable(keras.initializers.RandomNormal(seed=seeds), shape=(3,)),
            keras.Variable(keras.initializers.Constant(array), shape=(3,)),
            keras.Variable(Counting(), shape=(3,)),
            keras.Variable(lambda shape, dtype: tf.ones(shape, dtype), shape=(3,)),
            keras.Variable(array),
        ]
    array[:] = 9
    assert absent(made) == 0
    assert [v.numpy()[0] for v in made[2:]] == [1, 1, 1, 1]
    again = keras.random.SeedGenerator(5)
    for mine in made[:2]:
        drawn = keras.initializers.RandomNormal(seed=again)((3,))
        assert np.array_equal(mine.numpy(), drawn)


def test_an_initializer_that_is_changed_afterwards() -> None:
    initializer = keras.initializers.Constant(1.0)
    with hf.deferred():
        variable = keras.Variable(initializer, shape=(2,))
    initializer.value = 5.0
    assert variable.numpy().tolist() == [1, 1]


READS: dict[str, Callable[[Any, str], Any]] = {
    "numpy": lambda model, path: model.weights[0].numpy(),
    "value": lambda model, path: tf.convert_to_tensor(model.weights[0].value),
    "operation": lambda model, path: model.weights[0] + 0,
    "raw": lambda model, path: tf.raw_ops.AddV2(x=raw_variable(model.weights[0]), y=0.0),
    "call": lambda model, path: model(np.ones([2, 4])),
    "predict": lambda model, path: model.predict(np.ones([2, 4]), verbose=0),
    "traced": lambda model, path: tf.function(model)(np.ones([2, 4])),
    "xla": lambda model, path: tf.function(model, jit_compile=True)(np.ones([2, 4])),
    "state": lambda model, path: model.get_state_tree()["trainable_variables"],
    "save": lambda model, path: _saved(model, f"{path}/m.keras"),
    "save_weights": lambda model, path: _weights_saved(model, f"{path}/m.weights.h5"),
    "export": lambda model, path: _exported(model, f"{path}/m"),
}


def _saved(model: Any, path: str) -> Any:
    model.save(path)
    return keras.models.load_model(path).get_weights()


def _weights_saved(model: Any, path: str) -> Any:
    model.save_weights(path)
    other = dense()
    other.load_weights(path)
    return other.get_weights()


def _exported(model: Any, path: str) -> Any:
    model.export(path, verbose=False)
    loaded = tf.saved_model.load(path)
    return loaded.serve(tf.ones([2, 4]))


class Unused(keras.layers.Layer):
    """Has a weight that its call does not read."""

    def build(self, shape: Any) -> None:
        self.count = self.add_weight(shape=(), trainable=False, name="count")

    def call(self, x: Any) -> Any:
        return x


def test_a_weight_that_no_call_reads_is_exported(tmp_path: Any) -> None:
    """Its handle is asked for in a graph that is no function's."""
    models = pair(lambda: keras.Sequential([keras.Input((4,)), Unused(), keras.layers.Dense(3)]))
    found, expected = (_exported(m, str(tmp_path / str(n))) for n, m in enumerate(models))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", READS)
def test_whatever_reads_finds_the_values(name: str, tmp_path: Any) -> None:
    mine, plain = pair(dense)
    mine_read, plain_read = (
        [np.asarray(part) for part in keras.tree.flatten(READS[name](model, str(tmp_path)))]
        for model in (mine, plain)
    )
    assert sum(part.size for part in plain_read)
    assert same(mine_read, plain_read)


def test_training_by_plain_keras() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 12, 4)).astype("float32")
    mine, plain = pair(dense)
    histories = [
        model.fit(x, y[:, :3], epochs=2, verbose=0, shuffle=False).history
        for model in (mine, plain)
    ]
    assert histories[0] == histories[1]
    assert same(mine.get_weights(), plain.get_weights())


def test_looking_at_a_model_takes_no_memory() -> None:
    mine = build(True, dense)
    with hf.deferred():
        mine.optimizer.build(mine.trainable_variables)
    mine.summary(print_fn=lambda line: None)
    mine.count_params()
    mine.to_json()
    with hf.deferred():
        other = keras.models.clone_model(mine)
    assert absent(mine.weights) == len(mine.weights)
    assert absent(other.weights) == len(other.weights)
    slots = [v for v in mine.optimizer.variables if v.shape.rank]
    assert slots and absent(slots) == len(slots)


def test_a_variable_that_is_written_first() -> None:
    """Its initializer is not asked."""
    mine, plain = build(True, dense), dense()
    before = source_of(mine.weights[0])
    mine.set_weights(plain.get_weights())
    assert before is not None and source_of(mine.weights[0]) is None
    assert same(mine.get_weights(), plain.get_weights())
    variable = build(True, dense).weights[0]
    with pytest.raises(ValueError, match="shape"):
        raw_variable(variable).assign(tf.ones([1]))
    assert is_absent(variable)
    variable.assign_add(tf.ones(variable.shape))
    assert not is_absent(variable)


def test_memory_is_taken_and_given_back() -> None:
    """In a process of its own, for what other tests have freed could be taken again."""
    script = "import test_deferred; test_deferred.take_and_give_back()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def take_and_give_back() -> None:
    """To TensorFlow, which gives it to the next that needs some."""
    size = 1 << 26  # bytes of a weight
    before = _resident()
    with hf.deferred():
        variables = [keras.Variable("ones", shape=(size // 4,)) for _ in range(8)]
    assert _resident() - before < size
    assert variables[0].numpy()[-1] == 1
    taken = _resident()
    assert size // 2 < taken - before < 2 * size
    for variable in variables:
        initial = Initial(keras.initializers.Constant(3.0), variable.shape, "float32")
        release(variable, initial)
        assert variable.numpy()[0] == 3
        release(variable, initial)
    assert _resident() - taken < 2 * size


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_what_was_compiled_before_fails_and_then_works_again(jit_compile: bool) -> None:
    variable = keras.Variable("ones", shape=(3,))
    function = tf.function(lambda x: x + variable, jit_compile=jit_compile, autograph=False)
    assert function(tf.zeros([3])).numpy().tolist() == [1, 1, 1]
    release(variable, lambda: tf.fill([3], 2.0))
    with pytest.raises((tf.errors.InvalidArgumentError, tf.errors.OpError)):
        function(tf.zeros([3]))
    assert variable.numpy().tolist() == [2, 2, 2]
    assert function(tf.zeros([3])).numpy().tolist() == [2, 2, 2]


def test_keys_tell_whether_values_are_equal() -> None:
    def key(initializer: Any, shape: Any = (2, 3), dtype: str = "float32") -> Any:
        return Initial(initializer, shape, dtype).key

    normal = keras.initializers.RandomNormal
    assert key(normal(seed=1)) == key(normal(seed=1))
    others = [key(normal(seed=2)), key(normal(0.0, 2.0, seed=1)), key(normal(seed=1), (3, 2))]
    others += [key(normal(seed=1), dtype="float16"), key(keras.initializers.Zeros())]
    assert key(normal(seed=1)) not in others
    assert key(normal()) != key(normal())


def test_names() -> None:
    with hf.deferred():
        variables = [keras.Variable("ones", shape=(1,), name=name) for name in "ab"]
        variables.append(keras.Variable(np.ones(2), name="c"))
        own = tf.Variable(1.0, name="mine")
    assert [v.name for v in variables] == ["a", "b", "c"]
    assert [raw_variable(v).name for v in variables] == ["a:0", "b:0", "c:0"]
    assert own.name == "mine:0"


@pytest.mark.parametrize("scope", [hf.deferred, sharing_kernel_names])
def test_variables_share_a_kernel_in_all_layers(
    scope: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, make = [], gen_resource_variable_ops.var_handle_op

    def noted(**arguments: Any) -> Any:
        names.append(arguments["debug_name"])
        return make(**arguments)

    monkeypatch.setattr(gen_resource_variable_ops, "var_handle_op", noted)
    found = []
    for how in (contextlib.nullcontext, scope):
        names.clear()
        with how(), tf.name_scope("outer"):
            layers = [keras.layers.Dense(4, name="a"), keras.layers.GRU(2, name="b")]
            model = keras.Sequential([keras.Input([3, 3]), *layers], name="model")
        own = tf.Variable(1.0, name="mine")
        found.append(([v.value.name for v in model.weights], {v.path for v in model.weights}))
    assert set(names) == {"variable/", "mine/"}
    assert found[0] == found[1]
    assert own.name == "mine:0"


def test_in_functions_and_creator_scopes() -> None:
    with hf.deferred(), tf.variable_creator_scope(lambda make, **a: make(**{**a, "name": "user"})):
        variable = keras.Variable("ones", shape=(1,))
    assert is_absent(variable)

    @tf.function
    def read() -> Any:
        return variable * 2.0

    assert read().numpy() == 2
    with tf.GradientTape() as tape:
        assert not is_absent(variable)
        loss = variable * variable
    assert tape.gradient(loss, variable.value).numpy() == 2


@pytest.mark.parametrize(
    ("first", "value"),
    [
        *(("keras", "1"), ("hyparflow", "yes")),
        # What is read is the same whichever comes first, and a process takes 4 s to start.
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("hyparflow", "0"), ("keras", "0"), ("hyparflow", "1"), ("keras", "yes"))
        ),
    ],
)
def test_the_environment_variable(first: str, value: str) -> None:
    script = (
        f"import {first}, hyparflow, keras\n"
        "from hyparflow.model.keras_internals.deferred_variables import is_absent\n"
        "print(is_absent(keras.Variable('ones', shape=(2,))))"
    )
    environ = os.environ | {"HYPARFLOW_DEFER": value}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=False
    )
    if value == "yes":
        assert "HYPARFLOW_DEFER must be 1" in done.stderr
    else:
        assert done.stdout.split()[-1:] == [str(value == "1")], done.stderr


@pytest.mark.parametrize(
    ("first", "ranks"),
    [
        *(("hyparflow", 1), ("keras", 2)),
        # A process takes 4 s to start.
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("keras", 1), ("hyparflow", 2))),
    ],
)
def test_ranks_share_kernels_from_the_start(first: str, ranks: int) -> None:
    script = (
        f"import {first}, hyparflow, keras\n"
        "print(keras.Variable._initialize.__module__)\n"
        "print(keras.Variable('ones', shape=(2,), name='mine').value.name)"
    )
    environ = os.environ | {"OMPI_COMM_WORLD_SIZE": str(ranks)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=False
    )
    module, name = done.stdout.split()[-2:]
    assert module.startswith("hyparflow") == (ranks > 1)
    assert name == "mine:0"


def test_a_trace_that_may_write() -> None:
    with hf.deferred():
        variable = keras.Variable("ones", shape=(2,))

    @tf.function(autograph=False)
    def write(wanted: Any) -> None:
        tf.cond(wanted, lambda: variable.value.assign([3.0, 4.0]) + 0, lambda: tf.zeros([2]))

    write(tf.constant(False))
    assert variable.numpy().tolist() == [1, 1]
    write(tf.constant(True))
    assert variable.numpy().tolist() == [3, 4]


def test_every_kind_of_weight_is_deferred() -> None:
    with hf.deferred():
        x = keras.Input([6, 8])
        y = keras.layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True)
        y = keras.layers.GroupQueryAttention(4, 4, 2)(y, y)
        y = keras.layers.EinsumDense("abc,cde->abde", (None, 2, 4), bias_axes="de")(y)
        y = keras.layers.TimeDistributed(keras.layers.Dense(3))(y)
        y = keras.layers.SeparableConv2D(3, 3, padding="same")(y)
        y = keras.layers.Reshape([6, 6])(y)
        y = keras.layers.RNN([keras.layers.LSTMCell(3), keras.layers.GRUCell(4)])(y)
        model = keras.Model(x, keras.layers.UnitNormalization()(y))
    # The bias of an LSTM is drawn by a function inside the layer, which may change.
    assert {v.path for v in model.weights if not is_absent(v)} == {
        v.path for v in model.weights if v.path.endswith("lstm_cell/bias")
    }


@pytest.mark.parametrize(
    "pattern",
    # One that names no weight differs in nothing from none.
    ["bias", "a/kernel", pytest.param("nothing", marks=pytest.mark.slow)],
)
def test_names_by_which_weights_are_left_out_of_decay(pattern: str) -> None:
    found = []
    for deferred in (False, True):
        keras.utils.set_random_seed(0)
        with hf.deferred() if deferred else contextlib.nullcontext():
            layers = [keras.layers.Dense(4, name="a"), keras.layers.Dense(1, name="b")]
            model = keras.Sequential([keras.Input([3]), *layers], name="model")
        optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5)
        optimizer.exclude_from_weight_decay(var_names=[pattern])
        model.compile(optimizer, "mse")
        model.fit(np.ones([8, 3]), np.ones([8, 1]), verbose=0)
        found.append(model.get_weights() + [v.value.name for v in model.weights])
    assert found[0][4:] == found[1][4:] == [f"model/{v.path[6:]}:0" for v in model.weights]
    assert all(np.array_equal(a, b) for a, b in zip(found[0][:4], found[1][:4], strict=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64", "int64", "uint32", "bool"])
@pytest.mark.parametrize("kind", [keras.Variable, tf.Variable])
@pytest.mark.parametrize("shape", [(), (3,), (2, 64), (0, 2)])
def test_values_are_read_and_overwritten_bit_for_bit(
    dtype: str, kind: Any, shape: tuple[int, ...]
) -> None:
    numpy_type = tf.as_dtype(dtype).as_numpy_dtype
    first, second = (np.full(shape, n).astype(numpy_type) for n in (0, 3))
    variable = kind(first, dtype=dtype)
    assert value_of(variable).dtype == numpy_type
    np.testing.assert_array_equal(value_of(variable), first)
    overwrite(variable, second.copy())
    np.testing.assert_array_equal(tf.convert_to_tensor(variable).numpy(), second)
    variable.assign(first)  # it is a variable as before
    np.testing.assert_array_equal(value_of(variable), first)


def test_what_is_overwritten_is_not_brought_in() -> None:
    variable = keras.Variable(np.ones((2, 3), np.float32))
    release(variable, lambda: pytest.fail("the value was brought in"))
    overwrite(variable, np.full((2, 3), 5, np.float32))
    assert not is_absent(variable) and not was_read(variable)
    np.testing.assert_array_equal(value_of(variable), np.full((2, 3), 5))


def test_a_value_that_is_read_is_brought_in() -> None:
    variable = keras.Variable(np.ones(2, np.float32))
    release(variable, lambda: np.full(2, 7, np.float32))
    np.testing.assert_array_equal(value_of(variable), [7, 7])
    assert not is_absent(variable)
