"""Answers of /v1/completions."""

from __future__ import annotations

from typing import Any

from hyparflow.serving.http.answers import Answer
from hyparflow.serving.http.generation import CompletionStep, Generation
from hyparflow.serving.http.messages import CompletionBody
from hyparflow.serving.http.token_texts import CompletionLogprobs, TokenTexts
from hyparflow.serving.requests.served_request import ServedPiece

__all__ = ["DEFAULT_TOKENS", "TextAnswer"]

DEFAULT_TOKENS = 16  # OpenAI's


class TextAnswer(Answer):
    """See `Answer`.

    Args:
        name: of the model.
        body: what is asked for.
        generation: makes it.
        texts: of tokens.
        prompts: texts that stand before completions, one of each; empty ones without `echo`.
    """

    prefix, whole_name, part_name = "cmpl", "text_completion", "text_completion"

    def __init__(
        self,
        name: str,
        body: CompletionBody,
        generation: Generation,
        texts: TokenTexts,
        prompts: list[str],
    ) -> None:
        super().__init__(name, body, generation)
        self._prompts, self._has_logprobs = prompts, body.logprobs is not None
        self._logprobs = [CompletionLogprobs(texts) for _ in prompts]

    def opening(self, index: int) -> dict[str, Any] | None:
        """The prompt, with `echo`."""
        return self._choice(index, self._prompts[index]) if self._prompts[index] else None

    def part(self, step: CompletionStep) -> dict[str, Any] | None:
        """See `Answer.part`."""
        logprobs = None
        if self._has_logprobs and step.piece.tokens:
            logprobs = self._logprobs[step.index].of([step.piece])
        if not (step.piece.text or logprobs or step.finish):
            return None
        return self._choice(step.index, step.piece.text, logprobs, step.finish)

    def choice(self, index: int, pieces: list[ServedPiece], finish: str) -> dict[str, Any]:
        """See `Answer.choice`."""
        text = "".join(piece.text for piece in pieces)
        logprobs = self._logprobs[index].of(pieces) if self._has_logprobs else None
        return self._choice(index, self._prompts[index] + text, logprobs, finish)

    @staticmethod
    def _choice(
        index: int, text: str, logprobs: Any = None, finish: str | None = None
    ) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
