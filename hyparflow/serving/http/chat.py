"""Answers of /v1/chat/completions."""

from __future__ import annotations

from typing import Any

from hyparflow.serving.http.answers import Answer
from hyparflow.serving.http.generation import CompletionStep, Generation
from hyparflow.serving.http.messages import ChatBody
from hyparflow.serving.http.token_texts import TokenTexts, of_chat
from hyparflow.serving.requests.served_request import ServedPiece

__all__ = ["ChatAnswer"]


class ChatAnswer(Answer):
    """See `Answer`.

    Args:
        name: of the model.
        body: what is asked for.
        generation: makes it.
        texts: of tokens.
    """

    prefix, whole_name, part_name = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(
        self, name: str, body: ChatBody, generation: Generation, texts: TokenTexts
    ) -> None:
        super().__init__(name, body, generation)
        self._texts, self._has_logprobs = texts, bool(body.logprobs)

    def opening(self, index: int) -> dict[str, Any]:
        """Who speaks."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def part(self, step: CompletionStep) -> dict[str, Any] | None:
        """See `Answer.part`."""
        logprobs = self._logprobs([step.piece]) if step.piece.tokens else None
        if not (step.piece.text or logprobs or step.finish):
            return None
        delta = {} if step.finish else {"content": step.piece.text}
        return {
            "index": step.index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": step.finish,
        }

    def choice(self, index: int, pieces: list[ServedPiece], finish: str) -> dict[str, Any]:
        """See `Answer.choice`."""
        text = "".join(piece.text for piece in pieces)
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": self._logprobs(pieces),
            "finish_reason": finish,
        }

    def _logprobs(self, pieces: list[ServedPiece]) -> dict[str, Any] | None:
        if not self._has_logprobs:
            return None
        found = [entry for piece in pieces for entry in of_chat(self._texts, piece)]
        return {"content": found, "refusal": None}
