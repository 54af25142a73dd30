"""The parallel arguments: each declared once, with its default, its check and its meaning.

`hyparflow.parallelize` has the one signature that is written out; `fit`, `evaluate`, `predict`,
plans and the command line take theirs from here (`taking_options`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import Field, dataclass, fields, replace
from typing import Any, TypeVar

from hyparflow.comm import launcher
from hyparflow.experts.given_placement import given_placement
from hyparflow.formats import argument_checks as checks
from hyparflow.formats.signatures import declare, with_keywords
from hyparflow.pipeline.grid import Grid
from hyparflow.pipeline.grid_numbers import grid_numbers
from hyparflow.pipeline.microbatches import most_microbatches
from hyparflow.pipeline.placement import Placement
from hyparflow.pipeline.schedules import SCHEDULES, placement_of

__all__ = ["Options", "declared", "is_given", "planned_names", "resolve", "taking_options"]

_STRATEGIES = ("data", "model", "hybrid", "sequence", "auto")
_BATCHNORM = ("local", "deferred", "sync")  # explained in `hyparflow.engine.stages.batchnorm`
_RECOMPUTE = ("block", "segments", "auto")  # `hyparflow.engine.stages.segmented_stage`
_KERNELS = ("auto", "keras")  # `hyparflow.engine.kernels`
_ALLREDUCE, _COMPRESSION = ("mpi", "horovod"), ("bf16", "fp16")
_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Options:
    """How a model is spread over the ranks: the parallel arguments, checked.

    Raises:
        ValueError: if one of them is not valid.
    """

    strategy: str | None = declare(
        None,
        checks.or_none(checks.one_of(_STRATEGIES)),
        'String or `None`. `"data"`: every rank trains a replica on its part of the batch. '
        '`"model"`: one replica is cut into as many partitions as there are ranks. `"hybrid"`: '
        "both, as `num_partitions` and `num_replicas` say. "
        '`"sequence"`: all ranks share each sequence. `None`: what these numbers say, data '
        'parallelism without any. `"auto"`: `fit` plans what is not given, by the layers as rank 0 '
        "measures them: the fastest layout that fits in memory, for `evaluate` and `predict` too.",
        choices=_STRATEGIES,
    )
    num_partitions: int | None = declare(
        None,
        checks.or_none(checks.count_of),
        "Integer or `None`. The number of partitions of each replica.",
        planned=True,
    )
    num_replicas: int | None = declare(
        None,
        checks.or_none(checks.count_of),
        "Integer or `None`. The number of replicas; times `num_partitions` that of all ranks.",
        planned=True,
    )
    num_sequence_shards: int | None = declare(
        None,
        checks.or_none(checks.count_of),
        "Integer or `None`. The number of ranks that share each sequence.",
        planned=True,
    )
    num_sequence_chunks: int | str = declare(
        1,
        checks.count_or_auto,
        'Integer or `"auto"`. In how many chunks a sequence is computed: as few as fit in memory.',
        planned=True,
    )
    sequence_store: str = declare(
        "memory",
        checks.text,
        'String. Where chunks wait for their backward: `"memory"` (a GPU\'s, if it computes), '
        '`"host"`, `"bf16"` (rounded, with other numbers), `"disk"`, or a folder for a file.',
        planned=True,
    )
    num_microbatches: int | str = declare(
        "auto",
        checks.count_or_auto,
        'Integer or `"auto"`. In how many micro-batches a replica computes its rows of a batch.',
        planned=True,
        per_call=True,
    )
    schedule: str = declare(
        "auto",
        checks.one_of(SCHEDULES, " or 'auto'", ["auto"]),
        'String. `"gpipe"`; `"1f1b"`, which `"auto"` is; `"interleaved"`, whose partitions have '
        'several stages, wait less and send more; `"zero-bubble"`, which computes gradients of '
        'weights in waits; `"zero-bubble-v"`, the same, each partition down and up again.',
        planned=True,
        per_call=True,
        choices=SCHEDULES,
    )
    lpp: Sequence[int] | None = declare(
        None,
        checks.or_none(checks.layers_per_partition),
        "List of integers or `None`. Operations per partition, or per stage where a partition has "
        "several. It overrides the load balancer.",
        planned=True,
        several=True,
    )
    batchnorm: str = declare(
        "local",
        checks.one_of(_BATCHNORM),
        "String. What BatchNormalization layers normalize over, and when their moving statistics "
        'move. `"local"`: a micro-batch of one replica, and with each. `"deferred"`: the same, but '
        'statistics of the whole global batch move them, once per step. `"sync"`: a micro-batch '
        "of all replicas; with one micro-batch that is what one process sees.",
        choices=_BATCHNORM,
    )
    sharded_data: bool = declare(
        False,
        checks.flag,
        "Boolean. Whether streams (a dataset, a generator) are already sharded: a replica reads "
        "what its first rank passes, a step takes a batch of each, an epoch ends when all have "
        "ended, and `ParallelModel.replica` tells which shard to make. Else rank 0 deals out.",
        per_call=True,
    )
    stages_per_partition: int | None = declare(
        None,
        checks.or_none(checks.count_of),
        "Integer or `None`. How many stages a partition has in an interleaved schedule, usually "
        "2; on one partition of several replicas, pieces whose gradients are summed early.",
        planned=True,
    )
    allreduce: str = declare(
        "mpi",
        checks.one_of(_ALLREDUCE),
        'String. What sums gradients over replicas: `"mpi"`, or `"horovod"` if installed.',
        choices=_ALLREDUCE,
    )
    gather: bool | None = declare(
        None,
        checks.or_none(checks.flag),
        "Boolean or `None`. Whether every rank has all weights after the call, or each its own. "
        "`None`: all have them after `fit`; `evaluate` and `predict` leave them where they were.",
        per_call=True,
    )
    compression: str | None = declare(
        None,
        checks.or_none(checks.one_of(_COMPRESSION, " or None")),
        'String or `None`. `"bf16"` or `"fp16"`: gradients travel between replicas as such, and '
        "are added up in 32 bits. The numbers are no longer plain Keras's.",
        choices=_COMPRESSION,
    )
    recompute: str | None = declare(
        None,
        checks.or_none(checks.one_of(_RECOMPUTE, " or None")),
        'String or `None`. `"block"`: a forward keeps what each block of layers takes, and its '
        'backward computes the forward again; `"segments"`: several blocks. Less memory, more '
        'time, the same numbers. `"auto"`: `fit` plans what fits and takes least time.',
        planned=True,
        choices=_RECOMPUTE,
    )
    shard_optimizer: bool = declare(
        False,
        checks.flag,
        "Boolean. Whether each replica updates a share of the weights, and alone holds its slots.",
        planned=True,
    )
    expert_parallel: bool = declare(
        False,
        checks.flag,
        "Boolean. Whether replicas share out experts: tokens travel to the one that holds theirs.",
        planned=True,
    )
    placement: Any = declare(
        None,
        checks.or_none(given_placement),
        "A `hyparflow.ExpertPlacement`, the path of one, or `None`. Which replica has which "
        "expert, with `expert_parallel`; by default the first has the first ones.",
    )
    kernels: str = declare(
        "auto",
        checks.one_of(_KERNELS),
        'String. `"auto"`: kernels of TensorFlow compute layers that are faster so, with the same '
        'numbers to rounding, in float32 and without XLA. `"keras"`: all as Keras computes it.',
        choices=_KERNELS,
    )

    def __post_init__(self) -> None:
        for option in fields(self):
            meant = option.metadata["check"](option.name, getattr(self, option.name))
            object.__setattr__(self, option.name, meant)
        checks.can_be_summed(self.allreduce, self.compression)

    @functools.cached_property
    def grid(self) -> Grid:
        """Partitions and replicas, and which stages of the model these hold."""
        partitions, replicas = self.num_partitions or 1, self.num_replicas or 1
        placement = placement_of(self.schedule, partitions, self.stages_per_partition)
        return Grid(partitions, replicas, placement, self.num_sequence_shards or 1)

    @property
    def divides_sequences(self) -> bool:
        """Whether sequences are divided, over ranks or into chunks."""
        return (self.num_sequence_shards or 1) > 1 or self.num_sequence_chunks != 1

    @property
    def known_chunks(self) -> int:
        """The number of chunks of a sequence, 1 where it is still to be decided."""
        return self.num_sequence_chunks if isinstance(self.num_sequence_chunks, int) else 1

    @property
    def balanced_for(self) -> tuple[str, Placement, int] | None:
        """(schedule, placement, micro-batches) to balance stages for; None if equal ones are best.

        Cuts stay where they are from batch to batch, so "auto" counts as for a large batch.
        """
        placement, count = self.grid.placement, self.num_microbatches
        if placement.num_partitions == 1 or placement.depth == 1:
            return None
        if not isinstance(count, int):
            count = most_microbatches(placement)
        return self.schedule, placement, count

    @property
    def built_for(self) -> tuple[Any, ...]:
        """Cache key of what is built for a model: all arguments except those marked `per_call`."""
        called = (option for option in fields(self) if option.metadata.get("per_call"))
        usual: dict[str, Any] = {option.name: option.default for option in called}
        return replace(self, **usual), self.grid, self.balanced_for


def declared() -> dict[str, Field[Any]]:
    """The parallel arguments by name, in order."""
    return {option.name: option for option in fields(Options)}


def planned_names() -> list[str]:
    """The arguments that a plan decides where the user does not."""
    return [name for name, option in declared().items() if option.metadata.get("planned")]


def is_given(name: str, value: Any) -> bool:
    """Whether the value of an argument differs from its default."""
    default = declared()[name].default
    return not (value is default or (type(value) is type(default) and value == default))


def taking_options(
    names: Iterable[str] | None = None, alone: bool = False
) -> Callable[[_Function], _Function]:
    """Add the parallel arguments to the signature of a function that takes ``**kwargs``.

    In its docstring, a line ``{options}`` becomes their meanings.

    Args:
        names: the arguments to add; None for all.
        alone: whether the function takes no other keyword.
    """
    return with_keywords([declared()[name] for name in names or declared()], alone)


def resolve(size: int, **arguments: Any) -> Options:
    """Check the parallel arguments against the number of ranks and fill in what is missing.

    Args:
        size: the number of ranks.
        arguments: those of `Options` that are given.

    Returns:
        Complete options, except that `num_microbatches` may be "auto"; `strategy` is None, since
        the numbers of partitions and replicas say it.

    Raises:
        ValueError: if an argument is not valid or the numbers do not fit `size`.
    """
    given = Options(**arguments)
    several = placement_of(given.schedule, 1, given.stages_per_partition).depth
    partitions, replicas, shards = grid_numbers(
        size,
        given.strategy,
        given.num_partitions,
        given.num_replicas,
        given.num_sequence_shards,
        least=len(given.lpp or ()) // several,
        command=launcher.describe_command,
    )
    schedule = "1f1b" if given.schedule == "auto" else given.schedule
    alone = given.stages_per_partition is None or replicas == 1
    if partitions == 1 and several > 1 and alone:  # no pipeline, and no sums that could overlap
        schedule, several = "1f1b", 1
    return replace(
        given,
        strategy=None,
        num_partitions=partitions,
        num_replicas=replicas,
        num_sequence_shards=shards,
        schedule=schedule,
        stages_per_partition=several,
    )
