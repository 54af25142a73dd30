"""Room for a tensor that another rank sends: MPI writes an array, the engine takes a tensor.

Reaches into nothing itself: whose memory it is, is the compiler's. For the gain, the versions and
what happens without it see `hyparflow.engine.compiled.tensor_memory`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hyparflow.engine.compiled import choice

__all__ = ["TensorBuffer"]


class TensorBuffer:
    """A tensor that is to be filled.

    Args:
        shape, dtype: of the tensor.

    Attributes:
        array: its memory; written to before `tensor` is asked for.
    """

    def __init__(self, shape: Sequence[int], dtype: np.dtype) -> None:
        self._memory = choice.compiler().memory(tuple(shape), dtype)
        self.array = self._memory.array

    @property
    def tensor(self) -> Any:
        """The tensor."""
        return self._memory.tensor()
