"""What a mixture of experts computes, by the experts that tokens are routed to and no others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from hyparflow.model.experts.expert_loop import Expert, through_experts

__all__ = ["mixed"]


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
    experts = routing.shape[0]
    chosen = tf.where(tf.not_equal(routing, 0))  # expert by expert
    of_token = chosen[:, 1]
    counts = tf.math.bincount(tf.cast(chosen[:, 0], tf.int32), minlength=experts, maxlength=experts)
    made = through_experts(tf.gather(rows, of_token), counts, weights, expert)
    made *= tf.cast(tf.gather_nd(routing, chosen), made.dtype)[:, None]
    return tf.math.unsorted_segment_sum(made, of_token, tf.shape(rows)[0])
