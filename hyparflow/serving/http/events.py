"""Answers that end when the client goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

__all__ = ["ClientGone", "EventStream", "unless_gone"]

_Result = TypeVar("_Result")
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # proxies pass it on at once


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, _Result]) -> _Result:
    """Do some work as long as the client waits for it.

    Args:
        receive: of the request, whose body was read.
        work: is cancelled if the client goes.

    Returns:
        What the work returns.

    Raises:
        ClientGone: if the client has gone.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


class EventStream(StreamingResponse):
    """Server-sent events, as long as the client is there.

    Args:
        events: what is sent.
        close: is called in the end, whatever happens.
    """

    def __init__(self, events: AsyncGenerator[str, None], close: Callable[[], None]) -> None:
        super().__init__(events, headers=_HEADERS, media_type="text/event-stream")
        self._events, self._close = events, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all, as ASGI says."""
        try:
            await unless_gone(receive, self.stream_response(send))
        except ClientGone:
            pass
        finally:
            self._close()
            await self._events.aclose()
