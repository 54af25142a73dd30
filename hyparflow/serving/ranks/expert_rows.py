"""Windows of ranks that share experts: each computes some of the rows, with caches for these alone.

Row r of a window is row r // G of rank r % G. All ranks make the same number of calls of the model,
since tokens of each travel to the experts of the others in every call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hyparflow.comm.communicator import Communicator
from hyparflow.serving.decoding.caches import Caches
from hyparflow.serving.decoding.decoder import Decoder
from hyparflow.serving.ranks.held_experts import HeldExperts
from hyparflow.serving.ranks.moved_rows import MovedRows
from hyparflow.serving.ranks.runner import WindowResult, made_by, put_together
from hyparflow.serving.scheduling.request import TokenLogprobs
from hyparflow.serving.scheduling.window import Shape, Window

__all__ = ["ExpertRows", "with_pieces_of_all"]

_UNASKED = TokenLogprobs(0.0, ())  # of rows that ask for none, where others do


class ExpertRows:
    """One rank's rows of the windows of a model whose experts lie on several ranks.

    Args:
        decoder: the model.
        experts: of this rank.
        ranks: those that share the experts.
    """

    def __init__(self, decoder: Decoder, experts: HeldExperts, ranks: Communicator) -> None:
        self._decoder, self._experts, self._ranks = decoder, experts, ranks
        self._caches, self._shape = Caches(), Shape(0, 0)

    def run(self, window: Window) -> WindowResult:
        """See `Runner.run`; the tokens of all rows, on all ranks. Collective."""
        count = self._ranks.size
        parts = [part_of(window, rank, count) for rank in range(count)]
        self._rebuild(window)
        rounds = [put_together(part) for part in parts]
        mine = rounds[self._ranks.rank]
        for number in range(max(map(len, rounds))):
            if number < len(mine):
                self._decoder.take_in(self._caches, mine[number])
            else:
                self._experts.take_part()
        if not window.steps:
            return WindowResult()
        made = made_by(self._decoder, self._caches, self._shape, parts[self._ranks.rank])
        return joined(window, self._ranks.all_gather_objects(made, "the tokens of all rows"))

    def warm_up(self, window: Window) -> None:
        """See `Runner.warm_up`."""
        self.run(with_pieces_of_all(window, self._ranks.size))
        self.close()

    def bytes(self) -> dict[str, int]:
        """See `Runner.bytes`."""
        return {"caches": self._shape.size * self._decoder.bytes_of_token}

    def close(self) -> None:
        """See `Runner.close`."""
        self._caches, self._shape = Caches(), Shape(0, 0)

    def _rebuild(self, window: Window) -> None:
        if window.sources is None:
            return
        shape = Shape(window.shape.rows // self._ranks.size, window.shape.length)
        if window.begins_anew:
            self.close()  # before there are others
            self._caches = self._decoder.empty(shape)
        else:
            moved = MovedRows(self._ranks, window.sources)
            self._caches = moved.caches(self._caches, self._decoder.cache_sizes, shape)
        self._shape = shape


def with_pieces_of_all(window: Window, count: int) -> Window:
    """A window that compiles on each of some ranks what it would on the first.

    Args:
        window: whose pieces are all of row 0.
        count: how many ranks there are.
    """
    pieces = [
        dataclasses.replace(piece, row=rank) for rank in range(count) for piece in window.pieces
    ]
    return dataclasses.replace(window, pieces=tuple(pieces))


def part_of(window: Window, rank: int, count: int) -> Window:
    """What one rank computes of a window."""
    places = [place for place, row in enumerate(window.live) if row % count == rank]
    pieces = [piece for piece in window.pieces if piece.row % count == rank]
    return dataclasses.replace(
        window,
        shape=Shape(window.shape.rows // count, window.shape.length),
        pieces=tuple(dataclasses.replace(piece, row=piece.row // count) for piece in pieces),
        live=tuple(window.live[place] // count for place in places),
        numbers=tuple(window.numbers[place] for place in places),
        tokens=tuple(window.tokens[place] for place in places),
        positions=tuple(window.positions[place] for place in places),
        given=tuple(window.given[place] for place in places),
        # Rows that take no part choose as any other.
        sampling=tuple(window.sampling[place] for place in places) or window.sampling[:1],
    )


def joined(window: Window, results: Sequence[WindowResult]) -> WindowResult:
    """What came of a window, of what came of its parts."""
    count, found = len(results), [0] * len(results)
    places = []  # of each live row: its rank, and which of the rank's live rows it is
    for row in window.live:
        places.append((row % count, found[row % count]))
        found[row % count] += 1
    steps = range(window.steps)
    tokens = [[results[rank].tokens[step][n] for rank, n in places] for step in steps]
    if not any(result.logprobs for result in results):
        return WindowResult(tokens)
    logprobs = [
        [
            results[rank].logprobs[step][n] if results[rank].logprobs else _UNASKED
            for rank, n in places
        ]
        for step in steps
    ]
    return WindowResult(tokens, logprobs)
