"""Numbers of variables, alike on all ranks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from hyparflow.comm import abort
from hyparflow.comm.communicator import Communicator
from hyparflow.model.keras_internals.deferred_variables import raw_variable

__all__ = ["numbers_of", "require_same", "unique"]


def numbers_of(variables: Sequence[Any]) -> dict[int, int]:
    """The number of each variable, by its id and by the id of TensorFlow's variable in it."""
    numbers: dict[int, int] = {}
    for number, variable in enumerate(variables):
        numbers.setdefault(id(variable), number)
        numbers.setdefault(id(raw_variable(variable)), number)
    return numbers


def unique(variables: Sequence[Any]) -> list[Any]:
    return list({id(variable): variable for variable in variables}.values())


def require_same(variables: Sequence[Any], world: Communicator) -> None:
    """Check that ranks find the same variables. Collective.

    Raises:
        ValueError: on all ranks, if they do not.
    """
    mine = [(f"{tuple(v.shape)} {v.dtype}", str(v.name)) for v in variables]
    everyone = world.all_gather_objects(mine, "the variables that own steps lead to")
    for rank, others in enumerate(everyone):
        pairs = itertools.zip_longest(everyone[0], others, fillvalue=("none", ""))
        odd = next((pair for pair in pairs if pair[0][0] != pair[1][0]), None)
        if odd is not None:
            leaders, theirs = (f"{text} {name}".strip() for text, name in odd)
            raise abort.mark_collective(
                ValueError(
                    "The steps of a model's own must lead to the same variables on all ranks. "
                    f"Received: {leaders} on rank 0 where rank {rank} has {theirs}. Make "
                    "optimizers, models and variables that steps use alike on all ranks."
                )
            )
