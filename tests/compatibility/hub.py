"""Models of KerasHub, made small from their configurations: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from compatibility.rows import works
from compatibility.runs import Runs

WORDS, LENGTH = 50, 12
SMALL = {
    "vocabulary_size": WORDS,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 32,
    "dropout": 0.0,  # each micro-batch would draw another mask
    "max_sequence_length": LENGTH,
}


def sequences(length: int, rows: int = 21) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    """A random generator, tokens of it, and a mask under which some sequences are shorter."""
    random = np.random.default_rng(0)
    padding = np.ones((rows, LENGTH), "int32")
    padding[::3, 8:] = 0
    return random, random.integers(1, WORDS, (rows, length)), padding


def compiled(inputs: Any, outputs: Any) -> Any:
    """A compiled model that gives logits."""
    model = keras.Model(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, weighted_metrics=["accuracy"])
    return model


@works("Models of KerasHub", "GPT-2", note="with its embedding as the language-modelling head")
def check_gpt2(runs: Runs) -> None:
    hub = pytest.importorskip("keras_hub", reason="keras-hub is not installed")

    def train(run: Any) -> Any:
        backbone = hub.models.GPT2Backbone(**SMALL)
        model = compiled(backbone.input, backbone.token_embedding(backbone.output, reverse=True))
        _, tokens, padding = sequences(LENGTH + 1)
        x = {"token_ids": tokens[:, :-1], "padding_mask": padding}
        run.fit(model, x, tokens[:, 1:], 8, 2, sample_weight=padding.astype(float))
        return model

    runs.compare(train)


@works("Models of KerasHub", "BERT", note="a classifier of its pooled output")
def check_bert(runs: Runs) -> None:
    hub = pytest.importorskip("keras_hub", reason="keras-hub is not installed")

    def train(run: Any) -> Any:
        backbone = hub.models.BertBackbone(**SMALL)
        outputs = keras.layers.Dense(3)(backbone.output["pooled_output"])
        model = compiled(backbone.input, outputs)
        random, tokens, padding = sequences(LENGTH)
        segments = random.integers(0, 2, tokens.shape)
        x = {"token_ids": tokens, "padding_mask": padding, "segment_ids": segments}
        run.fit(model, x, random.integers(0, 3, len(tokens)), 8, 2)
        return model

    runs.compare(train)
