"""Finds the checkpoint that a call of `fit` goes on from, and gives the model its values."""

from __future__ import annotations

from typing import Any

import numpy as np

from hyparflow.checkpoint.own_variables import announce_odd, restore_own
from hyparflow.checkpoint.replica_states import read_replica
from hyparflow.checkpoint.restore import restore
from hyparflow.comm import abort
from hyparflow.comm.leader import LEADER, on_leader
from hyparflow.comm.log import STATUS
from hyparflow.comm.world import World
from hyparflow.formats.checkpoint.folder import CheckpointFolder
from hyparflow.formats.checkpoint.reader import CheckpointReader
from hyparflow.model.keras_internals.optimizer import learning_rates
from hyparflow.training.call import Call
from hyparflow.training.checkpoint_side import METRICS
from hyparflow.training.checkpoints.resumption import Resumption

__all__ = ["resume"]

_CALLBACKS = "callbacks/"  # what their tensors' names begin with


def resume(model: Any, call: Call, world: World) -> Resumption | None:
    """Give a model the values of the newest checkpoint, if there is one. Collective.

    Args:
        model: built, as is its optimizer.
        call: of `fit`.
        world: all ranks.

    Returns:
        What the call goes on from; None if it begins.

    Raises:
        ValueError: if the checkpoint is another model's; the same on all ranks.
    """
    if call.checkpoint is None:
        return None
    folder = CheckpointFolder(call.checkpoint.path)
    step = on_leader(world, folder.newest, "the newest checkpoint")
    if step is None:
        return None
    reader, failed, own = None, "", dict[str, np.ndarray]()
    rates = _rates(model)
    try:
        reader = CheckpointReader(folder.step(step))
        tensors = restore(model, reader)
        own = read_replica(reader, tensors, call.options.grid, world.rank)
        odd = restore_own(model, reader, is_training=True)
        if world.rank == LEADER:
            announce_odd(odd, reader.folder)
            _announce_rates(rates, _rates(model))
    except (ValueError, OSError) as error:
        failed = str(error)
    said = world.all_gather_objects(failed, "the ranks to open a checkpoint")
    if any(said):
        raise abort.mark_collective(ValueError(next(filter(None, said))))
    return None if reader is None else _resumption(reader, call, own)


def _rates(model: Any) -> list[float]:
    return [float(rate) for rate in learning_rates(model.optimizer)]


def _announce_rates(compiled: list[float], saved: list[float]) -> None:
    """Say that a learning rate is not the one that the model was compiled with."""
    if compiled != saved:
        STATUS.info(
            "hyparflow: the learning rate goes on as it was saved, %s, and not as compiled, %s; a "
            "callback can change it",
            *(", ".join(f"{rate:.6g}" for rate in rates) for rates in (saved, compiled)),
        )


def _resumption(reader: CheckpointReader, call: Call, own: dict[str, np.ndarray]) -> Resumption:
    index = reader.index
    held = [name for name in index.tensors if name.startswith(_CALLBACKS)]
    has_metrics = METRICS in index.tensors
    return Resumption(
        where=str(reader.folder),
        step=index.step,
        epoch=index.epoch,
        step_in_epoch=index.step_in_epoch,
        state=index.state,
        epochs=int(call.arguments.get("epochs", 1)),
        reads_stream="train" not in call.sources,
        metrics=reader.read(METRICS) if has_metrics else np.zeros(0),
        weights={name: reader.read(name) for name in held},
        own=own,
    )
