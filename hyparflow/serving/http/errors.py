"""Errors as OpenAI's interface gives them."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

__all__ = ["ApiError", "add_handlers"]

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 80  # letters that are shown of what came
_OURS = {"unsupported": "unsupported_parameter", "wrong": "invalid_value"}  # of messages.py
_NOT_AN_OBJECT = ("dict_type", "model_type", "model_attributes_type")


class ApiError(Exception):
    """What is answered in place of a completion.

    Attributes:
        status: of HTTP.
        body: the answer.
        headers: of the answer.

    Args:
        status: of HTTP.
        message: the rule, what was received, the fix.
        param: the field that is wrong.
        code: a short name of the error, for programs.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        kind = "server_error" if status >= 500 else _TYPES.get(status, "invalid_request_error")
        error = {"message": message, "type": kind, "param": param, "code": code}
        self.status, self.body, self.headers = status, {"error": error}, dict(headers or {})

    @property
    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body, self.status, self.headers)


def add_handlers(app: FastAPI) -> None:
    """Have all errors of an application answered in OpenAI's format."""

    async def of_ours(_: Request, error: Exception) -> JSONResponse:
        return error.response if isinstance(error, ApiError) else _unexpected().response

    async def of_fields(_: Request, error: Exception) -> JSONResponse:
        found: Any = error.errors() if isinstance(error, RequestValidationError) else ()
        return _of_fields(found).response

    async def of_http(_: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, HTTPException):
            return _unexpected().response
        return ApiError(error.status_code, str(error.detail), headers=error.headers).response

    app.add_exception_handler(ApiError, of_ours)
    app.add_exception_handler(RequestValidationError, of_fields)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(Exception, of_ours)


def _unexpected() -> ApiError:
    return ApiError(500, "The server made an error. Its log has more.", code="internal_error")


def _of_fields(found: Any) -> ApiError:
    """What pydantic found, of which the first is told."""
    first: dict[str, Any] = (
        found[0] if found else {"loc": ("body",), "type": "missing", "msg": "nothing came"}
    )
    context, kind = first.get("ctx") or {}, first["type"]
    places = [str(place) for place in first["loc"][1:]]
    if kind == "json_invalid":
        return ApiError(400, f"The body must be JSON. Received: {context.get('error')}.")
    if not places and kind in ("missing", *_NOT_AN_OBJECT):
        return ApiError(400, "The body must be a JSON object.")
    param = str(context.get("param") or (places[0] if places else "")) or None
    if kind in _OURS:
        return ApiError(400, str(first["msg"]), param=param, code=_OURS[kind])
    where = ".".join(places)
    if kind == "extra_forbidden":
        return ApiError(400, f"There is no field `{where}`.", param=param, code="unknown_parameter")
    if kind == "missing":
        return ApiError(400, f"`{where}` must be given.", param=param, code="missing_parameter")
    message = f"`{where}` is wrong: {first['msg']}. Received: {_SHOWN.repr(first.get('input'))}."
    return ApiError(400, message, param=param, code="invalid_value")
