"""With TensorFlow's insides and without: all ranks go one road, to the same numbers."""

from __future__ import annotations

import warnings
from typing import Any

import borders
import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import WORLD, Outcome, State, float_type, on_leader, require_none
from keras import layers

import hyparflow as hf
from hyparflow.engine.compiled import choice
from hyparflow.engine.compiled.plain import Plain
from hyparflow.engine.compiled.surgery import Surgery

pytestmark = [pytest.mark.usefixtures("in_float64"), pytest.mark.on_ranks(2)]
LAYOUT = {"strategy": "model", "num_microbatches": 2}
SHORT = ("order", "memory")  # what breaks without an error; the unit tests try all


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in processes that have compiled nothing yet."""
    borders.choose_anew(monkeypatch)
    monkeypatch.delenv("HYPARFLOW_COMPILED", raising=False)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The road without surgery, and no other."""
    monkeypatch.setenv("HYPARFLOW_COMPILED", "plain")
    borders.refuse_surgery(monkeypatch)


class Added(layers.Layer):
    """Adds to the loss what its rows are, squared."""

    def call(self, x: Any) -> Any:
        self.add_loss(0.1 * keras.ops.mean(keras.ops.square(x), axis=-1))
        return x


def build(kind: str = "dense", **arguments: Any) -> Any:
    keras.utils.set_random_seed(2)
    if kind == "masks":
        inputs = keras.Input((6,), dtype="int32")
        x = layers.Embedding(9, 4, mask_zero=True)(inputs)
        x = layers.SimpleRNN(4, return_sequences=True)(x)
        outputs = layers.Dense(1)(layers.SimpleRNN(4)(x))
    else:
        inputs = keras.Input((5,))
        x = layers.Dense(8, "tanh", kernel_regularizer="l2")(inputs)
        if kind == "added":
            x = Added()(x)
        x = layers.Dense(8, "tanh")(x)
        if kind == "unused":  # of the second output, nothing depends on the loss of this layer
            x = layers.Add()([x, keras.ops.stop_gradient(layers.Dense(8)(x))])
        if kind == "normalized":
            x = layers.BatchNormalization()(x)
        outputs = layers.Dense(1)(layers.Dense(6, "tanh")(x))
    model = keras.Model(inputs, outputs)
    model.compile("adam", "mse", metrics=["mae"], **arguments)
    return model


def rows(kind: str = "dense") -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 9, (20, 6)) if kind == "masks" else rng.normal(size=(20, 5))
    return x, rng.normal(size=(20, 1))


def trained(model: Any, fit: Any, kind: str, layout: dict[str, Any], then: bool) -> Outcome:
    x, y = rows(kind)
    keras.utils.set_random_seed(4)
    validation = {"validation_data": (x[:7], y[:7])}
    history = fit(model, x, y, batch_size=8, epochs=2, verbose=0, **validation, **layout)
    if not then:
        more = []
    elif fit is keras.Model.fit:
        more = [model.evaluate(x, y, verbose=0), model.predict(x, verbose=0)]
    else:
        evaluated = hf.evaluate(model, x, y, verbose=0, **layout)
        more = [evaluated, hf.predict(model, x, verbose=0, **layout)]
    after = {"after": np.concatenate([np.ravel(values) for values in more])} if more else {}
    return Outcome(history.history | after, State.of(model))


def compare(
    kind: str,
    layout: dict[str, Any],
    tolerance: float = 1e-10,
    then: bool = False,
    **arguments: Any,
) -> None:
    """Compare a training with plain Keras's, and what evaluates and predicts `then`."""
    plain, parallel = build(kind, **arguments), build(kind, **arguments)
    expected = on_leader(lambda: trained(plain, keras.Model.fit, kind, {}, then))
    actual = trained(parallel, hf.fit, kind, layout, then)
    require_none(actual.compare(expected, tolerance), f"{kind} {layout}")


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("kind", ["masks", "added", "unused"])
def test_fit_evaluate_predict_by_public_api_alone(kind: str) -> None:
    """What crosses cuts, adds to the loss, or depends on nothing; then rows in other numbers."""
    compare(kind, LAYOUT | {"schedule": "zero-bubble" if kind == "unused" else "1f1b"}, then=True)
    assert isinstance(choice.compiler(), Plain)


@pytest.mark.usefixtures("plain")
def test_synchronized_statistics_by_public_api_alone() -> None:
    """Replicas exchange them in the middle of a forward, and of its backward."""
    compare("normalized", {"strategy": "data", "batchnorm": "sync"})


@pytest.mark.slow  # XLA compiles for 8 s; by the usual road test_compatibility tries it always
@pytest.mark.usefixtures("plain")
def test_xla_by_public_api_alone() -> None:
    compare("dense", LAYOUT, jit_compile=True)


@pytest.mark.usefixtures("plain")
def test_mixed_precision_by_public_api_alone() -> None:
    """In float16, with a loss scale; as near to plain Keras as rounding lets it be."""
    with float_type("float32"):
        keras.config.set_dtype_policy("mixed_float16")
        compare("dense", LAYOUT, tolerance=2e-2)


@pytest.mark.parametrize(
    "what",
    [
        name if name in SHORT else pytest.param(name, marks=pytest.mark.slow)
        for name in borders.BREAKS
    ],
)
def test_a_tensorflow_that_has_changed(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning, on the leader, names what is missing; the numbers are the same."""
    take_away, part = borders.BREAKS[what]
    take_away(monkeypatch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compare("dense", LAYOUT)
        hf.predict(build(), rows()[0], verbose=0, **LAYOUT)  # which builds an engine anew
    said = [str(w.message) for w in caught if "compiled stages rely on" in str(w.message)]
    assert len(said) == (1 if WORLD.rank == 0 else 0)
    ranks = ", ".join(map(str, range(WORLD.size)))
    assert all(f"Received on ranks {ranks}: " in text and part in text for text in said)
    assert isinstance(choice.compiler(), Plain)


def test_one_rank_s_tensorflow_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """All take the road that is open to all of them."""
    if WORLD.rank == 1:
        borders.BREAKS["memory"][0](monkeypatch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compare("dense", LAYOUT)
    said = [str(w.message) for w in caught if "compiled stages rely on" in str(w.message)]
    assert len(said) == (1 if WORLD.rank == 0 else 0)
    assert all("Received on rank 1: the memory of a tensor" in text for text in said)
    assert isinstance(choice.compiler(), Plain)


def test_nothing_has_changed() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare("dense", LAYOUT)
    assert isinstance(choice.compiler(), Surgery)


def test_values_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    if WORLD.rank == 1:
        monkeypatch.setenv("HYPARFLOW_COMPILED", "plain")
    received = r"Received: nothing on rank 0, and plain on rank 1\. Export it to all"
    with pytest.raises(ValueError, match=rf"must be the same on all ranks\. {received}"):
        hf.fit(build(), *rows(), verbose=0, **LAYOUT)


def test_a_value_that_there_is_not_is_refused_on_every_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if WORLD.rank == 1:
        monkeypatch.setenv("HYPARFLOW_COMPILED", "quick")
    rule = "HYPARFLOW_COMPILED takes plain. Received: HYPARFLOW_COMPILED='quick'"
    with pytest.raises(ValueError, match=rule):
        hf.fit(build(), *rows(), verbose=0, **LAYOUT)
    assert tf.executing_eagerly()
