"""Compiles the choice of tokens, once for each set of samplers that occur together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from hyparflow.serving.decoding.samplers import SamplingRows, chosen, logprobs_of
from hyparflow.serving.decoding.traced_by_size import TracedBySize
from hyparflow.serving.scheduling.sampling import SamplerKind, Sampling

__all__ = ["TokenChoice", "TokenChooser"]


class TokenChoice:
    """A compiled choice.

    Attributes:
        kinds: of samplers that may occur.
        has_logprobs: whether logarithms of probabilities are made.

    Args:
        kinds: see above.
        has_logprobs: see above.
        jit: whether XLA compiles it.
    """

    def __init__(self, kinds: Sequence[SamplerKind | None], has_logprobs: bool, jit: bool) -> None:
        self.kinds, self.has_logprobs = tuple(kinds), has_logprobs
        self._chosen = TracedBySize(self._choose, jit)

    def __call__(self, logits: Any, rows: SamplingRows) -> list[Any]:
        """The token of each row, and then, if they are made, what `logprobs_of` returns."""
        made: list[Any] = self._chosen(logits, rows)
        return made

    def rows(self, sampling: Sequence[Sampling], given: Sequence[int]) -> SamplingRows:
        """What belongs to each row, as tensors.

        Args:
            sampling: how each chooses.
            given: how many tokens each has made before.
        """
        return (
            tf.constant([self.kinds.index(way.kind) for way in sampling], tf.int32),
            tf.constant([way.seed for way in sampling], tf.int32),
            tf.constant(list(given), tf.int32),
            tf.constant([way.temperature for way in sampling], tf.float32),
            tf.constant([way.p for way in sampling], tf.float32),
        )

    def _choose(self, logits: Any, rows: SamplingRows) -> list[Any]:
        tokens = chosen(logits, self.kinds, rows)
        return [tokens, *(logprobs_of(logits, tokens) if self.has_logprobs else ())]


class TokenChooser:
    """Has a choice for whatever samplers come.

    Args:
        jit: whether XLA compiles samplers, as `jit_compile` of a model says: its random numbers
            are others.
    """

    def __init__(self, jit: bool) -> None:
        self._jit = jit
        self._kinds: list[SamplerKind | None] = []
        self._known: dict[Any, TokenChoice] = {}

    def choice(self, sampling: Sequence[Sampling]) -> TokenChoice:
        """One that knows these samplers, and all that came before: so few are compiled."""
        for way in sampling:
            if way.kind not in self._kinds:
                self._kinds.append(way.kind)
                self._known.clear()  # they know fewer samplers, and are not asked for again
        key = len(self._kinds), any(way.num_logprobs is not None for way in sampling)
        if key not in self._known:
            self._known[key] = TokenChoice(self._kinds, key[1], self._jit)
        return self._known[key]
