"""Small language models of KerasHub, with weights that tell tokens apart."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np

__all__ = ["FAMILIES", "LENGTH", "SMALL", "VOCABULARY", "alone", "kept_model", "language_model"]
__all__ += ["padded"]

VOCABULARY, LENGTH = 40, 48
SMALL: dict[str, Any] = {
    "vocabulary_size": VOCABULARY,
    "num_layers": 2,
    "hidden_dim": 16,
    "intermediate_dim": 32,
}
GROUPED = {"num_query_heads": 4, "num_key_value_heads": 2}
# With KerasHub's serving hook.
FAMILIES: dict[str, dict[str, Any]] = {
    "GPT2": {"num_heads": 4, "max_sequence_length": LENGTH, "dropout": 0.0},
    "OPT": {"num_heads": 4, "max_sequence_length": LENGTH, "dropout": 0.0},
    "Llama": GROUPED,
    "Mistral": GROUPED | {"sliding_window": 9},
    "Qwen": GROUPED,
    "Gemma": GROUPED | {"head_dim": 4},
}


def language_model(name: str) -> Any:
    """A new model of a family, the same each time."""
    import keras_hub

    keras.utils.set_random_seed(2)
    backbone = getattr(keras_hub.models, f"{name}Backbone")(**SMALL, **FAMILIES[name])
    model = getattr(keras_hub.models, f"{name}CausalLM")(backbone=backbone, preprocessor=None)
    random = np.random.default_rng(4)
    for weight in model.weights:
        weight.assign(0.4 * random.standard_normal(weight.shape) + ("scale" in weight.path))
    return model


@functools.cache
def kept_model(name: str) -> Any:
    """A model that tests share."""
    return language_model(name)


def padded(prompts: list[list[int]], lengths: list[int]) -> dict[str, Any]:
    """What `generate` of a model without a preprocessor takes."""
    ids = np.zeros((len(prompts), max(lengths)), "int32")
    mask = np.zeros(ids.shape, bool)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)], mask[row, : len(prompt)] = prompt, True
    return {"token_ids": ids, "padding_mask": mask}


def alone(model: Any, prompt: list[int], count: int, **settings: Any) -> list[int]:
    """What KerasHub's own `generate` gives for one prompt."""
    inputs = padded([prompt], [len(prompt) + count])
    made = model.generate(inputs, **{"stop_token_ids": None} | settings)
    ids, mask = np.asarray(made["token_ids"])[0], np.asarray(made["padding_mask"])[0]
    return [int(token) for token in ids[mask][len(prompt) :]]
