"""Attention layers that compute the same share what is compiled for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import hyparflow as hf
from hyparflow.engine.compiled.functions import Compiled
from hyparflow.engine.sequence import attention_blocks
from hyparflow.engine.sequence.attention_blocks import AttentionBlocks
from hyparflow.engine.sequence.attention_core import AttentionCore
from hyparflow.engine.sequence.shared_blocks import SharedBlocks
from hyparflow.pipeline.attention_pattern import AttentionPattern

CORE = AttentionCore("a", 4, 4, 1, 0.5, AttentionPattern(True))
OTHERS = {
    "heads": replace(CORE, heads=8, key_heads=8),
    "scale": replace(CORE, scale=0.25),
    "bound": replace(CORE, soft_cap=9.0),
    "window": replace(CORE, pattern=AttentionPattern(True, 100)),
    "padding": replace(CORE, is_padded=True),
    "dropout": replace(CORE, dropout=0.1),
}


def blocks(shared: SharedBlocks, core: AttentionCore, **how: Any) -> AttentionBlocks:
    given: dict[str, Any] = {"sizes": (8, 8), "group": 1, "first_head": 0, "training": True}
    return shared.of(core, **{"dtype": tf.float32, **given, **how})


def test_layers_that_compute_the_same_share_blocks() -> None:
    shared = SharedBlocks()
    assert blocks(shared, CORE) is blocks(shared, replace(CORE, name="b"), dtype="float32")
    made = [blocks(shared, core) for core in (CORE, *OTHERS.values())]
    made += [
        blocks(shared, CORE, sizes=(8, 16)),
        blocks(shared, CORE, group=2),
        blocks(shared, CORE, first_head=4),
        blocks(shared, CORE, dtype=tf.float64),
    ]
    assert len({id(each) for each in made}) == len(made)


def test_training_differs_by_dropout_alone() -> None:
    shared, dropping = SharedBlocks(), OTHERS["dropout"]
    assert blocks(shared, CORE) is blocks(shared, CORE, training=False)
    assert blocks(shared, dropping) is not blocks(shared, dropping, training=False)
    assert blocks(shared, dropping, training=False) is blocks(shared, CORE)


def transformer(wide: list[bool]) -> Any:
    """A block for each entry, with twice as many heads where it says so."""
    tokens = keras.Input((None,), dtype="int32")
    x = layers.Embedding(20, 8)(tokens)
    for is_wide in wide:
        attention = layers.MultiHeadAttention(4 if is_wide else 2, 4)
        x = layers.Add()([x, attention(x, x, use_causal_mask=True)])
        x = layers.Add()([x, layers.Dense(8, "relu")(x)])
    model = keras.Model(tokens, layers.Dense(20)(x))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def test_a_stage_compiles_blocks_once_for_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def noted(function: Any, *given: Any) -> Compiled:
        made.append(function.__name__)
        return Compiled(function, *given)

    monkeypatch.setattr(attention_blocks, "Compiled", noted)
    tokens = np.random.default_rng(0).integers(0, 20, (1, 8)).astype("int32")
    counts = []
    for kinds in ([False], [False, True, False]):
        made.clear()
        data: Any = {"validation_data": (tokens, tokens)}
        hf.fit(transformer(kinds), tokens, tokens, num_sequence_chunks=2, verbose=0, **data)
        counts.append(len(made))
    assert counts[1] == 2 * counts[0] > 0
