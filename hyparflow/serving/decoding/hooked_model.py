"""Language models whose attention has KerasHub's serving hook: unchanged layers, our caches."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from hyparflow.model.keras_internals.row_index import sizes_of
from hyparflow.model.keras_internals.serving_hook import served_from
from hyparflow.serving.decoding.cached_attention import attending
from hyparflow.serving.decoding.cached_model import Around, CacheSize
from hyparflow.serving.decoding.failures import cause_of
from hyparflow.serving.decoding.text_inputs import text_inputs

__all__ = ["HookedBody", "HookedModel", "token_inputs"]


class HookedBody:
    """Layers of a language model, called with the positions of single tokens.

    Attributes:
        cache_sizes: keys and values of each attention layer; empty if none has the hook.

    Args:
        body: from tensors of single tokens, (tokens, 1, ...), to others.
        samples: tensors like those that it takes, of one token.
        around: see `Around`.
    """

    def __init__(
        self,
        body: Callable[[list[Any]], list[Any]],
        samples: Callable[[], list[Any]],
        around: Around = contextlib.nullcontext,
    ) -> None:
        self._body, self._around = body, around
        self.cache_sizes: Sequence[CacheSize] = self._find_sizes(samples)

    def call(
        self, given: Sequence[Any], positions: Any, caches: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Take in new tokens.

        Args:
            given: tensors (rows, tokens, ...), of a known number of tokens.
            positions: of the tokens in their rows.
            caches: with the tokens before.

        Returns:
            Tensors of the same kind, and the new caches.
        """
        pairs = list(zip(caches[::2], caches[1::2], strict=True))
        flat = [tf.reshape(x, [-1, 1, *x.shape[2:]]) for x in given]
        place = tf.reshape(positions, [-1])
        with self._around(), served_from(attending(positions), place, pairs) as updated:
            made, new = self._body(flat), updated()
        made = [tf.reshape(x, [*sizes_of(positions), *x.shape[2:]]) for x in made]
        return made, [cache for pair in new for cache in pair]

    def _find_sizes(self, samples: Callable[[], list[Any]]) -> list[CacheSize]:
        found: list[CacheSize] = []

        def note(cache: Any, query: Any, key: Any, *rest: Any, **more: Any) -> tuple[None, Any]:
            _, _, size, _, key_heads = rest
            found.extend([CacheSize((int(key_heads),), (int(size),), key.dtype.name)] * 2)
            return None, query

        def traced() -> Any:
            with self._around(), served_from(note, tf.zeros([1], tf.int32), None):
                self._body(samples())
            return tf.zeros([])

        with warnings.catch_warnings():
            # Attention without the hook computes, and Keras warns of a softmax over one token.
            warnings.filterwarnings("ignore", "You are using a softmax", UserWarning)
            tf.function(traced, autograph=False).get_concrete_function()
        return found


class HookedModel:
    """A whole `keras_hub.models.CausalLM`; see `CachedModel`.

    Attributes:
        cache_sizes: keys and values of each attention layer; empty if none has the hook.

    Args:
        model: the model.
        around: see `Around`.

    Raises:
        ValueError: if the model cannot compute from tokens alone.
    """

    def __init__(self, model: Any, around: Around = contextlib.nullcontext) -> None:
        def body(tensors: list[Any]) -> list[Any]:
            return [model(text_inputs(model, *tensors), training=False)]

        try:
            self._body = HookedBody(body, lambda: [tf.zeros([1, 1], tf.int32)] * 2, around)
        except Exception as error:
            raise ValueError(
                "A model that is served must compute logits from tokens alone. Received: "
                f"'{model.name}' of class '{type(model).__name__}', where it fails "
                f"({cause_of(error)}). Use another model, or `model.generate`."
            ) from error
        self.cache_sizes = self._body.cache_sizes

    def call(self, given: Any, positions: Any, caches: Sequence[Any]) -> tuple[Any, list[Any]]:
        """See `CachedModel.call`."""
        (made,), new = self._body.call([given, positions], positions, caches)
        return made, new


def token_inputs(tokens: Any) -> dict[str, Any]:
    """The inputs of a model, in which every place holds a token."""
    return {"token_ids": tokens, "padding_mask": tf.ones_like(tokens)}
