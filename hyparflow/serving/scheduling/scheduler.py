"""Which requests compute together, window after window. Pure integers: no clock but iterations.

Requests join a running batch when a row is free, and leave it when they are done (Flover, section
3; Orca, Yu et al., OSDI 2022, calls it iteration-level scheduling). Between two such moments a
window of several iterations runs as one call. Caches have few sizes, so rows are moved only where
the size changes: then admission, compaction and growth are one and the same copy.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

from hyparflow.serving.scheduling.limits import Limits
from hyparflow.serving.scheduling.request import EndReason, Request, RequestProgress, TokenLogprobs
from hyparflow.serving.scheduling.window import EMPTY, Piece, Shape, Window

__all__ = ["Scheduler", "SchedulerCounts"]


@dataclass
class SchedulerCounts:
    """What a scheduler counted.

    Attributes:
        windows, iterations: that ran.
        useful: tokens that requests were given.
        issued: rows that were computed, in all iterations.
        rebuilds: of the caches.
        preemptions: requests that lost their rows, and were computed again.
    """

    windows: int = 0
    iterations: int = 0
    useful: int = 0
    issued: int = 0
    rebuilds: int = 0
    preemptions: int = 0


@dataclass(eq=False)
class _Row:
    """A request that has a row, or had one.

    Attributes:
        request: what is asked for.
        tokens: of the prompt, and those that came.
        cached: how many of them are in the cache.
    """

    request: Request
    tokens: list[int]
    cached: int = 0

    @property
    def left(self) -> int:
        return self.request.most_tokens - len(self.tokens)

    @property
    def waits_for(self) -> int:
        """Tokens that must go into the cache before any comes; the last one is taken as input."""
        return len(self.tokens) - 1 - self.cached


@dataclass
class Scheduler:
    """Decides what runs in each window.

    Attributes:
        limits: what it may take.
        counts: what it counted.
    """

    limits: Limits
    counts: SchedulerCounts = field(default_factory=SchedulerCounts)

    def __post_init__(self) -> None:
        self._waiting: list[_Row] = []  # by number
        self._rows: list[_Row | None] = []
        self._shape = Shape(0, 0)
        self._running: Window | None = None
        self._ended: list[RequestProgress] = []

    @property
    def is_idle(self) -> bool:
        """Whether no request waits or runs."""
        return not self._waiting and not any(self._rows)

    @property
    def running(self) -> int:
        """How many requests have a row."""
        return sum(row is not None for row in self._rows)

    @property
    def load(self) -> int:
        """How many tokens it still has to compute, at most."""
        rows = [*self._waiting, *filter(None, self._rows)]
        return sum(row.left + row.waits_for for row in rows)

    # --- requests ---

    def submit(self, request: Request) -> None:
        """Take a request.

        Raises:
            ValueError: if it could never run; see `Limits.require_possible`.
        """
        self.limits.require_possible(request)
        bisect.insort(
            self._waiting, _Row(request, list(request.prompt)), key=lambda row: row.request.number
        )

    def cancel(self, number: int, reason: EndReason = EndReason.CANCELLED) -> None:
        """End a request, if it is here; what a running window makes of it is dropped."""
        for row in [*self._waiting, *self._rows]:
            if row is not None and row.request.number == number:
                self._ended.append(RequestProgress(number, (), reason))
        self._waiting = [x for x in self._waiting if x.request.number != number]
        self._rows = [None if x is None or x.request.number == number else x for x in self._rows]

    # --- windows ---

    def plan(self) -> Window | None:
        """The next window; None if there is nothing to do."""
        admitted = self._admitted()
        if not admitted and not any(self._rows):
            return None
        pieces = self._next_pieces([*filter(None, self._rows), *admitted])
        steps = self._steps(pieces, admitted)
        sources = self._settle(admitted, pieces, steps)
        return self._window(sources, pieces, steps)

    def report(
        self,
        tokens: Sequence[Sequence[int]],
        logprobs: Sequence[Sequence[TokenLogprobs]] = (),
    ) -> list[RequestProgress]:
        """Take what came of the window that ran.

        Args:
            tokens: of each iteration, one for each live row.
            logprobs: as many, if any live row asks for them.

        Returns:
            What became of the requests, also of those that ended otherwise since the last report.
        """
        window, found = self._running, list(self._ended)
        self._ended.clear()
        if window is None:
            return found
        self._running = None
        self.counts.windows += 1
        self.counts.iterations += window.steps
        self.counts.issued += window.steps * window.shape.rows
        for place, row_number in enumerate(window.live):
            row = self._rows[row_number]
            if row is None or row.request.number != window.numbers[place]:
                continue  # it was cancelled meanwhile
            asks = row.request.sampling.num_logprobs is not None
            likely = [step[place] for step in logprobs] if asks else []
            progress = self._taken(row, [step[place] for step in tokens], likely)
            self.counts.useful += len(progress.tokens)
            found.append(progress)
            if progress.end is not None:
                self._rows[row_number] = None
        return found

    @staticmethod
    def _taken(
        row: _Row, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs]
    ) -> RequestProgress:
        request = row.request
        given, end = list(tokens[: row.left]), None
        for place, token in enumerate(given):
            if token in request.stop_tokens:
                given, end = given[: place + 1], EndReason.STOP
                break
        row.tokens += given
        row.cached += len(tokens)
        if end is None and not row.left:
            end = EndReason.LENGTH
        return RequestProgress(request.number, tuple(given), end, tuple(logprobs[: len(given)]))

    # --- what a window is made of ---

    def _admitted(self) -> list[_Row]:
        """Requests that get a row, in the order of arrival: nobody overtakes."""
        running, admitted = [x for x in self._rows if x is not None], list[_Row]()
        longest = max((len(row.tokens) for row in running), default=0)
        while self._waiting and len(running) + len(admitted) < self.limits.max_batch:
            row = self._waiting[0]
            longest = max(longest, len(row.tokens))
            # Room for a window, so that what is admitted is not thrown out at once.
            most = min(self.limits.max_length, longest + self.limits.window)
            shape = self.limits.shape(len(running) + len(admitted) + 1, most)
            # Alone each fits: that was checked when it came.
            if (running or admitted) and not self.limits.fits(shape):
                break
            admitted.append(self._waiting.pop(0))
        return admitted

    def _next_pieces(self, rows: Sequence[_Row]) -> dict[int, int]:
        """Number of a request -> tokens of its prompt that go into the cache."""
        piece, found = self.limits.piece, dict[int, int]()
        is_idle = all(row.waits_for for row in rows)
        room = piece * (self.limits.pieces_while_idle if is_idle else 1)
        for row in sorted(rows, key=lambda row: row.request.number):
            if room and row.waits_for:
                found[row.request.number] = min(piece, room, row.waits_for)
                room -= found[row.request.number]
        return found

    def _steps(self, pieces: dict[int, int], admitted: Sequence[_Row]) -> int:
        """Iterations: as many as the first request to end needs, at most."""
        rows = [*filter(None, self._rows), *admitted]
        live = [row for row in rows if self._is_live(row, pieces)]
        return min([self.limits.window, *(row.left for row in live)]) if live else 0

    @staticmethod
    def _is_live(row: _Row, pieces: dict[int, int]) -> bool:
        return pieces.get(row.request.number, 0) == row.waits_for

    def _settle(
        self, admitted: Sequence[_Row], pieces: dict[int, int], steps: int
    ) -> tuple[int, ...] | None:
        """Give each request a row; whoever came last loses it if memory is short."""
        everyone = [*filter(None, self._rows), *admitted]
        while True:
            shape = self._needed(everyone, pieces, steps)
            if self.limits.fits(shape) or len(everyone) == 1:
                break
            last = max(everyone, key=lambda row: row.request.number)
            everyone.remove(last)
            self._preempt(last, pieces)
        return self._placed([row for row in admitted if row in everyone], shape)

    def _needed(self, rows: Sequence[_Row], pieces: dict[int, int], steps: int) -> Shape:
        """The size of caches after a window; the last place of rows that make no token is free."""
        filled = [
            row.cached
            + pieces.get(row.request.number, 0)
            + (steps if self._is_live(row, pieces) else 1)
            for row in rows
        ]
        return self.limits.shape(len(rows), max(filled))

    def _preempt(self, row: _Row, pieces: dict[int, int]) -> None:
        row.cached = 0
        pieces.pop(row.request.number, None)
        self._rows = [None if x is row else x for x in self._rows]
        bisect.insort(self._waiting, row, key=lambda row: row.request.number)
        self.counts.preemptions += 1

    def _placed(self, admitted: Sequence[_Row], shape: Shape) -> tuple[int, ...] | None:
        """Rows stay where they are unless the caches change their size; see `Window.sources`."""
        if shape.rows == self._shape.rows and shape.length <= self._shape.length:
            free = [number for number, row in enumerate(self._rows) if row is None]
            for number, row in zip(free, admitted, strict=False):
                self._rows[number] = row
            return None
        sources = [number for number, row in enumerate(self._rows) if row is not None]
        rows = [*filter(None, self._rows), *admitted]
        self._rows = [*rows, *[None] * (shape.rows - len(rows))]
        self._shape = shape
        self.counts.rebuilds += 1
        return (*sources, *[EMPTY] * (shape.rows - len(sources)))

    def _window(self, sources: tuple[int, ...] | None, pieces: dict[int, int], most: int) -> Window:
        taken, live = list[Piece](), list[tuple[int, _Row]]()
        for number, row in enumerate(self._rows):
            if row is None:
                continue
            count, is_live = pieces.get(row.request.number, 0), self._is_live(row, pieces)
            if count:
                tokens = tuple(row.tokens[row.cached : row.cached + count])
                padded = self.limits.piece_sizes(count)[-1]
                taken.append(Piece(number, row.cached, tokens, padded))
                row.cached += count
            if is_live:
                live.append((number, row))
        self._running = Window(
            shape=self._shape,
            sources=sources,
            pieces=tuple(taken),
            live=tuple(number for number, _ in live),
            numbers=tuple(row.request.number for _, row in live),
            tokens=tuple(row.tokens[-1] for _, row in live),
            positions=tuple(len(row.tokens) - 1 for _, row in live),
            given=tuple(len(row.tokens) - len(row.request.prompt) for _, row in live),
            sampling=tuple(row.request.sampling for _, row in live),
            steps=most if live else 0,
            together=self.limits.together,
        )
        return self._running
