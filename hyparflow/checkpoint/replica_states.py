"""What each replica has of its own, in a checkpoint beside the state that counts for all.

Replicas that normalize parts of a batch move their statistics by different rows, and average them
at the end: a save that did so would round them, and the end depended on when it was saved. Random
generators draw for the rows that a replica has: a short batch may have none for it. On other
numbers of replicas training goes on from the average, and from the numbers of the first replica.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hyparflow.checkpoint.stored_part import StoredPart
from hyparflow.engine.weights.pieces import value_of
from hyparflow.engine.weights.sync import WeightSync
from hyparflow.formats.checkpoint.reader import CheckpointReader
from hyparflow.model.keras_internals.deferred_variables import overwrite
from hyparflow.pipeline.grid import Grid

__all__ = ["parts_of_replica", "read_replica", "take_replica"]


def parts_of_replica(
    names: Mapping[str, Any], sync: WeightSync, grid: Grid, rank: int
) -> list[StoredPart]:
    """What a rank writes of its own; nothing where there is one replica.

    Args:
        names: name -> variable, as `named_variables` gives them.
        sync: moves the variables.
        grid: the ranks.
        rank: this rank.
    """
    if grid.num_peers == 1:
        return []
    wanted = {id(variable) for variable in sync.own}
    return [
        StoredPart(
            name=_name_of_replica(grid.peer(rank), name),
            whole=tuple(variable.shape),
            row=0,
            value=np.array(value_of(variable)),  # training goes on, and overwrites it
        )
        for name, variable in names.items()
        if id(variable) in wanted
    ]


def read_replica(
    reader: CheckpointReader, tensors: Mapping[str, str], grid: Grid, rank: int
) -> dict[str, np.ndarray]:
    """A rank's own values by the names of their variables; none for other numbers of replicas.

    Args:
        reader: of the checkpoint.
        tensors: name of a variable -> name of its tensor in the checkpoint.
        grid: the ranks.
        rank: this rank.
    """
    layout = reader.index.layout
    if layout.num_replicas * layout.num_sequence_shards != grid.num_peers:
        return {}
    own = {name: _name_of_replica(grid.peer(rank), tensor) for name, tensor in tensors.items()}
    return {
        name: reader.read(tensor) for name, tensor in own.items() if tensor in reader.index.tensors
    }


def take_replica(
    values: Mapping[str, np.ndarray], names: Mapping[str, Any], sync: WeightSync
) -> None:
    """Let this rank have what `read_replica` returned, after all have had the same."""
    mine = {id(variable) for variable in sync.own}
    for name, value in values.items():
        if id(names[name]) in mine:
            overwrite(names[name], value)


def _name_of_replica(peer: int, name: str) -> str:
    return f"replicas/{peer}/{name}"
