"""Whether a model decodes right: tried on random tokens before anybody is served."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from hyparflow.model.keras_internals.own_cache import decodes_itself, own_logits
from hyparflow.serving.decoding.text_inputs import text_inputs

__all__ = ["Probed", "logits_differ", "probe_tokens"]

LENGTH = 16  # of the caches
STEPS = 2  # tokens that come one by one
_COUNTS = (7, 2, 11, 4)  # tokens of each row in the caches, before these; from the first again
_TOLERANCE = {"float64": 1e-5, "float32": 1e-4}  # of the largest logit; others: 5 percent


class Probed(Protocol):
    """What can be tried."""

    @property
    def probe_rows(self) -> int:
        """How many rows it tries at least."""

    def probe(self, tokens: Any, counts: Sequence[int], steps: int) -> list[Any] | None:
        """Take tokens in, in two pieces of each row, and then one by one.

        Args:
            tokens: (rows, LENGTH), more than are taken in.
            counts: of tokens of each row in the pieces.
            steps: how many follow.

        Returns:
            The logits after each of those that follow, (rows, vocabulary), NumPy arrays; None where
            another rank has them.
        """

    def plain(self, tokens: Any) -> Any | None:
        """The logits of a plain call by the same ranks, (rows, LENGTH, vocabulary)."""


def probe_tokens(vocabulary: int, rows: int) -> tuple[Any, list[int]]:
    """Random tokens, and how many of them each row takes in by pieces."""
    counts = [_COUNTS[row % len(_COUNTS)] for row in range(rows)]
    tokens = np.random.default_rng(0).integers(0, vocabulary, (rows, LENGTH))
    return tokens.astype("int32"), counts


def logits_differ(model: Any, probed: Probed, vocabulary: int, is_whole: bool = True) -> str:
    """How logits with caches, at unequal positions, differ from those of a plain call.

    Logits are compared and not tokens: a model with random weights may repeat one token.

    Args:
        model: a `keras_hub.models.CausalLM`.
        probed: decodes it.
        vocabulary: the number of tokens there are.
        is_whole: whether this process may hold the whole model; if not, what is decoded is compared
            with a plain call by the same ranks.

    Returns:
        The rule that is broken, or "" if none is, or another rank finds out.
    """
    tokens, counts = probe_tokens(vocabulary, probed.probe_rows)
    found = probed.probe(tokens, counts, STEPS)
    plain = None if is_whole else probed.plain(tokens)
    if found is None:
        return ""
    positions = np.broadcast_to(np.arange(LENGTH, dtype="int32"), tokens.shape)
    if is_whole:
        plain = model(text_inputs(model, tokens, positions), training=False)
    expected = np.asarray(plain)
    rows, scale = np.arange(len(counts)), float(np.abs(expected).max())
    differences = [
        float(np.abs(logits - expected[rows, np.array(counts) + step]).max()) / scale
        for step, logits in enumerate(found)
    ]
    # In mixed precision logits are more exact than what they are computed from.
    types = (expected.dtype.name, str(model.backbone.compute_dtype))
    allowed = max(_TOLERANCE.get(name, 0.05) for name in types)
    if max(differences) <= allowed:
        return ""
    own = _own_difference(model, tokens, expected) if is_whole else 0.0
    return (
        "A model that is served must give the same logits token by token as at once. "
        f"Received: '{model.name}' of class '{type(model).__name__}', whose logits differ "
        f"by {max(differences):.1g} of the largest"
    ) + (
        ". Use another model, or `model.generate`."
        if own <= allowed
        else f", and those of KerasHub's own cached decoding differ from its forward pass by "
        f"{own:.1g}, so that `model.generate` gives other tokens than the model was trained to. "
        "Use a model of another family."
    )


def _own_difference(model: Any, tokens: Any, expected: Any) -> float:
    """How far KerasHub's own cached decoding of the first row is from its forward pass.

    Returns:
        Of the largest logit; zero if that is not known.
    """
    if not decodes_itself(model):
        return 0.0
    try:
        found = np.asarray(own_logits(model, tf.constant(tokens[:1])))
    except Exception:
        return 0.0  # if it cannot be called like this, nothing is known of it
    return float(np.abs(found - expected[:1, -1]).max()) / float(np.abs(expected).max())
