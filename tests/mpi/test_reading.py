"""Streams are read as plain Keras reads them: as often, in the same order, by the same chance."""

from __future__ import annotations

import functools
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import WORLD, on_leader
from keras import layers

import hyparflow as hf
from hyparflow.training import auto

pytestmark = [pytest.mark.on_ranks(2), pytest.mark.usefixtures("in_float64")]


class Augmented(keras.utils.PyDataset):
    """Batches drawn by numpy's global generator; `read` notes what Keras asks for."""

    calls = 2
    in_order = True

    def __init__(self, count: int = 3, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.count = count
        self.read: list[Any] = []

    @property
    def num_batches(self) -> int:
        return self.count

    def on_epoch_begin(self) -> None:
        self.read.append("begin")

    def on_epoch_end(self) -> None:
        self.read.append("end")

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        x = np.random.normal(size=(6 if index else 8, 4))
        return x, x[:, :1] * index


class Labelled(Augmented):
    """With labels that are classes."""

    def __getitem__(self, index: int) -> Any:
        x, _ = super().__getitem__(index)
        return x, np.full(len(x), index)


class Threaded(Augmented):
    """Read by two threads, which Keras starts before it tells the stream that an epoch begins.

    So what is read in an epoch is certain, but not the order, nor who draws which numbers.
    """

    in_order = False

    def __init__(self) -> None:
        super().__init__(workers=2, max_queue_size=1)

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        x = np.random.default_rng(index).normal(size=(6, 4))
        return x, x[:, :1] * index


def drawn(read: list[Any], count: int = 6) -> Iterator[Any]:
    """Batches drawn by numpy's global generator."""
    for index in range(count):
        read.append(index)
        x = np.random.normal(size=(6, 4))
        yield x, x[:, :1] * index


class Generated:
    """What makes a stream of another kind of drawn batches, and notes what is read."""

    in_order = True

    def __init__(self, make: Callable[[Any], Any], calls: int = 2) -> None:
        self.calls = calls
        self.read: list[Any] = []
        self.stream = make(self.read)


def from_generator(read: list[Any]) -> Any:
    def rows() -> Iterator[Any]:
        for index in range(11):
            read.append(index)
            x = np.random.normal(size=4)
            yield x, x[:1]

    types = (tf.TensorSpec((4,), tf.float64), tf.TensorSpec((1,), tf.float64))
    return tf.data.Dataset.from_generator(rows, output_signature=types).batch(4)


def shuffled(read: list[Any]) -> Any:
    x = np.random.default_rng(0).normal(size=(22, 4))
    return tf.data.Dataset.from_tensor_slices((x, x[:, :1])).shuffle(22).batch(4)


STREAMS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "in order": (Augmented, {"shuffle": False}),
    "shuffled": (Augmented, {}),
    "one batch": (lambda: Augmented(1), {}),
    "workers": (Threaded, {"shuffle": False}),
    "class weights": (Labelled, {"class_weight": {0: 1.0, 1: 3.0, 2: 2.0}}),
    "a generator": (lambda: Generated(drawn, calls=1), {"steps_per_epoch": 3}),
    "a dataset of a generator": (lambda: Generated(from_generator), {}),
    "a dataset that shuffles": (lambda: Generated(shuffled), {}),
    "a dataset in parts": (lambda: Generated(shuffled), {"steps_per_epoch": 4}),
}


def build(**compiled: Any) -> Any:
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, activation="tanh"), layers.Dense(1)]
    )
    model.compile("sgd", "mse", **compiled)
    return model


def observe(call: Callable[[Any, Any], Any], make: Callable[[], Any], **compiled: Any) -> list[Any]:
    """What calls in a row give, what was read, and the random states afterwards."""
    keras.utils.set_random_seed(3)
    model, stream = build(**compiled), make()
    found = [call(model, getattr(stream, "stream", stream)) for _ in range(stream.calls)]
    numbers = [np.random.random(), random.random(), float(tf.random.uniform([]))]
    read = list(stream.read) if stream.in_order else sorted(stream.read, key=str)
    return [found, read, numbers]


def compare(plain: Any, parallel: Any, make: Callable[[], Any], **compiled: Any) -> None:
    """Both calls, of a new model and stream each, give the same and leave the same behind."""
    expected = on_leader(lambda: observe(plain, make, **compiled))
    found, read, numbers = observe(parallel, make, **compiled)
    np.testing.assert_allclose(found, expected[0], rtol=1e-10)
    if WORLD.rank == 0:
        assert read == expected[1]
        assert numbers == expected[2]


@pytest.mark.parametrize("name", STREAMS)
def test_fit_reads_as_keras_does(name: str) -> None:
    make, arguments = STREAMS[name]
    arguments = {"epochs": 2, "verbose": 0, **arguments}
    compare(
        lambda model, stream: model.fit(stream, **arguments).history["loss"],
        lambda model, stream: hf.fit(model, stream, **arguments).history["loss"],
        make,
    )


@pytest.mark.parametrize("kind", [Augmented, lambda: Generated(from_generator)])
def test_evaluate_and_predict_read_as_keras_does(kind: Any) -> None:
    compare(
        lambda model, stream: model.evaluate(stream, verbose=0),
        lambda model, stream: hf.evaluate(model, stream, verbose=0),
        kind,
    )
    compare(
        lambda model, stream: float(model.predict(stream, verbose=0).sum()),
        lambda model, stream: float(hf.predict(model, stream, verbose=0).sum()),
        kind,
    )


def test_several_steps_per_execution_read_as_keras_does() -> None:
    compare(
        lambda model, stream: model.fit(stream, verbose=0).history["loss"],
        lambda model, stream: hf.fit(model, stream, verbose=0).history["loss"],
        lambda: Generated(shuffled),
        steps_per_execution=4,
    )


def test_validation_data_are_read_as_keras_reads_them() -> None:
    def arguments(stream: Any) -> dict[str, Any]:
        return {"epochs": 2, "verbose": 0, "shuffle": False, "validation_data": stream}

    compare(
        lambda model, stream: model.fit(stream, **arguments(stream)).history["val_loss"],
        lambda model, stream: hf.fit(model, stream, **arguments(stream)).history["val_loss"],
        Augmented,
    )


@pytest.mark.parametrize(
    "name", ["a generator", pytest.param("a dataset of a generator", marks=pytest.mark.slow)]
)
def test_a_plan_is_for_the_batches_of_the_stream(
    name: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "costs_of_model", lambda *args: "estimate")  # soon
    make, arguments = STREAMS[name]
    arguments = {"epochs": 2, **arguments}  # to its end: Keras reads ahead, by chance, in a thread
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*The plan is for batches")
        compare(
            lambda model, stream: model.fit(stream, verbose=0, **arguments).history["loss"],
            lambda model, stream: hf.fit(
                model, stream, verbose=2, strategy="auto", **arguments
            ).history["loss"],
            make,
        )
    rows = {"a generator": 6, "a dataset of a generator": 4}[name]
    lines = capfd.readouterr().out.splitlines()
    batches = {line.partition("global batch ")[2].split()[0] for line in lines if "global" in line}
    assert batches == ({str(rows)} if hf.is_leader() else set())


@pytest.mark.parametrize("steps", [None, 9])
@pytest.mark.parametrize("name", ["a PyDataset", "a generator"])
def test_the_end_of_sharded_streams_is_a_surprise_where_it_is_to_keras(
    name: str, steps: int | None
) -> None:
    make = Augmented if name == "a PyDataset" else (lambda: drawn([], 3))

    def said(fit: Callable[..., Any]) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(build(), make(), steps_per_epoch=steps, verbose=0)
        texts = [str(warning.message) for warning in caught]
        return [text for text in texts if "ran out of data" in text]

    expected = on_leader(lambda: said(keras.Model.fit))
    found = said(functools.partial(hf.fit, strategy="data", sharded_data=True))
    assert found == (expected if hf.is_leader() else [])


@pytest.mark.parametrize("steps", [None, 2])
def test_sharded_epochs_begin_and_end_as_keras_does(steps: int | None) -> None:
    """At the same points between the calls of a callback; batches may be read ahead."""

    def observe(fit: Callable[..., Any]) -> list[Any]:
        stream, valid, events = Augmented(), Augmented(2), []
        stream.read = valid.read = events
        noting = keras.callbacks.LambdaCallback(
            on_train_begin=lambda logs: events.append("training"),
            on_train_batch_end=lambda batch, logs: events.append("step"),
            on_test_end=lambda logs: events.append("validated"),
            on_epoch_end=lambda epoch, logs: events.append("epoch"),
        )
        arguments = {"shuffle": False, "verbose": 0, "validation_data": valid}
        fit(build(), stream, epochs=4, steps_per_epoch=steps, callbacks=[noting], **arguments)
        return [event for event in events if isinstance(event, str)]

    expected = on_leader(lambda: observe(keras.Model.fit))
    sharded = functools.partial(hf.fit, strategy="data", sharded_data=True)
    found = observe(sharded)
    if hf.is_leader():
        assert found == expected
    ours = ("begin", "end")
    counts = WORLD.allgather([event for event in found if event in ours])
    assert counts == [counts[0]] * WORLD.size
