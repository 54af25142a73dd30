"""`hf.trace_experts` records what the routers of a model choose."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from byte_text import byte_preprocessor
from language_models import VOCABULARY, kept_model, language_model

import hyparflow as hf
from hyparflow.experts.place import place_experts as place_by_trace
from hyparflow.model.experts.routing_recorder import (
    RoutingRecorder,
    names_of_layers,
    routed_layers,
)
from hyparflow.model.keras_internals.layers import all_layers

RANDOM = np.random.default_rng(0)
TOKENS = RANDOM.integers(1, 30, (5, 12)).astype("int32")
TOKENS[1, 7:] = TOKENS[4, 3:] = 0  # what is masked


def mixture(name: str, **arguments: Any) -> Any:
    return hf.layers.MixtureOfExperts(
        **{"num_experts": 6, "hidden_dim": 8, "router_initializer": "normal", **arguments},
        name=name,
    )


def own_model(top_k: int = 2, layers: int = 3, dtype: str = "float32", **arguments: Any) -> Any:
    """Blocks of experts behind an embedding that masks zeros."""
    keras.utils.set_random_seed(3)
    tokens = keras.Input([12], dtype="int32")
    x = keras.layers.Embedding(30, 10, mask_zero=True, embeddings_initializer="normal")(tokens)
    for number in range(layers):
        y = keras.layers.LayerNormalization()(x)
        name = f"experts_{number}"
        x = keras.layers.Add()([x, mixture(name, top_k=top_k, dtype=dtype, **arguments)(y)])
    return keras.Model(tokens, keras.layers.Dense(30)(x), name="own")


def chosen(rows: Any, kernel: Any, top_k: int) -> np.ndarray:
    """What a router chooses, by NumPy alone."""
    return np.argsort(-(np.asarray(rows, "float64") @ np.asarray(kernel, "float64")))[..., :top_k]


@pytest.mark.parametrize("top_k", [1, 2, 6])
def test_the_own_layer(top_k: int) -> None:
    model = own_model(top_k)
    layers = [model.get_layer(f"experts_{number}") for number in range(3)]
    # The second input of each is the mask.
    before = keras.Model(model.input, [layer.input[0] for layer in layers])(TOKENS)
    each = [chosen(x, y.router_kernel, top_k) for x, y in zip(before, layers, strict=True)]
    trace = hf.trace_experts(model, TOKENS, batch_size=2)
    assert np.array_equal(trace.experts, np.stack(each, axis=2)[TOKENS != 0])
    assert (trace.num_experts, trace.model) == (6, "own")
    assert trace.layers == ("experts_0", "experts_1", "experts_2")


@pytest.mark.parametrize("name", ["Mixtral", "QwenMoe", "Qwen3Moe"])
def test_models_of_keras_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their routers, without a trace, get inputs of which NumPy makes the same choice."""
    model = kept_model(name)
    tokens = RANDOM.integers(0, VOCABULARY, (5, 16)).astype("int32")
    mask = np.ones_like(tokens)
    mask[2, 9:] = mask[4, 1:] = 0
    inputs = {"token_ids": tokens, "padding_mask": mask}
    routed: list[Any] = []
    call = keras.layers.Dense.call

    def noted(layer: Any, rows: Any, *more: Any, **named: Any) -> Any:
        if layer.name == "sparse_feedforward_gate_dense":
            routed.append(chosen(rows, layer.kernel, 2))
        return call(layer, rows, *more, **named)

    monkeypatch.setattr(keras.layers.Dense, "call", noted)
    logits = np.array(model(inputs))
    monkeypatch.undo()
    expected = np.stack(routed, axis=1)[mask.reshape(-1) == 1]
    trace = hf.trace_experts(model, inputs, batch_size=3)
    assert np.array_equal(trace.experts, expected)
    assert trace.layers == ("transformer_layer_0", "transformer_layer_1")
    assert np.array_equal(model(inputs), logits)  # and the model is as before
    assert not any("call" in vars(layer) for layer in all_layers(model))


@pytest.mark.parametrize("name", ["GptOss", "Gemma4:experts"])
def test_other_models_of_keras_hub(name: str) -> None:
    model = kept_model(name)
    tokens = RANDOM.integers(0, VOCABULARY, (2, 8)).astype("int32")
    inputs = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    if "position_ids" in model.input:
        inputs["position_ids"] = np.broadcast_to(np.arange(8), tokens.shape)
    routers: dict[str, Any] = {}
    for layer in all_layers(model):
        if layer.name.endswith("router"):
            note = layer.call
            layer.call = lambda x, note=note, layer=layer: routers.setdefault(layer.path, note(x))
    try:
        model(inputs)
    finally:
        for layer in all_layers(model):
            vars(layer).pop("call", None)
    assert len(routers) == 2
    order = sorted(routers)
    shares = np.stack([np.array(routers[path]) for path in order], axis=1)
    trace = hf.trace_experts(model, inputs)
    assert [path.split("/")[0] for path in order] == list(trace.layers)
    assert np.array_equal(trace.experts, np.argsort(-shares, axis=2)[:, :, :2])


def test_half_precision() -> None:
    """Choices are those of float32, but for rounding."""
    exact = hf.trace_experts(own_model(), TOKENS)
    found = hf.trace_experts(own_model(dtype="mixed_bfloat16"), TOKENS)
    assert np.mean(found.experts == exact.experts) > 0.9
    model = kept_model("Mixtral:mixed")
    inputs = {"token_ids": TOKENS, "padding_mask": np.ones_like(TOKENS)}
    exact = hf.trace_experts(kept_model("Mixtral"), inputs)
    found = hf.trace_experts(model, inputs)
    assert np.mean(found.experts == exact.experts) > 0.8


def test_saved_and_loaded(tmp_path: Path) -> None:
    trace = hf.trace_experts(own_model(), TOKENS)
    for name in ("trace.npz", "trace.csv"):
        trace.save(tmp_path / name)
        loaded = hf.RoutingTrace.load(tmp_path / name)
        assert np.array_equal(loaded.experts, trace.experts)
        assert (loaded.model, loaded.layers) == (trace.model, trace.layers)


def test_datasets_and_layers_that_are_made_late() -> None:
    class Late(keras.Model):
        """It has no layers before it has seen inputs."""

        def build(self, shape: Any) -> None:
            self.inner = own_model()
            self.never_called = mixture("idle")

        def call(self, inputs: Any) -> Any:
            return self.inner(inputs)

    expected = hf.trace_experts(own_model(), TOKENS)
    data = tf.data.Dataset.from_tensor_slices((TOKENS, TOKENS)).batch(2)
    found = hf.trace_experts(Late(), data)
    assert np.array_equal(found.experts, expected.experts)


def test_choices_before_a_limit_and_without_the_loss() -> None:
    """Each token has its experts, also where there is no room; nothing is added to the losses."""
    model = own_model(capacity_factor=0.5)
    trace = hf.trace_experts(model, TOKENS)
    expected = hf.trace_experts(own_model(), TOKENS)
    assert np.array_equal(trace.experts[:, 0], expected.experts[:, 0])
    assert trace.num_tokens == np.count_nonzero(TOKENS)
    assert not model.losses


def text_model() -> Any:
    """A Mixtral of bytes."""
    model = language_model("Mixtral")
    arguments = model.backbone.get_config()
    arguments |= {"vocabulary_size": 257, "name": None}
    backbone = type(model.backbone).from_config(arguments)
    return type(model)(backbone=backbone, preprocessor=byte_preprocessor(20))


def test_texts() -> None:
    model = text_model()
    texts = ["a long text, which is cut into rows", "and a short one"]
    rows = [[256, *texts[0][:9].encode()], [256, *texts[0][9:18].encode()]]
    rows += [[256, *texts[0][18:27].encode()], [256, *texts[0][27:].encode()]]
    rows += [[256, *texts[1][:9].encode()], [256, *texts[1][9:].encode()]]
    tokens = np.zeros((6, 10), "int32")
    mask = np.zeros_like(tokens)
    # The tokenizer numbers bytes in an order of its own.
    number = {n: int(model.preprocessor.tokenizer(chr(n))[0]) for n in range(32, 127)} | {256: 256}
    for row, given in enumerate(rows):
        tokens[row, : len(given)], mask[row, : len(given)] = [number[x] for x in given], 1
    expected = hf.trace_experts(model, {"token_ids": tokens, "padding_mask": mask})
    found = hf.trace_experts(model, texts, sequence_length=10)
    assert np.array_equal(found.experts, expected.experts)
    assert found.num_tokens == mask.sum() == sum(map(len, texts)) + 6
    assert hf.trace_experts(model, texts[1]).num_tokens == len(texts[1]) + 1


def test_place_experts_by_a_model() -> None:
    model = own_model(layers=4)
    tokens = RANDOM.integers(1, 30, (40, 12)).astype("int32")
    options = {"max_load": None, "seconds": 0.2, "seed": 1}
    placement = hf.place_experts(model, 3, tokens=tokens, **options)
    assert placement.model == "own"
    assert placement.layers == tuple(f"experts_{number}" for number in range(4))
    report = placement.report
    assert report is not None and report.tokens + report.held_out_tokens == tokens.size
    trace = hf.trace_experts(model, tokens)
    _, judged = trace.split(seed=1)
    assert placement.score(judged) == report.held_out
    with pytest.raises(ValueError, match="`tokens` are for a model"):
        hf.place_experts(trace, 3, tokens=tokens)
    with pytest.raises(ValueError, match="or a model and `tokens`. Received: .*Functional"):
        hf.place_experts(model, 3)


def test_both_ways_to_place_take_the_same_arguments() -> None:
    public, by_trace = (
        {name: p.default for name, p in inspect.signature(function).parameters.items()}
        for function in (hf.place_experts, place_by_trace)
    )
    assert public.pop("tokens") is None
    assert public == by_trace


def test_names_are_short_and_differ() -> None:
    def layer(path: str) -> Any:
        return type("_Layer", (), {"path": path})()

    paths = ["a/block_0/moe_1/bank", "a/block_1/moe/bank"]
    assert names_of_layers(list(map(layer, paths))) == ["a/block_0", "a/block_1"]
    assert names_of_layers(list(map(layer, ["b/x", "b/x"]))) == ["0", "1"]
    assert names_of_layers([layer("one/two")]) == ["one"]


def twice() -> Any:
    inputs = keras.Input([12, 10])
    layer = mixture("shared")
    return keras.Model(inputs, layer(layer(inputs)))


def unlike(**second: Any) -> Any:
    inputs = keras.Input([12, 10])
    return keras.Model(inputs, mixture("two", **second)(mixture("one")(inputs)))


def pooled() -> Any:
    inputs = keras.Input([12, 10])
    x = keras.layers.AveragePooling1D(2)(mixture("one")(inputs))
    return keras.Model(inputs, mixture("two")(x))


def masked_elsewhere() -> Any:
    inputs = {
        "x": keras.Input([12, 10], name="x"),
        "padding_mask": keras.Input([6], name="padding_mask"),
    }
    return keras.Model(inputs, mixture("one")(inputs["x"]))


def with_nan() -> Any:
    model = own_model()
    kernel = model.get_layer("experts_1").router_kernel
    kernel.assign(np.full(kernel.shape, np.nan, "float32"))
    return model


def inside_a_function() -> Any:
    class Compiled(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mixture("inner")

        def build(self, shape: Any) -> None:
            self.inner.build(shape)

        def call(self, inputs: Any) -> Any:
            return tf.function(self.inner)(inputs)

    inputs = keras.Input([12, 10])
    return keras.Model(inputs, Compiled()(inputs))


def without_experts() -> Any:
    inputs = keras.Input([12, 10])
    return keras.Model(inputs, keras.layers.Dense(3)(inputs), name="plain")


ROWS = RANDOM.normal(size=(2, 12, 10)).astype("float32")


@pytest.mark.parametrize(
    ("build", "inputs", "said"),
    [
        (lambda: "model", ROWS, "Experts are traced in a Keras model. Received: model='model'"),
        (without_experts, ROWS, "must have layers with experts .* Received: 'plain' of class"),
        (with_nan, TOKENS, "must be finite. Received: NaN .* in layer 'experts_1' for token 0"),
        (twice, ROWS, "must be called once for a token. Received: layer 'shared'"),
        (lambda: unlike(num_experts=4), ROWS, "in number of experts.* 6 in .*'one', 4 in .*'two'"),
        (lambda: unlike(top_k=1), ROWS, "in experts of a token.* 2 in .*'one', 1 in .*'two'"),
        (pooled, ROWS, "in tokens in a call.* 24 in layer 'one', 12 in layer 'two'"),
        (
            masked_elsewhere,
            {"x": ROWS, "padding_mask": np.ones((2, 6))},
            "must have an entry for each token .* Received: 12 entries for 24 tokens",
        ),
        (inside_a_function, ROWS, "without a `tf.function`. Received: layer '.*'"),
        (own_model, np.zeros_like(TOKENS), "must have a token that no mask leaves out"),
        (own_model, TOKENS[:0], "Tokens must be arrays with equally many rows, one at least"),
        (own_model, "a text", "must have a preprocessor .* Received: 'own' without one"),
        (
            own_model,
            tf.data.Dataset.from_tensor_slices(TOKENS[:0]).batch(2),
            "Experts are traced by tokens. Received: a dataset without any batch",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused(build: Callable[[], Any], inputs: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        hf.trace_experts(build(), inputs)


def test_arguments_that_are_refused() -> None:
    model = own_model()
    with pytest.raises(ValueError, match="`sequence_length` is for text"):
        hf.trace_experts(model, TOKENS, sequence_length=4)
    with pytest.raises(ValueError, match="`batch_size` must be a positive integer"):
        hf.trace_experts(model, TOKENS, batch_size=0)
    with pytest.raises(ValueError, match="`sequence_length` must be at least 2"):
        hf.trace_experts(text_model(), "text", sequence_length=1)


def test_shares_that_are_rounded_to_nothing() -> None:
    """Which expert it was cannot be told."""
    model = language_model("Mixtral")
    for layer in routed_layers(all_layers(model)):
        assert layer.num_experts == 4
    gate = next(x for x in model.weights if "gate_dense/kernel" in x.path)
    gate.assign(gate * 200)
    tokens = TOKENS[:1]
    with pytest.raises(ValueError, match="equally many experts .* Received: 1 instead of 2"):
        hf.trace_experts(model, {"token_ids": tokens, "padding_mask": np.ones_like(tokens)})


def test_nan_of_tokens_that_do_not_count() -> None:
    """What attention makes of rows of padding alone is nobody's business."""
    inputs = {
        "x": keras.Input([12, 10], name="x"),
        "padding_mask": keras.Input([12], name="padding_mask"),
    }
    model = keras.Model(inputs, mixture("one")(inputs["x"]))
    rows, mask = ROWS.copy(), np.ones((2, 12))
    rows[1, 5:], mask[1, 5:] = np.nan, 0
    found = hf.trace_experts(model, {"x": rows, "padding_mask": mask})
    expected = hf.trace_experts(model, {"x": ROWS, "padding_mask": mask})
    assert np.array_equal(found.experts, expected.experts)


def test_a_bank_with_nan_of_tokens_that_do_not_count() -> None:
    (bank, _) = routed_layers(all_layers(kept_model("Mixtral")))
    recorder = RoutingRecorder([bank], ["bank"])
    shares = np.array([[0, 0.3, 0, 0.7], [np.nan] * 4, [0.6, 0, 0.4, 0]], "float32")
    with recorder.observing():
        made = bank(np.ones((3, 16), "float32")) * tf.transpose(shares)[:, :, None]
    assert made.shape == (1, 3, 16)  # the sum over experts
    recorder.keep(np.array([1, 0, 1]))
    assert recorder.trace("").experts.tolist() == [[[3, 1]], [[0, 2]]]


def test_a_model_that_is_observed_computes_what_it_did() -> None:
    """Also where tokens are masked, which pass by the experts."""
    model = own_model()
    expected = np.array(model(TOKENS))
    layers = routed_layers(all_layers(model))
    recorder = RoutingRecorder(layers, names_of_layers(layers))
    with recorder.observing():
        assert np.array_equal(model(TOKENS), expected)
