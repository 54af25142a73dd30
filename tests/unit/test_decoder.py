"""Language models of KerasHub that decode by positions of rows: logits, and greedy tokens."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from language_models import (
    FAMILIES,
    VOCABULARY,
    kept_model,
    language_model,
    largest_difference,
    require_tokens_of_generate,
)
from own_language_model import own_language_model

from hyparflow.serving.decoding.adapters import cached_model_of, decoder_of
from hyparflow.serving.decoding.decoder import Decoder
from hyparflow.serving.decoding.hooked_model import HookedModel
from hyparflow.serving.decoding.self_test import logits_differ
from hyparflow.serving.ranks.runner import put_together, warm_up_window
from hyparflow.serving.scheduling.limits import Limits
from hyparflow.serving.scheduling.request import Request
from hyparflow.serving.scheduling.sampling import GREEDY
from hyparflow.serving.scheduling.scheduler import Scheduler
from hyparflow.serving.scheduling.window import EMPTY, Shape

# The others with --everything.
TESTED = [n if n == "GPT2" else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES]


@pytest.mark.parametrize("name", TESTED)
def test_logits_at_unequal_positions(name: str) -> None:
    model = kept_model(name)
    cached = cached_model_of(model)
    assert isinstance(cached, HookedModel)
    assert largest_difference(model, Decoder(cached)) < 5e-6


@pytest.mark.parametrize("name", TESTED)
def test_tokens_are_those_of_generate(name: str) -> None:
    """Requests of all lengths that come while others run, with growing caches."""
    model = kept_model(name)
    require_tokens_of_generate(model, decoder_of(model))


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


def test_a_model_that_cannot_decode_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model = kept_model("Bloom")
    monkeypatch.delattr(type(model), "call_with_cache")
    with pytest.raises(ValueError, match="serving hook.*BloomCausalLM.*has neither"):
        decoder_of(model)


@pytest.mark.parametrize("piece", [1, 40, 256])
def test_no_call_for_pieces_is_compiled_while_requests_run(piece: int) -> None:
    """Sizes of pieces, and how many are one call, all occur in what is warmed up."""
    limits = Limits(8, 300, piece=piece, pieces_while_idle=4, shortest=75, together=(8, 4))
    warm = {
        (shape.length, len(pieces), pieces[0].padded)
        for shape in limits.shapes
        for pieces in put_together(warm_up_window(limits, shape, GREEDY))
    }
    random, scheduler, met = np.random.default_rng(0), Scheduler(limits), set()
    lengths = random.integers(1, 290, 300) // random.integers(1, 9, 300)
    for number, length in enumerate((*[20] * 8, *lengths)):
        scheduler.submit(Request(number, (1,) * max(1, int(length)), 10))
    while (window := scheduler.plan()) is not None:
        met |= {(window.shape.length, len(x), x[0].padded) for x in put_together(window)}
        scheduler.report([[0] * len(window.live)] * window.steps)
    assert met <= warm
    assert piece < 256 or {count for _, count, _ in met} == {1, 4, 8}


@pytest.mark.parametrize("top_k", [1, 2])
def test_experts_beside_attention_with_the_hook(top_k: int) -> None:
    """XLA compiles no layer whose experts have any number of tokens."""
    model = own_language_model(top_k)
    assert isinstance(cached_model_of(model), HookedModel)
    assert largest_difference(model, decoder_of(model)) < 5e-6
