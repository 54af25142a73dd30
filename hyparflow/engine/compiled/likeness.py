"""Which variables of a computation stand where another one, that computes the same, has its own.

Blocks of a model that are alike are compiled once: a compiled function takes the variables that it
captured as further arguments, so one that was traced for a block serves for another with the
other's variables (`hyparflow.engine.compiled.direct_call`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

__all__ = ["Likeness"]


class Likeness:
    """The variables of a computation, by those of the one that it is like.

    Args:
        theirs, mine: variables (TensorFlow's) in corresponding order.
        made: finds the handle of one of mine for that of one of theirs which was made while a
            function was traced; None for others.
    """

    def __init__(
        self,
        theirs: Sequence[Any],
        mine: Sequence[Any],
        made: Callable[[Any], Any | None] = lambda handle: None,
    ) -> None:
        pairs = zip(theirs, mine, strict=True)
        # Kept as well, since an id is one's own only while its object lives.
        self._handles = {id(a.handle): (a.handle, b.handle) for a, b in pairs}
        self._made = made

    def find(self, captured: Any) -> Any | None:
        """My handle in place of the captured one of theirs; None if there is none."""
        known = self._handles.get(id(captured))
        return self._made(captured) if known is None else known[1]

    def replace(self, captured: Any) -> Any:
        """My handle in place of the captured one of theirs.

        Raises:
            LookupError: if there is none.
        """
        found = self.find(captured)
        if found is None:
            raise LookupError(
                "What one block of a model captures must have a counterpart in each block like "
                f"it. Received: {captured}. Set HYPARFLOW_UNITS=0 and report it."
            )
        return found

    def covers(self, captured: Iterable[Any]) -> bool:
        """Whether all these handles of theirs have one of mine in their place."""
        return all(self.find(tensor) is not None for tensor in captured)
