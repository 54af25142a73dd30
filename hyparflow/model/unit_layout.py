"""Which blocks of a model are alike, so that they are compiled once: `hyparflow.pipeline.units`."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hyparflow.model.call_kinds import call_kinds
from hyparflow.model.checks import check_can_cut
from hyparflow.model.graph import FlatGraph
from hyparflow.model.keras_internals.layers import all_layers, opened_graph
from hyparflow.model.layout import ModelCut
from hyparflow.model.masks import masked_inputs, may_make_masks
from hyparflow.pipeline.operations import OperationGraph
from hyparflow.pipeline.partition import Partitioning, make_partitioning
from hyparflow.pipeline.units import Units, make_units

__all__ = ["COST_OF_A_SECOND", "UNITS", "Blocks", "units_of", "with_graph"]

COST_OF_A_SECOND = 1.4e10  # what a core does of `Operation.cost` in a second

# A call of a unit costs half a millisecond: forward and backward should compute for 40 ms or more.
_COST_OF_A_CALL = 0.04 * COST_OF_A_SECOND

# "0" compiles all stages whole; "all" makes units of single blocks, even where that saves nothing.
UNITS = "HYPARFLOW_UNITS"

_DEEP = 60  # layers from which on it pays to look for repeats in a model that is not cut


def _setting() -> str:
    """What HYPARFLOW_UNITS says."""
    text = os.environ.get(UNITS, "").strip()
    if text not in ("", "0", "all"):
        raise ValueError(
            f"{UNITS} takes 0 or all. Received: {UNITS}={text!r}. Unset it, or export "
            "HYPARFLOW_UNITS=0 to compile stages whole."
        )
    return text


def with_graph(model: Any, layout: ModelCut, fine: bool = False) -> ModelCut:
    """`layout`, with the graph of a model that is not cut, if blocks of it may repeat.

    Args:
        model: the user's model.
        layout: how it is cut.
        fine: whether units are made of what does not repeat, too.
    """
    setting = _setting()
    if layout.graph is not None or (setting == "0" and not fine):
        return layout
    if setting != "all" and not fine and len(all_layers(model)) < _DEEP:
        return layout
    try:
        check_can_cut(model)
    except ValueError:
        return layout
    graph = FlatGraph(model, opened_graph(model))
    operations = graph.operation_graph(model.trainable_variables)
    whole = make_partitioning(operations, (0, len(graph.calls)))
    masked = masked_inputs(graph, whole)
    return dataclasses.replace(
        layout, graph=graph, operations=operations, partitioning=whole, masked=masked
    )


@dataclass(frozen=True)
class Blocks:
    """What decides how stages of a model are divided into units.

    Units share nothing where masks come with tensors, and where HYPARFLOW_UNITS forbids it.

    Attributes:
        graph: the model's graph.
        alike: whether a unit may be like another.
    """

    graph: FlatGraph
    alike: bool = True

    @cached_property
    def kinds(self) -> list[int]:
        """For each operation, a number that those share which compute the same."""
        return call_kinds(self.graph)

    @cached_property
    def may_share(self) -> bool:
        """Whether one of several units that are alike is compiled for all of them."""
        layers = [layer for call in self.graph.calls for layer in call.layers]
        return self.alike and _setting() != "0" and not may_make_masks(layers)

    def units(
        self, operations: OperationGraph, stages: Partitioning, rows: float, fine: bool = False
    ) -> Units | None:
        """The units of stages; None if stages are compiled whole.

        Args:
            operations: of the model.
            stages: how they are divided into stages.
            rows: how many rows a micro-batch has.
            fine: whether units are made of what does not repeat, too, and are short.
        """
        setting = _setting()
        if not (self.may_share or fine):
            return None
        always = setting == "all" or fine
        least = 0.0 if setting == "all" else _COST_OF_A_CALL / max(1, rows)
        units = make_units(operations, stages, self.kinds, least, always, fine)
        if units is not None and not self.may_share:
            units = dataclasses.replace(units, kinds=tuple(range(len(units.kinds))))
        return units


def units_of(
    layout: ModelCut, rows: int, fine: bool = False, alike: bool = True
) -> tuple[FlatGraph, Units] | None:
    """A model's graph and the units of its stages; None if stages are compiled whole.

    Args:
        layout: how the model is cut.
        rows: how many rows a micro-batch has.
        fine: whether units are made of what does not repeat, too, and are short.
        alike: whether a unit may be like another.
    """
    _setting()  # what means nothing is refused for any model
    graph, operations = layout.graph, layout.operations
    if graph is None or operations is None:
        return None
    units = Blocks(graph, alike).units(operations, layout.partitioning, rows, fine)
    return None if units is None else (graph, units)
