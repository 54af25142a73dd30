"""`hyparflow.layers.MixtureOfExperts` computes what all experts would, by few of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import hyparflow as hf
from hyparflow.model.experts.expert_loop import through_experts
from hyparflow.model.experts.routing import load_balancing_loss, within_capacity

RANDOM = np.random.default_rng(0)


@pytest.fixture
def in_float64() -> Iterator[None]:
    policy = keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy(policy)


def layer(width: int = 6, **arguments: Any) -> Any:
    """A built layer whose biases are not zero."""
    keras.utils.set_random_seed(1)
    arguments = {"num_experts": 5, "hidden_dim": 7, "bias_initializer": "normal", **arguments}
    made = hf.layers.MixtureOfExperts(**arguments)
    made.build((None, None, width))
    return made


def dense(made: Any, inputs: Any) -> Any:
    """The same by all experts, with TensorFlow's gradient."""
    rows = tf.reshape(inputs, [-1, inputs.shape[-1]])
    probabilities = tf.nn.softmax(tf.matmul(rows, made.router_kernel.value))
    shares, experts = tf.math.top_k(probabilities, made.top_k)
    if made.normalize_shares:
        shares /= tf.reduce_sum(shares, -1, keepdims=True)
    total = tf.zeros_like(rows)
    count = 3 if made.gated else 2
    kernels, biases = made.expert_weights[:count], made.expert_weights[count:]
    for expert in range(made.num_experts):

        def product(x: Any, number: int, expert: int = expert) -> Any:
            return tf.matmul(x, kernels[number].value[expert]) + (
                biases[number].value[expert] if biases else 0.0
            )

        inner = made.activation(product(rows, 0))
        inner = inner * product(rows, 1) if made.gated else inner
        share = tf.reduce_sum(tf.where(experts == expert, shares, tf.zeros_like(shares)), -1)
        total += product(inner, count - 1) * share[:, None]
    return tf.reshape(total, tf.shape(inputs))


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_values_and_gradients(top_k: int, bias: bool, gated: bool, compiled: bool) -> None:
    made = layer(top_k=top_k, use_bias=bias, gated=gated, load_balancing=0.0)
    inputs = tf.constant(RANDOM.normal(size=(3, 4, 6)))
    upstream = tf.constant(RANDOM.normal(size=(3, 4, 6)))

    def both(compute: Any) -> list[Any]:
        def run() -> list[Any]:
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                outputs = compute(inputs)
            weights = [w.value for w in made.trainable_weights]
            return [outputs, *tape.gradient(outputs, [inputs, *weights], upstream)]

        return [tf.convert_to_tensor(x) for x in (tf.function(run) if compiled else run)()]

    for found, expected in zip(both(made), both(lambda x: dense(made, x)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.integers(1, 3))
def test_any_numbers_of_rows(counts: list[int], width: int) -> None:
    rows = tf.constant(RANDOM.normal(size=(sum(counts), width)))
    scales = tf.Variable(RANDOM.normal(size=(len(counts), width)))
    with tf.GradientTape() as tape:
        tape.watch(rows)
        made = through_experts(
            rows, tf.constant(counts, tf.int32), [tf.convert_to_tensor(scales)], lambda x, s: x * s
        )
    of_rows, of_scales = tape.gradient(made, [rows, scales])
    each = np.repeat(scales.numpy(), counts, 0)
    np.testing.assert_allclose(made, rows * each)
    np.testing.assert_allclose(of_rows, each)
    sums = [part.sum(0) for part in np.split(rows.numpy(), np.cumsum(counts)[:-1])]
    np.testing.assert_allclose(of_scales, np.reshape(sums, scales.shape))


def test_experts_that_nobody_chose_are_not_read() -> None:
    made = layer(top_k=1, num_experts=3)
    made.router_kernel.assign([[5.0, 0.0, -5.0]] * 6)
    for weight in made.expert_weights:
        value = weight.numpy()
        value[1:] = np.nan
        weight.assign(value)
    inputs = np.ones((2, 3, 6), "float32")
    assert np.isfinite(made(inputs)).all()
    assert np.isnan(made(-inputs)).all()


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16"])
def test_half_precision(policy: str) -> None:
    made = layer(dtype=policy)
    exact = layer()
    for mine, theirs in zip(made.weights, exact.weights, strict=True):
        mine.assign(theirs)
    inputs = RANDOM.normal(size=(2, 8, 6)).astype("float32")
    found = made(inputs)
    assert found.dtype == policy.removeprefix("mixed_")
    np.testing.assert_allclose(np.array(found, "float32"), exact(inputs), atol=0.05)


def test_tokens_that_are_masked_pass_by() -> None:
    made = layer()
    inputs = RANDOM.normal(size=(2, 4, 6)).astype("float32")
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1]], bool)
    found = np.array(made(inputs, mask=mask, training=True))
    (masked,) = made.losses
    assert (found[~mask] == 0).all()
    np.testing.assert_allclose(found[mask], np.array(made(inputs))[mask], rtol=1e-6)
    made(inputs[mask][None], training=True)
    np.testing.assert_allclose(masked, made.losses[0], rtol=1e-6)


def test_the_loss_is_least_where_experts_have_equal_numbers_of_tokens() -> None:
    even = tf.one_hot([[0], [1], [2], [3]], 4)
    assert float(load_balancing_loss(tf.fill([4, 4], 0.25), even)) == pytest.approx(1)
    probabilities = tf.one_hot([0, 0, 0, 0], 4)
    assert float(load_balancing_loss(probabilities, probabilities[:, None])) == pytest.approx(4)
    probabilities = tf.constant([[0.7, 0.3], [0.2, 0.8], [0.6, 0.4]])
    chosen = tf.one_hot([[0], [1], [0]], 2)
    expected = 2 * (2 / 3 * 1.5 / 3 + 1 / 3 * 1.5 / 3)
    assert float(load_balancing_loss(probabilities, chosen)) == pytest.approx(expected)


def test_first_choices_come_before_second_ones_where_room_is_short() -> None:
    chosen = tf.one_hot([[0, 1], [0, 1], [0, 1], [1, 0]], 2)
    kept = within_capacity(chosen, 0.75)  # 3 of 8 choices for each expert
    found = [[int(x) for x in tf.reduce_sum(kept[token], -1)] for token in range(4)]
    assert found == [[1, 1], [1, 1], [1, 0], [1, 0]]
    assert np.array_equal(within_capacity(chosen, 2.0), chosen)


def test_capacity() -> None:
    """What finds no room passes by."""
    made = layer(top_k=1, num_experts=2, capacity_factor=1.0)
    made.router_kernel.assign([[1.0, -1.0]] * 6)
    inputs = np.ones((1, 4, 6), "float32")
    found = np.array(made(inputs))[0]
    assert [bool(row.any()) for row in found] == [True, True, False, False]


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    inputs = keras.Input([4, 6])
    block = hf.layers.MixtureOfExperts(
        4, 8, top_k=1, gated=True, activation="silu", capacity_factor=1.5, load_balancing=0.1
    )
    model = keras.Model(inputs, block(inputs))
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    rows = RANDOM.normal(size=(3, 4, 6)).astype("float32")
    assert np.array_equal(model.predict(rows, verbose=0), loaded.predict(rows, verbose=0))
    assert loaded.layers[-1].get_config() == block.get_config()


@pytest.mark.parametrize("kind", ["glorot_uniform", "he_normal", "lecun_uniform"])
def test_kernels_are_drawn_as_matrices(kind: str) -> None:
    made = layer(width=50, num_experts=16, hidden_dim=80, kernel_initializer=kind)
    alone = np.std(keras.initializers.get(kind)((50, 80)))
    assert np.std(made.expert_weights[0]) == pytest.approx(float(alone), rel=0.1)


@pytest.mark.parametrize("eager", [True, False])
def test_it_learns(eager: bool) -> None:
    """Rows of two kinds, each of which an expert can learn."""
    keras.utils.set_random_seed(0)
    rows = RANDOM.normal(size=(64, 6)).astype("float32")
    labels = np.where(rows[:, :1] > 0, rows, -2 * rows)
    inputs = keras.Input([6])
    model = keras.Model(inputs, hf.layers.MixtureOfExperts(4, 16, load_balancing=0.001)(inputs))
    model.compile(keras.optimizers.Adam(0.01), "mse", run_eagerly=eager)
    history = model.fit(rows, labels, epochs=8, verbose=0).history["loss"]
    assert history[-1] < 0.7 * history[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num_experts": 0}, "`num_experts` must be a positive integer"),
        ({"hidden_dim": 1.5}, "`hidden_dim` must be a positive integer"),
        ({"top_k": 6}, "`top_k` must be at most `num_experts`. Received: top_k=6, num_experts=5"),
        ({"capacity_factor": 0}, "`capacity_factor` must be a positive number, or None"),
        ({"load_balancing": -1.0}, "`load_balancing` must be a positive number or 0"),
        ({"gated": "yes"}, "`gated` must be True or False"),
    ],
    ids=str,
)
def test_arguments_that_are_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        layer(**arguments)


def test_a_width_that_is_not_known() -> None:
    with pytest.raises(ValueError, match="The last axis of the inputs of `MixtureOfExperts`"):
        hf.layers.MixtureOfExperts(2, 4)(keras.Input([None]))
