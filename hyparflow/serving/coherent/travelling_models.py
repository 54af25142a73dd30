"""Which way the rows of a model travel."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from hyparflow.model.keras_internals.layers import opened_graph
from hyparflow.serving.coherent.rows_here import Mixtures, RowsHere
from hyparflow.serving.coherent.travelling_hooked import TravellingHookedModel
from hyparflow.serving.coherent.travelling_model import TravellingModel
from hyparflow.serving.coherent.travelling_row_index import TravellingRowIndexModel
from hyparflow.serving.decoding.adapters import cached_model_of
from hyparflow.serving.decoding.cached_model import Around
from hyparflow.serving.decoding.failures import cause_of
from hyparflow.serving.decoding.hooked_model import HookedModel
from hyparflow.serving.scheduling.window import Shape

__all__ = ["travelling_model_of"]


def travelling_model_of(model: Any, around: Around, mixtures: Mixtures) -> TravellingModel:
    """A model whose rows go on at the ranks of their experts.

    Args:
        model: a `keras_hub.models.CausalLM`.
        around: see `Around`; for calls in which tokens come home.
        mixtures: its layers with experts.

    Raises:
        ValueError: if there is no way.
    """
    known = cached_model_of(model, around)
    kind = TravellingHookedModel if isinstance(known, HookedModel) else TravellingRowIndexModel
    if opened_graph(model) is None:
        raise _refused(model, "which is no graph of layers")
    try:
        found = kind(model, around, mixtures)
        _trace(found)
    except Exception as error:
        raise _refused(model, f"where this fails ({cause_of(error)})") from error
    return found


def _trace(model: TravellingModel) -> None:
    """Trace an iteration, which shows whether rows can travel within the model's layers."""
    shape = Shape(2, 4)
    axes = [1 + len(size.before) for size in model.cache_sizes]

    def iterate(tokens: Any, caches: list[Any]) -> Any:
        rows = RowsHere(
            numbers=tokens[:, 0], tokens=tokens, positions=tokens, caches=caches, axes=axes
        )
        made = model.iterate(rows)
        if len(rows.written) < len(caches):
            raise ValueError("some layers keep no keys and values of new tokens")
        return made

    tf.function(iterate, autograph=False).get_concrete_function(
        tf.TensorSpec([2, 1], tf.int32),
        [tf.TensorSpec(size.shape(shape), size.dtype) for size in model.cache_sizes],
    )


def _refused(model: Any, why: str) -> ValueError:
    return ValueError(
        "A model whose tokens stay at the ranks of their experts must have layers through which "
        f"they can go on there. Received: '{model.name}' of class '{type(model).__name__}', {why}. "
        "Use expert_parallel='home'."
    )
