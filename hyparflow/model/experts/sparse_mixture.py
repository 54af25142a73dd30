"""What a mixture of experts computes, by the experts that tokens are routed to and no others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from hyparflow.model.experts.expert_loop import Expert, through_experts

__all__ = ["chosen_rows", "mixed", "shared_sum"]


def mixed(rows: Any, routing: Any, weights: Sequence[Any], expert: Expert) -> Any:
    """The sum over experts of what each makes of a token, times its share.

    Tokens are brought into the order of their experts, pass through these, and are added up where
    they came from.

    Args:
        rows: tensor (tokens, width).
        routing: tensor (experts, tokens): the share of each expert; 0 of those not chosen.
        weights: tensors, the first axis of which counts experts.
        expert: see `through_experts`.

    Returns:
        Tensor (tokens, width).
    """
    chosen, counts = chosen_rows(routing)
    made = through_experts(tf.gather(rows, chosen[:, 1]), counts, weights, expert)
    return shared_sum(made, routing, chosen)


def chosen_rows(routing: Any) -> tuple[Any, Any]:
    """Which tokens pass through which experts.

    Args:
        routing: tensor (experts, tokens): the share of each expert; 0 of those not chosen.

    Returns:
        Pairs of an expert and a token, (n, 2), expert by expert; and how many each expert has.
    """
    chosen, experts = tf.where(tf.not_equal(routing, 0)), routing.shape[0]
    numbers = tf.cast(chosen[:, 0], tf.int32)
    return chosen, tf.math.bincount(numbers, minlength=experts, maxlength=experts)


def shared_sum(made: Any, routing: Any, chosen: Any) -> Any:
    """The sum over a token's experts of what each has made of it, times its share.

    Args:
        made: tensor (n, width), in the order of `chosen`.
        routing: as for `chosen_rows`.
        chosen: what that returned.

    Returns:
        Tensor (tokens, width).
    """
    shares = tf.cast(tf.gather_nd(routing, chosen), made.dtype)
    return tf.math.unsorted_segment_sum(made * shares[:, None], chosen[:, 1], tf.shape(routing)[1])
