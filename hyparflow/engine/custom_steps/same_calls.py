"""Checks that all replicas are about to make the same exchange.

The user's code may take a different branch on each replica. Without the check, an exchange would
add up values that do not belong together, or end in an error of MPI without any names.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from hyparflow.comm import abort
from hyparflow.comm.communicator import Communicator

__all__ = ["Exchange", "SameCalls"]


class Exchange:
    """An exchange that a replica is about to make.

    Attributes:
        what: the exchange in words: "gives an optimizer the gradients of".
        names: names of the values, for messages; Keras numbers names, so they may differ.
        keys: keys of the values, which are the same on all replicas.
        number: a hash of the keys.
    """

    def __init__(self, what: str, names: Sequence[str], keys: Sequence[str]) -> None:
        self.what = what
        self.names = list(names)
        self.keys = list(keys)
        self.number = zlib.crc32("\n".join([what, *keys]).encode())


class SameCalls:
    """Compares the exchanges that replicas are about to make.

    Attributes:
        error: the error of the last comparison; TensorFlow wraps it in another one.

    Args:
        peers: the replicas.
    """

    def __init__(self, peers: Communicator) -> None:
        self._peers = peers
        self.error: Exception | None = None

    def require(self, exchange: Exchange) -> None:
        """Go on if all replicas are at this exchange. Collective.

        Raises:
            ValueError: on all replicas, with the exchange of each.
        """
        numbers = np.zeros(self._peers.size, np.int64)
        numbers[self._peers.rank] = exchange.number
        self._peers.sum(numbers, f"all replicas: this one {exchange.what} something")
        if (numbers == exchange.number).all():
            return
        mine = (exchange.what, dict(zip(exchange.keys, exchange.names, strict=True)))
        everyone = self._peers.all_gather_objects(mine, "what each replica exchanges")
        error = self.error = abort.mark_collective(ValueError(_message(everyone)))
        raise error


def _message(everyone: list[tuple[str, dict[str, str]]]) -> str:
    rule = "All replicas must give an optimizer the same gradients in each step of a model's own."
    remedy = (
        "Own code takes another branch there, as it may run eagerly or with `tf.cond`. Let each "
        "replica give the same list, with zeros for what its rows do not use, or train in one "
        "process."
    )
    if len({what for what, _ in everyone}) > 1:
        received = [
            f"rank {n} {what} {_some(list(names.values()))}"
            for n, (what, names) in enumerate(everyone)
        ]
        return f"{rule} Received: at the same time {', '.join(received)}. {remedy}"
    names = {key: name for _, mine in reversed(everyone) for key, name in mine.items()}
    lacks = []
    for key, name in names.items():
        missing = [str(rank) for rank, (_, mine) in enumerate(everyone) if key not in mine]
        if missing:
            ranks = "ranks" if len(missing) > 1 else "rank"
            lacks.append(f"'{name}' is missing on {ranks} {', '.join(missing)}")
    which = "; ".join(lacks) or "all, but in another order"
    return f"{rule} Received: of what a step {everyone[0][0]}: {which}. {remedy}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(f"'{name}'" for name in names[:4]) + more
