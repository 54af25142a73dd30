"""A traced function without the operations that its results do not need.

TensorFlow leaves such operations out of compiled functions, too, but not those that read variables,
and loops. Public API of TensorFlow only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from hyparflow.engine.compiled.captured import captures_of

__all__ = ["Pruned"]


class Pruned:
    """Traces a function that changes nothing.

    Args:
        function: (arguments) -> a tensor.
        types: of its arguments, nested; leaves that are no `tf.TensorSpec` are constants.

    Attributes:
        graph: what is left of the function's.
        reads: what its result needs beside the arguments: the handles of variables, and constants.
    """

    def __init__(self, function: Callable[..., Any], types: Sequence[Any]) -> None:
        flat = tf.nest.flatten(list(types))
        signature = [spec for spec in flat if isinstance(spec, tf.TensorSpec)]

        def nested(*tensors: Any) -> Any:
            given = iter(tensors)
            leaves = [next(given) if isinstance(spec, tf.TensorSpec) else spec for spec in flat]
            return function(*tf.nest.pack_sequence_as(list(types), leaves))

        whole = tf.compat.v1.wrap_function(nested, signature)
        arguments = whole.inputs[: len(signature)]
        self._call = whole.prune(arguments, whole.outputs[0])
        # The pruned function takes all that the whole one captured.
        self.graph = self._call.graph
        captured = captures_of(self.graph)
        self.reads: list[Any] = [outer for outer, inner in captured if inner.consumers()]

    def __call__(self, *tensors: Any) -> Any:
        return self._call(*tensors)
