"""What cannot be used is refused by name, alike on all ranks; what Keras takes is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import WORLD, on_leader

import hyparflow as hf
from hyparflow.training import auto

pytestmark = [pytest.mark.on_ranks(2), pytest.mark.usefixtures("in_float64")]

X = np.random.default_rng(0).normal(size=(24, 4))
Y = X.sum(1, keepdims=True)


class Rows(keras.utils.PyDataset):
    """A few batches."""

    num_batches = 2

    def __getitem__(self, index: int) -> Any:
        return X[:8], Y[:8]


def dataset(*parts: Any) -> Any:
    return tf.data.Dataset.from_tensor_slices(parts).batch(8)


@pytest.fixture(scope="module")
def model() -> Any:
    return build()


def build() -> Any:
    keras.utils.set_random_seed(1)
    # Named: messages show names, and Keras counts what one rank alone has made.
    dense = [keras.layers.Dense(size, name=name) for size, name in ((3, "a"), (1, "b"))]
    made = keras.Sequential([keras.Input((4,)), *dense], name="model")
    made.compile("sgd", "mse")
    return made


def fit(*args: Any, **kwargs: Any) -> Callable[[Any], Any]:
    return lambda model: hf.fit(model, *(args or (X, Y)), **{"verbose": 0} | kwargs)


def evaluate(*args: Any, **kwargs: Any) -> Callable[[Any], Any]:
    return lambda model: hf.evaluate(model, *args, **kwargs)


def predict(*args: Any, **kwargs: Any) -> Callable[[Any], Any]:
    return lambda model: hf.predict(model, *args, **kwargs)


def valid(*data: Any) -> Callable[[Any], Any]:
    return fit(validation_data=data)


COUNT = "must be an integer"
SIZE = "must be a positive integer"
DATA = "must be arrays, a tf.data.Dataset, a keras.utils.PyDataset or a generator"
NUMBERS = "must be dense arrays of numbers"

# What is called -> what the message has.
REFUSED: list[tuple[Callable[[Any], Any], tuple[str, ...]]] = [
    # Names.
    (fit(bogus=1), ("`fit` has no argument `bogus`", "Received: bogus=1", "It takes x, y,")),
    (fit(epoch=1), ("`fit` has no argument `epoch`", "Did you mean `epochs`?")),
    (fit(X, Y, 8, batch_size=8), ("`fit` takes each argument once", "batch_size=8")),
    (fit(*[None] * 30), ("`fit` takes 16 arguments without a name", "Received: 30")),
    (evaluate(X, Y, bogus=1), ("`evaluate` has no argument `bogus`", "Received: bogus=1")),
    (predict(X, y=Y), ("`predict` has no argument `y`", "Received: y=array")),
    (predict(), ("`predict` needs `x`",)),
    (lambda model: hf.fit(), ("`fit` needs `model`",)),
    (lambda model: hf.parallelize(model, bogus=1), ("`parallelize` has no argument `bogus`",)),
    (lambda model: hf.plan(model, batchsize=8), ("`plan`", "Did you mean `batch_size`?")),
    (lambda model: hf.launch(len, rank=2, num_ranks=2), ("`launch` has no argument `rank`",)),
    (lambda model: hf.fit(None, X, Y), ("Received: model=None of type NoneType",)),
    # Data.
    (fit(None, Y), (f"`x` {DATA}", "Received: x=None")),
    (fit(X.tolist(), Y), (f"`x` {DATA}", "of type list. Make arrays")),
    (fit("train.csv", Y), ("Received: x='train.csv' of type str",)),
    (fit(Rows, None), (f"`x` {DATA}", "Pass an object of that class")),
    (fit(X, None), ("needs labels", "Received: y=None. Pass `y`")),
    (fit(X, [None] * len(X)), ("needs labels", "Received: y=[None, None")),
    (fit(X, 3), ("`y` must be arrays", "Received: 3 of type int")),
    (fit(X, Y, sample_weight=[1.0] * 24), ("`sample_weight` must be arrays", "of type list")),
    (fit(X, np.array(1.0)), ("`y` must have a row for each sample",)),
    (fit(X.astype(object), Y), (NUMBERS, "`x`, ndarray of dtype object")),
    (fit(X, Y.astype(str)), (NUMBERS, "`y`, ndarray of dtype <U")),
    (predict(X.astype(str)), (NUMBERS, "`x`, ndarray of dtype <U")),
    (fit(X, Y[:3]), ("Data cardinality is ambiguous", "'y' sizes: 3")),
    (fit(dataset(X)), ("needs labels", "Received: y=None")),
    (fit(dataset(X, Y), validation_split=0.2), ("`validation_split` parts arrays", "Received: ")),
    # Values.
    *((fit(batch_size=v), (f"`batch_size` {SIZE}",)) for v in (-1, 2.0, "2", [2], 10**30)),
    (fit(batch_size=np.array([1, 2])), ("`batch_size` must be a single value",)),
    *((fit(epochs=v), (f"`epochs` {COUNT}. Received: epochs=",)) for v in (None, 2.0, "2")),
    (fit(initial_epoch=None), (f"`initial_epoch` {COUNT}",)),
    (
        fit(steps_per_epoch=float("nan")),
        ("Received: steps_per_epoch=nan",),
    ),
    (evaluate(X, Y, steps=2.5), ("`steps` must", "Received: steps=2.5")),
    (fit(validation_split="0.2"), ("`validation_split` must be a number from 0 to 1",)),
    (fit(validation_split=float("nan")), ("Received: validation_split=nan",)),
    (fit(validation_data=(X, Y), validation_freq=0), ("`validation_freq` must", "freq=0")),
    (fit(validation_data=(X, Y), validation_steps="2"), (f"`validation_steps` {COUNT}",)),
    (fit(verbose=np.array([0, 1])), ("`verbose` must be a single value",)),
    (fit(class_weight=[1.0, 2.0]), ("`class_weight` must be a dict",)),
    (fit(class_weight={0: "a"}), ("`class_weight` must be a dict",)),
    (fit(callbacks=[3]), ("`callbacks` must be a keras.callbacks.Callback", "3 of type int")),
    (fit(callbacks=[keras.callbacks.History]), ("`callbacks` must be", "Make one")),
    (predict(X, callbacks="x"), ("`callbacks` must be", "'x' of type str")),
    # Validation.
    (valid(X), ("needs labels", "Received: y=None in `validation_data`")),
    (valid(X, Y, Y, Y), ("`validation_data` must be (x, y)", "a tuple of 4")),
    (valid(), ("`validation_data` must be (x, y)", "a tuple of 0")),
    (fit(validation_data=0.2), (f"`validation_data` {DATA}", "validation_data=0.2")),
    (valid(X, Y[:3]), ("In `validation_data`: Data cardinality is ambiguous",)),
    (valid(X[:, :2], Y), ("In `validation_data`: ", "Input 0")),
    (valid(X, Y.astype(object)), ("`y` of `validation_data`, ndarray of dtype object",)),
    # Parallel arguments.
    (fit(strategy=np.array("data")), ("`strategy` must be one of", "Received: strategy=array")),
    (fit(strategy=["data", "model"]), ("`strategy` must be one of",)),
    (fit(strategy="auto", sharded_data=1), ("`sharded_data` must be True or False",)),
    (fit(strategy="auto", num_partitions=np.array([1, 2])), ("`num_partitions` of a plan must",)),
    (fit(num_partitions=10**5000), ("`num_partitions` must be", "an integer of 16610 bits")),
    (fit(num_microbatches=True), (f"`num_microbatches` {SIZE}",)),
    (fit(launch=3), ("`launch` must be True, False, or a dict", "Received: launch=3")),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_what_cannot_be_used_is_refused_by_name(
    case: int, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No words depend on what "auto" measures, which takes longer than all the refusals together.
    monkeypatch.setattr(auto, "costs_of_model", lambda *args: "estimate")
    call, words = REFUSED[case]
    with pytest.raises((TypeError, ValueError)) as caught:
        call(model)
    found = WORLD.allgather((type(caught.value).__name__, str(caught.value)))
    assert found == [found[0]] * WORLD.size
    for word in words:
        assert word in found[0][1]
    assert len(found[0][1]) < 900


class OwnFit(keras.Sequential):
    """Passes everything on, as many do."""

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        return super().fit(*args, **kwargs)


class OwnStep(keras.Sequential):
    """Reconstructs its inputs, and so has no use for labels."""

    def train_step(self, data: Any) -> Any:
        x = data[0] if isinstance(data, tuple) else data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(x, training=True) - x[:, :1]) ** 2)
        weights = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        return {"loss": loss}


TAKEN: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    "numbers of NumPy": (
        keras.Sequential,
        (X, Y > 0),
        {
            "batch_size": np.int64(8),
            "epochs": np.int32(2),
            "initial_epoch": np.int64(0),
            "validation_split": np.float32(0.25),
            "validation_batch_size": np.array(4),
            "validation_freq": [2],
            "callbacks": keras.callbacks.LambdaCallback(),
        },
    ),
    "a fit of one's own": (OwnFit, (X, Y, 8), {"epochs": 1}),
    "a step of one's own": (OwnStep, (X,), {"batch_size": 8}),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_keras_takes_gives_the_same(name: str) -> None:
    kind, args, kwargs = TAKEN[name]

    def train(fit: Callable[..., Any]) -> Any:
        keras.utils.set_random_seed(1)
        model = kind([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        history = fit(model, *args, shuffle=False, verbose=0, **kwargs).history
        return [*model.get_weights(), *map(np.array, history.values())], list(history)

    expected = on_leader(lambda: train(lambda model, *a, **k: model.fit(*a, **k)))
    found = train(hf.fit)
    if hf.is_leader():
        assert found[1] == expected[1]
        for value, right in zip(found[0], expected[0], strict=True):
            np.testing.assert_allclose(value, right, rtol=1e-10)


def test_ranks_with_and_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What "auto" came to is no argument of the user's: the devices are named."""
    if WORLD.rank:
        gpu = tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")
        devices = [*tf.config.list_physical_devices(), gpu]
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda *kinds: devices)
    model = build()
    assert model.jit_compile == bool(WORLD.rank)
    told = (
        r"^All ranks must compute on devices of one kind .*: CPU on rank 0, GPU on rank 1\. Start"
    )
    with pytest.raises(ValueError, match=told):
        hf.fit(model, X, Y, verbose=0)
    model.compile("sgd", "mse", jit_compile=False)
    hf.fit(model, X, Y, verbose=0)
    model.compile("sgd", "mse", jit_compile=bool(WORLD.rank))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="the same argument `jit_compile` of `compile`"):
        hf.fit(model, X, Y, verbose=0)
