"""Memory for a tensor that another rank sends: MPI writes an array, the engine takes a tensor.

Uses no private part of TensorFlow itself: the compiler makes the memory. For the gain, the versions
and what happens without it see `hyparflow.engine.compiled.tensor_memory`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hyparflow.engine.compiled import choice

__all__ = ["TensorBuffer"]


class TensorBuffer:
    """A tensor whose content is received.

    Args:
        shape, dtype: of the tensor.

    Attributes:
        array: its memory; must be written before `tensor` is read.
    """

    def __init__(self, shape: Sequence[int], dtype: np.dtype) -> None:
        self._memory = choice.compiler().memory(tuple(shape), dtype)
        self.array = self._memory.array

    @property
    def tensor(self) -> Any:
        """The tensor."""
        return self._memory.tensor()
