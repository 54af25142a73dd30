"""One process: the same calls, answered by Keras itself (but see `in_engine.py`)."""

from __future__ import annotations

import numbers
import os
import warnings
from collections.abc import Callable
from typing import Any

from hyparflow.comm import launcher
from hyparflow.comm.log import users_stack_level
from hyparflow.engine.sequence.sequence_counts import SequenceCounts
from hyparflow.options import is_given, resolve
from hyparflow.training.data_arguments import keras_arguments

__all__ = ["OF_ONE_PROCESS", "PlainModel", "wanted_ranks"]


# What one process follows as well.
OF_ONE_PROCESS = ("kernels", "recompute", "num_sequence_chunks", "sequence_store")


def wanted_ranks(arguments: dict[str, Any]) -> int | None:
    """The number of ranks that the parallel arguments ask for, as far as they are valid.

    None if they only say how several ranks would train.
    """
    lpp, each = arguments.get("lpp"), arguments.get("stages_per_partition")
    partitions = arguments.get("num_partitions")
    if partitions is None and isinstance(lpp, list | tuple):
        partitions = len(lpp) // (each if isinstance(each, int) and each > 0 else 1)
    others = (arguments.get(name) for name in ("num_replicas", "num_sequence_shards"))
    counts = [n for n in (partitions, *others) if n is not None]
    if not counts and _is_parallel(arguments):
        return None
    wanted = 1
    for count in counts:
        if isinstance(count, numbers.Integral):
            wanted *= max(1, int(count))
    return wanted


def _is_parallel(arguments: dict[str, Any]) -> bool:
    """Whether any of the arguments was given that say how several ranks would train."""
    return any(is_given(n, value) for n, value in arguments.items() if n not in OF_ONE_PROCESS)


class PlainModel:
    """The methods of a `ParallelModel` in a single process, where plain Keras does the work.

    Args:
        model: a Keras model.
        arguments: the parallel arguments. If they ask for several ranks, a warning says how to
            start these, and training goes on in one process.
        in_engine: makes what trains the model by the engine, which checkpoints need.

    Raises:
        ValueError: if an argument is not valid.
    """

    def __init__(self, model: Any, arguments: dict[str, Any], in_engine: Callable[[], Any]) -> None:
        self.model, self._in_engine = model, in_engine
        wanted = wanted_ranks(arguments)
        resolve(wanted or 1, **arguments)
        if wanted != 1:
            asked = f"the {wanted} ranks asked for are" if wanted else "ranks, here 2, are"
            warnings.warn(
                f"hyparflow trains in one process, for no launcher started several; {asked} "
                f"started with: {launcher.describe_command(wanted or 2)}, or from here with "
                f"fit(..., launch={True if wanted else {'num_ranks': 2}})",
                stacklevel=users_stack_level(),
            )

    def fit(self, *args: Any, trace: Any = None, checkpoint: Any = None, **kwargs: Any) -> Any:
        """Call Keras's `fit`, or with checkpoints the engine's.

        A trace is not written, because one process has no ranks.
        """
        if checkpoint is not None:
            return self._in_engine().fit(*args, trace=trace, checkpoint=checkpoint, **kwargs)
        if trace is not None:
            warnings.warn(
                "A trace tells what ranks do, and one process has none: nothing is written. "
                f"Received: trace={trace!r}. Start several ranks, or use Keras's TensorBoard.",
                stacklevel=users_stack_level(),
            )
        return self.model.fit(**keras_arguments(self.model, "fit", args, kwargs))

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Call Keras's `evaluate`."""
        return self.model.evaluate(**keras_arguments(self.model, "evaluate", args, kwargs))

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Call Keras's `predict`."""
        return self.model.predict(**keras_arguments(self.model, "predict", args, kwargs))

    @property
    def num_replicas(self) -> int:
        """Integer. The number of replicas, 1."""
        return 1

    @property
    def sequence_counts(self) -> SequenceCounts:
        """What was exchanged and kept to divide sequences: nothing."""
        return SequenceCounts()

    @property
    def replica(self) -> int:
        """Integer. The replica that this process is, 0."""
        return 0

    def save(self, path: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save the model as a plain Keras file, complete or not at all."""
        from hyparflow.model.saving import save_atomically

        save_atomically(self.model, path, **kwargs)

    def export(self, path: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write a SavedModel, complete or not at all."""
        from hyparflow.model.saving import save_atomically

        save_atomically(self.model, path, "export", **kwargs)

    def __str__(self) -> str:
        return "1 replica x 1 partition: plain Keras in one process"
