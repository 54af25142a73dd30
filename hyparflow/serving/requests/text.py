"""Text and tokens, by the preprocessor of a KerasHub model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hyparflow.serving.requests.given import tokens_given

__all__ = ["StreamedText", "Tokens", "stop_tokens_of", "text_of", "tokens_of"]

Tokens = list[int]
_INCOMPLETE = "\ufffd"  # stands for bytes that are no character yet


def tokens_of(model: Any, text: str, longest: int) -> Tokens:
    """The tokens of a prompt, with the start token if the model has one.

    Args:
        model: a `keras_hub.models.CausalLM`.
        text: the prompt.
        longest: tokens, of which further ones are cut off.

    Raises:
        ValueError: if the model has no preprocessor.
    """
    made = preprocessor_of(model).generate_preprocess([text], sequence_length=longest)
    ids, there = (np.asarray(made[name])[0] for name in ("token_ids", "padding_mask"))
    return [int(token) for token in ids[there.astype(bool)]]


def text_of(model: Any, tokens: Sequence[int]) -> str:
    """The text of tokens, without special ones."""
    if not tokens:
        return ""
    given = {
        "token_ids": np.array([list(tokens)], "int32"),
        "padding_mask": np.ones((1, len(tokens)), bool),
    }
    return str(preprocessor_of(model).generate_postprocess(given)[0])


def stop_tokens_of(model: Any, stop_token_ids: Any) -> frozenset[int]:
    """The tokens after which nothing follows.

    Args:
        model: a `keras_hub.models.CausalLM`.
        stop_token_ids: as `model.generate` takes it: None, "auto" or tokens.

    Raises:
        ValueError: for "auto", if the model has no preprocessor; or for what are no tokens.
    """
    if stop_token_ids is None:
        return frozenset()
    if isinstance(stop_token_ids, str) and stop_token_ids == "auto":
        tokenizer = preprocessor_of(model, '`stop_token_ids="auto"`').tokenizer
        names = ("end_token_id", "end_token2_id")
        found = (getattr(tokenizer, name, None) for name in names)
        return frozenset(int(token) for token in found if token is not None)
    if isinstance(stop_token_ids, str) or not isinstance(stop_token_ids, Iterable):
        raise ValueError(
            "`stop_token_ids` must be 'auto', None or a list of tokens. Received: "
            f"stop_token_ids={stop_token_ids!r}"
        )
    vocabulary = int(model.backbone.vocabulary_size)
    return frozenset(tokens_given("stop_token_ids", stop_token_ids, vocabulary))


def preprocessor_of(model: Any, asked: str = "text") -> Any:
    """What makes tokens of text."""
    found = getattr(model, "preprocessor", None)
    if found is None:
        raise ValueError(
            f"A model must have a preprocessor for {asked}. Received: '{model.name}' without one. "
            "Attach one, or pass tokens, and stop_token_ids=None or a list of them."
        )
    return found


class StreamedText:
    """Text of tokens that come one after another, given out in pieces of whole characters.

    Only the tokens since the last piece are made text again, so that a long answer costs no more
    for each token than a short one.

    Args:
        model: a `keras_hub.models.CausalLM`.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._recent: Tokens = []  # those whose text was given out last, and what came since
        self._given = 0  # of the recent ones

    def add(self, tokens: Sequence[int], is_last: bool = False) -> str:
        """What text there is more than before."""
        self._recent += tokens
        if len(self._recent) == self._given:
            return ""
        before = text_of(self._model, self._recent[: self._given])
        text = text_of(self._model, self._recent)
        if text.endswith(_INCOMPLETE) and not is_last:
            return ""
        self._recent = self._recent[self._given :]
        self._given = len(self._recent)
        return text[len(before) :]
