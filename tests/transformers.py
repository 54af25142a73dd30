"""Small transformers whose sequences can be divided, each with a kind of attention of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

VOCABULARY, WIDTH, HEADS, LAYERS = 11, 16, 4, 2


def own(
    attention: Callable[[], Any],
    causal: bool = True,
    after: Callable[[], Any] = lambda: keras.layers.Identity(),
    **more: Any,
) -> Callable[[int], Any]:
    """A decoder of Keras's layers with this attention, and a layer after each block."""

    def build(length: int) -> keras.Model:
        import keras_hub

        x = keras.Input((None,), dtype="int32")
        h = keras_hub.layers.TokenAndPositionEmbedding(VOCABULARY, length, WIDTH, **more)(x)
        for _ in range(LAYERS):
            a = keras.layers.LayerNormalization()(h)
            h = keras.layers.Add()([h, attention()(a, a, use_causal_mask=causal)])
            m = keras.layers.Dense(2 * WIDTH, "gelu")(keras.layers.LayerNormalization()(h))
            h = after()(keras.layers.Add()([h, keras.layers.Dense(WIDTH)(m)]))
        return keras.Model(x, keras.layers.Dense(VOCABULARY)(keras.layers.LayerNormalization()(h)))

    return build


def heads(**more: Any) -> Any:
    return keras.layers.MultiHeadAttention(HEADS, WIDTH // HEADS, **more)


def grouped(**more: Any) -> Any:
    return keras.layers.GroupQueryAttention(WIDTH // HEADS, HEADS, 2, **more)


def hub(name: str, **more: Any) -> Callable[[int], Any]:
    """A language model of KerasHub's backbone, with its embeddings tied."""

    def build(length: int) -> keras.Model:
        import keras_hub

        kind = getattr(keras_hub.models, f"{name}Backbone")
        sized = {"max_sequence_length": length} if name in ("GPT2", "OPT", "GPTNeoX") else {}
        backbone = kind(
            vocabulary_size=VOCABULARY,
            num_layers=LAYERS,
            hidden_dim=WIDTH,
            intermediate_dim=2 * WIDTH,
            **sized,
            **more,
        )
        logits = backbone.token_embedding(backbone.output, reverse=True)
        return keras.Model(backbone.input, logits)

    return build


ROTARY = {"num_query_heads": HEADS, "num_key_value_heads": 2}
MODELS: dict[str, Callable[[int], Any]] = {
    "heads": own(heads),
    "grouped": own(grouped),
    "full": own(heads, causal=False),
    "window": own(lambda: heads(sliding_window=5)),
    "masked": own(heads, mask_zero=True),
    "gpt2": hub("GPT2", num_heads=HEADS, dropout=0.0),
    "opt": hub("OPT", num_heads=HEADS, dropout=0.0),
}
# These compute softmax, rotations and more in float32 in any model.
PARTLY_FLOAT32: dict[str, Callable[[int], Any]] = {
    "llama": hub("Llama", **ROTARY, tie_word_embeddings=True),
    "mistral": hub("Mistral", **ROTARY, sliding_window=6),
    "qwen": hub("Qwen", **ROTARY),
    "gemma": hub("Gemma", **ROTARY, head_dim=4),
    "gpt_neo_x": hub("GPTNeoX", num_heads=HEADS, dropout=0.0, rotary_percentage=0.5),
}
