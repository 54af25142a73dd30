"""Which experts a token is routed to, and with which shares.

After Fedus et al., "Switch Transformers" (arXiv 2101.03961), sections 2.1 and 2.2, for several
experts a token as in Lepikhin et al., "GShard" (arXiv 2006.16668).
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

__all__ = ["chosen_shares", "load_balancing_loss", "within_capacity"]


def chosen_shares(probabilities: Any, top_k: int, is_normalized: bool) -> tuple[Any, Any]:
    """The likeliest experts of each token; of equal ones the first.

    Args:
        probabilities: tensor (tokens, experts).
        top_k: how many experts a token has.
        is_normalized: whether the shares of a token add up to 1.

    Returns:
        Shares (tokens, top_k), and a one-hot tensor of the experts, (tokens, top_k, experts).
    """
    shares, experts = tf.math.top_k(probabilities, top_k)
    if is_normalized:
        shares /= tf.reduce_sum(shares, -1, keepdims=True)
    return shares, tf.one_hot(experts, probabilities.shape[-1], dtype=probabilities.dtype)


def within_capacity(chosen: Any, capacity_factor: float) -> Any:
    """The choices for which experts have room: all first choices come before all second ones.

    Args:
        chosen: one-hot tensor (tokens, top_k, experts).
        capacity_factor: how many times an even share of the choices each expert takes.

    Returns:
        The tensor, with zeros where a token finds no room.
    """
    top_k, experts = chosen.shape[1:]
    choices = tf.cast(top_k * tf.shape(chosen)[0], chosen.dtype)
    capacity = tf.math.ceil(capacity_factor * choices / experts)
    in_order = tf.reshape(tf.transpose(chosen, [1, 0, 2]), [-1, experts])
    has_room = tf.cumsum(in_order) <= capacity
    kept = tf.where(has_room, in_order, tf.zeros_like(in_order))
    return tf.transpose(tf.reshape(kept, [top_k, -1, experts]), [1, 0, 2])


def load_balancing_loss(probabilities: Any, chosen: Any, weight: Any = None) -> Any:
    """1 where experts have equal numbers of tokens, and as many as there are experts at most.

    Args:
        probabilities: tensor (tokens, experts).
        chosen: one-hot tensor (tokens, top_k, experts).
        weight: tensor (tokens,) of 1 and 0: tokens of 0 do not count; None if all count.

    Returns:
        A scalar: the number of experts, times the sum over experts of the share of tokens that
        chose it times the mean of its probability.
    """
    experts = probabilities.shape[-1]
    weight = tf.ones_like(probabilities[:, 0]) if weight is None else weight
    total = tf.maximum(tf.reduce_sum(weight), 1)
    tokens = tf.einsum("tke,t->e", chosen, weight) / (total * chosen.shape[1])
    return experts * tf.reduce_sum(tokens * tf.einsum("te,t->e", probabilities, weight) / total)
