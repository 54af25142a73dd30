"""What a request must pass before it is read: the key, and limits of its body."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hyparflow.serving.http.errors import ApiError

__all__ = ["OPEN_PATH", "Guard"]

OPEN_PATH = "/health"  # which needs no key
_PATIENCE = 30.0  # seconds in which a body must come


class Guard:
    """Refuses requests without the key, and bodies that are too large or come too slowly.

    Args:
        app: what requests go on to.
        key: that each must have; None if none is needed.
        most_bytes: of a body.
    """

    def __init__(self, app: ASGIApp, key: str | None, most_bytes: int) -> None:
        self._app, self._most = app, most_bytes
        self._key = None if key is None else f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take a request, as ASGI says."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._require_key(scope)
            _require_json(scope)
            body = await self._body(scope, receive)
        except ApiError as error:
            await error.response(scope, receive, send)
            return
        if body is None:
            return
        is_given = False

        async def again() -> Message:
            nonlocal is_given
            if is_given:
                return await receive()  # that the client has gone, later
            is_given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, send)

    def _require_key(self, scope: Scope) -> None:
        if self._key is None or scope["path"] == OPEN_PATH:
            return
        if not hmac.compare_digest(_header(scope["headers"], b"authorization"), self._key):
            raise ApiError(
                401,
                "The header `Authorization: Bearer KEY` must have the key of this server, which "
                "whoever started it knows.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """All of it; None if the client has gone."""
        told = _header(scope["headers"], b"content-length")
        if told.isdigit() and int(told[:20]) > self._most:
            raise self._too_large()
        try:
            return await asyncio.wait_for(self._read(receive), _PATIENCE)
        except asyncio.TimeoutError:
            raise ApiError(
                408, f"A body must come within {_PATIENCE:.0f} seconds.", headers=_CLOSE
            ) from None

    async def _read(self, receive: Receive) -> bytes | None:
        found = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            found += message.get("body", b"")
            if len(found) > self._most:
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(found)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"A body may have {self._most} bytes, not more.", headers=_CLOSE)


_CLOSE = {"Connection": "close"}  # the rest of the body is not read


def _require_json(scope: Scope) -> None:
    """What pages of other sites may send without the browser asking is never JSON by its name."""
    kind = _header(scope["headers"], b"content-type").partition(b";")[0].strip().lower()
    if scope["method"] == "POST" and kind != b"application/json":
        raise ApiError(
            415,
            "A body must be JSON, and say so by the header `Content-Type: application/json`. "
            f"Received: {kind.decode('latin-1')[:80] or 'no such header'}.",
            headers=_CLOSE,
        )


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes:
    return next((value for key, value in headers if key.lower() == name), b"")
