"""Losses that balance experts, of tokens that lie on several ranks.

Such a loss is a product of two means over the tokens of a batch (Fedus et al., "Switch
Transformers", arXiv 2101.03961, section 2.2). What tokens chose has no gradient: ranks add up their
counts of it in the forward. Each then adds its own tokens' part of the other mean to the loss.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.comm.communicator import Communicator
from hyparflow.engine.compiled.ordered_calls import OrderedCalls

__all__ = ["BalanceSums"]


class BalanceSums:
    """Computes this rank's part of a loss that balances experts.

    Attributes:
        share: the micro-batch's part of the batch; stand-in rows have 0, and must not count.

    Args:
        ranks: those that have tokens of the same batch.
        order: calls exchanges in one order on all ranks.
    """

    def __init__(self, ranks: Communicator, order: OrderedCalls) -> None:
        self._ranks, self._call = ranks, order
        self.share: Any = 1.0

    def __call__(self, probabilities: Any, chosen: Any, weight: Any) -> Any:
        """See `hyparflow.model.experts.balanced_layers.BalanceLoss`; ranks' parts add up to it."""
        kind, experts = probabilities.dtype, probabilities.shape[-1]
        weight = tf.ones_like(probabilities[:, 0]) if weight is None else tf.cast(weight, kind)
        weight *= tf.cast(self.share > 0, kind)
        counts = tf.einsum("tke,t->e", tf.cast(chosen, kind), weight) / chosen.shape[1]
        sums = tf.cast(tf.concat([counts, [tf.reduce_sum(weight)]], 0), tf.float64)
        if self._ranks.size > 1:
            sums = self._call(self._sum, tf.stop_gradient(sums), sums.shape)
        total = tf.cast(tf.maximum(sums[-1], 1), kind)
        tokens = tf.stop_gradient(tf.cast(sums[:-1], kind)) / total
        return experts * tf.reduce_sum(tokens * tf.einsum("te,t->e", probabilities, weight)) / total

    def _sum(self, counts: np.ndarray) -> np.ndarray:
        total = np.array(counts)
        self._ranks.sum(total, "the numbers of tokens of experts")
        return total
