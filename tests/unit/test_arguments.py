"""What `fit` is given in one process: mistakes are named before Keras stumbles over them."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import hyparflow as hf


def test_one_process_names_what_keras_never_takes() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
    model.compile("adam", "mse")
    x = np.ones((8, 4))
    for arguments, words in (
        ((x, 3), "`y` must be arrays"),
        ((np.float32(1), x), "`x` must have a row for each sample"),
        ((None, x), "Received: x=None"),
    ):
        with pytest.raises(ValueError, match=words):
            hf.fit(model, *arguments)
    for data in (3, (x, x, x, x), (None, None)):
        with pytest.raises(ValueError, match="`validation_data` must be"):
            hf.fit(model, x, x, validation_data=data)
    with pytest.raises(TypeError, match="`fit` has no argument `bogus`. Received: bogus=1"):
        hf.fit(model, x, x, bogus=1)
