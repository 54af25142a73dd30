"""Which way the rows of a model travel."""

from __future__ import annotations

from typing import Any

from hyparflow.model.keras_internals.layers import opened_graph
from hyparflow.serving.coherent.rows_here import Mixtures
from hyparflow.serving.coherent.travelling_hooked import TravellingHookedModel
from hyparflow.serving.coherent.travelling_model import TravellingModel
from hyparflow.serving.coherent.travelling_row_index import TravellingRowIndexModel
from hyparflow.serving.decoding.adapters import cached_model_of
from hyparflow.serving.decoding.cached_model import Around
from hyparflow.serving.decoding.hooked_model import HookedModel

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
    if not isinstance(known, HookedModel):
        return TravellingRowIndexModel(model, around, mixtures)
    if opened_graph(model) is None:
        raise ValueError(
            "A model whose tokens stay at the ranks of their experts must be a graph of layers. "
            f"Received: '{model.name}' of class '{type(model).__name__}'. Use "
            "expert_parallel='home'."
        )
    return TravellingHookedModel(model, around, mixtures)
