"""Batches of a model's inputs: arrays, datasets, or the tokens of texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow.formats.argument_checks import count_of
from hyparflow.formats.text import shortened

__all__ = ["batches_of"]

_LEAST = 2  # tokens of a row: one to begin with, and one of the text


def batches_of(
    model: Any, inputs: Any, batch_size: int, sequence_length: int | None
) -> Iterator[Any]:
    """What a model is to be called with, one call after another.

    Args:
        model: the model.
        inputs: see `hyparflow.trace_experts`.
        batch_size: rows of a call; datasets have their own.
        sequence_length: tokens of a row of text.

    Raises:
        ValueError: if they are no inputs.
    """
    batch_size = count_of("batch_size", batch_size)
    if isinstance(inputs, tf.data.Dataset):
        yield from (keras.utils.unpack_x_y_sample_weight(batch)[0] for batch in inputs)
        return
    if texts := _texts(inputs):
        inputs = _rows_of_texts(model, texts, sequence_length)
    elif sequence_length is not None:
        raise ValueError(
            "`sequence_length` is for text, which it cuts into rows. Received: "
            f"sequence_length={sequence_length} and inputs that are no text. Leave it out."
        )
    rows = _require_rows(inputs)
    for start in range(0, rows, batch_size):
        stop = start + batch_size
        yield keras.tree.map_structure(lambda x: np.asarray(x)[start:stop], inputs)  # noqa: B023


def _texts(inputs: Any) -> list[str]:
    """The texts among inputs; none if these are something else."""
    if isinstance(inputs, str):
        return [inputs]
    is_list = isinstance(inputs, list | tuple) and bool(inputs)
    return list(inputs) if is_list and all(isinstance(x, str) for x in inputs) else []


def _rows_of_texts(model: Any, texts: list[str], sequence_length: int | None) -> dict[str, Any]:
    """Texts as rows of tokens: long ones are cut, and each row begins as a prompt does."""
    preprocessor: Any = getattr(model, "preprocessor", None)
    tokenizer = getattr(preprocessor, "tokenizer", None)
    if tokenizer is None:
        raise ValueError(
            "A model must have a preprocessor that makes tokens of text, to be traced by text. "
            f"Received: '{model.name}' without one. Pass arrays of tokens."
        )
    length = count_of("sequence_length", sequence_length or preprocessor.sequence_length)
    start = tokenizer.start_token_id if getattr(preprocessor, "add_start_token", False) else None
    first = [] if start is None else [int(start)]
    if length < _LEAST:
        raise ValueError(
            f"`sequence_length` must be at least {_LEAST}. Received: sequence_length={length}"
        )
    rows = []
    for text in texts:
        tokens = np.asarray(tokenizer(text)).tolist()
        step = length - len(first)
        rows += [first + tokens[n : n + step] for n in range(0, len(tokens), step)]
    longest = max(map(len, rows), default=0)
    ids = np.full((len(rows), longest), tokenizer.pad_token_id or 0, "int32")
    mask = np.zeros(ids.shape, "int32")
    for ids_of_row, mask_of_row, row in zip(ids, mask, rows, strict=True):
        ids_of_row[: len(row)], mask_of_row[: len(row)] = row, 1
    inputs = {"token_ids": ids, "padding_mask": mask}
    if isinstance(model.input, Mapping) and "position_ids" in model.input:
        inputs["position_ids"] = np.broadcast_to(np.arange(longest, dtype="int32"), ids.shape)
    return inputs


def _require_rows(inputs: Any) -> int:
    """How many rows arrays have."""
    shapes = [np.shape(x) for x in keras.tree.flatten(inputs)]
    sizes = {shape[0] if shape else 0 for shape in shapes}
    if len(sizes) != 1 or sizes == {0}:
        raise ValueError(
            "Tokens must be arrays with equally many rows, one at least; a tf.data.Dataset of "
            f"batches; or texts. Received: {shortened(inputs)} with the shapes {shapes}."
        )
    return int(sizes.pop())
