"""The texts of single tokens, and logarithms of probabilities in OpenAI's formats."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from hyparflow.serving.requests.served_request import ServedPiece
from hyparflow.serving.scheduling.request import TokenLogprobs

__all__ = ["CompletionLogprobs", "TokenTexts", "of_chat"]

_INCOMPLETE = "\ufffd"  # stands for bytes that are no character
_SPACE = "\u2581"  # SentencePiece's
_NAMES = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
_KEPT = 100_000  # tokens
_LEAST = -9999.0  # in place of minus infinity, which JSON has not; as OpenAI


class TokenTexts:
    """Texts of tokens.

    Args:
        model: a `keras_hub.models.CausalLM` with a preprocessor.
    """

    def __init__(self, model: Any) -> None:
        self._tokenizer = model.preprocessor.tokenizer
        self.of = functools.lru_cache(_KEPT)(self._text_of)

    def length(self, tokens: Sequence[int]) -> int:
        """How many letters tokens have together."""
        return len(str(self._tokenizer.detokenize(list(tokens)))) if tokens else 0

    def _text_of(self, token: int) -> tuple[str, list[int] | None]:
        """The text of a token and its bytes; a name and None if it is no whole character."""
        text, piece = str(self._tokenizer.detokenize([token])), ""
        if _INCOMPLETE in text:
            return f"token_id:{token}", None
        if not text or text[0] != " ":
            piece = str(self._tokenizer.id_to_token(token))
        if piece.startswith(_SPACE):
            text = f" {text}"
        text = text or piece  # a special one
        return text, list(text.encode())


class CompletionLogprobs:
    """Those of /v1/completions, of one completion.

    Args:
        texts: of tokens.
    """

    def __init__(self, texts: TokenTexts) -> None:
        self._texts, self._offset = texts, 0
        self._parts: list[int] = []  # of characters: tokens since the last whole one

    def of(self, pieces: Sequence[ServedPiece]) -> dict[str, list[Any]]:
        """Of what came now."""
        found: dict[str, list[Any]] = {name: [] for name in _NAMES}
        for piece in pieces:
            for token, each in zip(piece.tokens, piece.logprobs, strict=True):
                text, own_bytes = self._texts.of(token)
                values = (text, _finite(each.chosen), _with_chosen(self._texts, text, each))
                offset = self._offset + self._texts.length(self._parts)
                for name, value in zip(_NAMES, (*values, offset), strict=True):
                    found[name].append(value)
                if own_bytes is None:
                    self._parts.append(token)
                else:
                    self._parts, self._offset = [], offset + len(text)
        return found


def _with_chosen(texts: TokenTexts, chosen: str, logprobs: TokenLogprobs) -> dict[str, float]:
    """The likeliest tokens, and the one that was chosen."""
    found: dict[str, float] = {}
    for token, value in logprobs.likeliest:
        found.setdefault(texts.of(token)[0], _finite(value))  # the first is likelier
    return {**found, chosen: _finite(logprobs.chosen)}


def of_chat(texts: TokenTexts, piece: ServedPiece) -> Iterator[dict[str, Any]]:
    """Those of /v1/chat/completions, one of each token."""
    for token, each in zip(piece.tokens, piece.logprobs, strict=True):
        likeliest = [_entry(texts, *pair) for pair in each.likeliest]
        yield {**_entry(texts, token, each.chosen), "top_logprobs": likeliest}


def _entry(texts: TokenTexts, token: int, value: float) -> dict[str, Any]:
    text, own_bytes = texts.of(token)
    return {"token": text, "logprob": _finite(value), "bytes": own_bytes}


def _finite(value: float) -> float:
    return value if math.isfinite(value) else _LEAST
