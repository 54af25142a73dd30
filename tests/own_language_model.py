"""A language model of one's own: layers of KerasHub, and hyparflow's mixtures of experts."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from language_models import LENGTH, VOCABULARY

import hyparflow as hf

__all__ = ["own_language_model"]


class _WithExperts(keras.layers.Layer):
    """Adds what experts make of a token.

    Args:
        experts: a layer with experts.
        again: whether that is done once more.
    """

    def __init__(self, experts: Any, again: bool) -> None:
        super().__init__()
        self.norm, self.experts, self.again = keras.layers.LayerNormalization(), experts, again

    def call(self, x: Any) -> Any:
        """x and what is added, of the same shape."""
        x = x + self.experts(self.norm(x))
        return x + self.experts(self.norm(x)) if self.again else x


def own_language_model(top_k: int, again: bool = False) -> Any:
    """A new model, the same each time, with mixtures beside its blocks and inside one.

    Args:
        top_k: how many experts a token has.
        again: whether the second block passes tokens through its experts twice.
    """
    import keras_hub

    keras.utils.set_random_seed(2)
    tokens = keras.Input([None], dtype="int32", name="token_ids")
    mask = keras.Input([None], dtype="int32", name="padding_mask")
    embedding = keras_hub.layers.TokenAndPositionEmbedding(VOCABULARY, LENGTH, 16)
    x = embedding(tokens)
    for number in range(2):
        block = keras_hub.layers.TransformerDecoder(32, 4, normalize_first=True)
        x = block(x, decoder_padding_mask=mask)
        experts = hf.layers.MixtureOfExperts(4, 8, top_k=top_k, name=f"experts_{number}")
        if number:
            x = _WithExperts(experts, again)(x)
        else:
            x = 0.7 * x + 1.5 * experts(keras.layers.LayerNormalization()(x))
    x = keras.layers.LayerNormalization()(x)
    logits = embedding.token_embedding(x, reverse=True)
    inputs = {"token_ids": tokens, "padding_mask": mask}
    backbone = keras_hub.models.Backbone(inputs, x)
    backbone.vocabulary_size = VOCABULARY

    class OwnCausalLM(keras_hub.models.CausalLM):
        def __init__(self) -> None:
            self.backbone, self.preprocessor = backbone, None
            super().__init__(inputs=backbone.input, outputs=logits)

    model = OwnCausalLM()
    random = np.random.default_rng(4)
    for weight in model.trainable_weights:
        ones = "gamma" in weight.path
        weight.assign(0.4 * random.standard_normal(weight.shape) + ones)
    model.compile(sampler="greedy")
    return model
