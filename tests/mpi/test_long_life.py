"""A job that makes many models keeps nothing of those that it has deleted."""

from __future__ import annotations

import collections
import gc
import os
import threading
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from mpi4py import MPI

import hyparflow as hf
from hyparflow.engine.compiled.accumulator import Accumulator
from hyparflow.engine.pooled_memory import pooled_memory

LAYOUTS = ({"strategy": "data"}, {"strategy": "model", "lpp": [1, 3]})
COUNTED = ("Communicator", "FuncGraph", "Session", "Part", "Operation", "Functional")


def use_one(options: dict) -> weakref.ref:
    """Make a model that both partitions share a layer of, use it in all ways, and delete it."""
    shared = layers.Dense(5, activation="relu", kernel_regularizer="l2")
    x = inputs = keras.Input((5,))
    x = layers.BatchNormalization()(shared(x))
    model = keras.Model(inputs, layers.Dense(1)(shared(x)))
    model.compile(keras.optimizers.Adam(global_clipnorm=1.0), "mse", metrics=["mae"])
    data, labels = np.ones((16, 5)), np.ones((16, 1))
    arguments = {"batch_size": 8, "verbose": 0, "batchnorm": "deferred", **options}
    hf.fit(model, data, labels, **arguments, validation_data=(data, labels))
    hf.evaluate(model, data, labels, **arguments)
    hf.predict(model, data, **arguments)
    return weakref.ref(model)


def counts() -> dict[str, int]:
    gc.collect()
    found = collections.Counter(type(one).__name__ for one in gc.get_objects())
    descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    return {name: found[name] for name in COUNTED} | {
        "descriptors": descriptors,
        "threads": threading.active_count(),
        "next communicator": next_communicator(),
    }


def next_communicator() -> int:
    """MPI's number of the next one made, which grows with those that are not given back."""
    comm = MPI.COMM_SELF.Dup()
    try:
        return comm.py2f()
    finally:
        comm.Free()


@pytest.mark.on_ranks(2)  # for the time
def test_nothing_of_a_deleted_model_stays() -> None:
    if hf.size() != 2:
        pytest.skip("its layouts are of two partitions")
    for options in LAYOUTS:
        use_one(options)
    before = counts()
    models = [use_one(options) for options in LAYOUTS]
    assert counts() == before
    assert [model() for model in models] == [None] * len(models)


@pytest.mark.on_ranks(2)
def test_fits_of_one_model_leave_nothing() -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dense(1)])
    model.compile("adam", "mse")
    x, y = np.ones((8, 4)), np.ones((8, 1))
    arguments = {"strategy": "model" if hf.size() == 2 else "data", "batch_size": 8, "verbose": 0}
    found = []
    for _ in range(3):
        for _ in range(2):
            hf.fit(model, x, y, validation_data=(x, y), **arguments)
        hf.predict(model, x, **arguments)
        found.append(counts())
    assert found[1] == found[2]


@pytest.mark.on_ranks(2)
def test_tensors_take_the_memory_of_those_before_them() -> None:
    size = 64 << 20
    tensor = tf.zeros((size,), tf.uint8)
    held = pooled_memory()
    del tensor
    free = pooled_memory()
    assert free - held >= size  # what is free near it may belong to it
    again = tf.zeros((size,), tf.uint8)
    assert free - pooled_memory() >= again.shape[0]


@pytest.mark.on_ranks(2)
def test_sums_of_gradients_take_their_memory_once() -> None:
    """Setting them to zero keeps no zeros, and adding to them makes no copy."""
    weights = [tf.Variable(tf.zeros((1024, 2048))), tf.Variable(tf.zeros((2048, 1024)))]
    sums = Accumulator(weights)
    add = tf.function(lambda: sums.add([weight + 1.0 for weight in weights]), autograph=False)
    add()
    gc.collect()  # what other tests have left would give memory back in between
    held = pooled_memory()
    for _ in range(2):
        sums.reset()
        add()
    values = [None, None]
    sums.fill(values, [0, 1])
    assert [float(tf.reduce_max(value)) for value in values] == [1.0, 1.0]
    assert held - pooled_memory() < 1 << 20
