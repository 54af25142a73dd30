"""On what the gradients of a stage depend, where not all of its outputs have one."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from hyparflow.engine.stages.saved import Dependence
from hyparflow.engine.stages.stage_functions import StageFunctions

__all__ = ["Dependences"]


class Dependences:
    """What depends on some of a stage's outputs.

    The gradient of a compiled call is zero where only its other outputs depend on a weight; plain
    Keras has none there.

    Args:
        functions: the computations of the stage.
    """

    def __init__(self, functions: StageFunctions) -> None:
        self._functions = functions
        self._known: dict[tuple[int, tuple[int, ...]], Dependence] = {}

    def of(self, types: Any, positions: tuple[int, ...]) -> Dependence:
        """On which inputs and weights the outputs at `positions`, or added losses, depend.

        Args:
            types: of the arguments of a forward, as it was traced: each trace may differ.
            positions: of the outputs that have a gradient.
        """
        key = (id(types), positions)
        if key not in self._known:
            self._known[key] = self._traced(types, positions)
        return self._known[key]

    def _traced(self, types: Any, positions: tuple[int, ...]) -> Dependence:
        functions, found = self._functions, []

        def trace(inputs: Any, share: Any) -> None:
            (outputs, _), state = functions.forward(functions.outputs, inputs, share)
            gradients = [
                tf.ones_like(outputs[p]) if p in positions else None
                for p in functions.gradient_outputs
            ]
            found.extend(functions.backward(state, gradients, share))

        tf.function(trace, autograph=False).get_concrete_function(*types)
        of_inputs, of_weights = found
        return [g is not None for g in of_inputs], [g is not None for g in of_weights]
