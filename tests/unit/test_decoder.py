"""Language models of KerasHub that decode by positions of rows: logits, and greedy tokens."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from language_models import (
    FAMILIES,
    LENGTH,
    SMALL,
    VOCABULARY,
    alone,
    kept_model,
    language_model,
)

from hyparflow.serving.adapters import decoder_of
from hyparflow.serving.engine import ServingEngine
from hyparflow.serving.limits import Limits
from hyparflow.serving.request import Request
from hyparflow.serving.runner import LocalRunner
from hyparflow.serving.self_test import logits_differ, probe_tokens
from hyparflow.serving.window import EMPTY, Shape

# The others with --everything.
TESTED = [n if n == "GPT2" else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES]


@pytest.mark.parametrize("name", TESTED)
def test_logits_at_unequal_positions(name: str) -> None:
    """Rows of 7, 2 and 11 tokens, taken in by two pieces each, and two tokens more."""
    model = kept_model(name)
    tokens, counts = probe_tokens(VOCABULARY, 3)
    given = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    expected = np.asarray(model(given, training=False))
    for step, found in enumerate(decoder_of(model).probe(tokens, counts, 2)):
        right = expected[np.arange(3), np.array(counts) + step]
        assert np.abs(found - right).max() < 5e-6 * np.abs(expected).max()


@pytest.mark.parametrize("name", TESTED)
def test_tokens_are_those_of_generate(name: str) -> None:
    """Requests of all lengths that come while others run, with growing caches."""
    model = kept_model(name)
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
        assert given[number] == alone(model, prompt, counts[number]), number
    assert engine.schedulers[0].counts.rebuilds > 1


def test_caches_that_move_and_grow() -> None:
    decoder = decoder_of(kept_model("GPT2"))
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
    model, other = kept_model("GPT2"), language_model("GPT2")
    assert logits_differ(model, decoder_of(model), VOCABULARY) == ""
    kernel = next(w for w in other.weights if w.path.endswith("query/kernel"))
    kernel.assign(-kernel)
    said = logits_differ(model, decoder_of(other), VOCABULARY)
    assert "same logits token by token" in said
    assert "GPT2CausalLM', whose logits differ by" in said


def test_a_model_without_the_hook_is_refused_by_name() -> None:
    import keras_hub

    backbone = keras_hub.models.BloomBackbone(**SMALL, num_heads=4, dropout=0.0)
    model = keras_hub.models.BloomCausalLM(backbone=backbone, preprocessor=None)
    with pytest.raises(ValueError, match="serving hook.*BloomCausalLM.*has none"):
        decoder_of(model)
