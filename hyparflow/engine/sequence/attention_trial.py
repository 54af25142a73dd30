"""What attention layers compute, tried out on random numbers and compared to softmax attention."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from hyparflow.engine.sequence.attention_core import AttentionCore
from hyparflow.model.keras_internals.attention import (
    AttentionCall,
    attention_dropout,
    own_attention,
    repeats_of_keys,
    scale_of,
    soft_cap_of,
)
from hyparflow.pipeline.attention_pattern import AttentionPattern

__all__ = ["MaskFound", "core_of", "mask_of"]

_TOLERANCE = {tf.float64: 1e-5, tf.float32: 1e-4}  # some layers take the softmax in float32


class MaskFound(NamedTuple):
    """What a mask of attention lets through.

    Attributes:
        pattern: by positions.
        padding: of each row and key, whether it is there; None if all are.
        hides_queries: whether queries at positions of padding see nothing, either.
    """

    pattern: AttentionPattern
    padding: np.ndarray | None
    hides_queries: bool = False


def mask_of(call: AttentionCall) -> MaskFound | None:
    """What a call's mask is made of; None if it is nothing that is known."""
    length = int(call.query.shape[1])
    rows = np.ones((1, length, length), bool)
    if call.mask is not None:
        mask = np.asarray(call.mask).astype(bool)
        if mask.ndim == 4 and mask.shape[1] == 1:
            mask = mask[:, 0]
        if mask.ndim > 3:
            return None
        mask = mask if mask.ndim == 3 else mask[None]
        if any(size not in (1, length) for size in mask.shape[1:]):
            return None
        rows = np.broadcast_to(mask, (mask.shape[0], length, length))
    distance = np.arange(length)[:, None] - np.arange(length)[None]
    if call.is_causal:
        rows = rows & (distance >= 0)
    there = np.stack([np.diagonal(row) for row in rows])
    if not there.any():
        return None
    for pattern in _patterns(length):
        allowed = _seen(pattern, length)[None] & there[:, None, :]
        padding = None if there.all() else there
        if np.array_equal(rows, allowed):
            return MaskFound(pattern, padding)
        if np.array_equal(rows, allowed & there[:, :, None]):
            return MaskFound(pattern, padding, hides_queries=True)
    return None


def _patterns(length: int) -> Sequence[AttentionPattern]:
    found = [AttentionPattern(causal) for causal in (True, False)]
    windows = range(1, length)
    return [*found, *(AttentionPattern(causal, w) for causal in (True, False) for w in windows)]


def _seen(pattern: AttentionPattern, length: int) -> np.ndarray:
    """Which keys each query attends to by its position."""
    distance = np.arange(length)[:, None] - np.arange(length)[None]
    first, last = pattern.distances
    seen = np.ones_like(distance, bool)
    if first is not None:
        seen &= distance >= first
    if last is not None:
        seen &= distance <= last
    return seen


def core_of(call: AttentionCall, found: MaskFound, is_padded: bool) -> AttentionCore:
    """What an attention layer computes, after a comparison on random numbers.

    Args:
        call: a call of it.
        found: what its mask lets through.
        is_padded: whether some calls leave out keys as padding.

    Raises:
        ValueError: if it is no softmax attention.
    """
    layer, heads = call.layer, int(call.query.shape[2])
    repeats = repeats_of_keys(layer)
    if int(call.key.shape[2]) != heads:  # they were not repeated
        repeats = 1
    core = AttentionCore(
        name=layer.name,
        heads=heads,
        key_heads=int(call.key.shape[2]) // repeats,
        repeats=repeats,
        scale=scale_of(layer) or int(call.query.shape[3]) ** -0.5,
        pattern=found.pattern,
        soft_cap=soft_cap_of(layer),
        is_padded=is_padded,
    )
    drawn, length = _drawn(call, repeats), int(call.query.shape[1])
    rows = int(call.query.shape[0])
    mask = tf.constant(np.repeat(_seen(AttentionPattern(True), length)[None], rows, 0))
    own = own_attention(drawn, mask)
    tolerance = _TOLERANCE.get(call.query.dtype, 0.05)

    def difference(window: int | None) -> float:
        seen = mask & tf.constant(_seen(AttentionPattern(True, window), length))
        return _difference(own, _softmax_attention(core, drawn, seen))

    differences = {window: difference(window) for window in (None, *range(1, length))}
    window = min(differences, key=differences.__getitem__)
    if differences[None] <= tolerance:
        window = None
    elif differences[window] > tolerance:
        raise ValueError(
            f"'{layer.name}' ({type(layer).__name__}) computes no plain softmax attention of its "
            f"queries, keys and values (a difference of {differences[None]:.1g})"
        )
    return _within_window(_with_dropout(core, drawn, mask, own), drawn, window)


def _within_window(core: AttentionCore, drawn: AttentionCall, window: int | None) -> AttentionCore:
    """The core with a window that the layer itself puts on top of the mask it is given."""
    pattern, length = core.pattern, int(drawn.query.shape[1])
    if window is None:
        return core
    if pattern.window is not None:
        window = min(window, pattern.window)
    found = dataclasses.replace(core, pattern=AttentionPattern(pattern.causal, window))
    rows = int(drawn.query.shape[0])
    mask, seen = (
        tf.constant(np.repeat(_seen(one, length)[None], rows, 0))
        for one in (pattern, found.pattern)
    )
    own = own_attention(drawn, mask)
    tolerance = _TOLERANCE.get(drawn.query.dtype, 0.05)
    if _difference(own, _softmax_attention(found, drawn, seen)) > tolerance:
        raise ValueError(f"'{core.name}' has a window of its own that is not understood")
    return found


def _with_dropout(core: AttentionCore, drawn: AttentionCall, mask: Any, own: Any) -> AttentionCore:
    """The core with the rate at which it drops out scores in training."""
    if _difference(own_attention(drawn, mask, training=True), own) < 1e-3:
        return core
    rate = attention_dropout(drawn.layer)
    if not rate:
        raise ValueError(f"'{core.name}' computes something else in training")
    return dataclasses.replace(core, dropout=rate)


def _drawn(call: AttentionCall, repeats: int) -> AttentionCall:
    """The call with random queries, keys and values."""
    random = np.random.default_rng(0)

    def draw(x: Any, step: int = 1) -> Any:
        values = random.standard_normal([*x.shape[:2], x.shape[2] // step, x.shape[3]])
        return tf.cast(tf.repeat(tf.constant(2 * values), step, axis=2), x.dtype)

    query, key, value = draw(call.query), draw(call.key, repeats), draw(call.value, repeats)
    return call._replace(query=query, key=key, value=value, mask=None, is_causal=False)


def _softmax_attention(core: AttentionCore, call: AttentionCall, mask: Any) -> Any:
    group = core.heads // int(call.key.shape[2])
    query, key, value = (tf.cast(x, tf.float64) for x in call[1:4])
    key, value = (tf.repeat(x, group, axis=2) for x in (key, value))
    scores = tf.einsum("bthd,bshd->bhts", query, key) * core.scale
    if core.soft_cap is not None:
        scores = tf.tanh(scores / core.soft_cap) * core.soft_cap
    scores = tf.where(mask[:, None], scores, tf.constant(-1e30, tf.float64))
    return tf.einsum("bhts,bshd->bthd", tf.nn.softmax(scores), value)


def _difference(own: Any, other: Any) -> float:
    own, other = (tf.cast(x, tf.float64) for x in (own, other))
    return float(tf.reduce_max(tf.abs(own - other)) / tf.reduce_max(tf.abs(other)))
