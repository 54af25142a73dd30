"""Windows of ranks that share experts, all of which have the caches of all rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.comm.communicator import Communicator
from hyparflow.engine.experts.byte_fields import joined_bytes, split_bytes
from hyparflow.serving.coherent.coherent_decoder import CoherentDecoder
from hyparflow.serving.coherent.row_gather import TO_ALL
from hyparflow.serving.decoding.caches import put_rows
from hyparflow.serving.ranks.expert_rows import with_pieces_of_all
from hyparflow.serving.ranks.held_experts import HeldExperts
from hyparflow.serving.ranks.runner import LocalRunner, put_together
from hyparflow.serving.scheduling.window import Piece, Window

__all__ = ["CoherentRows"]


class CoherentRows(LocalRunner):
    """See `Runner`. Rank r % G takes in the prompts of row r, and tells the others.

    Within a piece of a prompt tokens look at each other in every layer, so these come home from
    their experts.

    Args:
        decoder: the model.
        experts: of this rank.
        ranks: those that share the experts.
    """

    def __init__(self, decoder: CoherentDecoder, experts: HeldExperts, ranks: Communicator) -> None:
        super().__init__(decoder)
        self._experts, self._ranks = experts, ranks

    def warm_up(self, window: Window) -> None:
        """See `Runner.warm_up`."""
        super().warm_up(with_pieces_of_all(window, self._ranks.size))

    def _take_in(self, window: Window) -> None:
        count = self._ranks.size
        rounds = [put_together(_of_rank(window, rank, count)) for rank in range(count)]
        for number in range(max(map(len, rounds))):
            pieces = [own[number] if number < len(own) else [] for own in rounds]
            mine = pieces[self._ranks.rank]
            if mine:
                self._decoder.take_in(self._caches, mine)
            else:
                self._experts.take_part()
            self._tell(pieces)

    def _tell(self, pieces: Sequence[Sequence[Piece]]) -> None:
        """Give the keys and values of pieces, those of each rank, to all ranks."""
        axes = [1 + len(size.before) for size in self._decoder.cache_sizes]
        pairs = list(zip(self._caches, axes, strict=True))
        mine = [_new(*pair, piece) for piece in pieces[self._ranks.rank] for pair in pairs]
        messages = self._ranks.all_gather_unsized(joined_bytes(mine), TO_ALL)
        for rank, (message, theirs) in enumerate(zip(messages, pieces, strict=True)):
            if rank == self._ranks.rank or not theirs:
                continue
            like = [_like(cache, axis) for _ in theirs for cache, axis in pairs]
            left = iter(split_bytes(message, like))
            for piece in theirs:
                for cache, axis in pairs:
                    _put(cache, axis, piece, next(left))


def _of_rank(window: Window, rank: int, count: int) -> Window:
    own = tuple(piece for piece in window.pieces if piece.row % count == rank)
    return dataclasses.replace(window, pieces=own)


def _new(cache: Any, axis: int, piece: Piece) -> np.ndarray:
    """What a piece has written into its row of a cache, (tokens, ...)."""
    row = np.moveaxis(tf.gather(cache, piece.row).numpy(), axis - 1, 0)
    return np.ascontiguousarray(row[piece.start : piece.start + len(piece.tokens)])


def _like(cache: Any, axis: int) -> np.ndarray:
    """An array without tokens, of the axes that `_new` has."""
    others = [size for place, size in enumerate(cache.shape) if place not in (0, axis)]
    return np.empty((0, *others), cache.dtype.as_numpy_dtype)


def _put(cache: Any, axis: int, piece: Piece, new: np.ndarray) -> None:
    """Write what another rank's `_new` returned."""
    row = tf.gather(cache, [piece.row]).numpy()
    np.moveaxis(row[0], axis - 1, 0)[piece.start : piece.start + len(new)] = new
    put_rows([cache], [piece.row], [tf.constant(row)])
