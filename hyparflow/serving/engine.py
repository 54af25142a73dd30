"""One rank's loop: requests come, windows run, tokens go out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hyparflow.serving.decoder import Decoder
from hyparflow.serving.limits import Limits
from hyparflow.serving.request import Request, RequestProgress
from hyparflow.serving.scheduler import Scheduler
from hyparflow.serving.window import Piece, Shape, Window

__all__ = ["ServingEngine"]

_SHORTEST_PIECE = 8  # tokens: shorter ones are filled up, so that few sizes are compiled


class ServingEngine:
    """Computes the windows that a scheduler plans.

    Attributes:
        scheduler: which requests compute together.

    Args:
        decoder: the model.
        limits: what may be taken.
    """

    def __init__(self, decoder: Decoder, limits: Limits) -> None:
        self.scheduler = Scheduler(limits)
        self._decoder, self._caches = decoder, list[Any]()
        self._shape = Shape(0, 0)

    def submit(self, request: Request) -> None:
        """See `Scheduler.submit`."""
        self.scheduler.submit(request)

    def cancel(self, number: int) -> None:
        """See `Scheduler.cancel`."""
        self.scheduler.cancel(number)

    def advance(self) -> list[RequestProgress]:
        """Run a window, if there is anything to do: what became of the requests."""
        window = self.scheduler.plan()
        if window is None:
            self._caches, self._shape = [], Shape(0, 0)
            return self.scheduler.report([])
        return self.scheduler.report(self._run(window))

    def _run(self, window: Window) -> Sequence[Sequence[int]]:
        self._rebuild(window)
        for piece in window.pieces:
            self._take_in(piece)
        if not window.steps:
            return []
        shape, decoder = self._shape, self._decoder
        tokens, positions = [0] * shape.rows, [shape.length - 1] * shape.rows
        for place, row in enumerate(window.live):
            tokens[row], positions[row] = window.tokens[place], window.positions[place]
        made, self._caches = decoder.run(self._given_up(), tokens, positions, window.steps)
        return [[int(step[row]) for row in window.live] for step in made.numpy()]

    def _rebuild(self, window: Window) -> None:
        if window.sources is not None:
            if self._caches:
                self._caches = self._decoder.rebuilt(self._given_up(), window.shape, window.sources)
            else:
                self._caches = self._decoder.empty(window.shape)
            self._shape = window.shape

    def _take_in(self, piece: Piece) -> None:
        count = len(piece.tokens)
        padded = max(_SHORTEST_PIECE, 1 << (count - 1).bit_length())
        self._caches = self._decoder.take_in(
            self._given_up(), piece.row, piece.start, piece.tokens, padded
        )

    def _given_up(self) -> list[Any]:
        """The caches, which nobody holds any longer: then they are changed in place."""
        caches, self._caches = self._caches, []
        return caches
