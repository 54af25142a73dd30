"""Language models that decode by KerasHub's own `call_with_cache`, with an index for each row."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from hyparflow.model.keras_internals.own_cache import CacheAxes, own_caches
from hyparflow.model.keras_internals.row_index import RowIndex, StackedCaches, row_indices
from hyparflow.serving.decoding.cached_model import Around, CacheSize
from hyparflow.serving.decoding.failures import cause_of

__all__ = ["RowIndexModel", "parts_of"]


class RowIndexModel:
    """A `keras_hub.models.CausalLM` whose attention lacks the serving hook.

    Attributes:
        cache_sizes: keys and values of each attention layer, of as many caches as a step can leave
            where they are.

    Args:
        model: the model.
        around: see `Around`.

    Raises:
        ValueError: if it keeps anything but keys and values, or cannot take such an index.
    """

    def __init__(self, model: Any, around: Around = contextlib.nullcontext) -> None:
        self._model, self._around = model, around
        try:
            own = own_caches(model)
        except Exception as error:
            raise _refused(model, error) from error
        self._structure = own.structure
        self._axes: list[CacheAxes] = []
        for axes in own.axes:
            if axes is None:
                raise ValueError(
                    "A model that is served must keep keys and values of each token, and nothing "
                    f"else. Received: '{model.name}' of class '{type(model).__name__}', which "
                    "keeps a state of all tokens before. Use another model, or `model.generate`."
                )
            self._axes.append(axes)
        self.cache_sizes: Sequence[CacheSize] = [
            CacheSize((), axes.after, axes.dtype)
            for axes in self._axes
            for _ in range(math.prod(axes.before))
        ]
        self._try()

    def call(self, given: Any, positions: Any, caches: Sequence[Any]) -> tuple[Any, list[Any]]:
        """See `CachedModel.call`."""
        with self._around(), row_indices(self._model):
            logits, _, new = self._model.call_with_cache(
                given, self._nested(caches), RowIndex(positions)
            )
        changed = [
            part
            for made, axes in zip(tf.nest.flatten(new), self._axes, strict=True)
            for part in parts_of(made, len(axes.before))
        ]
        return logits, changed

    def _nested(self, caches: Sequence[Any]) -> Any:
        """Caches as the model nests its own."""
        left = list(caches)
        nested = [
            _stacked([left.pop(0) for _ in range(math.prod(x.before))], x) for x in self._axes
        ]
        return tf.nest.pack_sequence_as(self._structure, nested)

    def _try(self) -> None:
        """Trace a call, which shows whether the layers take such an index."""
        places = tf.TensorSpec([2, 3], tf.int32)
        caches = [tf.TensorSpec([2, 4, *x.after], x.dtype) for x in self.cache_sizes]
        try:
            tf.function(self.call, autograph=False).get_concrete_function(places, places, caches)
        except Exception as error:
            raise _refused(self._model, error) from error


def _stacked(caches: list[Any], axes: CacheAxes) -> Any:
    """Caches, in the order of the model's tensor, as what looks like this tensor."""
    for count in axes.before[::-1]:
        caches = [StackedCaches(caches[n : n + count]) for n in range(0, len(caches), count)]
    (cache,) = caches
    return cache


def parts_of(cache: Any, depth: int) -> list[Any]:
    """The caches that a model's tensor consists of.

    Args:
        cache: a tensor, or caches that look like one.
        depth: how many of its axes lie between rows and tokens.
    """
    if not depth:
        return [cache]
    parts = cache.parts if isinstance(cache, StackedCaches) else tf.unstack(cache, axis=1)
    return [x for part in parts for x in parts_of(part, depth - 1)]


def _refused(model: Any, error: Exception) -> ValueError:
    return ValueError(
        "A model that is served must take an index for each row in `call_with_cache`. Received: "
        f"'{model.name}' of class '{type(model).__name__}', where it fails "
        f"({cause_of(error)}). Use another model, or `model.generate`."
    )
