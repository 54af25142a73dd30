"""Loads what hyparflow saved with Keras alone: python load.py FOLDER."""

import pathlib
import sys

import keras
import numpy as np

folder = pathlib.Path(sys.argv[1])
expected = np.load(folder / "expected.npz")
for name in ("model.keras", "parallel.keras"):
    model = keras.saving.load_model(folder / name)
    for index, weight in enumerate(model.get_weights()):
        np.testing.assert_array_equal(weight, expected[str(index)])
    np.testing.assert_allclose(model(expected["x"]), expected["y"], rtol=1e-5)
    assert model.optimizer.iterations.numpy() == 4
model.load_weights(folder / "model.weights.h5")
assert not {"hyparflow", "mpi4py"} & set(sys.modules)
print("loaded")
