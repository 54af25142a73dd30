"""A user's script for four ranks: python train.py [--without-mpi4py]."""

import sys

if "--without-mpi4py" in sys.argv:
    sys.modules["mpi4py"] = None  # importing it fails, as where it is not installed

import keras
import numpy as np

import hyparflow as hf

arguments = {} if "--without-mpi4py" in sys.argv else {"num_partitions": 2, "num_replicas": 2}
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(3)])
model.compile("sgd", "mse")
x = np.ones((16, 3))
history = hf.fit(model, x, x, batch_size=8, epochs=2, verbose=0, **arguments)
losses = history.history["loss"]
assert losses[1] < losses[0]
assert not getattr(sys.modules.get("mpi4py"), "MPI", None)
print(f"trained for {len(losses)} epochs on {hf.size()} rank")
