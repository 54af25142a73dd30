"""A language model of bytes, with a preprocessor that needs no files."""

from __future__ import annotations

import functools
from typing import Any

import keras

__all__ = ["END", "byte_model", "byte_preprocessor", "new_byte_model"]

END = 256  # the token that begins and ends texts


def byte_preprocessor(length: int) -> Any:
    """Makes each byte of a text a token."""
    import keras_hub

    # Characters by which GPT-2 writes bytes: printable ones stand for themselves.
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = [chr(n) for n in own] + [chr(256 + n) for n in range(256 - len(own))]
    vocabulary = {character: n for n, character in enumerate(characters)}
    tokenizer = keras_hub.models.GPT2Tokenizer(
        vocabulary=vocabulary | {"<|endoftext|>": END}, merges=[]
    )
    return keras_hub.models.GPT2CausalLMPreprocessor(tokenizer=tokenizer, sequence_length=length)


def new_byte_model(length: int = 128, width: int = 16, noise: float = 0.3) -> Any:
    """A GPT-2 with random weights, and noise on them; each byte is a token."""
    import keras_hub

    preprocessor = byte_preprocessor(length)
    keras.utils.set_random_seed(3)
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=END + 1,
        num_layers=2,
        num_heads=2,
        hidden_dim=width,
        intermediate_dim=2 * width,
        max_sequence_length=length,
        dropout=0.0,
    )
    for weight in backbone.weights if noise else ():
        weight.assign(weight + keras.random.normal(weight.shape, stddev=noise))
    model = keras_hub.models.GPT2CausalLM(backbone=backbone, preprocessor=preprocessor)
    model.compile(sampler="greedy")
    return model


@functools.cache
def byte_model() -> Any:
    """One that tests share."""
    return new_byte_model()
