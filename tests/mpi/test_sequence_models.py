"""Models whose sequences can be divided, of kinds that a trial on a few tokens must understand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from contract import WORLD, differences, float_type, on_leader, require_none
from keras import layers, ops
from transformers import HEADS, VOCABULARY, WIDTH, grouped, heads

import hyparflow as hf

ROWS, LENGTH = 4, 45
THERE = np.arange(LENGTH) < np.array([[45], [38], [20], [7]])  # padding begins inside of chunks
TOKENS = np.random.default_rng(0).integers(1, VOCABULARY, (ROWS, LENGTH)).astype("int32")
VECTORS = np.random.default_rng(0).standard_normal((ROWS, LENGTH, 3))


def with_padding_mask(attend: Callable[[Any, Any], Any]) -> keras.Model:
    """A model that takes a padding mask, of which only attention knows."""
    tokens = keras.Input((None,), dtype="int32", name="token_ids")
    there = keras.Input((None,), dtype="int32", name="padding_mask")
    h = layers.Embedding(VOCABULARY, WIDTH)(tokens)
    h = h + attend(h, ops.cast(there, "bool"))
    return keras.Model([tokens, there], layers.Dense(VOCABULARY)(h))


def encoder() -> keras.Model:
    import keras_hub

    block = keras_hub.layers.TransformerEncoder(2 * WIDTH, HEADS, dropout=0.0)
    return with_padding_mask(lambda h, there: block(h, padding_mask=there))


def masking(causal: bool) -> keras.Model:
    x = keras.Input((None, 3))
    h = layers.Dense(WIDTH)(layers.Masking(-2.0)(x))
    return keras.Model(x, layers.Dense(2)(h + heads()(h, h, use_causal_mask=causal)))


def window_of_attention(size: int) -> keras.Model:
    x = keras.Input((None,), dtype="int32")
    h = layers.Embedding(VOCABULARY, WIDTH)(x)
    h = h + heads(sliding_window=size)(h, h, use_causal_mask=True)
    return keras.Model(x, layers.Dense(VOCABULARY)(h))


def window_of_gemma(size: int) -> keras.Model:
    """It puts the window on within its attention, in every other layer."""
    import keras_hub

    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=VOCABULARY,
        num_layers=2,
        num_query_heads=HEADS,
        num_key_value_heads=2,
        hidden_dim=WIDTH,
        intermediate_dim=2 * WIDTH,
        head_dim=4,
        use_sliding_window_attention=True,
        sliding_window_size=size,
    )
    return keras.Model(backbone.input, layers.Dense(VOCABULARY)(backbone.output))


def wide_gpt2() -> keras.Model:
    """Wider than a trial is long, and narrower than sequences are."""
    import keras_hub

    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=VOCABULARY,
        num_layers=1,
        num_heads=HEADS,
        hidden_dim=32,
        intermediate_dim=WIDTH,
        dropout=0.0,
        max_sequence_length=LENGTH,
    )
    return keras.Model(backbone.input, layers.Dense(VOCABULARY)(backbone.output))


def each_in_time() -> keras.Model:
    x = keras.Input((None,), dtype="int32")
    h = layers.Embedding(VOCABULARY, WIDTH)(x)
    h = layers.TimeDistributed(layers.Dense(WIDTH, "relu"))(h + heads()(h, h, use_causal_mask=True))
    return keras.Model(x, layers.Dense(VOCABULARY)(h))


def key_mask(h: Any, there: Any) -> Any:
    return heads()(h, h, key_mask=there)


def mask_of_keys(h: Any, there: Any) -> Any:
    return grouped()(h, h, attention_mask=there[:, None])


MODELS: dict[str, Callable[[], keras.Model]] = {
    "key mask": lambda: with_padding_mask(key_mask),
    "mask of keys": lambda: with_padding_mask(mask_of_keys),
    "encoder": encoder,
    "masking": lambda: masking(causal=False),
    "masking, causal": lambda: masking(causal=True),
    "window": lambda: window_of_attention(30),
    "gemma": lambda: window_of_gemma(9),
    "gemma, wide window": lambda: window_of_gemma(33),
    "wide": wide_gpt2,
    "time-distributed": each_in_time,
}


def built(name: str) -> tuple[keras.Model, Any]:
    """A model with random weights, and its inputs."""
    keras.utils.set_random_seed(0)
    model = MODELS[name]()
    random = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(0.3 * random.standard_normal(weight.shape))
    if len(model.inputs[0].shape) == 3:
        return model, np.where(THERE[:, :, None], VECTORS, -2.0)
    given = {"token_ids": TOKENS, "padding_mask": THERE.astype("int32")}
    if len(model.inputs) == 1:
        return model, TOKENS
    return model, [given[tensor.name] for tensor in model.inputs] if isinstance(
        model.input, list
    ) else given


@pytest.mark.parametrize("name", MODELS)
def test_predictions_at_tokens(name: str) -> None:
    """At padding nothing is promised."""
    with float_type("float64"):
        model, x = built(name)
        expected = on_leader(lambda: model.predict(x, verbose=0))
        arguments = {"num_sequence_shards": WORLD.size, "num_sequence_chunks": 3}
        found = hf.predict(model, x, batch_size=ROWS, verbose=0, **arguments)
        tolerance = 1e-5 if "gemma" in name else 1e-9  # Gemma computes in float32
        require_none(differences(name, found[THERE], expected[THERE], tolerance), name)


@pytest.mark.skipif(WORLD.size > 1, reason="the rank that sees it stops the job")
@pytest.mark.parametrize("causal", [True, False])
def test_padding_that_counts_in_the_loss(causal: bool) -> None:
    """A layer hides queries at padding, and operations lose the mask before it reaches the loss."""
    model, x = built("masking, causal" if causal else "masking")
    model.compile("sgd", "mse")
    arguments = {"num_sequence_shards": WORLD.size, "num_sequence_chunks": 2}
    with pytest.raises(ValueError, match="positions of padding.*must not count in the loss"):
        hf.evaluate(model, x, VECTORS[..., :2], batch_size=ROWS, verbose=0, **arguments)
