"""What `model.generate` takes and returns, as rows of tokens with masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.formats.text import shortened
from hyparflow.serving.requests.text import preprocessor_of

__all__ = ["Prompts", "prompts_of"]


@dataclass
class Prompts:
    """Rows of tokens, each a prompt with room for what follows.

    Attributes:
        token_ids: (rows, length).
        padding_mask: where tokens of prompts are, as large.
        is_single: whether the caller passed one text, and is given one back.
    """

    token_ids: Any
    padding_mask: Any
    is_single: bool = False

    @property
    def sizes(self) -> list[int]:
        """Tokens of each prompt."""
        return [int(size) for size in self.padding_mask.sum(axis=1)]

    def tokens(self, row: int) -> tuple[int, ...]:
        """Of a prompt."""
        return tuple(int(token) for token in self.token_ids[row][self.padding_mask[row]])

    def shortened(self, lengths: Sequence[int]) -> Prompts:
        """The prompts, cut off where they are longer than these lengths."""
        width = self.token_ids.shape[1]
        inside = np.arange(width)[None] < np.array(lengths)[:, None]
        return Prompts(self.token_ids, self.padding_mask & inside, self.is_single)

    def answered(self, answers: Sequence[Sequence[int]], strip_prompt: bool) -> dict[str, Any]:
        """The rows with what followed.

        Args:
            answers: tokens that followed each prompt.
            strip_prompt: whether to leave the prompts out.
        """
        ids, mask = np.zeros_like(self.token_ids), np.zeros_like(self.padding_mask)
        for row, answer in enumerate(answers):
            tokens = [*(() if strip_prompt else self.tokens(row)), *answer]
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = True
        return {"token_ids": ids, "padding_mask": mask}


def prompts_of(model: Any, inputs: Any, max_length: int | None) -> Prompts:
    """The prompts among the inputs of `model.generate`.

    Args:
        model: a `keras_hub.models.CausalLM`.
        inputs: text, several texts, or a dictionary of tokens; or a `tf.data.Dataset` of those.
        max_length: of prompts and what follows; None for that of the preprocessor.

    Raises:
        ValueError: if they are none of these.
    """
    batches = [_batch(model, batch, max_length) for batch in _batches(inputs)]
    ids, masks = zip(*batches, strict=True)
    longest = max(x.shape[1] for x in ids)
    is_single = isinstance(inputs, str) or getattr(inputs, "shape", None) == ()
    return Prompts(_joined(ids, longest), _joined(masks, longest), is_single)


def _batches(inputs: Any) -> Iterator[Any]:
    if isinstance(inputs, tf.data.Dataset):
        yield from inputs.as_numpy_iterator()
    else:
        yield inputs


def _batch(model: Any, inputs: Any, max_length: int | None) -> tuple[Any, Any]:
    if getattr(model, "preprocessor", None) is not None:
        texts = _texts(inputs)
        inputs = preprocessor_of(model).generate_preprocess(texts, sequence_length=max_length)
    if not isinstance(inputs, Mapping) or set(inputs) != {"token_ids", "padding_mask"}:
        what = sorted(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
        raise ValueError(
            "A model without a preprocessor takes a dictionary of 'token_ids' and 'padding_mask', "
            f"one that makes text of text takes strings. Received: {what}"
        )
    ids, mask = np.asarray(inputs["token_ids"]), np.asarray(inputs["padding_mask"]).astype(bool)
    if ids.ndim != 2 or ids.shape != mask.shape or not ids.size:
        raise ValueError(
            "'token_ids' and 'padding_mask' must have the same shape (prompts, length). Received: "
            f"{ids.shape} and {mask.shape}"
        )
    if (mask[:, 1:] > mask[:, :-1]).any():
        raise ValueError(
            "A prompt must begin in the first place of its row, without gaps. Received: a "
            "'padding_mask' in which tokens follow padding."
        )
    return ids, mask


def _texts(inputs: Any) -> list[str]:
    if isinstance(inputs, str):
        return [inputs]
    flat: Any = [] if isinstance(inputs, Mapping) else np.asarray(inputs, dtype=object).reshape(-1)
    texts = [x.decode() if isinstance(x, bytes) else x for x in flat]
    if not texts or not all(isinstance(x, str) for x in texts):
        raise ValueError(
            "A model with a preprocessor takes a string or several. Received: "
            f"{shortened(inputs)}. Set `model.preprocessor = None` to pass tokens."
        )
    return texts


def _joined(parts: Sequence[Any], length: int) -> Any:
    padded = [np.pad(x, ((0, 0), (0, length - x.shape[1]))) for x in parts]
    return np.concatenate(padded)
