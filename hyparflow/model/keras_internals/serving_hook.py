"""KerasHub's own way to serve: attention by positions of single tokens, with caches from outside.

`keras_hub.src.vllm.context` was made for another engine, and nothing in it is that engine's: while
a context is open, attention layers of KerasHub's language models project queries, keys and values,
turn them by the positions of single tokens, and call the function that the context has.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from hyparflow.model.keras_internals.patched import patched

__all__ = ["attends_by_hook", "has_serving_hook", "served_from"]

# (cache, query, key, value, scale, size of a head, heads, heads of keys, sliding_window=...,
# soft_cap=...) -> (new cache, output); queries, keys and values are (tokens, heads x size).
Attend = Callable[..., tuple[Any, Any]]


def has_serving_hook() -> bool:
    """Whether this version of KerasHub has it."""
    try:
        from keras_hub.src.vllm import context
    except ImportError:
        return False
    return hasattr(context, "vllm_context_scope") and hasattr(context, "get_vllm_context")


def attends_by_hook(layer: Any) -> bool:
    """Whether a layer is attention that calls a function from outside."""
    return hasattr(layer, "_compute_vllm_attention")


@contextlib.contextmanager
def served_from(
    attend: Attend, positions: Any, caches: Sequence[Any] | None
) -> Iterator[Callable[[], list[Any]]]:
    """While open, models attend by `attend`, each layer with its cache.

    Args:
        attend: see `Attend`.
        positions: of the tokens, a vector.
        caches: one for each attention layer, in the order of their calls; None to have none.

    Yields:
        A function that returns the new caches, if every layer took its own.
    """
    from keras_hub.src.vllm.context import get_vllm_context, vllm_context_scope

    known = patched(keras.ops, reshape=_reshape_to_unknown_rows)
    with known, vllm_context_scope(attend, positions, caches):

        def updated() -> list[Any]:
            context = get_vllm_context()
            if context.layer_index != len(caches or ()):
                raise ValueError(
                    "Each attention layer must take a cache of its own. Received: "
                    f"{context.layer_index} calls for {len(caches or ())} caches."
                )
            return list(context.updated_kv_caches)

        yield updated


_RESHAPE = keras.ops.reshape


@functools.wraps(_RESHAPE)
def _reshape_to_unknown_rows(x: Any, newshape: Any) -> Any:
    """The hook gives attention the shape of its queries, whose rows may be any number."""
    if isinstance(newshape, tuple) and newshape[:1] == (None,):
        newshape = (-1, *newshape[1:])
    return _RESHAPE(x, newshape)
