"""Models whose sequences cannot be divided are refused by name, the same on all ranks."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import WORLD, differences, on_leader, require_none
from keras import layers, ops
from transformers import HEADS, VOCABULARY, WIDTH, heads, hub

import hyparflow as hf

LENGTH = 16


def decoder(
    before: Callable[[Any], Any] = lambda h: h,
    after: Callable[[Any], Any] = lambda h: h,
    attention: Callable[[Any, Any], Any] | None = None,
    fixed: bool = False,
) -> keras.Model:
    """A block with attention, and other layers around it."""
    x = keras.Input((LENGTH if fixed else None,), dtype="int32")
    h = before(layers.Embedding(VOCABULARY, WIDTH)(x))
    h = h + (heads()(h, h, use_causal_mask=True) if attention is None else attention(x, h))
    return keras.Model(x, layers.Dense(VOCABULARY)(after(h)))


def by_contents(x: Any, h: Any) -> Any:
    mask = ops.equal(ops.expand_dims(x, 1), ops.expand_dims(x, 2))
    return heads()(h, h, attention_mask=mask)


def with_scores(x: Any, h: Any) -> Any:
    return heads(name="telling")(h, h, return_attention_scores=True)[0]


def positions(h: Any) -> Any:
    table = layers.Embedding(LENGTH, WIDTH, name="table")
    return h + table(ops.arange(LENGTH))[None]


class MixedInTraining(layers.Layer):
    def call(self, h: Any, training: bool = False) -> Any:
        return h - ops.mean(h, axis=1, keepdims=True) if training else h


def seeing_nothing(x: Any, h: Any) -> Any:
    return heads()(h, h, attention_mask=ops.zeros((1, 1, 1), "bool"))


class Remembering(layers.Layer):
    """Adds one where a token has been in the row, whatever token that is."""

    def call(self, tokens: Any, h: Any) -> Any:
        return h + ops.cast(ops.any(ops.equal(tokens, 7), 1), h.dtype)[:, None, None]


def remembering() -> keras.Model:
    x = keras.Input((None,), dtype="int32")
    h = Remembering(name="memory")(x, layers.Embedding(VOCABULARY, WIDTH)(x))
    return keras.Model(x, layers.Dense(VOCABULARY)(h + heads()(h, h, use_causal_mask=True)))


MIXING = {
    "special token": remembering,
    "wide": lambda: decoder(
        after=layers.Conv1D(WIDTH, 2, dilation_rate=300, padding="causal", name="wide")
    ),
    "conv1d": lambda: decoder(after=layers.Conv1D(WIDTH, 3, padding="causal", name="conv")),
    "dilated": lambda: decoder(
        after=layers.Conv1D(WIDTH, 2, dilation_rate=9, padding="causal", name="far")
    ),
    "training": lambda: decoder(after=MixedInTraining(name="centred")),
    "blind": lambda: decoder(attention=seeing_nothing),
    "pooling": lambda: decoder(after=layers.MaxPooling1D(2, name="pool")),
    "gru": lambda: decoder(after=layers.GRU(WIDTH, return_sequences=True, name="loop")),
    "flip": lambda: decoder(after=lambda h: ops.flip(h, 1)),
    "mean": lambda: decoder(after=lambda h: h - ops.mean(h, axis=1, keepdims=True)),
    "first": lambda: decoder(after=lambda h: h[:, 0]),
    "shift": lambda: decoder(after=layers.Lambda(lambda h: tf.roll(h, 1, 1), name="shift")),
    "batchnorm": lambda: decoder(after=layers.BatchNormalization(name="norm")),
    "noise": lambda: decoder(after=layers.GaussianNoise(0.1, name="noise")),
    "contents": lambda: decoder(attention=by_contents),
    "attention": lambda: decoder(after=lambda h: layers.Attention(name="other")([h, h])),
    "positions": lambda: decoder(before=positions, fixed=True),
    "alibi": lambda: hub("Bloom", num_heads=HEADS, dropout=0.0)(LENGTH),
}
NAMED = {
    "special token": "'memory'", "wide": "'wide' takes positions that are 300 apart",
    "dilated": "'far'", "training": "'centred'", "blind": "neither causal, full, a window",
    "conv1d": "'conv'", "pooling": "'pool'", "gru": "'loop'", "flip": "'flip", "mean": "'mean",
    "first": "'get_item", "shift": "'shift'", "batchnorm": "'norm' normalizes over",
    "noise": "'noise' draws random numbers", "contents": "neither causal, full, a window",
    "attention": "'other'", "positions": "'", "alibi": "without such a layer",
}  # fmt: skip


def fit(model: keras.Model, **arguments: Any) -> Any:
    x = np.random.default_rng(0).integers(0, VOCABULARY, (4, LENGTH)).astype("int32")
    given = {name.name: x for name in model.inputs} if len(model.inputs) > 1 else x
    if not model.compiled:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss)
    return hf.fit(model, given, x, batch_size=4, verbose=0, **arguments)


def divided() -> dict[str, int]:
    return {"num_sequence_shards": WORLD.size, "num_sequence_chunks": 2}


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_positions_is_named(name: str) -> None:
    model = MIXING[name]()
    model.compile("sgd", lambda y, y_pred: ops.mean(y_pred, -1))
    with pytest.raises(ValueError, match="(?s)sequences are divided") as caught:
        fit(model, **divided())
    assert NAMED[name] in str(caught.value)
    # Keras numbers its layers, and the leader may have built more of them before.
    said = re.sub(r"_\d+'", "'", str(caught.value))
    assert len(set(WORLD.allgather(said))) == 1


class Buffered(layers.Layer):
    """A mask that is a weight nobody trains, or an array."""

    def __init__(self, is_weight: bool, size: int, **more: Any) -> None:
        super().__init__(**more)
        table = np.tril(np.ones((size, size))) - np.tril(np.ones((size, size)), -30)
        self.table = table
        if is_weight:
            self.table = self.add_weight(
                shape=table.shape, initializer=lambda *_, **__: table, trainable=False, name="mask"
            )
        self.attention = heads(name="buffered")

    def call(self, h: Any) -> Any:
        length = ops.shape(h)[1]
        mask = ops.cast(ops.convert_to_tensor(self.table), "bool")[None, :length, :length]
        return h + self.attention(h, h, attention_mask=mask)


@pytest.mark.parametrize("is_weight", [True, False])
def test_masks_that_are_stored(is_weight: bool) -> None:
    """A trial is shorter than the window that they show."""
    model = decoder(after=Buffered(is_weight, 64))
    x = np.ones((4, 64), "int32")
    with pytest.raises(ValueError, match="'buffered' that is read from an array or a weight"):
        hf.predict(model, x, batch_size=4, verbose=0, **divided())
    short = x[:, :20]  # where the trial sees all of it
    expected = on_leader(lambda: model.predict(short, verbose=0))
    found = hf.predict(model, short, batch_size=4, verbose=0, **divided())
    require_none(differences("predictions", found, expected, 1e-5), "a stored mask")


def test_scores_of_attention() -> None:
    with pytest.raises(ValueError, match="return_attention_scores=True"):
        fit(decoder(attention=with_scores), **divided())


@pytest.mark.skipif(WORLD.size != 2, reason="needs two shards")
def test_heads_that_shards_cannot_share() -> None:
    model = decoder(attention=lambda x, h: layers.MultiHeadAttention(3, 4, name="odd")(h, h))
    with pytest.raises(ValueError, match=r"divide the 3 heads of 'odd'.*Use one of \[1, 3\]"):
        fit(model, **divided())


def test_too_many_chunks() -> None:
    with pytest.raises(ValueError, match="a sequence of 16 positions for 20 chunks"):
        fit(decoder(), num_sequence_shards=WORLD.size, num_sequence_chunks=20)


def test_a_folder_that_is_missing() -> None:
    with pytest.raises(ValueError, match=r"`sequence_store` must be.*No such file or directory"):
        fit(decoder(), sequence_store="/missing/folder", **divided())


def test_losses_that_join_positions() -> None:
    def spread(y: Any, y_pred: Any) -> Any:
        return ops.sqrt(ops.mean(ops.square(y_pred), axis=(1, 2)))

    model = decoder()
    model.compile("sgd", spread)
    with pytest.raises(ValueError, match="must not depend on others"):
        fit(model, **divided())


@pytest.mark.parametrize("axis", [None, -1])
def test_losses_that_are_means_over_labels(axis: int | None) -> None:
    """The usual masked loss of a language model, of a batch and of each row."""

    def masked(y: Any, y_pred: Any) -> Any:
        counted = ops.cast(ops.not_equal(y, 3), y_pred.dtype)
        each = keras.losses.sparse_categorical_crossentropy(y, y_pred, from_logits=True)
        return ops.sum(each * counted, axis) / ops.maximum(ops.sum(counted, axis), 1.0)

    model = decoder()
    model.compile("sgd", masked)
    with pytest.raises(ValueError, match=r"must not depend on others \(losses \['masked'\]"):
        fit(model, **divided())
    if axis is None:
        model.compile(
            "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=[masked]
        )
        with pytest.raises(ValueError, match=r"sums and counts of positions.*'masked'"):
            fit(model, **divided())


def test_losses_that_take_no_part_of_a_sequence() -> None:
    def hardest(y: Any, y_pred: Any) -> Any:
        each = keras.losses.sparse_categorical_crossentropy(y, y_pred, from_logits=True)
        return ops.mean(ops.top_k(each, 9)[0], -1)

    model = decoder()
    model.compile("sgd", hardest)
    with pytest.raises(ValueError, match=r"must not depend on others \(losses \['hardest'\]"):
        fit(model, **divided())


@pytest.mark.skipif(WORLD.size > 1, reason="the rank that sees it stops the job")
def test_labels_of_another_length() -> None:
    model = decoder()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = np.zeros((4, LENGTH), "int32")
    with pytest.raises(ValueError, match=r"sequence that is divided, which has 16.*\(4, 12\)"):
        hf.fit(model, x, x[:, :12], batch_size=4, verbose=0, **divided())


def test_metrics_that_join_positions() -> None:
    class Longest(keras.metrics.Metric):
        def __init__(self) -> None:
            super().__init__(name="longest")
            self.total = self.add_variable((), "zeros", name="total")

        def update_state(self, y: Any, y_pred: Any, sample_weight: Any = None) -> None:
            self.total.assign_add(ops.sqrt(ops.cast(ops.size(y), "float32")))

        def result(self) -> Any:
            return self.total

    model = decoder()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=[Longest()])
    with pytest.raises(ValueError, match=r"sums and counts of positions.*longest"):
        fit(model, **divided())


def test_added_losses() -> None:
    model = decoder(after=layers.Dense(WIDTH, activity_regularizer="l2"))
    with pytest.raises(ValueError, match=r"the layers \[.*\] add losses"):
        fit(model, **divided())


@pytest.mark.parametrize("how", [{"run_eagerly": True}, {"jit_compile": True}])
def test_other_ways_to_compile(how: dict[str, bool]) -> None:
    model = decoder()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), **how)
    with pytest.raises(ValueError, match=next(iter(how)) + "=True"):
        fit(model, **divided())


@pytest.mark.skipif(WORLD.size != 4, reason="needs two shards of two partitions")
def test_zero_bubble() -> None:
    with pytest.raises(ValueError, match="schedule='zero-bubble'"):
        fit(decoder(), num_sequence_shards=2, num_partitions=2, schedule="zero-bubble")


def test_subclassed_models() -> None:
    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.attention = layers.Embedding(VOCABULARY, WIDTH), heads()
            self.last = layers.Dense(VOCABULARY)

        def call(self, x: Any) -> Any:
            h = self.embedding(x)
            return self.last(self.attention(h, h, use_causal_mask=True))

    model = Own()
    model(np.zeros((1, LENGTH), "int32"))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = np.zeros((4, LENGTH), "int32")
    with pytest.raises(ValueError, match="must be Functional or Sequential"):
        hf.fit(model, x, x, verbose=0, **divided())


def test_a_mask_with_a_wide_window_of_ones_own() -> None:
    """It shows at distances that no trial reaches."""

    def windowed(x: Any, h: Any) -> Any:
        class Window(layers.Layer):
            def call(self, h: Any) -> Any:
                place = ops.arange(ops.shape(h)[1])
                return (abs(place[:, None] - place[None]) < 100)[None]

        return heads(name="far")(h, h, attention_mask=Window()(h))

    model = decoder(attention=windowed)
    x = np.zeros((2, 128), "int32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    with pytest.raises(ValueError, match=r"'far' that is made with the number 100"):
        hf.fit(model, x, x, verbose=0, **divided())
    short = x[:, :64]
    assert np.isfinite(hf.fit(model, short, short, verbose=0, **divided()).history["loss"])


def test_padding_that_counts() -> None:
    """At the start of a row no query of a causal layer sees anything."""
    x = keras.Input((None,), dtype="int32")
    h = layers.Embedding(VOCABULARY, WIDTH, mask_zero=True)(x)
    h = heads()(h, h, use_causal_mask=True)
    model = keras.Model(x, layers.Dense(VOCABULARY)(h))
    tokens = np.ones((2, LENGTH), "int32")
    tokens[1, :3] = 0
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    # Here the mask reaches the loss, which leaves those positions out.
    assert np.isfinite(hf.fit(model, tokens, tokens, verbose=0, **divided()).history["loss"])
