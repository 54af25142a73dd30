"""Whether a model decodes right: tried on random tokens before anybody is served."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.serving.decoder import Decoder
from hyparflow.serving.window import Shape

__all__ = ["require_right_logits"]

_ROWS = (7, 2, 11)  # tokens of each row in the caches, before two more come
_LENGTH = 16
_TOLERANCE = {"float64": 1e-5, "float32": 1e-4}  # of the largest logit; others: 5 percent


def require_right_logits(model: Any, decoder: Decoder, vocabulary: int) -> None:
    """Check that logits with caches, at unequal positions, are those of a plain call.

    Logits are compared and not tokens: a model with random weights may repeat one token.

    Args:
        model: a `keras_hub.models.CausalLM`.
        decoder: of it.
        vocabulary: the number of tokens there are.

    Raises:
        ValueError: naming the model, if they differ.
    """
    tokens = np.random.default_rng(0).integers(0, vocabulary, (len(_ROWS), _LENGTH))
    tokens = tokens.astype("int32")
    given = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    expected = np.asarray(model(given, training=False))
    caches = decoder.empty(Shape(len(_ROWS), _LENGTH))
    for row, count in enumerate(_ROWS):
        for start, stop in ((0, count // 2), (count // 2, count)):
            piece = tokens[row, start:stop].tolist()
            decoder.take_in(caches, row, start, piece, _LENGTH)
    rows, scale = np.arange(len(_ROWS)), float(np.abs(expected).max())
    for step in range(2):
        places = np.array(_ROWS, np.int32) + step
        found = decoder.logits(
            caches, tf.constant(tokens[rows, places][:, None]), tf.constant(places[:, None])
        )
        difference = float(np.abs(np.asarray(found)[:, 0] - expected[rows, places]).max()) / scale
        if not difference <= _TOLERANCE.get(expected.dtype.name, 0.05):
            raise ValueError(
                "A model that is served must give the same logits token by token as at once. "
                f"Received: '{model.name}' of class '{type(model).__name__}', whose logits differ "
                f"by {difference:.1g} of the largest. Use another model, or `model.generate`."
            )
