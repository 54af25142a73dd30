"""Layers that add a loss which is least where their experts have equal numbers of tokens.

The loss is a product of two means over tokens: of what they chose, which has no gradient, and of
what their routers made. KerasHub's mixtures compute it in a function beside the class of the layer.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow.model.experts.mixture_of_experts import MixtureOfExperts
from hyparflow.model.experts.routing import chosen_shares, load_balancing_loss
from hyparflow.model.keras_internals.patched import patched

__all__ = ["BalanceLoss", "BalancedLayers", "sum_over_tokens"]

# (probabilities (tokens, experts), one-hot choices (tokens, top_k, experts), weights (tokens,) of 1
# and 0 or None) -> a scalar. See `hyparflow.model.experts.routing.load_balancing_loss`.
BalanceLoss = Callable[[Any, Any, Any], Any]

_FUNCTION = "compute_load_balancing_loss"  # KerasHub's


class BalancedLayers:
    """Those of some layers that balance their experts by a loss.

    Attributes:
        names: of these layers.

    Args:
        layers: built, also those inside others.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        own = [x for x in layers if isinstance(x, MixtureOfExperts) and x.load_balancing]
        hubs = [x for x in layers if hasattr(x, "expert_bank") and _module_of(x) is not None]
        modules = {id(module): module for module in map(_module_of, hubs) if module is not None}
        self._own = own
        self._modules = [module for module in modules.values() if _is_known(module)]
        known = {id(module) for module in self._modules}
        self.names = [x.name for x in [*own, *(y for y in hubs if id(_module_of(y)) in known)]]

    def __bool__(self) -> bool:
        return bool(self.names)

    @contextlib.contextmanager
    def computed_by(self, loss: BalanceLoss) -> Iterator[None]:
        """While open, calls of the layers leave their loss to `loss`."""
        with contextlib.ExitStack() as stack:
            for layer in self._own:
                stack.enter_context(patched(layer, _balance=loss))
            for module in self._modules:
                stack.enter_context(patched(module, **{_FUNCTION: _as_keras_hub(loss)}))
            yield


def sum_over_tokens(probabilities: Any, chosen: Any, weight: Any) -> Any:
    """A `BalanceLoss` that is a sum over tokens, as each rank's part of the loss is."""
    kind = probabilities.dtype
    prices = tf.range(1, probabilities.shape[-1] + 1, dtype=tf.int32)
    of_token = tf.reduce_sum(probabilities * tf.cast(prices, kind), -1)
    return tf.reduce_sum(of_token if weight is None else of_token * tf.cast(weight, kind))


def _module_of(layer: Any) -> ModuleType | None:
    """The module of a layer's class, if it has KerasHub's function."""
    module = sys.modules.get(type(layer).__module__)
    return module if callable(getattr(module, _FUNCTION, None)) else None


def _as_keras_hub(loss: BalanceLoss) -> Callable[..., Any]:
    """A `BalanceLoss` with the arguments of KerasHub's function."""

    def compute(
        router_logits: Any, num_experts: int, top_k: int, attention_mask: Any = None
    ) -> Any:
        probabilities = tf.nn.softmax(tf.convert_to_tensor(router_logits))
        _, chosen = chosen_shares(probabilities, top_k, is_normalized=False)
        return loss(probabilities, chosen, _weight(attention_mask, tf.shape(probabilities)[0]))

    return compute


def _weight(mask: Any, tokens: Any) -> Any:
    """Which tokens count, of a mask of tokens, or of pairs of tokens; None if all do."""
    if mask is None:
        return None
    mask = tf.convert_to_tensor(mask)
    if mask.shape.rank == 3:  # (rows, tokens, tokens they attend to)
        mask = tf.reduce_any(tf.cast(mask, tf.bool), -1)
    return tf.cast(tf.reshape(mask, [-1])[:tokens], keras.config.floatx())


def _is_known(module: ModuleType) -> bool:
    """Whether a module's function computes what is known here as its loss."""
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(12, 5)).astype(keras.config.floatx())
    mask = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]], bool)
    functions = getattr(module, _FUNCTION), _as_keras_hub(load_balancing_loss)
    agreed = 0
    for attention_mask in (None, mask, mask[:, :, None] & mask[:, None, :]):
        try:
            with tf.init_scope():
                theirs, ours = (float(f(logits, 5, 2, attention_mask)) for f in functions)
        except Exception:  # it takes masks of another kind, and none in float64
            continue
        if not np.isclose(theirs, ours, rtol=1e-5):
            return False
        agreed += 1
    return agreed > 0
