"""BatchNormalization over replicas and micro-batches; `tests/mpi/test_batchnorm.py` goes deeper."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

from compatibility.rows import works
from compatibility.runs import Runs, arrays

BATCHNORM = "BatchNormalization"


def model_of(*middle: Any, rate: float = 0.1) -> Any:
    """A compiled classifier with these layers before and after a dense one."""
    stack = [keras.Input((5,)), middle[0], layers.Dense(6, activation="tanh"), *middle[1:]]
    model = keras.Sequential([*stack, layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate), loss, metrics=["accuracy"])
    return model


def fit(run: Any, model: Any, **options: Any) -> Any:
    x, y = arrays()
    held = (x[:19], y[:19])
    if run.is_plain:
        options = {}
    else:
        run = type(run)(run.options | options)
    run.fit(model, 2 * x + 1, y, batch_size=20, epochs=2, validation_data=held)
    return model


@works(BATCHNORM, 'batchnorm="sync"', note="with one micro-batch: the statistics of one process")
def check_sync(runs: Runs) -> None:
    def train(run: Any) -> Any:
        model = model_of(layers.BatchNormalization(), layers.BatchNormalization(momentum=0.7))
        return fit(run, model, batchnorm="sync", num_microbatches=1)

    runs.compare(train)


@works(BATCHNORM, 'batchnorm="deferred"', note="moving statistics of the whole batch, once a step")
def check_deferred(runs: Runs) -> None:
    def train(run: Any) -> Any:
        model = model_of(layers.BatchNormalization(), rate=0.0)
        return None, fit(run, model, batchnorm="deferred").layers[0].get_weights()

    runs.compare(train)


@works(
    BATCHNORM,
    'batchnorm="local"',
    note="the default, as in Horovod; replicas agree on the moving statistics before these are "
    "used or saved",
)
def check_local(runs: Runs) -> None:
    from contract import WORLD, require_none

    def train(run: Any) -> Any:
        model = model_of(layers.BatchNormalization())
        return fit(run, model, batchnorm="local", num_microbatches=1)

    if runs.options["strategy"] == "model":  # one replica and one micro-batch: one process
        runs.compare(train)
        return
    statistics: list[Any] = []

    def agree(run: Any) -> Any:
        statistics[:] = [np.array(v) for v in train(run).layers[0].non_trainable_variables]
        return None, None

    runs.compare(agree)
    everyone = WORLD.allgather(statistics)
    same = all(
        np.array_equal(a, b) for other in everyone for a, b in zip(statistics, other, strict=True)
    )
    require_none([] if same else ["the moving statistics differ between ranks"], "local")


@works(BATCHNORM, "BatchNormalization(synchronized=True)", note="over all replicas in any case")
def check_synchronized(runs: Runs) -> None:
    def train(run: Any) -> Any:
        return fit(run, model_of(layers.BatchNormalization(synchronized=True)), num_microbatches=1)

    runs.compare(train)
