"""What a caller has of a request while it is served: tokens and text as they come."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass

from hyparflow.serving.scheduling.request import EndReason, TokenLogprobs

__all__ = ["RequestTimes", "ServedPiece", "ServedRequest"]


@dataclass(frozen=True)
class ServedPiece:
    """What came of a request in one window.

    Attributes:
        text: whole characters, if text is wanted.
        tokens: that came.
        logprobs: of the tokens, if they were asked for.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass
class RequestTimes:
    """Seconds of `time.monotonic`.

    Attributes:
        submitted: when it came.
        first: when its first token was there; None before.
        last: when its last token was there; None before.
    """

    submitted: float
    first: float | None = None
    last: float | None = None


class ServedRequest:
    """A request for tokens. Any thread may call it; iterating gives pieces of text as they come.

    Attributes:
        number: of the request.
        prompt: its tokens.
        times: when it came, and its tokens.

    Args:
        number: of the request.
        prompt: its tokens.
        cancel: ends it.
        has_text: whether text comes beside the tokens.
    """

    def __init__(
        self, number: int, prompt: Sequence[int], cancel: Callable[[], None], has_text: bool
    ) -> None:
        self.number, self.prompt, self._has_text = number, tuple(prompt), has_text
        self.times = RequestTimes(time.monotonic())
        self._cancel = cancel
        self._changed = threading.Condition()
        self._pieces: list[ServedPiece] = []
        self._end: EndReason | None = None
        self._error: BaseException | None = None
        self._listeners: list[Callable[[], None]] = []

    # --- what callers use ---

    @property
    def end_reason(self) -> EndReason | None:
        """Why it has ended; None while it goes on."""
        return self._end

    @property
    def num_tokens(self) -> int:
        """How many tokens there are so far."""
        with self._changed:
            return sum(len(piece.tokens) for piece in self._pieces)

    def cancel(self) -> None:
        """End it: within a window nothing more comes, and its row is free."""
        self._cancel()

    def text(self, timeout: float | None = None) -> str:
        """All text that follows the prompt, once the last of it is there.

        Args:
            timeout: seconds to wait at most; None to wait as long as it takes.

        Raises:
            TimeoutError: if it takes longer.
            RuntimeError: if the server failed.
            ValueError: if the model has no preprocessor, which makes text of tokens.
        """
        if not self._has_text:
            raise ValueError(
                "A model must have a preprocessor for text. Received: one without, and a request "
                "for text. Call `tokens`, or attach a preprocessor."
            )
        self._wait(timeout)
        return "".join(piece.text for piece in self._pieces)

    def tokens(self, timeout: float | None = None) -> list[int]:
        """All tokens that follow the prompt; see `text`."""
        self._wait(timeout)
        return [token for piece in self._pieces for token in piece.tokens]

    def pieces(self) -> Iterator[ServedPiece]:
        """What comes, as it comes.

        Raises:
            RuntimeError: if the server failed.
        """
        place = 0
        while True:
            with self._changed:
                while len(self._pieces) == place and self._end is None:
                    self._changed.wait()
                new, has_ended = self._pieces[place:], self._end is not None
            yield from new
            place += len(new)
            if has_ended and place == len(self._pieces):
                self._raise()
                return

    async def pieces_async(self) -> AsyncGenerator[ServedPiece, None]:
        """As `pieces`, in an event loop, whose other tasks go on meanwhile."""
        loop, came, place = asyncio.get_running_loop(), asyncio.Event(), 0

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
                loop.call_soon_threadsafe(came.set)

        with self._changed:
            self._listeners.append(wake)
        try:
            while True:
                came.clear()
                with self._changed:
                    new, has_ended = self._pieces[place:], self._end is not None
                for piece in new:
                    yield piece
                place += len(new)
                if has_ended and place == len(self._pieces):
                    self._raise()
                    return
                if not new:
                    await came.wait()
        finally:
            with self._changed:
                self._listeners.remove(wake)

    def __iter__(self) -> Iterator[str]:
        return (piece.text for piece in self.pieces() if piece.text)

    async def __aiter__(self) -> AsyncIterator[str]:
        async for piece in self.pieces_async():
            if piece.text:
                yield piece.text

    # --- what the server calls ---

    def take(self, piece: ServedPiece, end: EndReason | None) -> None:
        """Take what came."""
        now = time.monotonic()
        with self._changed:
            if piece.tokens:
                self.times.first = self.times.first or now
                self.times.last = now
            if piece.tokens or piece.text:
                self._pieces.append(piece)
            self._end = end
            self._wake()

    def fail(self, error: BaseException) -> None:
        """End it by an error, unless it has ended."""
        with self._changed:
            if self._end is None:
                self._end, self._error = EndReason.FAILED, error
                self._wake()

    def _wake(self) -> None:
        self._changed.notify_all()
        for listener in self._listeners:
            listener()

    def _wait(self, timeout: float | None) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._end is not None, timeout):
                raise TimeoutError(f"request {self.number} has not ended in {timeout} seconds")
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise RuntimeError(f"the server failed: {self._error}") from self._error
