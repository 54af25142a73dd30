"""KerasHub's own cached decoding, by which `CausalLM.generate` computes one token after another.

`call_with_cache(tokens, cache, index)` of a language model is documented, but what its cache is
made of only its `_build_cache` knows, so that is asked.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from hyparflow.model.keras_internals.patched import patched

__all__ = ["CacheAxes", "OwnCaches", "decodes_itself", "own_caches", "own_logits"]


@dataclass(frozen=True)
class CacheAxes:
    """One tensor of a model's cache: (rows, *before, length, *after).

    Attributes:
        before: its axes between rows and the length.
        after: its axes behind the length.
        dtype: of its numbers.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class OwnCaches:
    """What a model's cache is made of.

    Attributes:
        structure: nested like the cache, with anything in place of its tensors.
        axes: of each tensor; None of one that does not grow with the tokens.
    """

    structure: Any
    axes: tuple[CacheAxes | None, ...]


def decodes_itself(model: Any) -> bool:
    """Whether the model has decoding of its own."""
    return all(callable(getattr(model, x, None)) for x in ("call_with_cache", "_build_cache"))


def own_caches(model: Any) -> OwnCaches:
    """What the cache of a model is made of.

    Two caches of different lengths are made, as nothing else tells which axis is the length.
    """

    takes = inspect.signature(model.call_with_cache)

    def unfilled(*args: Any, **named: Any) -> tuple[None, None, Any]:
        return None, None, takes.bind(*args, **named).arguments["cache"]

    with patched(model, call_with_cache=unfilled):
        short, long = (_filled(model, tf.zeros([1, length], tf.int32)) for length in (2, 3))
    pairs = zip(tf.nest.flatten(short), tf.nest.flatten(long), strict=True)
    return OwnCaches(short, tuple(_axes(x, y) for x, y in pairs))


def own_logits(model: Any, tokens: Any) -> Any:
    """The logits after the last of some tokens, (1, vocabulary), computed as `generate` does.

    Args:
        model: the model.
        tokens: of one row, (1, tokens).
    """
    last = tokens.shape[1] - 1
    index = tf.constant(last)  # as `generate` has it: a layer may not take a plain number
    return model.call_with_cache(tokens[:, last:], _filled(model, tokens), index)[0][:, 0]


def _filled(model: Any, tokens: Any) -> Any:
    """The model's cache with these tokens."""
    names = list(inspect.signature(model._build_cache).parameters.values())[1:]
    # Models that may take images as well ask for these; with text alone they are given none.
    given = {x.name: None for x in names if x.default is inspect.Parameter.empty}
    if "padding_mask" in given:
        given["padding_mask"] = tf.ones_like(tokens)
    return model._build_cache(tokens, **given)[1]


def _axes(short: Any, long: Any) -> CacheAxes | None:
    places = [n for n, (x, y) in enumerate(zip(short.shape, long.shape, strict=True)) if x != y]
    if len(places) != 1 or not places[0]:
        return None
    axis, shape = places[0], tuple(short.shape)
    return CacheAxes(shape[1:axis], shape[axis + 1 :], short.dtype.name)
