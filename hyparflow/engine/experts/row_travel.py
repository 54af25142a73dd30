"""Rows that go to the rank of their expert, and stay there.

What each row needs from there on travels with it, so that a mixture of experts needs one all-to-all
where the results of experts that come home need two (Yao et al., "ExFlow", arXiv 2401.08383,
section IV.A). A row with several experts goes to the one that has the largest share of it; to the
others goes a copy of what the expert reads, and what they make comes back by a second all-to-all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hyparflow.comm.communicator import Communicator
from hyparflow.engine.experts.byte_fields import joined_bytes, split_bytes

__all__ = ["FOLLOWING", "STAYING", "Arrived", "RowTravel"]

STAYING = "rows on their way to experts, where they stay"
FOLLOWING = "what experts made, on its way to rows that stay elsewhere"

_Arrays = Sequence[np.ndarray]


@dataclass(frozen=True)
class Arrived:
    """What has come to a rank: arrays, or in a trace tensors.

    Attributes:
        rows: (n,) of int32: the numbers of the rows that stay here, in ascending order.
        values: of these, (n, width) each.
        given: (pairs, width), what experts read: for each pair of an expert and a row, in the order
            of this rank's experts.
        counts: (experts of this rank,) of int32: how many of the pairs are each one's.
        shares: (pairs,).
        places: (pairs,) of int32: which row each pair is of; copies are counted behind the rows
            that stay.
        copies: (copies,) of int32: the numbers of their rows.
        homes: (copies,) of int32: the ranks where these rows stay.
    """

    rows: Any
    values: list[Any]
    given: Any
    counts: Any
    shares: Any
    places: Any
    copies: Any
    homes: Any


class RowTravel:
    """Has rows travel among ranks that share the experts of a layer.

    Args:
        ranks: these ranks.
        rank_of: for each expert, the rank that has it.
        may_copy: whether rows have several experts.
    """

    def __init__(self, ranks: Communicator, rank_of: Sequence[int], may_copy: bool) -> None:
        self._ranks, self._may_copy = ranks, may_copy
        self._rank_of = np.array(rank_of)
        self._number = np.zeros(len(rank_of), np.int32)  # of each expert, among those of its rank
        for rank in range(ranks.size):
            own = np.flatnonzero(self._rank_of == rank)
            self._number[own] = np.arange(len(own))
        self._mine = int(np.sum(self._rank_of == ranks.rank))

    def to_experts(
        self, rows: np.ndarray, given: np.ndarray, routing: np.ndarray, values: _Arrays
    ) -> Arrived:
        """Give each rank the rows that stay with it from now on. Collective.

        Args:
            rows: (n,) of int32: the numbers of the rows that are here.
            given: (n, width): what experts read.
            routing: (experts, n): the share of each expert; 0 of those not chosen.
            values: of these rows, (n, width) each: what is needed from here on.
        """
        chosen = routing != 0
        homes = np.where(
            chosen.any(0), self._rank_of[np.argmax(np.abs(routing), 0)], self._ranks.rank
        ).astype(np.int32)
        sent = [
            self._message(rank, homes, chosen, rows, given, routing, values)
            for rank in range(self._ranks.size)
        ]
        like = [x[:0] for x in (given, routing[0], *values)]
        received = self._ranks.all_to_all_unsized(sent, STAYING)
        return self._arrived([_read(message, *like) for message in received])

    def from_experts(
        self, made: np.ndarray, copies: np.ndarray, homes: np.ndarray, rows: np.ndarray
    ) -> np.ndarray:
        """Give rows what experts of other ranks have made of their copies. Collective.

        Args:
            made: (copies, width).
            copies, homes, rows: see `Arrived`.

        Returns:
            (rows, width), to be added to what experts of this rank have made.
        """
        sent = [
            joined_bytes([copies[homes == rank], made[homes == rank]])
            for rank in range(self._ranks.size)
        ]
        found = np.zeros((len(rows), made.shape[1]), made.dtype)
        for message in self._ranks.all_to_all_unsized(sent, FOLLOWING):
            numbers, values = split_bytes(message, [copies[:0], made[:0]])
            np.add.at(found, np.searchsorted(rows, numbers), values)
        return found

    def _message(
        self,
        rank: int,
        homes: np.ndarray,
        chosen: np.ndarray,
        rows: np.ndarray,
        given: np.ndarray,
        routing: np.ndarray,
        values: _Arrays,
    ) -> np.ndarray:
        """What one rank gets: rows that stay with it first, then copies of others."""
        here = self._rank_of == rank
        staying = np.flatnonzero(homes == rank)
        copied = np.flatnonzero((homes != rank) & chosen[here].any(0))
        if len(copied) and not self._may_copy:
            raise ValueError(
                "A row that stays where its expert is has one expert. Received: rows with several."
            )
        asked = np.concatenate([staying, copied])
        places, experts = np.nonzero((chosen & here[:, None])[:, asked].T)
        return joined_bytes(
            [
                rows[staying],
                rows[copied],
                homes[copied],
                self._number[experts],
                places.astype(np.int32),
                routing[experts, asked[places]],
                given[asked],
                *(value[staying] for value in values),
            ]
        )

    def _arrived(self, messages: Sequence[_Arrays]) -> Arrived:
        rows, copies, homes, experts, _, shares, _, *values = (
            np.concatenate(fields) for fields in zip(*messages, strict=True)
        )
        order = np.argsort(rows)
        place_of = np.empty(len(order), np.int32)  # of each row that stays, in the order of arrival
        place_of[order] = np.arange(len(order), dtype=np.int32)
        places, given = list[np.ndarray](), list[np.ndarray]()
        stayed, copied = 0, len(rows)
        for own, others, _, _, asked, _, read, *_ in messages:
            behind = np.arange(copied, copied + len(others), dtype=np.int32)
            found = np.concatenate([place_of[stayed : stayed + len(own)], behind])
            places.append(found[asked])
            given.append(read[asked])
            stayed, copied = stayed + len(own), copied + len(others)
        by_expert = np.argsort(experts, kind="stable")
        return Arrived(
            rows=rows[order],
            values=[value[order] for value in values],
            given=np.concatenate(given)[by_expert],
            counts=np.bincount(experts, minlength=self._mine).astype(np.int32),
            shares=shares[by_expert],
            places=np.concatenate(places)[by_expert],
            copies=copies,
            homes=homes,
        )


def _read(
    message: np.ndarray, given: np.ndarray, shares: np.ndarray, *values: np.ndarray
) -> _Arrays:
    """What `RowTravel._message` joined, of arrays like these."""
    numbers = np.empty(0, np.int32)
    return split_bytes(message, [*[numbers] * 5, shares, given, *values])
