"""Trains two partitions, and says how far the weights are from plain Keras's."""

from __future__ import annotations

import keras
import numpy as np

import hyparflow as hf


def build() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), *(keras.layers.Dense(8) for _ in range(4))])
    model.compile("adam", "mse")
    return model


def main() -> None:
    keras.config.set_floatx("float64")
    random = np.random.default_rng(0)
    x, y = random.normal(size=(64, 6)), random.normal(size=(64, 8))
    arguments = {"batch_size": 16, "verbose": 0}
    parallel, alone = build(), build()
    hf.fit(parallel, x, y, **arguments, num_partitions=hf.size(), num_microbatches=2)
    if hf.is_leader():
        alone.fit(x, y, **arguments)
        pairs = zip(parallel.get_weights(), alone.get_weights(), strict=True)
        difference = max(float(np.abs(a - b).max()) for a, b in pairs)
        print(f"{hf.size()} ranks, largest difference from plain Keras {difference:.1e}")


if __name__ == "__main__":
    main()
