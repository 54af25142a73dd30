"""Language models whose attention has KerasHub's serving hook: unchanged layers, our caches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from hyparflow.model.keras_internals.serving_hook import served_from
from hyparflow.serving.cached_attention import attending
from hyparflow.serving.cached_model import CacheSize

__all__ = ["HookedModel"]


class HookedModel:
    """A `keras_hub.models.CausalLM`, called with the positions of single tokens.

    Attributes:
        cache_sizes: keys and values of each attention layer; empty if none has the hook.

    Args:
        model: the model.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.cache_sizes: Sequence[CacheSize] = _sizes_of(model)

    def call(self, given: Any, positions: Any, caches: Sequence[Any]) -> tuple[Any, list[Any]]:
        """See `CachedModel.call`."""
        pairs = list(zip(caches[::2], caches[1::2], strict=True))
        flat = tf.reshape(given, [-1, 1])
        with served_from(attending(positions), tf.reshape(positions, [-1]), pairs) as updated:
            made = self._model(_inputs(flat), training=False)
            new = updated()
        made = tf.reshape(made, [*given.shape, made.shape[-1]])
        return made, [cache for pair in new for cache in pair]


def _sizes_of(model: Any) -> list[CacheSize]:
    found: list[CacheSize] = []

    def note(cache: Any, query: Any, key: Any, *rest: Any, **more: Any) -> tuple[None, Any]:
        _, _, size, _, key_heads = rest
        found.extend([CacheSize((int(key_heads),), (int(size),), key.dtype.name)] * 2)
        return None, query

    def traced() -> Any:
        with served_from(note, tf.zeros([1], tf.int32), None):
            model.backbone(_inputs(tf.zeros([1, 1], tf.int32)), training=False)
        return tf.zeros([])

    tf.function(traced, autograph=False).get_concrete_function()
    return found


def _inputs(tokens: Any) -> dict[str, Any]:
    return {"token_ids": tokens, "padding_mask": tf.ones_like(tokens)}
