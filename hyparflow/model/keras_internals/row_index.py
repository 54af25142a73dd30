"""KerasHub's own cached decoding with an index for each row, where it has one for all rows.

`call_with_cache` hands its index down to few places, so an object goes there instead of a number,
and while the function is traced these places understand it:

==========================  ========================================================================
place                       with such an index
==========================  ========================================================================
`keras.ops.slice_update`    writes each token to the place of its row
`compute_causal_mask`       shows each token those up to itself
`start_index` of positions  encodes each token's own position
`_mask_sliding_window`      shows each token its own window
attention with a window     the same, in GPT-OSS
`keras.ops.stack`           leaves caches where they are: a model stacks those of all its layers in
                            each step, which would copy them
==========================  ========================================================================

All others take the index as a tensor to which they add the numbers of the new tokens.
Whatever gets a plain index does what it always does, so other threads may compute meanwhile; two
that trace such a call take turns.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from hyparflow.model.keras_internals.patched import patched

__all__ = ["RowIndex", "StackedCaches", "row_indices", "sizes_of"]

_WINDOW = ("sliding_window_size", "sliding_window")  # what attention calls its window
_TRACING = threading.RLock()  # what is patched for one trace must not be undone by another


class RowIndex:
    """The places of new tokens, in each row others.

    Attributes:
        positions: (rows, new tokens), of a known number of tokens.
    """

    def __init__(self, positions: Any) -> None:
        self.positions = positions

    def __bool__(self) -> bool:
        return True  # some layers ask whether there is an index

    def __tf_tensor__(self, dtype: Any = None, name: str | None = None) -> Any:
        """What gives the positions if the numbers of the tokens, (tokens, 1), are added."""
        starts = (self.positions - tf.range(self.positions.shape[1]))[:, :, None]
        return starts if dtype is None else tf.cast(starts, dtype)


class StackedCaches:
    """Caches that look like one tensor, of which they are the parts along axis 1.

    Attributes:
        parts: tensors, or caches of this kind.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = tuple(parts)

    def __getitem__(self, key: Any) -> Any:
        everything, place, *rest = key if isinstance(key, tuple) and len(key) > 1 else (key, None)
        whole = [everything == slice(None), *(x is Ellipsis or x == slice(None) for x in rest)]
        if isinstance(place, int) and all(whole):
            return self.parts[place]
        return tf.convert_to_tensor(self)[key]

    def __tf_tensor__(self, dtype: Any = None, name: str | None = None) -> Any:
        return tf.stack([tf.convert_to_tensor(part, dtype) for part in self.parts], 1, name or "")


@contextlib.contextmanager
def row_indices(model: Any) -> Iterator[None]:
    """While open, `model.call_with_cache` takes a `RowIndex`, and `StackedCaches`."""
    classes = {cls: None for layer in model._flatten_layers() for cls in type(layer).__mro__}
    modules = {cls.__module__: sys.modules[cls.__module__] for cls in classes}
    with _TRACING, contextlib.ExitStack() as stack:
        stack.enter_context(_caches_in_place())
        for module in modules.values():
            causal = vars(module).get("compute_causal_mask")
            if causal is not None:
                stack.enter_context(patched(module, compute_causal_mask=_causal(causal)))
        for cls in classes:
            for name, index, by_rows in _METHODS:
                method = vars(cls).get(name)
                if callable(method) and index in inspect.signature(method).parameters:
                    stack.enter_context(patched(cls, **{name: by_rows(method)}))
        yield


# --- caches ---


@contextlib.contextmanager
def _caches_in_place() -> Iterator[None]:
    update, stacked, written = keras.ops.slice_update, keras.ops.stack, list[Any]()

    @functools.wraps(update)
    def slice_update(inputs: Any, start_indices: Any, updates: Any) -> Any:
        indices = start_indices if isinstance(start_indices, (list, tuple)) else ()
        if not any(isinstance(x, RowIndex) for x in indices):
            return update(inputs, start_indices, updates)
        rows, index, *rest = indices
        if not isinstance(index, RowIndex) or any(rest) or rows:
            raise TypeError("a part of the cache is written that is not a whole token")
        written.append(_written(inputs, index.positions, updates))
        return written[-1]

    @functools.wraps(stacked)
    def stack(x: Any, axis: int = 0) -> Any:
        if axis == 1 and isinstance(x, (list, tuple)) and all(is_cache(part) for part in x):
            return StackedCaches(x)
        return stacked(x, axis=axis)

    def is_cache(x: Any) -> bool:
        return isinstance(x, StackedCaches) or any(x is cache for cache in written)

    with patched(keras.ops, slice_update=slice_update, stack=stack):
        yield


def _written(cache: Any, positions: Any, new: Any) -> Any:
    """The cache, (rows, length, ...), with new tokens, (rows, tokens, ...)."""
    rows, count = sizes_of(positions)
    numbers = tf.broadcast_to(tf.range(rows)[:, None], [rows, count])
    # Layers with small heads leave the rest of the cache as it is, which is zero.
    short = [[0, 0], [0, 0]]
    short += [[0, x - y] for x, y in zip(cache.shape[2:], new.shape[2:], strict=True)]
    if any(count for _, count in short):
        new = tf.pad(new, short)
    places = tf.stack([numbers, positions], -1)
    return tf.tensor_scatter_nd_update(cache, places, tf.cast(new, cache.dtype))


def sizes_of(positions: Any) -> tuple[Any, int]:
    """The numbers of rows, a tensor if it is not known, and of tokens of each."""
    rows, count = positions.shape
    return (tf.shape(positions)[0] if rows is None else rows), count


# --- masks ---


def _causal(original: Any) -> Any:
    @functools.wraps(original)
    def mask(batch_size: Any, input_length: Any, output_length: Any, cache_index: Any = 0) -> Any:
        if not isinstance(cache_index, RowIndex):
            return original(batch_size, input_length, output_length, cache_index)
        return tf.range(input_length) <= cache_index.positions[:, :, None]

    return mask


def _windows(original: Any) -> Any:
    """Of `_mask_sliding_window`, which cuts rows out of a square mask."""

    @functools.wraps(original)
    def mask(self: Any, attention_mask: Any, cache_update_index: Any = 0, **more: Any) -> Any:
        if not isinstance(cache_update_index, RowIndex):
            return original(self, attention_mask, cache_update_index=cache_update_index, **more)
        (window,) = (getattr(self, name) for name in _WINDOW if hasattr(self, name))
        positions = cache_update_index.positions[:, :, None]
        seen = tf.range(attention_mask.shape[-1]) > positions - window
        return tf.logical_and(tf.cast(attention_mask, tf.bool), seen)

    return mask


def _attention(original: Any) -> Any:
    """Of attention that makes the mask of its window itself, as GPT-OSS does."""

    @functools.wraps(original)
    def attend(self: Any, query: Any, key: Any, value: Any, *args: Any, **named: Any) -> Any:
        given = inspect.signature(original).bind(self, query, key, value, *args, **named)
        index, window = given.arguments.get("start_index"), getattr(self, "sliding_window", None)
        if not isinstance(index, RowIndex):
            return original(*given.args, **given.kwargs)
        given.arguments["start_index"] = 0
        if window:
            first = index.positions[:, :, None] - window
            seen = tf.range(key.shape[1]) >= first
            given.arguments["attention_mask"] &= seen
        with patched(self, sliding_window=None):
            return original(*given.args, **given.kwargs)

    return attend


# --- positions ---


def _encoding(original: Any) -> Any:
    """Of the call of a layer that encodes positions."""
    takes_positions = "positions" in inspect.signature(original).parameters

    @functools.wraps(original)
    def call(self: Any, inputs: Any, start_index: Any = 0, **more: Any) -> Any:
        if not isinstance(start_index, RowIndex) or _passes_on(self):
            return original(self, inputs, start_index=start_index, **more)
        positions = start_index.positions
        if takes_positions:
            return original(self, inputs, **{**more, "positions": positions})
        # As one row of all tokens: to its first numbers the layer adds what gives the positions.
        rows, count = sizes_of(positions)
        starts = tf.reshape(positions, [-1]) - tf.range(rows * count)
        flat = tf.reshape(inputs, [1, rows * count, *inputs.shape[2:]])
        made = original(self, flat, start_index=starts, **more)
        return tf.nest.map_structure(lambda x: tf.reshape(x, [rows, count, *x.shape[2:]]), made)

    return call


def _passes_on(layer: Any) -> bool:
    """Whether it has layers that encode positions, to which it hands the index down."""
    inner = layer._flatten_layers(include_self=False)
    return any("start_index" in inspect.signature(x.call).parameters for x in inner)


# Methods of layers, what they call the index, and what takes their place.
_METHODS = (
    ("call", "start_index", _encoding),
    ("_mask_sliding_window", "cache_update_index", _windows),
    ("_compute_attention", "start_index", _attention),
)
