"""The parallel arguments of `fit`, checked before any message is sent."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hyparflow.comm import launcher
from hyparflow.formats.text import shortened
from hyparflow.pipeline.grid import Grid
from hyparflow.pipeline.placement import Placement
from hyparflow.pipeline.schedules import SCHEDULES, placement_of

__all__ = [
    "ALLREDUCE",
    "BATCHNORM",
    "COMPRESSION",
    "STRATEGIES",
    "Options",
    "automatic_microbatches",
    "check_choice",
    "count_of",
    "lpp_of",
    "resolve",
]

STRATEGIES = ("data", "model", "hybrid", "auto")
BATCHNORM = ("local", "deferred", "sync")  # explained in `hyparflow.engine.stages.batchnorm`
ALLREDUCE = ("mpi", "horovod")
COMPRESSION = ("bf16", "fp16")
_LARGEST = 2**31 - 1  # what MPI counts to
_SMALLEST = 16  # rows of a micro-batch under which a row costs noticeably more on CPUs


@dataclass(frozen=True)
class Options:
    """How a model is spread over the ranks.

    Attributes:
        grid: partitions and replicas, and which stages of the model these hold.
        num_microbatches: a number, or "auto".
        schedule: one of `hyparflow.pipeline.schedules.SCHEDULES`.
        lpp: layers per partition, or None.
        batchnorm: one of `BATCHNORM`.
        sharded_data: whether each replica reads a stream of its own.
        allreduce: one of `ALLREDUCE`.
        compression: one of `COMPRESSION`, or None.
    """

    grid: Grid
    num_microbatches: int | str = "auto"
    schedule: str = "1f1b"
    lpp: tuple[int, ...] | None = None
    batchnorm: str = "local"
    sharded_data: bool = False
    allreduce: str = "mpi"
    compression: str | None = None

    @property
    def num_stages(self) -> int:
        """Into how many stages the model is cut."""
        return self.grid.placement.num_stages

    @property
    def pace(self) -> tuple[str, Placement, int] | None:
        """For which schedule, placement and micro-batches stages are better not equal, if any.

        Cuts stay where they are from batch to batch, so "auto" stands for that of a large one.
        """
        placement = self.grid.placement
        if placement.num_partitions == 1 or placement.stages_per_partition == 1:
            return None
        count = self.num_microbatches
        return self.schedule, placement, count if isinstance(count, int) else _most(placement)


def resolve(
    size: int,
    *,
    strategy: str | None = None,
    num_partitions: int | None = None,
    num_replicas: int | None = None,
    num_microbatches: int | str = "auto",
    schedule: str = "auto",
    lpp: Sequence[int] | None = None,
    batchnorm: str = "local",
    sharded_data: bool = False,
    stages_per_partition: int | None = None,
    allreduce: str = "mpi",
    compression: str | None = None,
) -> Options:
    """Check the parallel arguments against the number of ranks and fill in what is missing.

    Args:
        size: the number of ranks.
        strategy: "data" (every rank a replica), "model" (one replica), "hybrid" (both numbers
            count), or "auto" and None: what the numbers say, data parallelism without any.
        num_partitions, num_replicas: None to follow from the strategy and `size`.
        num_microbatches: a positive integer or "auto".
        schedule: one of `hyparflow.pipeline.schedules.SCHEDULES`, or "auto" for "1f1b".
        lpp: layers per partition.
        batchnorm: "local", "deferred" or "sync".
        sharded_data: True or False.
        stages_per_partition: None for as many as the schedule usually has.
        allreduce: "mpi" or "horovod".
        compression: None, "bf16" or "fp16".

    Raises:
        ValueError: if an argument is not valid or the numbers do not fit `size`.
    """
    if strategy is not None:
        check_choice("strategy", strategy, STRATEGIES)
    if not (isinstance(schedule, str) and schedule == "auto"):
        check_choice("schedule", schedule, SCHEDULES, " or 'auto'")
    check_choice("batchnorm", batchnorm, BATCHNORM)
    _check_sums(allreduce, compression)
    sharded_data = _flag("sharded_data", sharded_data)
    if not (isinstance(num_microbatches, str) and num_microbatches == "auto"):
        num_microbatches = count_of("num_microbatches", num_microbatches)
    partitions = None if num_partitions is None else count_of("num_partitions", num_partitions)
    replicas = None if num_replicas is None else count_of("num_replicas", num_replicas)
    each = stages_per_partition
    each = None if each is None else count_of("stages_per_partition", each)
    usual = placement_of(schedule, 1, each).stages_per_partition
    grid = _grid(size, strategy, partitions, replicas, lpp, usual)
    if lpp is not None:
        lpp = lpp_of(lpp)
    schedule = "1f1b" if schedule == "auto" else schedule
    alone = each is None or grid.num_replicas == 1
    if grid.num_partitions == 1 and usual > 1 and alone:
        schedule, each = "1f1b", None  # no pipeline, and no sums to make meanwhile
    placement = placement_of(schedule, grid.num_partitions, each)
    grid = replace(grid, placement=placement)
    return Options(
        grid, num_microbatches, schedule, lpp, batchnorm, sharded_data, allreduce, compression
    )


def check_choice(name: str, value: Any, choices: tuple[str, ...], also: str = "") -> None:
    """Refuse a value of the argument `name` that is none of `choices`.

    Raises:
        ValueError: if it is not.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"`{name}` must be one of {', '.join(map(repr, choices))}{also}. "
            f"Received: {name}={shortened(value)}"
        )


def _check_sums(allreduce: str, compression: str | None) -> None:
    check_choice("allreduce", allreduce, ALLREDUCE)
    if compression is not None:
        check_choice("compression", compression, COMPRESSION, " or None")
    if allreduce == "horovod" and compression == "bf16":
        raise ValueError(
            "Horovod cannot sum numbers of type bfloat16. Received: allreduce='horovod', "
            "compression='bf16'. Use compression='fp16', or allreduce='mpi'."
        )


def _flag(name: str, value: Any) -> bool:
    if type(value).__name__ not in ("bool", "bool_"):  # NumPy's is named like the latter
        raise ValueError(f"`{name}` must be True or False. Received: {name}={shortened(value)}")
    return bool(value)


def count_of(name: str, value: Any) -> int:
    """The value of the argument `name`, which must be a positive integer.

    Raises:
        ValueError: if it is not.
    """
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not (is_integer and 0 < int(value) <= _LARGEST):
        also = ' or "auto"' if name == "num_microbatches" else ""
        also += " below 2**31" if is_integer and int(value) > 0 else ""
        raise ValueError(
            f"`{name}` must be a positive integer{also}. Received: {name}={shortened(value)}"
        )
    return int(value)


def lpp_of(lpp: Any) -> tuple[int, ...]:
    """The value of the argument `lpp`, which must be a list of positive integers.

    Raises:
        ValueError: if it is not.
    """
    parts = tuple(lpp) if isinstance(lpp, list | tuple) else ()
    if not parts or not all(
        isinstance(part, numbers.Integral) and not isinstance(part, bool) and int(part) > 0
        for part in parts
    ):
        raise ValueError(
            "`lpp` (layers per partition) must be a list of positive integers, one per "
            f"partition, or per stage of an interleaved schedule. Received: lpp={shortened(lpp)}"
        )
    return tuple(int(part) for part in parts)


def _grid(
    size: int,
    strategy: str | None,
    partitions: int | None,
    replicas: int | None,
    lpp: Sequence[int] | None,
    stages_per_partition: int,
) -> Grid:
    if strategy == "data":
        _check_fixed("num_partitions", partitions, strategy)
        partitions = 1
    elif strategy == "model":
        _check_fixed("num_replicas", replicas, strategy)
        replicas = 1
    elif strategy == "hybrid" and partitions is None and replicas is None:
        raise ValueError(
            "`strategy='hybrid'` needs `num_partitions`, `num_replicas` or both. "
            "Received: num_partitions=None, num_replicas=None"
        )
    if partitions is None and replicas is None:
        stages = len(lpp) if isinstance(lpp, list | tuple) else 0
        partitions = max(1, stages // stages_per_partition)
    if partitions is None:
        partitions = max(1, size // (replicas or 1))
    if replicas is None:
        replicas = max(1, size // partitions)
    grid = Grid(partitions, replicas)
    if grid.size != size:
        raise ValueError(
            "The number of ranks must be num_partitions x num_replicas. Received: "
            f"num_partitions={partitions}, num_replicas={replicas}, which is {grid.size}, "
            f"but {size} rank{'s run' if size > 1 else ' runs'}. "
            f"Start it with: {launcher.describe_command(grid.size)}"
        )
    return grid


def _check_fixed(name: str, value: int | None, strategy: str) -> None:
    if value not in (None, 1):
        raise ValueError(
            f"`strategy={strategy!r}` has {name}=1; use strategy='hybrid' for both kinds of "
            f"parallelism. Received: {name}={value}"
        )


def automatic_microbatches(batch_size: int, grid: Grid) -> int:
    """The number of micro-batches that "auto" stands for.

    Up to four per partition, which leaves at most a fifth of the time idle (GPipe, section
    2.3), of at least 16 rows each, but at least one per partition where there are rows enough.
    One without partitions. Where a partition has V > 4 stages, 16 / V per partition leave as
    little idle as four stages do with four.
    """
    if grid.num_partitions == 1:
        return 1
    rows = max(1, batch_size // grid.num_replicas)
    wanted = max(min(_most(grid.placement), rows // _SMALLEST), grid.num_partitions)
    return min(wanted, rows)


def _most(placement: Placement) -> int:
    """What "auto" stands for where rows are no matter."""
    partitions = placement.num_partitions
    most = min(4 * partitions, 16 * partitions // placement.stages_per_partition)
    return max(most, partitions)
