"""The language models that are served, with random weights, and what is asked of them."""

from typing import Any

import keras
import keras_hub
import numpy as np

__all__ = ["LENGTHS", "VOCABULARY", "build", "padded_inputs", "prompts_of", "requests"]

VOCABULARY, WIDTH, LAYERS, HEADS = 4096, 512, 8, 8
LENGTHS = (16, 65)  # of prompts
_SPREAD = 3.0  # weights larger than at first: small ones repeat one token for ever


def build(kind: str, jit: bool = False) -> Any:
    """A model; `kind` is "gpt2", or "llama" with four heads of queries to one of keys."""
    keras.utils.set_random_seed(1)
    if kind == "gpt2":
        backbone = keras_hub.models.GPT2Backbone(
            vocabulary_size=VOCABULARY,
            num_layers=LAYERS,
            num_heads=HEADS,
            hidden_dim=WIDTH,
            intermediate_dim=4 * WIDTH,
            dropout=0.0,
            max_sequence_length=2048,
        )
        model = keras_hub.models.GPT2CausalLM(backbone=backbone, preprocessor=None)
    else:
        backbone = keras_hub.models.LlamaBackbone(
            vocabulary_size=VOCABULARY,
            num_layers=LAYERS,
            num_query_heads=HEADS,
            num_key_value_heads=HEADS // 4,
            hidden_dim=WIDTH,
            intermediate_dim=1408,
        )
        model = keras_hub.models.LlamaCausalLM(backbone=backbone, preprocessor=None)
    for weight in backbone.trainable_weights:
        if len(weight.shape) > 1:
            weight.assign(_SPREAD * weight)
    model.compile(sampler="greedy", jit_compile=jit)
    return model


def prompts_of(lengths: Any, seed: int = 0) -> list[list[int]]:
    """Random prompts of these lengths."""
    random = np.random.default_rng(seed)
    return [random.integers(1, VOCABULARY, int(length)).tolist() for length in lengths]


def requests(count: int) -> tuple[list[list[int]], list[int]]:
    """Prompts, and for each the length to reach: a multiple of 32, for which KerasHub compiles."""
    random = np.random.default_rng(0)
    prompts = prompts_of(random.integers(*LENGTHS, count))
    more = random.integers(32, 161, count)
    return prompts, [-(-(len(p) + int(n)) // 32) * 32 for p, n in zip(prompts, more, strict=True)]


def padded_inputs(prompts: list[list[int]], length: int) -> dict[str, Any]:
    """What a model without a preprocessor takes: prompts, and room up to a length."""
    tokens = np.zeros((len(prompts), length), "int32")
    mask = np.zeros((len(prompts), length), bool)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
        mask[row, : len(prompt)] = True
    return {"token_ids": tokens, "padding_mask": mask}
