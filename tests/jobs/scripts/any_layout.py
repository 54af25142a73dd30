"""Saves checkpoints on layouts, or loads those of all layouts, and prints what differs.

    any_layout.py FOLDER KIND save LAYOUT...
    any_layout.py FOLDER KIND load LAYOUT... from LAYOUT...

A layout is PARTITIONSxREPLICAS. Training goes on for an epoch after a load, and is compared with
plain Keras, of which the process that saves "1x1" keeps the numbers.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np

import hyparflow as hf

FOLDER, KIND, TASK = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
WORDS = sys.argv[4:]
RANDOM = np.random.default_rng(0)
ROWS, LABELS = RANDOM.normal(size=(48, 6)), RANDOM.integers(0, 3, 48)
LAYOUTS = WORDS[: WORDS.index("from")] if "from" in WORDS else WORDS
SAVED = WORDS[WORDS.index("from") + 1 :] if "from" in WORDS else []


class Noted(keras.callbacks.Callback):
    """All variables, at the beginning and at the end of the last epoch."""

    begin: list[np.ndarray]
    end: list[np.ndarray]

    def on_train_begin(self, logs: Any = None) -> None:
        self.begin = self._now()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.end = self._now()

    def _now(self) -> list[np.ndarray]:
        variables = [*self.model.weights, *self.model.optimizer.variables]
        return [np.array(keras.ops.convert_to_numpy(v), "float64") for v in variables]


def build() -> Any:
    """Nested submodels, a shared layer, a frozen one, and BatchNormalization."""
    keras.utils.set_random_seed(3)
    dense = keras.layers.Dense
    innermost = keras.Sequential([dense(8, activation="tanh"), keras.layers.BatchNormalization()])
    inner = keras.Sequential([innermost, dense(8, activation="tanh", trainable=False)])
    shared = dense(8, activation="tanh")
    x = inputs = keras.Input([6])
    x = shared(inner(shared(dense(8)(x))))
    x = keras.layers.Add()([dense(8, activation="tanh")(x), x])
    model = keras.Model(inputs, dense(3, dtype="float64" if KIND == "deep" else "float32")(x))
    optimizer: Any = keras.optimizers.AdamW(
        1e-2, weight_decay=1e-2, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=4
    )
    if KIND == "half":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, 2.0**12, dynamic_growth_steps=2)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def fit(model: Any, layout: str, epochs: int, folder: Path) -> Noted:
    """Train with checkpoints; what was noted."""
    noted = Noted()
    partitions, replicas = map(int, layout.split("x"))
    keras.utils.set_random_seed(1)
    hf.fit(
        model,
        ROWS,
        LABELS,
        batch_size=16,
        epochs=epochs,
        verbose=0,
        callbacks=[noted],
        checkpoint=folder,
        num_partitions=partitions,
        num_replicas=replicas,
        num_microbatches=1,
        batchnorm="sync",
    )
    return noted


def save() -> None:
    """Keep a checkpoint of each layout, with what the variables were."""
    for layout in LAYOUTS:
        if layout == "1x1":
            plain, noted = build(), Noted()
            keras.utils.set_random_seed(1)
            plain.fit(ROWS, LABELS, batch_size=16, epochs=2, verbose=0, callbacks=[noted])
            np.savez(FOLDER / "plain.npz", *noted.end)
        noted = fit(build(), layout, 1, FOLDER / layout)
        if hf.is_leader():
            np.savez(FOLDER / f"{layout}.npz", *noted.end)


def load() -> None:
    """Load each checkpoint on each layout, and train on."""
    for layout in LAYOUTS:
        model = build()
        for saved in SAVED:
            # A folder of its own for each: the epoch that is trained is saved, too.
            folder = FOLDER / f"{saved}-on-{layout}"
            noted = fit(model, layout, 2, folder)
            if hf.is_leader():
                begun = difference(noted.begin, FOLDER / f"{saved}.npz")
                ended = difference(noted.end, FOLDER / "plain.npz")
                print(f"saved {saved} loaded {layout} begins {begun:.3g} ends {ended:.3g}")


def difference(values: list[np.ndarray], path: Path) -> float:
    """The largest difference, relative to the largest number of an array."""
    with np.load(path) as expected:
        pairs = zip(values, expected.values(), strict=True)
        return float(
            max(np.abs(x - y).max(initial=0) / max(1.0, np.abs(y).max(initial=0)) for x, y in pairs)
        )


if KIND == "deep":
    keras.config.set_floatx("float64")
else:
    keras.config.set_dtype_policy("mixed_float16")
save() if TASK == "save" else load()
