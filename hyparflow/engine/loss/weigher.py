"""W of the losses of a batch, see [Note: One scale] in `hyparflow.engine.loss.terms`.

W depends on labels, sample weights, and the masks of the model's outputs. Masks are made by the
whole model, of which nearly nothing is left without the operations that they do not depend on: a
comparison or two on the inputs, and no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import keras
import tensorflow as tf

from hyparflow.engine.compiled.functions import ByTypes, any_rows
from hyparflow.engine.compiled.pruned import Pruned
from hyparflow.engine.loss.terms import LossTerms
from hyparflow.model.keras_internals.deferred_variables import handle_of
from hyparflow.model.keras_internals.layers import (
    call_model,
    opened_graph,
    output_structure,
    reading_nothing,
)

__all__ = ["Weigher"]


class Weigher:
    """A compiled function (x, y, sample weights) -> W of each loss, a vector of float64.

    Args:
        model: the compiled model.
        terms: its losses.
    """

    def __init__(self, model: Any, terms: LossTerms) -> None:
        self._terms = terms
        self._predict = _stand_in(model, terms) or _called(model)
        self._calls = ByTypes(self._make, lambda types: self._make(types).graph)

    def __call__(self, *batch: Any) -> Any:
        call = self._calls.find(batch)
        return call(*(x for x in tf.nest.flatten(batch) if isinstance(x, tf.Tensor)))

    def reads(self, specs: Any, variables: Iterable[Any]) -> list[Any]:
        """Those of a model's variables on which the masks of its outputs depend.

        Args:
            specs: types of (x, y, sample weights).
            variables: the model's.
        """
        types = keras.tree.map_structure(_type, specs)
        read = {id(handle) for handle in self._calls.find(types).reads}
        return [v for v in variables if id(handle_of(v)) in read]

    def _make(self, types: Any) -> Pruned:
        return Pruned(self._weigh, types)

    def _weigh(self, x: Any, y: Any, sample_weight: Any) -> Any:
        return self._terms.weights(y, self._predict(x, y), sample_weight)


def _type(spec: Any) -> Any:
    return None if spec is None else any_rows(tf.TensorSpec(spec.shape, spec.dtype))


def _stand_in(model: Any, terms: LossTerms) -> Callable[[Any, Any], Any] | None:
    """Makes zeros of the shapes of the outputs, where these have no masks and known shapes."""
    functional = opened_graph(model)
    if functional is None or terms.masked:
        return None
    shapes = [x.shape[1:] for x in functional.outputs]
    if any(None in shape for shape in shapes):
        return None

    def zeros(x: Any, y: Any) -> Any:
        rows = tf.shape(keras.tree.flatten(y)[0])[0]
        flat = [tf.zeros([rows, *shape], keras.config.floatx()) for shape in shapes]
        return output_structure(functional, flat)

    return zeros


def _called(model: Any) -> Callable[[Any, Any], Any]:
    """Calls the model, as in inference, for the masks and shapes of its outputs."""

    def call(x: Any, y: Any) -> Any:
        with reading_nothing():
            return call_model(model, x, False)

    return call
