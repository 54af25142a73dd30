"""Transformers as people write them: attention under masks, blocks of their own, positions."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from compatibility.rows import works
from compatibility.runs import Runs

WORDS, LENGTH, WIDTH = 11, 6, 4


class Block(layers.Layer):
    """Attention and a dense layer, each added to what comes in."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        # Softmax does not depend on a bias of the keys, and Adam would blow up its rounding.
        self.attention = layers.MultiHeadAttention(2, 3, use_bias=False)
        self.dense = layers.Dense(WIDTH, activation="tanh")
        self.norm = layers.LayerNormalization()

    def call(self, x: Any) -> Any:
        x = self.norm(x + self.attention(x, x))
        return x + self.dense(x)


class Positions(layers.Layer):
    """Adds a vector for each place, which all rows have in common."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        self.table = layers.Embedding(LENGTH, WIDTH)

    def call(self, x: Any) -> Any:
        return x + self.table(ops.arange(ops.shape(x)[1]))


def tokens(rows: int = 45) -> tuple[np.ndarray, np.ndarray]:
    """Sequences with padding (0) after their ends, and classes."""
    random = np.random.default_rng(0)
    x = random.integers(1, WORDS, (rows, LENGTH))
    x[np.arange(LENGTH) >= random.integers(1, LENGTH + 1, (rows, 1))] = 0
    return x, random.integers(0, 3, rows)


def train_on_tokens(run: Any, optimizer: str, *middle: Any, mask_zero: bool = False) -> Any:
    """Train a classifier of `tokens` with these layers in the middle."""
    inputs = keras.Input((None,), dtype="int64")
    hidden = layers.Embedding(WORDS, WIDTH, mask_zero=mask_zero)(inputs)
    for layer in middle:
        hidden = layer(hidden)
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(hidden)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    x, y = tokens()
    held = (x[:19], y[:19])
    run.fit(model, x, y, batch_size=20, epochs=2, validation_data=held)
    return model


@works("Models", "attention under a mask", note="in layers of your own, too; masks cross the cuts")
def check_masks(runs: Runs) -> None:
    runs.compare(lambda run: train_on_tokens(run, "adam", Block(), Block(), mask_zero=True))


@works("Models", "an embedding of positions", note="looked up once for all rows")
def check_positions(runs: Runs) -> None:
    runs.compare(lambda run: train_on_tokens(run, "adam", Positions(), Block()))
