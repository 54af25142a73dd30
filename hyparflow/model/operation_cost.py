"""What a call computes, counted from its shapes, and how long that takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras

from hyparflow.model.graph_call import GraphCall

__all__ = ["OperationWork", "crossing_cost", "work_of"]

# Costs, forward and backward, in multiplications by weights that take as long on a CPU's core: of
# writing a value of an output; and, in each micro-batch of that many rows, of a call, and of a
# weight's gradient. benchmarks/balance fits them to the times of stages.
_PER_VALUE = 30.0
_PER_CALL = 1e6
_PER_WEIGHT = 40.0
_ROWS = 16
# Costs of a tensor that crosses a cut, and of its gradient, at either end: fitted to the times of
# messages between two ranks of a machine.
_PER_MESSAGE = 4e6
_PER_VALUE_SENT = 12.0


class OperationWork(NamedTuple):
    """What a call computes.

    Attributes:
        multiplications: by weights, for one row, roughly.
        values: number of values of its outputs, for one row.
        weights: number of weights whose gradients are kept.
    """

    multiplications: int
    values: int
    weights: int

    @property
    def cost(self) -> float:
        """How long a forward and backward of one row take, in multiplications."""
        each_microbatch = _PER_CALL + _PER_WEIGHT * self.weights
        return self.multiplications + _PER_VALUE * self.values + each_microbatch / _ROWS


def work_of(call: GraphCall, read: Sequence[Any], made: Sequence[Any]) -> OperationWork:
    """What `call` computes from the symbolic tensors `read`, to make those `made`.

    A kernel is applied at every position of its output; a recurrent one at every step of its
    input. Of the weights of an embedding each row looks up a few.
    """
    layers = [x for x in call.layers if not isinstance(x, keras.layers.Embedding)]
    variables = [variable for layer in layers for variable in layer.variables]
    kernels = sum(math.prod(v.shape) for v in variables if len(v.shape) > 1)
    recurrent = isinstance(call.operation, keras.layers.RNN | keras.layers.Bidirectional)
    positions = max((_size(x.shape[1:-1]) for x in (read if recurrent else made)), default=1)
    return OperationWork(
        kernels * positions,
        sum(_size(x.shape[1:]) for x in made),
        sum(math.prod(v.shape) for v in variables if v.trainable),
    )


def crossing_cost(tensor: Any) -> float:
    """The cost of a crossing tensor at either end of the cut, in `OperationWork.cost`'s unit."""
    return _PER_VALUE_SENT * _size(tensor.shape[1:]) + _PER_MESSAGE / _ROWS


def _size(shape: Sequence[int | None]) -> int:
    """Number of elements, with 32 in place of an unknown length."""
    return math.prod(32 if size is None else size for size in shape)
