"""The arguments of a call of Keras's on the leader."""

from __future__ import annotations

from typing import Any

from hyparflow.training.call import Call
from hyparflow.training.keras_bridge import with_weights
from hyparflow.training.leader_data import step_tickets
from hyparflow.training.worker import Worker

__all__ = ["leader_arguments"]


def leader_arguments(
    call: Call, arguments: dict[str, Any], worker: Worker, stream: Any
) -> dict[str, Any]:
    """The arguments that the leader gives to Keras.

    Args:
        call: what is called.
        arguments: the user's, with row numbers in place of arrays.
        worker: the leader's.
        stream: what is read in place of `x`; None for arrays.
    """
    ready = arguments | {"callbacks": with_weights(arguments.get("callbacks"), worker)}
    for name, argument in (("train", "x"), ("validation", "validation_data")):
        if name in call.shards:
            ready[argument] = step_tickets(name, worker.order)
    return ready if stream is None else ready | {"x": stream}
