"""Lets Horovod sum gradients in a script that has started it: own_horovod.py ["dynamic"]."""

import sys
from typing import Any

import horovod.tensorflow as hvd
import keras
import numpy as np

import hyparflow as hf

hvd.init(**({"process_sets": "dynamic"} if "dynamic" in sys.argv else {}))


def fit(**layout: Any) -> None:
    """Train by a layout, and say how that ended."""
    model = keras.Sequential([keras.Input((4,)), *(keras.layers.Dense(4) for _ in range(2))])
    model.compile("sgd", "mse")
    x = np.ones((64, 4), "float32")
    try:
        hf.fit(model, x, x, batch_size=32, verbose=0, allreduce="horovod", **layout)
        sys.stdout.write(f"rank {hf.rank()} trained\n")
    except ValueError as error:
        sys.stdout.write(f"rank {hf.rank()}: {error}\n")


fit(strategy="data")
fit(num_partitions=2, num_replicas=2)
