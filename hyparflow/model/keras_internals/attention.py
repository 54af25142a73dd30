"""The attention of Keras's and KerasHub's layers, caught at the one method that all of them call.

`keras.layers.MultiHeadAttention` and `GroupQueryAttention`, those derived from them, and the
attention of KerasHub's language models project queries, keys and values, and then call
`_compute_attention` of their own. That method is replaced on a layer while the layer is traced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras

from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.model.keras_internals.patched import patched

__all__ = [
    "AttentionCall",
    "attention_dropout",
    "attention_layers",
    "attention_replaced",
    "own_attention",
    "repeats_of_keys",
    "scale_of",
    "seed_of_scores",
    "soft_cap_of",
]

_SEAM = "_compute_attention"
_NAMES = ("query", "key", "value", "attention_mask", "training", "return_attention_scores")
_SHORT = {"q": "query", "k": "key", "v": "value", "mask": "attention_mask"}
_SCALES = ("_inverse_sqrt_key_dim", "_inverse_sqrt_head_dim", "_inv_norm_factor")
_REPEATS = ("num_repeats", "num_key_value_groups", "_num_key_value_groups")
_RATES = ("_dropout", "dropout")


class AttentionCall(NamedTuple):
    """A call of a layer's attention, after the projections.

    Attributes:
        layer: the layer.
        query, key, value: (rows, positions, heads, size of a head); Keras repeats keys and values
            to as many heads as there are queries.
        mask: what the layer was given, of (positions, positions) as last axes, or None.
        is_causal: whether a causal mask comes on top.
        returns_scores: whether the layer is to return its scores, which are None then.
    """

    layer: Any
    query: Any
    key: Any
    value: Any
    mask: Any
    is_causal: bool
    returns_scores: bool = False


def attention_layers(model: Any) -> list[Any]:
    """The layers of a model that have such a method."""
    return [layer for layer in all_layers(model) if hasattr(type(layer), _SEAM)]


@contextlib.contextmanager
def attention_replaced(
    layers: Sequence[Any], compute: Callable[[AttentionCall], Any]
) -> Iterator[None]:
    """While open, `compute` computes what comes of the attention of these layers.

    Args:
        layers: from `attention_layers`.
        compute: returns (rows, positions, heads of queries, size of a head of values).
    """
    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(patched(layer, **{_SEAM: _replacement(layer, compute)}))
        yield


def _replacement(layer: Any, compute: Callable[[AttentionCall], Any]) -> Callable[..., Any]:
    def replaced(*args: Any, **kwargs: Any) -> Any:
        given = {_SHORT.get(name, name): value for name, value in kwargs.items()}
        given |= dict(zip(_NAMES, args, strict=False))
        query, key, value, mask = (given.get(name) for name in _NAMES[:4])
        is_causal = bool(given.get("use_causal_mask", False))
        scores = given.get("return_attention_scores") is True
        call = AttentionCall(
            layer=layer,
            query=query,
            key=key,
            value=value,
            mask=mask,
            is_causal=is_causal,
            returns_scores=scores,
        )
        result = compute(call)
        return (result, None) if _returns_scores(layer) else result

    return replaced


def _returns_scores(layer: Any) -> bool:
    kinds = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)
    return isinstance(layer, kinds)


def own_attention(call: AttentionCall, mask: Any, training: bool = False) -> Any:
    """What a layer itself computes of queries, keys and values.

    Args:
        call: with the layer and the tensors.
        mask: (rows, positions, positions) of booleans.
        training: whether scores are dropped out, if the layer does that.
    """
    compute = getattr(call.layer, _SEAM)
    try:
        made = compute(call.query, call.key, call.value, mask, training=training)
    except TypeError:  # some have no such argument
        made = compute(call.query, call.key, call.value, mask)
    return made[0] if isinstance(made, tuple) else made


def scale_of(layer: Any) -> float | None:
    """By what a layer multiplies its scores; None if it does not tell."""
    for name in _SCALES:
        if hasattr(layer, name):
            return float(getattr(layer, name))
    if hasattr(layer, "query_head_dim_normalize"):
        size = layer.head_dim
        if not layer.query_head_dim_normalize:
            size = layer.hidden_dim // layer.num_query_heads
        return float(size) ** -0.5
    return None


def soft_cap_of(layer: Any) -> float | None:
    """The bound that scores are pressed under by a hyperbolic tangent, if a layer has one."""
    cap = getattr(layer, "logit_soft_cap", None)
    return None if cap is None else float(cap)


def repeats_of_keys(layer: Any) -> int:
    """How often a layer may have repeated each head of keys and values."""
    return next((int(getattr(layer, name)) for name in _REPEATS if hasattr(layer, name)), 1)


def attention_dropout(layer: Any) -> float:
    """The rate at which a layer may drop out scores."""
    rates = [getattr(layer, name) for name in _RATES if hasattr(layer, name)]
    return next((float(rate) for rate in rates if isinstance(rate, int | float)), 0.0)


def seed_of_scores(layer: Any) -> Any:
    """The generator of seeds by which a layer drops out scores."""
    droppers = [x for x in vars(layer).values() if isinstance(x, keras.layers.Dropout)]
    named = ("_dropout_layer", "_attn_dropout_layer")
    first = next((getattr(layer, n) for n in named if hasattr(layer, n)), None) or droppers[0]
    return first.seed_generator
