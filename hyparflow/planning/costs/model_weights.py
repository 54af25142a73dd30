"""A model's weights and mixtures of experts, as tables of costs hold them."""

from __future__ import annotations

from typing import Any

from hyparflow.model.experts.expert_layers import expert_layers
from hyparflow.model.graph import FlatGraph
from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.model.variable_sizes import bytes_of
from hyparflow.planning.costs.costs import Weight
from hyparflow.planning.costs.mixtures import Mixture

__all__ = ["mixtures_of", "weights_of"]


def weights_of(model: Any) -> tuple[Weight, ...]:
    """Each variable of a model, in the order of its list."""
    trained = {id(v) for v in model.trainable_variables}
    experts = {
        id(v): one.num_experts for one in expert_layers(all_layers(model)) for v in one.weights
    }
    return tuple(
        Weight(bytes_of(v), id(v) in trained, experts.get(id(v), 0)) for v in model.variables
    )


def mixtures_of(graph: FlatGraph) -> tuple[Mixture, ...]:
    """The mixtures of experts of a graph, by the operations that call them."""
    layers = all_layers(graph.model)
    # KerasHub's banks of experts do not know how many a token visits; the layers around them do.
    around = {id(x.expert_bank): x for x in layers if hasattr(x, "expert_bank")}
    users: dict[int, list[int]] = {}
    for index in range(len(graph.calls)):
        for variable in graph.variables([index]):
            users.setdefault(id(variable), []).append(index)
    return tuple(
        Mixture(index, int(getattr(around.get(id(one.layer), one.layer), "top_k", 1)))
        for one in expert_layers(layers)
        for index in users.get(id(one.weights[0]), ())
    )
