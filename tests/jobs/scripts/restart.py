"""A training that can be started again after its job was killed.

python restart.py BACKUP WEIGHTS [RANK]. WEIGHTS gets the final weights, and those of a training
from the beginning; rank RANK is killed in the middle of the second epoch.
"""

import os
import signal
import sys
from typing import Any

import keras
import numpy as np

import hyparflow as hf

backup, weights = sys.argv[1:3]
victim = int(sys.argv[3]) if len(sys.argv) > 3 else None
x = np.random.default_rng(0).normal(size=(60, 5)).astype("float32")
y = (x[:, 0] > 0).astype("int32")
steps = 0


class Victim(keras.layers.Layer):
    """Kills its process in the eighth step; an epoch has six."""

    def call(self, x: Any, training: bool = False) -> Any:
        def count() -> None:
            global steps
            steps += 1
            if steps == 8 and victim == hf.rank():
                os.kill(os.getpid(), signal.SIGKILL)

        import tensorflow as tf

        if training and isinstance(x, tf.Tensor):
            tf.py_function(count, [], [])
        return x


def train(callbacks: list[keras.callbacks.Callback]) -> list[np.ndarray]:
    """The final weights, and the epochs that were trained."""
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(6, activation="tanh"), Victim()]
    layers += [keras.layers.Dense(5, activation="tanh"), Victim(), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((5,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    history = hf.fit(
        model,
        x,
        y,
        batch_size=10,
        epochs=4,
        verbose=0,
        callbacks=callbacks,
        num_partitions=2,
        num_microbatches=1,
    )
    return [*model.get_weights(), np.array(history.epoch)]


restarted = train([keras.callbacks.BackupAndRestore(backup)])
uninterrupted = train([])
if hf.is_leader():
    np.savez(weights, *restarted, *uninterrupted)
