"""What a stage keeps of a micro-batch from its forward to its backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

__all__ = ["Dependence", "Saved"]

# For each input and for each weight: whether the outputs depend on it.
Dependence = tuple[list[bool], list[bool]]


@dataclass
class Saved:
    """The data that a stage keeps of a micro-batch from its forward to its backward."""

    outputs: list[Any]
    loss: Any = None
    pair: Any = None  # the forward and backward, compiled
    state: Any = None  # what the forward keeps for the backward
    given: Any = None  # (inputs, share), if trial calls need them to find which rows are looked up
    depend: Dependence | None = None  # where the backward is in two parts
    again: Any = None  # where a segment of units is computed again: what its first forward took

    def let_go_of_outputs(self) -> None:
        """Keep of the outputs only shapes and types, which tell the zeros like them."""
        known = [None if x is None else tf.TensorSpec(x.shape, x.dtype) for x in self.outputs]
        self.outputs = known

    def let_go(self) -> None:
        """Keep nothing that only a backward needs."""
        self.outputs, self.state, self.given, self.again = [], None, None, None
