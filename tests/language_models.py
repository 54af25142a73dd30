"""Small language models of KerasHub, and whether they decode right."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow.serving.decoding.decoder import Decoder
from hyparflow.serving.engine import ServingEngine
from hyparflow.serving.ranks.replicas import OneReplica
from hyparflow.serving.ranks.runner import LocalRunner
from hyparflow.serving.scheduling.limits import Limits
from hyparflow.serving.scheduling.request import Request

VOCABULARY, LENGTH = 40, 48
SMALL: dict[str, Any] = {
    "vocabulary_size": VOCABULARY,
    "num_layers": 2,
    "hidden_dim": 16,
    "intermediate_dim": 32,
}
GROUPED: dict[str, Any] = {"num_query_heads": 4, "num_key_value_heads": 2}
LEARNED = {"num_heads": 4, "max_sequence_length": LENGTH, "dropout": 0.0}
WINDOW = {"use_sliding_window_attention": True, "sliding_window_size": 9}
EXPERTS = {"num_experts": 4, "top_k": 2}
QWEN_EXPERTS = {"moe_intermediate_dim": 8, "norm_top_k_prob": True} | EXPERTS
QWEN_MOE = GROUPED | QWEN_EXPERTS | {"shared_expert_intermediate_dim": 16, "decoder_sparse_step": 1}
GEMMA = GROUPED | {"head_dim": 4}
GEMMA_2 = {"use_post_ffw_norm": True, "use_post_attention_norm": True} | GEMMA | WINDOW
CAPS = {"attention_logit_soft_cap": 20.0, "final_logit_soft_cap": 10.0}
GEMMA_3 = GEMMA | WINDOW | {"image_size": None, "vision_encoder": None, "use_query_key_norm": True}
GEMMA_4 = GEMMA | {"image_size": None, "sliding_window_size": 9, "sliding_window_pattern": 2}
SMOL = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "rope_layer_enabled_list": [True, False],
    "layer_types": ["full_attention"] * 2,
    "mlp_bias": False,
    "layer_norm_epsilon": 1e-6,
    "max_position_embeddings": LENGTH,
    "rope_theta": 1e4,
    "partial_rotary_factor": 1.0,
}
LINEAR = {f"linear_{name}": 2 for name in ("num_key_heads", "num_value_heads")}
LINEAR |= {f"linear_{name}": 4 for name in ("key_head_dim", "value_head_dim")}
# Name, of which what follows a colon is no part of the family's; arguments of its backbone.
FAMILIES: dict[str, dict[str, Any]] = {
    "GPT2": LEARNED,
    "OPT": LEARNED,
    "Llama": GROUPED,
    "Llama3": GROUPED,
    "Mistral": GROUPED | {"sliding_window": 9},
    "Qwen": GROUPED,
    "Qwen3": GEMMA,
    "Gemma": GEMMA,
    "Gemma:2": GEMMA_2 | CAPS,
    "Gemma3": GEMMA_3,
}
BY_ROWS: dict[str, dict[str, Any]] = {
    "Mixtral": GROUPED | EXPERTS | {"sliding_window": 9},
    "QwenMoe": QWEN_MOE,
    "Qwen3Moe": GEMMA | QWEN_EXPERTS,
    "Phi3": GROUPED,
    "Falcon": {"num_attention_heads": 4},
    "Bloom": {"num_heads": 4, "dropout": 0.0},
    "SmolLM3": SMOL,
    "GptOss": GEMMA | EXPERTS | {"sliding_window": 9},
    "Gemma4": GEMMA_4,
    "Gemma4:large global heads": GEMMA_4 | {"global_head_dim": 8, "num_global_key_value_heads": 1},
    "Gemma4:shared caches": GEMMA_4
    | {"num_layers": 4, "num_kv_shared_layers": 2}
    | {"hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": VOCABULARY},
    "Gemma4:experts": GEMMA_4
    | {"enable_moe_block": True, "num_experts": 4}
    | {"expert_intermediate_dim": 8, "num_experts_per_token": 2},
}
# KerasHub's own `generate` fails for the first, for it asks a tensor whether it is zero.
ONLY_LOGITS: dict[str, dict[str, Any]] = {
    "QwenMoe:window": QWEN_MOE | WINDOW,
    "Qwen:window": GROUPED | WINDOW,
}
MIXED: dict[str, dict[str, Any]] = {
    f"{name}:mixed": arguments | {"dtype": "mixed_bfloat16"}
    for name, arguments in (FAMILIES | BY_ROWS).items()
    if ":" not in name
}
REFUSED: dict[str, dict[str, Any]] = {
    "GPTNeoX": {"num_heads": 4, "rotary_percentage": 0.5},
    "Qwen3_5": GROUPED | LINEAR | {"head_dim": 8},
    "Phi3:su": GROUPED
    | {"max_sequence_length": 64, "pretraining_sequence_length": 32, "rope_scaling_type": "su"}
    | {"rope_scaling_short_factor": [1.0, 1.1], "rope_scaling_long_factor": [2.0, 3.0]},
    "PaliGemma": GEMMA
    | {"image_size": 16, "vit_patch_size": 8, "vit_num_heads": 2, "vit_hidden_dim": 8}
    | {"vit_num_layers": 1, "vit_intermediate_dim": 8},
}


def language_model(name: str, length: int = LENGTH) -> Any:
    """A new model of a family, the same each time, whose weights tell tokens apart.

    Args:
        name: of the family.
        length: how many positions it learns, if it does.
    """
    import keras_hub

    keras.utils.set_random_seed(2)
    arguments = SMALL | (FAMILIES | BY_ROWS | ONLY_LOGITS | MIXED | REFUSED)[name]
    learned = {"max_sequence_length", "max_position_embeddings"} & set(arguments)
    if ":" not in name:
        arguments |= dict.fromkeys(learned, length)
    family = name.partition(":")[0]
    backbone = getattr(keras_hub.models, f"{family}Backbone")(**arguments)
    model = getattr(keras_hub.models, f"{family}CausalLM")(backbone=backbone, preprocessor=None)
    random = np.random.default_rng(4)
    for weight in model.trainable_weights:
        weight.assign(0.4 * random.standard_normal(weight.shape) + ("scale" in weight.path))
    return model


@functools.cache
def kept_model(name: str) -> Any:
    """A model that tests share."""
    return language_model(name)


def largest_difference(model: Any, decoder: Decoder) -> float:
    """How far logits after pieces of prompts are from those of a plain call, of the largest."""
    random, counts, length = np.random.default_rng(0), [17, 3, 30], 32
    tokens = random.integers(1, VOCABULARY, (3, length)).astype("int32")
    positions = np.broadcast_to(np.arange(length, dtype="int32"), tokens.shape)
    given = {"token_ids": tokens, "padding_mask": np.ones_like(tokens), "position_ids": positions}
    given = {key: value for key, value in given.items() if key in model.input}
    expected = np.asarray(model(given, training=False))
    differences = [
        np.abs(found - expected[np.arange(3), np.array(counts) + step]).max()
        for step, found in enumerate(decoder.probe(tokens, counts, 2))
    ]
    return float(max(differences) / np.abs(expected).max())


def require_tokens_of_generate(model: Any, decoder: Decoder) -> None:
    """Requests of all lengths, that come while others run, get the tokens of `generate`."""
    model.compile(sampler="greedy")
    random = np.random.default_rng(1)
    limits = Limits(4, LENGTH, window=4, piece=16, shortest=12, fewest=2, together=(2,))
    engine = ServingEngine(OneReplica(LocalRunner(decoder)), limits)
    asked = {
        number: random.integers(1, VOCABULARY, random.integers(1, 20)).tolist()
        for number in range(6)
    }
    counts = {number: int(random.integers(1, 25)) for number in asked}
    given: dict[int, list[int]] = {number: [] for number in asked}
    waiting = list(asked)
    while waiting or not engine.is_idle:
        for number in waiting[:2]:
            engine.submit(Request(number, tuple(asked[number]), counts[number]))
        waiting = waiting[2:]
        for progress in engine.advance():
            given[progress.number] += progress.tokens
    for number, prompt in asked.items():
        assert given[number] == alone(model, prompt, counts[number]), number
    assert engine.schedulers[0].counts.rebuilds > 1


def padded(prompts: list[list[int]], lengths: list[int]) -> dict[str, Any]:
    """What `generate` of a model without a preprocessor takes."""
    ids = np.zeros((len(prompts), max(lengths)), "int32")
    mask = np.zeros(ids.shape, bool)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)], mask[row, : len(prompt)] = prompt, True
    return {"token_ids": ids, "padding_mask": mask}


def alone(model: Any, prompt: list[int], count: int, stop_token_ids: Any = None) -> list[int]:
    """What KerasHub's own `generate` gives for one prompt."""
    inputs = padded([prompt], [len(prompt) + count])
    if "position_ids" in model.input:
        inputs["position_ids"] = np.arange(len(prompt) + count, dtype="int32")[None]
    # What `generate` calls, which for Gemma 3 without images fails to return what comes of it.
    inputs = {key: tf.constant(value) for key, value in inputs.items()}
    made = model.make_generate_function()(inputs, stop_token_ids=stop_token_ids)
    ids, mask = np.asarray(made["token_ids"])[0], np.asarray(made["padding_mask"])[0]
    return [int(token) for token in ids[mask][len(prompt) :]]
