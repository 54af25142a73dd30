"""The sum of dense gradients over replicas by Horovod, where it is installed.

Each partition's replicas are a process set of Horovod's. Its calls block, so they run in a thread,
one at a time and in one order on all ranks; deadlines and other ranks' errors are heard meanwhile.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.comm import abort
from hyparflow.comm.communicator import Communicator
from hyparflow.comm.world import World
from hyparflow.engine.compiled.fast_call import FixedFunction
from hyparflow.engine.gradients.flat_buffer import carried_type
from hyparflow.engine.gradients.mpi_sum import MakeSum
from hyparflow.pipeline.grid import Grid

__all__ = ["HorovodSum", "horovod_sums"]

_NEEDED = (
    'allreduce="horovod" needs Horovod with MPI and TensorFlow: scripts/install_horovod.sh builds '
    "it. "
)


class HorovodSum:
    """Sums tensors over a process set.

    Args:
        hvd: the module horovod.tensorflow.
        process_set: the ranks.
        thread: runs one call at a time.
        comm: the same ranks; its deadline holds.
        dtypes: of the tensors.
        compression: "bf16" or "fp16": the type in which longer floating-point numbers are sent.
    """

    def __init__(
        self,
        hvd: Any,
        process_set: Any,
        thread: ThreadPoolExecutor,
        comm: Communicator,
        shapes: Sequence[tuple[int, ...]],
        dtypes: Sequence[np.dtype],
        compression: str | None,
    ) -> None:
        self._hvd, self._process_set = hvd, process_set
        self._thread, self._comm = thread, comm
        self._shapes, self._dtypes = shapes, dtypes
        self._carried = [carried_type(dtype, compression) for dtype in dtypes]
        counts = [int(np.prod(shape, dtype=np.int64)) for shape in shapes]
        self.size = sum(n * x.itemsize for n, x in zip(counts, self._carried, strict=True))
        self._call = FixedFunction(self._trace)
        self._future: Future[list[Any]] | None = None

    def start(self, values: Sequence[Any]) -> None:
        """Begin to sum this rank's tensors; None counts as zeros."""
        tensors = [
            tf.zeros(shape, dtype) if value is None else tf.convert_to_tensor(value)
            for value, shape, dtype in zip(values, self._shapes, self._dtypes, strict=True)
        ]
        self._future = self._thread.submit(self._call, tensors)

    def advance(self) -> bool:
        """Whether the sums are done; Horovod makes progress by itself."""
        return self._future is None or self._future.done()

    def finish(self) -> list[Any]:
        """The sums, in the order of the tensors."""
        future = self._future
        if future is None:
            raise RuntimeError("A sum must be started before it is finished.")
        self._comm.poll(future.done, "Horovod's sum of gradients")
        return list(future.result())

    def _trace(self, tensors: list[Any]) -> list[Any]:
        narrow = [tf.cast(x, kind) for x, kind in zip(tensors, self._carried, strict=True)]
        sums = self._hvd.grouped_allreduce(narrow, op=self._hvd.Sum, process_set=self._process_set)
        return [tf.cast(x, like.dtype) for x, like in zip(sums, tensors, strict=True)]


def horovod_sums(grid: Grid, world: World, comm: Communicator, compression: str | None) -> MakeSum:
    """The function that makes sums over the replicas of this rank's partition. Collective.

    Args:
        grid: the ranks.
        world: all of them.
        comm: the ranks of this partition.
        compression: "bf16", "fp16" or None.

    Raises:
        ValueError: on all ranks, if one of them has no Horovod that works.
    """
    hvd = _started(world)
    sets = [
        _process_set(hvd, tuple(grid.peer_rank(peer, p) for peer in range(grid.num_peers)), world)
        for p in range(grid.num_partitions)
    ]
    mine = sets[grid.partition(world.rank)]
    return lambda shapes, dtypes, owners=None: HorovodSum(
        hvd, mine, _thread(), comm, shapes, dtypes, compression
    )


def _started(world: World) -> Any:
    """Horovod's module, started on all ranks."""
    hvd, missing = _found()
    _require(world, missing and f"{_NEEDED}Received on rank {world.rank}: {missing}")
    if not hvd.is_initialized():
        _wait(world, functools.partial(hvd.init, process_sets="dynamic"), "Horovod's start")
    others = None
    if hvd.size() != world.size:
        others = (
            f"Horovod must run on the ranks of the job. Received: Horovod on {hvd.size()} of "
            f"{world.size} ranks. Start Horovod and hyparflow with one MPI library."
        )
    _require(world, others)
    return hvd


def _found() -> tuple[Any, str | None]:
    """Horovod's module, or None and what is missing."""
    try:
        import horovod.tensorflow as hvd
    except Exception as error:  # one built for another TensorFlow fails in ways of its own
        return None, str(error)
    return hvd, None if hvd.mpi_built() else "a Horovod without MPI"


def _require(world: World, problem: str | None) -> None:
    """Raise an error on all ranks if one of them has a problem. Collective."""
    for text in world.all_gather_objects(problem, "whether all ranks have Horovod"):
        if text is not None:
            raise abort.mark_collective(ValueError(text))


def _wait(world: World, call: Callable[[], Any], what: str) -> Any:
    """The result of a call of Horovod's that waits for other ranks."""
    future = _thread().submit(call)
    world.poll(future.done, what)
    return future.result()


@functools.cache
def _thread() -> ThreadPoolExecutor:
    """The thread for all of Horovod's calls."""
    return ThreadPoolExecutor(1, "horovod")


def _process_set(hvd: Any, ranks: tuple[int, ...], world: World) -> Any:
    """Horovod's name for these ranks."""
    if len(ranks) == hvd.size():
        return hvd.global_process_set
    try:
        return _wait(world, functools.partial(_new_set, hvd, ranks), "Horovod's process set")
    except ValueError as error:
        raise abort.mark_collective(
            ValueError(
                'allreduce="horovod" with partitions needs process sets that Horovod makes while '
                f"it runs. Received: {error} Leave hvd.init() to hyparflow, or call "
                'hvd.init(process_sets="dynamic").'
            )
        ) from None


@functools.cache
def _new_set(hvd: Any, ranks: tuple[int, ...]) -> Any:
    """A process set; made once, for it cannot be made twice."""
    return hvd.add_process_set(ranks)
