"""All ranks ask for the same, or all raise the same error."""

from __future__ import annotations

import contextlib
import hashlib
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np

from hyparflow.comm import abort
from hyparflow.comm.world import World
from hyparflow.model.keras_internals.deferred_variables import is_absent

__all__ = ["Agreed", "agreement"]


class Agreed:
    """What ranks must ask for alike."""

    def __init__(self) -> None:
        self._found = hashlib.blake2b()

    def note(self, value: Any) -> None:
        """Compare a value, which is pickled."""
        self._found.update(pickle.dumps(value))

    def note_weights(self, model: Any) -> None:
        """Compare the weights that have memory; those that are deferred come from one file."""
        for variable in model.variables:
            if not is_absent(variable):
                self._found.update(np.ascontiguousarray(variable.numpy()).view(np.uint8).data)

    @property
    def digest(self) -> str:
        """Of all values."""
        return self._found.hexdigest()


@contextlib.contextmanager
def agreement(ranks: World | None) -> Iterator[Agreed]:
    """While open, a rank finds out what it asks for. Collective at its end.

    Args:
        ranks: all ranks; None if there is one.

    Raises:
        ValueError: on all ranks, if one has raised one, or if they ask for different things.
    """
    agreed, problem = Agreed(), ""
    try:
        yield agreed
    except ValueError as error:
        if ranks is None:
            raise
        problem = str(error)
    if ranks is None:
        return
    said = ranks.all_gather_objects((problem, agreed.digest), "the ranks to ask for the same")
    problem = next((text for text, _ in said if text), "")
    if not problem and len({digest for _, digest in said}) > 1:
        problem = (
            "All ranks must ask for the same: each passes all prompts, and has the same weights. "
            "Received: different prompts, arguments or weights. Call keras.utils.set_random_seed, "
            "or load weights, before the model is made, and pass the same on every rank."
        )
    if problem:
        raise abort.mark_collective(ValueError(problem))
