"""What a faster kernel replaces in a graph that is being traced. Pure data."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Rewrite"]


@dataclass(frozen=True)
class Rewrite:
    """Tensors that a faster kernel makes.

    Attributes:
        variant: of what is rewritten; each is proved once.
        inputs: the tensors that the kernel takes.
        replaced: the tensors that it makes in place of those that were traced.
        kernel: (inputs) -> the new tensors, in the order of `replaced`.
        operations: those between, which are not needed afterwards; they go on reading `replaced`.
        without_gradient: tensors of `replaced` through which the kernel has no gradient.
        trial: shapes of inputs for the proof; None takes those that are known.
    """

    variant: Hashable
    inputs: Sequence[Any]
    replaced: Sequence[Any]
    kernel: Callable[..., Sequence[Any]]
    operations: frozenset[Any]
    without_gradient: Sequence[Any] = ()
    trial: Sequence[Sequence[int]] | None = None
