"""The paths that a server of completions answers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp

from hyparflow.serving.http.answers import Answer
from hyparflow.serving.http.chat import ChatAnswer
from hyparflow.serving.http.chat_template import ChatTemplate
from hyparflow.serving.http.completions import DEFAULT_TOKENS, TextAnswer
from hyparflow.serving.http.errors import ApiError, add_handlers
from hyparflow.serving.http.events import ClientGone, EventStream, unless_gone
from hyparflow.serving.http.generation import Generation
from hyparflow.serving.http.guard import OPEN_PATH, Guard
from hyparflow.serving.http.messages import ChatBody, CompletionBody
from hyparflow.serving.http.service import Service
from hyparflow.serving.requests.text import text_of

__all__ = ["HttpSettings", "application"]

_GONE = 499  # nobody reads it; the logs of proxies have this number


@dataclass(frozen=True)
class HttpSettings:
    """What is told to clients, and asked of them.

    Attributes:
        name: of the model.
        key: that requests must have; None if they need none.
        template: of chats; None to refuse them.
        max_waiting: the most completions that wait for a row.
        most_bytes: of the body of a request.
    """

    name: str
    key: str | None = None
    template: ChatTemplate | None = None
    max_waiting: int = 1000
    most_bytes: int = 10**6


def application(service: Service, settings: HttpSettings) -> ASGIApp:
    """What answers requests.

    Args:
        service: has completions made.
        settings: what is told to clients, and asked of them.
    """
    app = FastAPI(title="hyparflow", docs_url=None, redoc_url=None)  # they load scripts of others
    add_handlers(app)
    _add_state(app, service)
    _add_completions(app, service)
    _add_chat(app, service, settings.template)
    return Guard(app, settings.key, settings.most_bytes)


def _add_state(app: FastAPI, service: Service) -> None:
    started = int(time.time())
    model = {"id": service.name, "object": "model", "created": started, "owned_by": "hyparflow"}

    @app.api_route(OPEN_PATH, methods=["GET", "HEAD"])
    async def health() -> Response:
        if service.is_well:
            return JSONResponse({"status": "ok"})
        failed = service.server.error is not None
        return JSONResponse({"status": "failed" if failed else "closing"}, 503)

    @app.get("/metrics")
    def metrics() -> Response:  # no coroutine: it waits for the server's lock
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        service.require_model(name)
        return model


def _add_completions(app: FastAPI, service: Service) -> None:
    @app.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request) -> Response:
        service.require_model(body.model)
        prompts = body.prompts
        generation = await service.begin(
            prompts, body, body.max_tokens or DEFAULT_TOKENS, body.logprobs
        )
        shown = [
            (prompt if isinstance(prompt, str) else text_of(service.server.model, prompt))
            if body.echo
            else ""
            for prompt in prompts
            for _ in range(body.n or 1)
        ]
        answer = TextAnswer(service.name, body, generation, service.texts, shown)
        return await _answered(answer, generation, request, bool(body.stream))


def _add_chat(app: FastAPI, service: Service, template: ChatTemplate | None) -> None:
    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Response:
        service.require_model(body.model)
        if template is None:
            raise ApiError(
                400,
                "Chats need a template, which this server has not. Start it with --chat-template "
                "FILE, or use /v1/completions.",
                param="messages",
                code="no_chat_template",
            )
        most = body.max_completion_tokens or body.max_tokens
        prompt = template.text(body.messages, service.server.model)
        generation = await service.begin([prompt], body, most, body.num_logprobs)
        answer = ChatAnswer(service.name, body, generation, service.texts)
        return await _answered(answer, generation, request, bool(body.stream))


async def _answered(
    answer: Answer, generation: Generation, request: Request, is_stream: bool
) -> Response:
    if is_stream:
        return EventStream(answer.events(), generation.close)
    try:
        return JSONResponse(await unless_gone(request.receive, answer.whole()))
    except ClientGone:
        return Response(status_code=_GONE)
    finally:
        generation.close()
