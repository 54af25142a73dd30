"""Ends a traced training whose leader is slow to take what rank 2 recorded: slow_leader.py FILE."""

import sys
import time
from typing import Any

import keras
import numpy as np

import hyparflow as hf
from hyparflow.comm.world import World

_receive = World.receive_object


def receive_slowly(self: World, peer: int, tag: int, what: str) -> Any:
    """Wait for longer than a rank that has ended its script waits for the others."""
    if peer == 2:
        time.sleep(3)
    return _receive(self, peer, tag, what)


World.receive_object = receive_slowly  # type: ignore[method-assign]

model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
x = np.ones((600, 2), "float32")
hf.fit(model, x, x[:, :1], batch_size=3, epochs=1, verbose=0, strategy="data", trace=sys.argv[1])
if hf.is_leader():
    print("trained")
