"""Trains a small model, in which something happens on one rank: python fault.py WHAT RANK FILE.

FILE gets the time of the fault.
"""

import contextlib
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import hyparflow as hf

WHAT, RANK, FILE = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
STEP = 3


def announce() -> None:
    """Write down when the fault happens."""
    part = FILE.with_suffix(".part")
    part.write_text(str(time.time()))
    part.rename(FILE)


def fail() -> None:
    """Raise on this rank."""
    announce()
    raise ZeroDivisionError(f"boom in {WHAT}")


def send(number: int) -> Callable[[], None]:
    """A function that sends a signal to this process."""

    def fault() -> None:
        announce()
        os.kill(os.getpid(), number)

    return fault


# The faults in the middle of a step: where, and what happens.
FAULTS = {
    "forward": ("forward", fail),
    "backward": ("backward", fail),
    "kill": ("backward", send(signal.SIGKILL)),
    "stop": ("forward", send(signal.SIGSTOP)),
    "wait": ("forward", announce),  # for Ctrl-C, which the test sends
}


class Faulty(keras.layers.Layer):
    """Gives back its input; at the third step the fault happens in it."""

    def call(self, x: Any) -> Any:
        count = dict.fromkeys(("forward", "backward"), 0)

        def visit(where: str, value: np.ndarray) -> np.ndarray:
            count[where] += 1
            place, fault = FAULTS.get(WHAT, (None, fail))
            if where == place and count[where] == STEP and hf.rank() == RANK:
                fault()
            return value

        def through(where: str, value: Any) -> Any:
            result = tf.numpy_function(lambda v: visit(where, v), [value], value.dtype)
            result.set_shape(value.shape)
            return result

        @tf.custom_gradient
        def identity(value: Any) -> Any:
            return through("forward", value), lambda gradient: through("backward", gradient)

        return identity(x)


class Data(keras.utils.PyDataset):
    """Batches, of which the fourth cannot be read."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        if index == STEP:
            fail()
        return np.ones((8, 4), "float32"), np.ones((8, 1), "float32")


class Callback(keras.callbacks.Callback):
    """Raises at the third batch."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == STEP:
            fail()


def make_model() -> Any:
    """Five operations, of which partition 0 gets two: each partition has one that can fail."""
    inputs = keras.Input((4,))
    x = Faulty()(keras.layers.Dense(4)(inputs))
    x = Faulty()(keras.layers.Dense(4)(x))
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    model.compile("sgd", "mse")
    return model


def main() -> None:
    """Train until the fault."""
    model = make_model()
    size = hf.size()
    data: dict[str, Any] = {"x": np.ones((64, 4)), "y": np.ones((64, 1)), "batch_size": 8}
    if WHAT == "data":
        data = {"x": Data()}
    if hf.rank() == RANK:
        if WHAT == "before":
            fail()
        if WHAT == "exit":
            announce()
            sys.exit(3)
        if WHAT == "argument":
            announce()
            data["strategy"] = "banana"
    grid = {"num_replicas": size} if size > 2 else {"num_partitions": size, "lpp": [2, 3]}
    # A fault in a step cannot be caught: the other ranks are in the middle of theirs.
    in_step = contextlib.suppress(Exception) if WHAT in FAULTS else contextlib.nullcontext()
    with in_step:
        hf.fit(
            model,
            **data,
            **grid,
            epochs=100_000,
            verbose=0,
            callbacks=[Callback()] if WHAT == "callback" else None,
        )
    print("went on after the fault")


main()
