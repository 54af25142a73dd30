"""A mixture of experts whose tokens stay at the rank of their expert, with all that they need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.comm.communicator import Communicator
from hyparflow.engine.compiled.ordered_calls import OrderedCalls
from hyparflow.engine.experts.row_travel import Arrived, RowTravel
from hyparflow.model.experts.expert_loop import Expert, through_experts

__all__ = ["TravellingMixture"]


class TravellingMixture:
    """One layer's experts, of which this rank has some.

    Args:
        ranks: those that share the experts.
        rank_of: for each expert, the rank that has it.
        weights: for each of the layer's weights, () -> this rank's slice of it, a tensor whose
            first axis has its experts in ascending order.
        order: calls exchanges in one order on all ranks.
        top_k: how many experts a row has, at most.
    """

    def __init__(
        self,
        ranks: Communicator,
        rank_of: Sequence[int],
        weights: Sequence[Callable[[], Any]],
        order: OrderedCalls,
        top_k: int,
    ) -> None:
        self._travel = RowTravel(ranks, rank_of, may_copy=top_k > 1)
        self._weights, self._call, self._has_copies = weights, order, top_k > 1
        self._num_experts = sum(rank == ranks.rank for rank in rank_of)

    def __call__(
        self, rows: Any, given: Any, routing: Any, expert: Expert, values: Sequence[Any]
    ) -> tuple[Any, list[Any], Any]:
        """Send rows to their experts, where they stay. Collective.

        Args:
            rows: tensor (n,) of int32: the numbers of the rows that are here.
            given: tensor (n, width): what experts read.
            routing: tensor (experts, n): the share of each expert; 0 of those not chosen.
            expert: see `through_experts`.
            values: tensors (n, width) each: what is needed of the rows from here on.

        Returns:
            The numbers of the rows that are here now; `values` of these; and what their experts
            make of them, (n, width).
        """
        came = self._sent(rows, given, routing, values)
        weights = [weight() for weight in self._weights]
        made = through_experts(came.given, came.counts, weights, expert)
        shared = made * tf.cast(came.shares, made.dtype)[:, None]
        staying = tf.shape(came.rows)[0]
        total = staying + tf.shape(came.copies)[0]
        sums = tf.math.unsorted_segment_sum(shared, came.places, total)
        found = sums[:staying]
        if self._has_copies:
            found += self._call.others(
                lambda *given: [self._travel.from_experts(*given)],
                [sums[staying:], came.copies, came.homes, came.rows],
                [sums.dtype],
                [[None, sums.shape[1]]],
            )[0]
        return came.rows, came.values, found

    def _sent(self, rows: Any, given: Any, routing: Any, values: Sequence[Any]) -> Any:
        def run(rows: Any, given: Any, routing: Any, *values: Any) -> list[np.ndarray]:
            came = self._travel.to_experts(rows, given, routing, values)
            single = [getattr(came, name) for name in names]
            return [*single, *came.values]

        names = [field.name for field in fields(Arrived) if field.name != "values"]
        number = tf.int32
        kinds = {"rows": number, "given": given.dtype, "counts": number, "shares": routing.dtype}
        kinds |= dict.fromkeys(("places", "copies", "homes"), number)
        shapes = {"given": [None, given.shape[1]], "counts": [self._num_experts]}
        made = self._call.others(
            run,
            [rows, given, routing, *values],
            [*(kinds[name] for name in names), *(value.dtype for value in values)],
            [*(shapes.get(name, [None]) for name in names), *([None, x.shape[1]] for x in values)],
        )
        single = dict(zip(names, made, strict=False))
        return Arrived(**single, values=made[len(names) :])
