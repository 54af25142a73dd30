"""Who computes the windows of a replica: here one process; elsewhere several ranks together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from hyparflow.serving.decoding.caches import Caches
from hyparflow.serving.decoding.decoder import Decoder
from hyparflow.serving.scheduling.limits import Limits
from hyparflow.serving.scheduling.request import TokenLogprobs
from hyparflow.serving.scheduling.sampling import Sampling
from hyparflow.serving.scheduling.window import EMPTY, Piece, Shape, Window

__all__ = [
    "LocalRunner",
    "Runner",
    "WindowResult",
    "made_by",
    "put_together",
    "result_of",
    "warm_up_window",
]


@dataclass(frozen=True)
class WindowResult:
    """What came of a window.

    Attributes:
        tokens: of each iteration, those of the live rows.
        logprobs: as many, if any of the rows asks for them.
    """

    tokens: Sequence[Sequence[int]] = ()
    logprobs: Sequence[Sequence[TokenLogprobs]] = ()


class Runner(Protocol):
    """Computes this rank's share of the windows of one replica."""

    def run(self, window: Window) -> WindowResult:
        """The tokens of a window."""

    def warm_up(self, window: Window) -> None:
        """Compile what a window needs, while nobody is served; see `warm_up_window`."""

    def bytes(self) -> dict[str, int]:
        """Of memory, by kind."""

    def close(self) -> None:
        """Give the caches back; the next window has new ones."""


class LocalRunner:
    """One replica in this process.

    Args:
        decoder: the model.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder, self._caches, self._shape = decoder, Caches(), Shape(0, 0)

    def run(self, window: Window) -> WindowResult:
        """See `Runner.run`."""
        self._rebuild(window)
        self._take_in(window)
        if not window.steps:
            return WindowResult()
        return made_by(self._decoder, self._caches, self._shape, window)

    def warm_up(self, window: Window) -> None:
        """See `Runner.warm_up`."""
        self.run(window)
        self.close()

    def bytes(self) -> dict[str, int]:
        """See `Runner.bytes`."""
        return {"caches": self._shape.size * self._decoder.bytes_of_token}

    def close(self) -> None:
        """See `Runner.close`."""
        self._caches, self._shape = Caches(), Shape(0, 0)

    def _take_in(self, window: Window) -> None:
        for pieces in put_together(window):
            self._decoder.take_in(self._caches, pieces)

    def _rebuild(self, window: Window) -> None:
        if window.sources is None:
            return
        if window.begins_anew:
            self.close()  # before there are others
            self._caches = self._decoder.empty(window.shape)
        else:
            self._caches = self._decoder.rebuilt(self._caches, window.shape, window.sources)
        self._shape = window.shape


def made_by(decoder: Decoder, caches: Caches, shape: Shape, window: Window) -> WindowResult:
    """The tokens of a window whose rows are all in these caches.

    Args:
        decoder: the model.
        caches: with the tokens so far.
        shape: of the caches.
        window: that makes tokens.
    """
    # Rows that take no part write to the last place, which nobody has reached, and choose as
    # others do, so that nothing else is compiled for them.
    tokens, positions = [0] * shape.rows, [shape.length - 1] * shape.rows
    sampling, given = [window.sampling[0]] * shape.rows, [0] * shape.rows
    for place, row in enumerate(window.live):
        tokens[row], positions[row] = window.tokens[place], window.positions[place]
        sampling[row], given[row] = window.sampling[place], window.given[place]
    made = decoder.run(caches, tokens, positions, window.steps, sampling, given)
    return result_of(window, made)


def put_together(window: Window) -> list[list[Piece]]:
    """Pieces of a window that are computed as one: as many as are compiled, or one."""
    alike: dict[int, list[Piece]] = {}
    for piece in window.pieces:
        alike.setdefault(piece.padded, []).append(piece)
    found: list[list[Piece]] = []
    for pieces in alike.values():
        for count in (*window.together, 1):
            while len(pieces) >= count:
                found.append(pieces[:count])
                pieces = pieces[count:]
    return found


def warm_up_window(limits: Limits, shape: Shape, sampling: Sampling) -> Window:
    """A window that needs all that is compiled for caches of a size."""
    pieces = list[Piece]()
    shortest = 1
    for size in limits.piece_sizes(min(limits.piece, shape.length)):
        piece = Piece(0, 0, (0,) * min(size, shape.length), size)
        most = min(shape.rows, limits.piece * limits.pieces_while_idle // shortest)
        pieces += [piece] * (1 + sum(count for count in limits.together if count <= most))
        shortest = size + 1
    return Window(
        shape=shape,
        sources=(EMPTY,) * shape.rows,
        pieces=tuple(pieces),
        live=tuple(range(shape.rows)),
        numbers=(0,) * shape.rows,
        tokens=(0,) * shape.rows,
        positions=(0,) * shape.rows,
        given=(0,) * shape.rows,
        sampling=(sampling,) * shape.rows,
        steps=1,
        together=limits.together,
    )


def result_of(window: Window, made: Sequence[Any]) -> WindowResult:
    """What a decoder made, for the live rows."""
    rows = list(window.live)
    tokens = made[0][:, rows].tolist()
    if len(made) == 1:
        return WindowResult(tokens)
    asked = [way.num_logprobs or 0 for way in window.sampling]
    chosen, likeliest, values = (part[:, rows] for part in made[1:])

    def of_token(step: int, place: int) -> TokenLogprobs:
        pairs = zip(likeliest[step, place], values[step, place], strict=True)
        found = [(int(token), float(value)) for token, value in pairs if np.isfinite(value)]
        return TokenLogprobs(float(chosen[step, place]), tuple(found[: asked[place]]))

    steps, places = range(len(tokens)), range(len(rows))
    return WindowResult(tokens, [[of_token(step, place) for place in places] for step in steps])
