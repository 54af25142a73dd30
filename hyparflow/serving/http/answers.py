"""Completions in OpenAI's formats, at once and as streams."""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from hyparflow.serving.http.errors import ApiError
from hyparflow.serving.http.generation import CompletionStep, Generation
from hyparflow.serving.http.messages import GenerationBody
from hyparflow.serving.requests.served_request import ServedPiece

__all__ = ["Answer"]

_DONE = "data: [DONE]\n\n"


class Answer(ABC):
    """Makes the answer to one request.

    Attributes:
        prefix: of its id.
        whole_name, part_name: what OpenAI calls an answer, and a message of a stream.

    Args:
        name: of the model.
        body: what is asked for.
        generation: makes it.
    """

    prefix = whole_name = part_name = ""

    def __init__(self, name: str, body: GenerationBody, generation: Generation) -> None:
        self._name, self._body, self._generation = name, body, generation
        self._id, self._created = f"{self.prefix}-{uuid.uuid4().hex}", int(time.time())

    # --- what differs ---

    def opening(self, index: int) -> dict[str, Any] | None:
        """The choice of a stream's first message, if there is one before any text."""
        return None

    @abstractmethod
    def part(self, step: CompletionStep) -> dict[str, Any] | None:
        """The choice of a stream's message; None if there is nothing to tell."""

    @abstractmethod
    def choice(self, index: int, pieces: list[ServedPiece], finish: str) -> dict[str, Any]:
        """The choice of a whole answer."""

    # --- what is the same ---

    async def whole(self) -> dict[str, Any]:
        """All at once.

        Raises:
            ApiError: if it could not be made.
        """
        count = len(self._generation.served)
        pieces: list[list[ServedPiece]] = [[] for _ in range(count)]
        finishes = [""] * count
        async with aclosing(self._generation.steps()) as steps:
            async for step in steps:
                pieces[step.index].append(step.piece)
                finishes[step.index] = step.finish or ""
        choices = [
            self.choice(index, pieces[index], finish) for index, finish in enumerate(finishes)
        ]
        return self._message(self.whole_name, choices) | {"usage": self._generation.usage}

    async def events(self) -> AsyncGenerator[str, None]:
        """Server-sent events."""
        try:
            for index in range(len(self._generation.served)):
                if (choice := self.opening(index)) is not None:
                    yield self._event([choice])
            async with aclosing(self._generation.steps()) as steps:
                async for step in steps:
                    if (choice := self.part(step)) is not None:
                        yield self._event([choice])
        except ApiError as error:
            yield _event(error.body)
            return
        if self._body.has_usage:
            yield self._event([], self._generation.usage)
        yield _DONE

    def _event(self, choices: list[Any], usage: dict[str, int] | None = None) -> str:
        message = self._message(self.part_name, choices)
        return _event(message | {"usage": usage} if self._body.has_usage else message)

    def _message(self, kind: str, choices: list[Any]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._name,
            "choices": choices,
        }


def _event(message: dict[str, Any]) -> str:
    return f"data: {json.dumps(message, separators=(',', ':'))}\n\n"
