"""KerasHub's mixtures of experts compute what they did, by the experts that tokens chose."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from language_models import VOCABULARY, kept_model

from hyparflow.model.experts import expert_banks
from hyparflow.model.experts.expert_banks import ExpertBank, ExpertBanks
from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.serving.decoding.adapters import decoder_of
from hyparflow.serving.decoding.self_test import logits_differ
from hyparflow.serving.decoding.text_inputs import text_inputs

FAMILIES = ["Mixtral", "QwenMoe", "Qwen3Moe", "GptOss", "Gemma4:experts"]
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (3, 16)).astype("int32")
PLACES = np.broadcast_to(np.arange(16, dtype="int32"), TOKENS.shape)


def logits(model: Any, tokens: Any = TOKENS, training: bool = False) -> Any:
    places = PLACES[: len(tokens), : tokens.shape[1]]
    return model(text_inputs(model, tokens, places), training=training)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_logits(name: str, compiled: bool) -> None:
    model = kept_model(name)
    banks = ExpertBanks(all_layers(model))
    assert len(banks) == 2
    expected = np.array(logits(model))

    def sparse() -> Any:
        with banks.sparse():
            return logits(model)

    found = tf.function(sparse, autograph=False)() if compiled else sparse()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", FAMILIES)
def test_experts_that_nobody_chose_are_not_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one token: their weights may be anything."""
    model = kept_model(name)
    routed: list[tuple[Any, Any]] = []
    computed_by = ExpertBank.computed_by

    def noted(bank: Any, mixture: Any) -> Any:
        def noting(rows: Any, routing: Any, expert: Any) -> Any:
            routed.append((bank.layer, routing))
            return mixture(rows, routing, expert)

        return computed_by(bank, noting)

    monkeypatch.setattr(ExpertBank, "computed_by", noted)
    banks = ExpertBanks(all_layers(model))
    with banks.sparse():
        expected = np.array(logits(model, TOKENS[:1, :1]))
    monkeypatch.undo()
    layers = [layer for layer, _ in routed]
    before = [[weight.numpy() for weight in layer.weights] for layer in layers]
    try:
        for layer, shares in routed:
            idle = ~np.any(shares, axis=1)
            assert idle.sum() == 2
            for weight in layer.weights:
                value = weight.numpy()
                value[idle] = np.nan
                weight.assign(value)
        with banks.sparse():
            assert np.array_equal(logits(model, TOKENS[:1, :1]), expected)
        assert np.isnan(logits(model, TOKENS[:1, :1])).any()  # KerasHub's own reads all
    finally:
        for layer, values in zip(layers, before, strict=True):
            for weight, value in zip(layer.weights, values, strict=True):
                weight.assign(value)


@pytest.mark.parametrize("name", ["Mixtral", "QwenMoe", "GptOss"])
def test_gradients(name: str) -> None:
    """Those of training, with the loss that balances experts."""
    model = kept_model(name)
    banks = ExpertBanks(all_layers(model))

    def gradients() -> list[Any]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(logits(model, training=True) ** 2) + sum(model.losses)
        weights = [weight.value for weight in model.trainable_weights]
        return [tf.convert_to_tensor(x) for x in tape.gradient(loss, weights)]

    expected = gradients()
    with banks.sparse():
        found = gradients()
    for mine, theirs, weight in zip(found, expected, model.trainable_weights, strict=True):
        scale = float(np.abs(theirs).max()) + 1e-6
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=2e-5 * scale, err_msg=weight.path)


def test_a_decoder_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = kept_model("Mixtral"), []
    mixed = expert_banks.mixed
    monkeypatch.setattr(expert_banks, "mixed", lambda *given: calls.append(1) or mixed(*given))
    decoder = decoder_of(model)
    assert logits_differ(model, decoder, VOCABULARY) == ""
    assert calls


def test_what_is_no_bank() -> None:
    class Router(keras.layers.Layer):
        """Its weights do not count experts first."""

        num_experts = 4

        def build(self, shape: Any) -> None:
            self.first = self.add_weight(shape=(2, 4, 4))
            self.second = self.add_weight(shape=(4, 4, 4))

    router = Router()
    router.build((None, 2))
    assert not expert_banks.is_bank(router)
    assert not len(ExpertBanks([router, keras.layers.Dense(4), keras.layers.Activation("relu")]))
