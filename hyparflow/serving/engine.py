"""One rank's loop: requests come, windows run, tokens go out."""

from __future__ import annotations

from collections.abc import Sequence
from hyparflow.serving.decoder import Caches, Decoder
from hyparflow.serving.limits import Limits
from hyparflow.serving.request import Request, RequestProgress
from hyparflow.serving.scheduler import Scheduler
from hyparflow.serving.window import Piece, Shape, Window

__all__ = ["ServingEngine"]

_SHORTEST_PIECE = 16  # tokens, and times 4: others are filled up, so that few are compiled


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
        self._decoder, self._caches = decoder, Caches()
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
        shape = self._shape
        # Rows that take no part write to the last place, which a request overwrites if it comes
        # there, and choose as others do, so that nothing else is compiled for them.
        tokens, positions = [0] * shape.rows, [shape.length - 1] * shape.rows
        sampling, given = [window.sampling[0]] * shape.rows, [0] * shape.rows
        for place, row in enumerate(window.live):
            tokens[row], positions[row] = window.tokens[place], window.positions[place]
            sampling[row], given[row] = window.sampling[place], window.given[place]
        made = self._decoder.run(self._caches, tokens, positions, window.steps, sampling, given)
        return [[int(step[row]) for row in window.live] for step in made]

    def _rebuild(self, window: Window) -> None:
        if window.sources is not None:
            if self._caches:
                self._caches = self._decoder.rebuilt(self._caches, window.shape, window.sources)
            else:
                self._caches = self._decoder.empty(window.shape)
            self._shape = window.shape

    def _take_in(self, piece: Piece) -> None:
        padded = _SHORTEST_PIECE
        while padded < len(piece.tokens):
            padded *= 4
        self._decoder.take_in(self._caches, piece.row, piece.start, piece.tokens, padded)
