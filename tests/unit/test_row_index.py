"""Language models whose attention lacks KerasHub's serving hook, by an index for each row."""

from __future__ import annotations

import inspect
import re
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from language_models import (
    BY_ROWS,
    FAMILIES,
    MIXED,
    ONLY_LOGITS,
    REFUSED,
    VOCABULARY,
    kept_model,
    largest_difference,
    require_tokens_of_generate,
)

from hyparflow.model.keras_internals.own_cache import own_caches
from hyparflow.model.keras_internals.row_index import RowIndex, StackedCaches, row_indices
from hyparflow.serving.decoding.adapters import cached_model_of, decoder_of
from hyparflow.serving.decoding.decoder import Decoder
from hyparflow.serving.decoding.row_index_model import RowIndexModel
from hyparflow.serving.decoding.self_test import logits_differ
from hyparflow.serving.scheduling.window import Piece, Shape


def few(names: Any, *default: str) -> list[Any]:
    """Those tested by default; the others with --everything."""
    return [n if n in default else pytest.param(n, marks=pytest.mark.slow) for n in names]


# --- what comes out ---


@pytest.mark.parametrize("name", few([*BY_ROWS, *ONLY_LOGITS], "Mixtral", "GptOss", "SmolLM3"))
def test_logits_at_unequal_positions(name: str) -> None:
    model = kept_model(name)
    cached = cached_model_of(model)
    assert isinstance(cached, RowIndexModel) or name == "Qwen:window"
    assert largest_difference(model, Decoder(cached)) < 5e-6


@pytest.mark.parametrize("name", few(BY_ROWS, "Mixtral"))
def test_tokens_are_those_of_generate(name: str) -> None:
    model = kept_model(name)
    require_tokens_of_generate(model, decoder_of(model))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAMILIES, "Qwen:window"])
def test_the_hook_and_the_index_agree(name: str) -> None:
    model = kept_model(name)
    assert largest_difference(model, Decoder(RowIndexModel(model))) < 5e-6


@pytest.mark.parametrize("name", few(MIXED, "GPT2:mixed", "Mixtral:mixed"))
def test_models_in_mixed_precision_are_served(name: str) -> None:
    model = kept_model(name)
    assert logits_differ(model, decoder_of(model), VOCABULARY) == ""


def test_a_piece_that_is_filled_up_writes_its_own_places_only() -> None:
    model = kept_model("Mixtral")
    decoder = decoder_of(model)
    caches, alone = decoder.empty(Shape(2, 12)), decoder.empty(Shape(2, 12))
    decoder.take_in(caches, [Piece(1, 3, (5, 6, 7), 16)])  # more than the cache has room for
    decoder.take_in(alone, [Piece(1, 3, (5, 6, 7), 3)])
    for cache, other in zip(caches, alone, strict=True):
        filled = np.abs(cache.numpy()).sum((2, 3)) > 0
        assert filled.tolist() == [[False] * 12, [3 <= place < 6 for place in range(12)]]
        assert np.allclose(cache, other, atol=1e-5)


# --- what is refused ---


SENTENCES = {
    "GPTNeoX": "token by token as at once.*GPTNeoXCausalLM.*KerasHub's own cached decoding differ",
    "Qwen3_5": "keep keys and values.*Qwen3_5CausalLM.*state",
    "Phi3:su": "an index for each row.*Phi3CausalLM.*fails",
    "PaliGemma": "inputs are tokens.*PaliGemmaCausalLM.*'images'",
}


@pytest.mark.parametrize("name", few(REFUSED, "GPTNeoX", "Qwen3_5"))
def test_what_cannot_be_served_is_refused_by_name(name: str) -> None:
    model = kept_model(name)
    try:
        said = logits_differ(model, decoder_of(model), VOCABULARY)
    except ValueError as error:
        said = str(error)
    assert re.fullmatch(f".*{SENTENCES[name]}.*", said)  # in one line


def test_models_of_other_kinds_are_refused_by_name() -> None:
    import keras_hub

    backbone = keras_hub.models.BartBackbone(VOCABULARY, 1, 2, 8, 8, max_sequence_length=8)
    encoding = keras_hub.models.BartSeq2SeqLM(backbone=backbone, preprocessor=None)
    with pytest.raises(ValueError, match="inputs are tokens.*BartSeq2SeqLM.*'encoder_token_ids'"):
        decoder_of(encoding)
    with pytest.raises(ValueError, match="inputs are tokens.*Sequential.*no names"):
        decoder_of(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
    drafting = keras_hub.models.RWKV7Backbone(8, 4, 1, VOCABULARY, 8, 4, 4, 4, 4)
    drafting = keras_hub.models.RWKV7CausalLM(backbone=drafting, preprocessor=None)
    with pytest.raises(ValueError, match="keep keys and values.*RWKV7CausalLM.*state"):
        decoder_of(drafting)


def test_a_step_that_a_layer_cannot_take_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = kept_model("Bloom")
    attention = model.backbone.transformer_layers[0]._self_attention_layer

    def failing(*args: Any, **named: Any) -> None:
        raise TypeError("no such index\nin any row")

    monkeypatch.setattr(type(attention), "call", failing)
    with pytest.raises(ValueError, match=r"BloomCausalLM.*fails \(TypeError: no such index\)"):
        RowIndexModel(model)


# --- how ---


def test_everything_is_put_back() -> None:
    model = kept_model("Mixtral")
    owners = {keras.ops: ("slice_update", "stack")}
    for layer in model._flatten_layers():
        for cls in type(layer).__mro__:
            owners[cls] = ("call", "_mask_sliding_window", "_compute_attention")
            owners[inspect.getmodule(cls)] = ("compute_causal_mask",)

    def state() -> list[Any]:
        return [vars(owner).get(name) for owner, names in owners.items() for name in names]

    before = state()
    with pytest.raises(RuntimeError), row_indices(model):
        assert state() != before
        raise RuntimeError
    assert state() == before


def test_plain_calls_are_as_ever_meanwhile() -> None:
    """Another thread may compute while a call is traced."""
    model, tokens = kept_model("Mixtral"), np.array([[3, 4, 5]], "int32")
    given = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    expected = model(given, training=False)
    with row_indices(model):
        assert np.array_equal(model(given, training=False), expected)
        stacked = keras.ops.stack([tf.zeros([2, 3])] * 4, axis=1)
        updated = keras.ops.slice_update(tf.zeros([4]), [1], tf.ones([2]))
    assert stacked.shape == (2, 4, 3)
    assert updated.numpy().tolist() == [0, 1, 1, 0]


def test_caches_that_look_like_one_tensor() -> None:
    parts = [tf.random.normal([2, 3, 4], seed=n) for n in range(4)]
    stacked = StackedCaches([StackedCaches(parts[:2]), StackedCaches(parts[2:])])
    whole = tf.convert_to_tensor(stacked)
    assert whole.shape == (2, 2, 2, 3, 4)
    assert stacked[:, 1, ...][:, 0, ...] is parts[2]
    for key in (0, (slice(None), -1), (slice(None), 0, 1), (0, 1), (slice(None), slice(1))):
        assert np.array_equal(tf.convert_to_tensor(stacked[key]), whole[key]), key


def test_an_index_gives_the_positions() -> None:
    positions = tf.constant([[3, 4, 4], [0, 1, 2]])
    given = tf.range(3)[:, None] + RowIndex(positions)
    assert np.array_equal(given[:, :, 0], positions)


# --- what it uses of KerasHub that is not documented ---


@pytest.mark.parametrize("name", few(BY_ROWS, "Mixtral", "GptOss", "Gemma4"))
def test_a_model_has_the_private_names(name: str) -> None:
    model = kept_model(name)
    takes = list(inspect.signature(model.call_with_cache).parameters)
    assert takes[:3] == ["token_ids", "cache", "cache_update_index"]
    assert callable(model._build_cache)
    assert None not in own_caches(model).axes


def layers_with(model: Any, method: str, argument: str) -> list[Any]:
    return [
        layer
        for layer in model._flatten_layers()
        if argument in inspect.signature(getattr(layer, method, len)).parameters
    ]


def test_attention_has_the_private_names() -> None:
    model = kept_model("Gemma4")
    for layer in layers_with(model, "_mask_sliding_window", "cache_update_index"):
        names = list(inspect.signature(layer._mask_sliding_window).parameters)
        assert names == ["attention_mask", "cache_update_index"]
        assert hasattr(layer, "sliding_window_size") != hasattr(layer, "sliding_window")
    attention = layers_with(kept_model("GptOss"), "_compute_attention", "start_index")
    assert len(attention) == 2
    takes = inspect.signature(attention[0]._compute_attention).parameters
    assert {"attention_mask", "start_index"} <= set(takes)
    assert "self.sliding_window " in inspect.getsource(type(attention[0])._compute_attention)
    rotary = layers_with(kept_model("SmolLM3"), "call", "start_index")
    assert {type(layer).__name__ for layer in rotary} == {"SmolLM3RotaryEmbedding"}


def test_the_causal_mask_has_its_arguments() -> None:
    from keras_hub.src.layers.modeling import transformer_layer_utils

    takes = inspect.signature(transformer_layer_utils.compute_causal_mask).parameters
    assert list(takes) == ["batch_size", "input_length", "output_length", "cache_index"]
    assert takes["cache_index"].default == 0
