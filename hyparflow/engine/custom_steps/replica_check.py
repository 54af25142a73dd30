"""Whether replicas still hold the same weights after steps of the model's own.

A step may change weights without an optimizer (``w.assign_sub(rate * g)``), which cannot be
intercepted; but replicas that do so with their own gradients have different weights afterwards.
Such a change may begin late. So weights are compared after ever more steps, and each time that one
replica's are about to be taken for those of all: before evaluation, before callbacks read them, and
at the end of training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.comm import abort
from hyparflow.comm.communicator import Communicator
from hyparflow.engine.custom_steps.occasions import is_due
from hyparflow.engine.weights.pieces import checksum

__all__ = ["ReplicaCheck"]

_UNITS = 16  # units of the last place by which different machines may differ


class ReplicaCheck:
    """Compares variables over replicas.

    Args:
        peers: the replicas.
    """

    def __init__(self, peers: Communicator) -> None:
        self._peers = peers
        self._steps = 0
        self._compared = 0  # the last step after which the variables were compared

    def after_step(self, variables: Callable[[], Sequence[Any]]) -> list[Any]:
        """After a step, compare if it is time; the variables that differ. Collective.

        Args:
            variables: returns the variables to compare, in the same order on all replicas.
        """
        self._steps += 1
        return self._odd(variables()) if is_due(self._steps) else []

    def between_steps(self, variables: Callable[[], Sequence[Any]]) -> list[Any]:
        """Compare if there were steps since the last time; see `after_step`. Collective."""
        return self._odd(variables()) if self._steps > self._compared else []

    def _odd(self, compared: Sequence[Any]) -> list[Any]:
        self._compared = self._steps
        if self._peers.size == 1:
            return []
        mine = np.array([[checksum(v) for v in compared]], np.int64)
        everyone = self._peers.all_gather_rows(mine, "the comparison of weights")
        return [
            v
            for v, column in zip(compared, everyone.T, strict=True)
            if (column != column[0]).any() and self._differs(v)
        ]

    def _differs(self, variable: Any) -> bool:
        """Whether a variable differs by more than the rounding of other machines. Collective."""
        value = np.array(tf.convert_to_tensor(variable))
        leaders = value.copy()
        self._peers.broadcast(leaders, 0, "the comparison of a weight")
        worst, limit = 1.0, 0.0
        if value.dtype.kind == "f":
            worst = float(np.max(np.abs(value - leaders), initial=0.0))
            unit = _UNITS * float(np.finfo(value.dtype).eps)
            limit = unit * float(np.max(np.abs(leaders), initial=0.0))
        equal = np.array_equal(value, leaders, equal_nan=value.dtype.kind == "f")
        odd = np.array([int(not worst <= limit and not equal)])
        self._peers.sum(odd, "the comparison of a weight")
        return bool(odd[0])

    def error(self, names: Sequence[str]) -> Exception:
        """The error that ends the job because these weights differ."""
        shown = ", ".join(f"'{name}'" for name in names[:4])
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        error = ValueError(
            "Replicas must hold the same weights after each step of a model's own. Received: after "
            f"step {self._steps} they differ in {shown}{more}. The step changes them by something "
            "else than gradients that it gives to a Keras optimizer, or by random numbers of each "
            "replica. Give the gradients to an optimizer (`optimizer.apply`), or train in one "
            "process."
        )
        return abort.mark_collective(error)
