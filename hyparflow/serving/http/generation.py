"""The completions that one HTTP request asks for, while they are made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from hyparflow.serving.http.errors import ApiError
from hyparflow.serving.requests.served_request import ServedPiece, ServedRequest
from hyparflow.serving.scheduling.request import EndReason

__all__ = ["CompletionStep", "Generation"]

_FINISHES = {EndReason.STOP: "stop", EndReason.LENGTH: "length"}


@dataclass(frozen=True)
class CompletionStep:
    """What came of one completion.

    Attributes:
        index: of the completion.
        piece: text and tokens; without any at the end.
        finish: why it has ended, as OpenAI names it; None while it goes on.
    """

    index: int
    piece: ServedPiece
    finish: str | None = None


class Generation:
    """Completions that are made at the same time.

    Attributes:
        served: one of each completion.

    Args:
        served: one of each completion, those of the first prompt first.
        per_prompt: how many completions each prompt has.
        on_close: is called when nobody wants them any more.
    """

    def __init__(
        self,
        served: Sequence[ServedRequest],
        per_prompt: int,
        on_close: Callable[[Generation], None],
    ) -> None:
        self.served, self._per_prompt, self._on_close = tuple(served), per_prompt, on_close
        self._is_closed = False

    @property
    def usage(self) -> dict[str, int]:
        """How many tokens there were so far, as OpenAI's interface tells it."""
        taken = sum(len(served.prompt) for served in self.served[:: self._per_prompt])
        made = sum(served.num_tokens for served in self.served)
        return {
            "prompt_tokens": taken,
            "completion_tokens": made,
            "total_tokens": taken + made,
        }

    async def steps(self) -> AsyncGenerator[CompletionStep, None]:
        """What comes, as it comes.

        Raises:
            ApiError: if the engine has failed, or the server is going.
        """
        # One place for each, so that what nobody reads yet stays where it is.
        came: asyncio.Queue[CompletionStep | BaseException] = asyncio.Queue(len(self.served))
        tasks = [
            asyncio.ensure_future(_feed(came, index, served))
            for index, served in enumerate(self.served)
        ]
        left = len(tasks)
        try:
            while left:
                step = await came.get()
                if isinstance(step, BaseException):
                    raise step
                left -= step.finish is not None
                yield step
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def cancel(self) -> None:
        """End those that go on. Any thread may call it."""
        for served in self.served:
            if served.end_reason is None:
                served.cancel()

    def close(self) -> None:
        """Free what they hold; for the second time it does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self.cancel()
            self._on_close(self)


async def _feed(
    came: asyncio.Queue[CompletionStep | BaseException], index: int, served: ServedRequest
) -> None:
    try:
        async with aclosing(served.pieces_async()) as pieces:
            async for piece in pieces:
                await came.put(CompletionStep(index, piece))
        finish = _FINISHES.get(served.end_reason) if served.end_reason else None
        if finish is None:
            raise ApiError(
                503, "The server is going: it has ended this request.", code="server_is_going"
            )
        await came.put(CompletionStep(index, ServedPiece("", ()), finish))
    except ApiError as error:
        await came.put(error)
    except RuntimeError:
        await came.put(ApiError(500, "The engine has failed.", code="engine_failed"))
