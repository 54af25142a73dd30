"""Logs each message that a rank starts, where HYPARFLOW_DEBUG=comm asks for it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence

import numpy as np

from hyparflow.comm import log

__all__ = ["MessageLog", "wants_messages"]

_VARIABLE = "HYPARFLOW_DEBUG"
_KNOWN = ("comm",)


def wants_messages(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment asks for messages to be logged.

    Raises:
        ValueError: if it asks for something else.
    """
    wanted = [word.strip() for word in environ.get(_VARIABLE, "").split(",") if word.strip()]
    if unknown := sorted(set(wanted) - set(_KNOWN)):
        raise ValueError(
            f"{_VARIABLE} takes {', '.join(_KNOWN)}. Received: {', '.join(unknown)}. "
            "Unset it, or export HYPARFLOW_DEBUG=comm to see each message."
        )
    return bool(wanted)


class MessageLog:
    """Logs the messages of one rank in one group.

    Args:
        ranks: the rank in the job of each member of the group.
        mine: which member this rank is.
    """

    def __init__(self, ranks: Sequence[int], mine: int) -> None:
        self._ranks, self._mine = ranks, mine
        log.configure()
        log.MESSAGES.setLevel(logging.DEBUG)

    def sends(self, array: np.ndarray, peer: int, tag: int) -> None:
        """A message to another rank."""
        self._say(f"sends to rank {self._ranks[peer]}, tag {tag}", array)

    def receives(self, array: np.ndarray, peer: int, tag: int) -> None:
        """A message from another rank, for which this one makes room."""
        self._say(f"receives from rank {self._ranks[peer]}, tag {tag}", array)

    def broadcasts(self, array: np.ndarray, root: int) -> None:
        """A message from one rank of the group to all others."""
        self._say(f"takes part in a broadcast of rank {self._ranks[root]}", array)

    def sums(self, array: np.ndarray) -> None:
        """A sum over the group."""
        among = ", ".join(map(str, self._ranks))
        self._say(f"takes part in a sum of ranks {among}", array)

    def _say(self, action: str, array: np.ndarray) -> None:
        shape = f"{array.dtype.name} {tuple(array.shape)}"
        log.MESSAGES.debug(f"hyparflow: rank {self._ranks[self._mine]} {action}: {shape}")
