"""Weights that a partition reads without calling the layers that hold them.

A function of the user's (of a `Lambda` layer, a layer of one's own, a regularizer, a loss) may read
the weights of any layer. Weights that training never changes are then needed by that function's
partition, too. Weights that are trained cannot be read so: their gradients would be wrong.
The same holds for weights on which the masks of the model's outputs depend: the last partition
finds by how much to divide losses before the other partitions send anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hyparflow.engine.weights.ownership import Ownership
from hyparflow.model.graph import FlatGraph
from hyparflow.model.keras_internals.compiled import compile_arguments
from hyparflow.model.keras_internals.layers import all_layers, state_variables
from hyparflow.model.layout import ModelCut
from hyparflow.model.own_layers import holds_own_code
from hyparflow.model.reachable_variables import reachable_variables

__all__ = ["holders_and_readers"]


def holders_and_readers(
    model: Any, layout: ModelCut, place: Ownership, masking: Iterable[Any] = ()
) -> dict[int, tuple[int, ...]]:
    """For each variable of the model (by id), the partitions that need it; its owner comes first.

    Losses and metrics are tried on all ranks, so what they read is needed by all.

    Args:
        model: the user's model.
        layout: how it is cut.
        place: what this rank holds.
        masking: the variables on which the masks of its outputs depend.

    Raises:
        ValueError: on all ranks, if training changes a variable in `masking` which the last
            partition does not hold.
    """
    if layout.graph is None:
        return place.holders
    changing = {id(v) for v in [*model.trainable_variables, *state_variables(model)]}
    last = place.grid.num_partitions - 1
    elsewhere = [v for v in masking if last not in place.holders.get(id(v), (last,))]
    _require_constant([v for v in elsewhere if id(v) in changing])
    constants = {id(v) for v in model.variables if id(v) not in changing}
    if not constants:
        return place.holders
    needed = dict(place.holders)
    everywhere = range(place.grid.num_partitions)
    _add(needed, constants, [compile_arguments(model)], everywhere)
    _add(needed, constants, elsewhere, [last])
    for partition in everywhere:
        stages = place.grid.placement.stages(partition)
        operations = [n for stage in stages for n in layout.partitioning.operations(stage)]
        _add(needed, constants, _own_code(layout.graph, operations), [partition])
    return needed


def _require_constant(changing: list[Any]) -> None:
    if changing:
        more = f" and {len(changing) - 1} more" if changing[1:] else ""
        raise ValueError(
            "The masks of a model's outputs, by which losses are divided, must not depend on "
            "weights that another partition than the last trains. Received: masks that depend on "
            f"'{changing[0].path}'{more}. Mask the inputs, or train "
            "with strategy='data'."
        )


def _add(
    needed: dict[int, tuple[int, ...]],
    constants: set[int],
    code: list[Any],
    partitions: Iterable[int],
) -> None:
    for variable in reachable_variables(code):
        if id(variable) in constants:
            known = needed.get(id(variable), ())
            needed[id(variable)] = (*known, *(p for p in partitions if p not in known))


def _own_code(graph: FlatGraph, operations: Iterable[int]) -> list[Any]:
    """The user's functions, and objects with them, that these operations run."""
    found: list[Any] = []
    for number in operations:
        for layer in graph.calls[number].layers:
            if holds_own_code(layer):
                found += [part for part in map(vars, all_layers(layer)) for part in part.values()]
                found.append(layer)
            for variable in layer.weights:
                found += [variable.regularizer, variable.constraint]
    return found
