"""Operations of a graph that is being traced, which read another tensor than they were made for.

Relies on a method of operations that TensorFlow keeps for itself. Gain: kernels that compute what
several operations did (`hyparflow.engine.kernels`). Seen to work on TensorFlow 2.21. Without it
nothing is rewritten.
"""

from __future__ import annotations

from typing import Any

__all__ = ["read_instead"]


def read_instead(operation: Any, index: int, tensor: Any) -> None:
    """Let an operation read `tensor` as its input number `index`."""
    operation._update_input(index, tensor)
