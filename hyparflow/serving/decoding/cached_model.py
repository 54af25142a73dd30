"""What a decoder needs of a model: tokens at the positions of their rows, and caches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hyparflow.model.keras_internals.own_cache import CacheAxes
from hyparflow.serving.scheduling.window import Shape

__all__ = ["Around", "CacheSize", "CachedModel"]

# Opens a context in which a model is traced.
Around = Callable[[], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True)
class CacheSize(CacheAxes):
    """The size of one cache: (rows, *before, length, *after)."""

    def shape(self, shape: Shape) -> tuple[int, ...]:
        """All axes, for so many rows of such a length."""
        return (shape.rows, *self.before, shape.length, *self.after)

    @property
    def numbers(self) -> int:
        """Of one token."""
        count = 1
        for size in (*self.before, *self.after):
            count *= size
        return count


class CachedModel(Protocol):
    """A language model, or a stage of one, that attends to what lies in caches.

    Attributes:
        cache_sizes: of its caches.
    """

    @property
    def cache_sizes(self) -> Sequence[CacheSize]: ...

    def call(self, given: Any, positions: Any, caches: Sequence[Any]) -> tuple[Any, list[Any]]:
        """Take in new tokens.

        Args:
            given: the tokens, (rows, tokens), of known shape; of a later stage what the stage
                before made, (rows, tokens, ...).
            positions: of the tokens in their rows, as large.
            caches: with the tokens before.

        Returns:
            The logits (rows, tokens, vocabulary), or what the next stage takes; and the caches
            with the new tokens.
        """
