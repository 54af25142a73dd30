"""A mixture of experts whose experts lie on several ranks: tokens travel to them, and come home."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.comm.communicator import Communicator
from hyparflow.engine.compiled.ordered_calls import OrderedCalls
from hyparflow.engine.experts.row_exchange import RowExchange
from hyparflow.model.experts.expert_loop import Expert, through_experts
from hyparflow.model.experts.sparse_mixture import chosen_rows, shared_sum

__all__ = ["ParallelMixture"]


class ParallelMixture:
    """One layer's experts, of which this rank has some.

    Args:
        ranks: those that share the experts.
        rank_of: for each expert, the rank that has it.
        weights: for each of the layer's weights, () -> this rank's slice of it, a tensor whose
            first axis has its experts in ascending order.
        order: calls exchanges in one order on all ranks.
    """

    def __init__(
        self,
        ranks: Communicator,
        rank_of: Sequence[int],
        weights: Sequence[Callable[[], Any]],
        order: OrderedCalls,
    ) -> None:
        counts = np.bincount(rank_of, minlength=ranks.size).tolist()
        self._exchange = RowExchange(ranks, counts)
        self._experts = np.argsort(rank_of, kind="stable").astype(np.int32)  # rank by rank
        self._weights, self._call = weights, order

    def __call__(self, rows: Any, routing: Any, expert: Expert) -> Any:
        """What `hyparflow.model.experts.sparse_mixture.mixed` returns of all experts. Collective.

        Args:
            rows: tensor (tokens, width), this rank's.
            routing: tensor (experts, tokens): the share of each expert; 0 of those not chosen.
            expert: see `through_experts`.
        """
        routing = tf.gather(routing, self._experts)
        chosen, counts = chosen_rows(routing)
        given = tf.gather(rows, chosen[:, 1])
        arrived, theirs = self._to_experts(given, counts)
        weights = [weight() for weight in self._weights]
        made = through_experts(arrived, tf.reduce_sum(theirs, 0), weights, expert)
        back = self._from_experts(made, counts, theirs)
        return shared_sum(back, routing, chosen)

    def _to_experts(self, rows: Any, counts: Any) -> tuple[Any, Any]:
        @tf.custom_gradient
        def travel(rows: Any) -> Any:
            arrived, theirs = self._call.several(
                lambda *given: list(self._exchange.to_experts(*given)),
                [rows, counts],
                [[None, rows.shape[1]], [None, None]],
            )

            def gradient(upstream: Any, *rest: Any) -> Any:
                return self._returned(upstream, counts, theirs)

            return (arrived, theirs), gradient

        arrived, theirs = travel(rows)
        return arrived, theirs

    def _from_experts(self, rows: Any, counts: Any, theirs: Any) -> Any:
        @tf.custom_gradient
        def travel(rows: Any) -> Any:
            def gradient(upstream: Any) -> Any:
                return self._sent_again(upstream, counts, theirs)

            return self._returned(rows, counts, theirs), gradient

        return travel(rows)

    def _returned(self, rows: Any, counts: Any, theirs: Any) -> Any:
        return self._exchanged(self._exchange.from_experts, rows, counts, theirs)

    def _sent_again(self, rows: Any, counts: Any, theirs: Any) -> Any:
        return self._exchanged(self._exchange.to_experts_again, rows, counts, theirs)

    def _exchanged(self, exchange: Callable[..., np.ndarray], rows: Any, *sizes: Any) -> Any:
        def run(rows: np.ndarray, *sizes: np.ndarray) -> list[np.ndarray]:
            return [exchange(rows, *sizes), *sizes]

        shapes = [[None, rows.shape[1]], *(size.shape for size in sizes)]
        return self._call.several(run, [rows, *sizes], shapes)[0]
