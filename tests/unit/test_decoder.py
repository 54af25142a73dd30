"""Language models of KerasHub that decode by positions of rows: logits, and greedy tokens."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from hyparflow.serving.adapters import decoder_of
from hyparflow.serving.engine import ServingEngine
from hyparflow.serving.limits import Limits
from hyparflow.serving.request import Request
from hyparflow.serving.runner import LocalRunner
from hyparflow.serving.self_test import require_right_logits
from hyparflow.serving.window import EMPTY, Shape

VOCABULARY, LENGTH = 40, 48
SMALL: dict[str, Any] = {
    "vocabulary_size": VOCABULARY,
    "num_layers": 2,
    "hidden_dim": 16,
    "intermediate_dim": 32,
}
GROUPED = {"num_query_heads": 4, "num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "GPT2": {"num_heads": 4, "max_sequence_length": LENGTH, "dropout": 0.0},
    "OPT": {"num_heads": 4, "max_sequence_length": LENGTH, "dropout": 0.0},
    "Llama": GROUPED,
    "Mistral": GROUPED | {"sliding_window": 9},
    "Qwen": GROUPED,
    "Gemma": GROUPED | {"head_dim": 4},
}
# The others with --everything.
TESTED = [n if n == "GPT2" else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES]


@functools.cache
def language_model(name: str) -> Any:
    import keras_hub

    keras.utils.set_random_seed(2)
    backbone = getattr(keras_hub.models, f"{name}Backbone")(**SMALL, **FAMILIES[name])
    model = getattr(keras_hub.models, f"{name}CausalLM")(backbone=backbone, preprocessor=None)
    random = np.random.default_rng(4)
    for weight in model.weights:
        weight.assign(0.4 * random.standard_normal(weight.shape) + ("scale" in weight.path))
    return model


@pytest.mark.parametrize("name", TESTED)
def test_logits_at_unequal_positions(name: str) -> None:
    model = language_model(name)
    decoder, random = decoder_of(model), np.random.default_rng(0)
    rows, length = [17, 3, 30], 32
    tokens = random.integers(1, VOCABULARY, (3, length)).astype("int32")
    ones = np.ones_like(tokens)
    expected = np.asarray(model({"token_ids": tokens, "padding_mask": ones}, training=False))
    caches = decoder.empty(Shape(3, length))
    for row, count in enumerate(rows):  # in two pieces each
        for start, stop in ((0, count // 2), (count // 2, count)):
            if stop > start:
                decoder.take_in(caches, row, start, tokens[row, start:stop].tolist(), 32)
    for step in range(2):
        places = np.array(rows) + step
        given = tokens[np.arange(3), places][:, None]
        found = decoder.logits(caches, tf.constant(given), tf.constant(places[:, None], tf.int32))
        right = expected[np.arange(3), places]
        assert np.abs(found[:, 0] - right).max() < 5e-6 * np.abs(expected).max()


@pytest.mark.parametrize("name", TESTED)
def test_tokens_are_those_of_generate(name: str) -> None:
    """Requests of all lengths that come while others run, with growing caches."""
    model = language_model(name)
    model.compile(sampler="greedy")
    random = np.random.default_rng(1)
    limits = Limits(4, LENGTH, window=4, piece=16, shortest=12, fewest=2)
    engine = ServingEngine(LocalRunner(decoder_of(model)), limits)
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
        length = len(prompt) + counts[number]
        padded = np.zeros((1, length), "int32")
        padded[0, : len(prompt)] = prompt
        there = padded != 0
        there[0, : len(prompt)] = True
        made = model.generate({"token_ids": padded, "padding_mask": there}, stop_token_ids=None)[
            "token_ids"
        ]
        assert given[number] == np.asarray(made)[0, len(prompt) :].tolist(), number
    assert engine.schedulers[0].counts.rebuilds > 1


def test_caches_that_move_and_grow() -> None:
    decoder = decoder_of(language_model("GPT2"))
    caches = decoder.empty(Shape(4, 8))
    for number, cache in enumerate(caches):
        cache.assign(tf.random.normal(cache.shape, seed=number))
    old = [cache.numpy() for cache in caches]
    moved = decoder.rebuilt(caches, Shape(2, 16), (3, EMPTY))
    new = [cache.numpy() for cache in moved]
    back = decoder.rebuilt(moved, Shape(1, 4), (0,))
    for x, y, z in zip(old, new, back, strict=True):
        assert y.shape == (2, 4, 16, 4)
        assert np.array_equal(y[0, :, :8], x[3])
        assert np.array_equal(z[0], x[3, :, :4])
        assert not np.any(y[:, :, 8:])


def test_a_model_is_tried_before_it_serves() -> None:
    model, other = language_model("GPT2"), language_model.__wrapped__("GPT2")
    require_right_logits(model, decoder_of(model), VOCABULARY)
    kernel = next(w for w in other.weights if w.path.endswith("query/kernel"))
    kernel.assign(-kernel)
    with pytest.raises(ValueError, match=r"same logits token by token.*GPT2CausalLM.*differ by"):
        require_right_logits(model, decoder_of(other), VOCABULARY)


def test_a_model_without_the_hook_is_refused_by_name() -> None:
    import keras_hub

    backbone = keras_hub.models.BloomBackbone(**SMALL, num_heads=4, dropout=0.0)
    model = keras_hub.models.BloomCausalLM(backbone=backbone, preprocessor=None)
    with pytest.raises(ValueError, match="serving hook.*BloomCausalLM.*has none"):
        decoder_of(model)
