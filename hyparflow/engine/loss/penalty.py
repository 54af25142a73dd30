"""Weight regularization, the part of a loss that belongs to no row, as one rank counts it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from keras import ops

from hyparflow.engine.compiled.fast_call import FixedFunction

__all__ = ["Penalty", "regularization"]


class Penalty:
    """The sum of the regularization of some weights.

    Args:
        variables: the weights, each with a regularizer.
    """

    def __init__(self, variables: Sequence[Any]) -> None:
        self._variables = list(variables)
        self._steps: dict[str, FixedFunction] = {}

    def __call__(self, step: str) -> float:
        """The sum with the present weights.

        Args:
            step: "train" or "test"; each is compiled when it is first run, as Keras's are.
        """
        if not self._variables:
            return 0.0
        if step not in self._steps:
            self._steps[step] = FixedFunction(self._trace)
        return float(self._steps[step]([]))

    def compile_anew(self, step: str) -> None:
        """Compile the sum of this kind of step again, with the present settings of regularizers."""
        self._steps.pop(step, None)

    def _trace(self, nothing: list[Any]) -> Any:
        return tf.add_n([regularization(variable) for variable in self._variables])


def regularization(variable: Any) -> Any:
    """What the regularizer of one weight adds to the loss."""
    return ops.sum(variable.regularizer(variable))
