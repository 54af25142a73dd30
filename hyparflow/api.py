"""What users call: `fit`, `evaluate`, `predict` and `parallelize`."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from hyparflow.comm import abort, launcher
from hyparflow.comm.ranks import world
from hyparflow.formats.text import shortened
from hyparflow.model.arguments import named
from hyparflow.options import resolve

if TYPE_CHECKING:
    from hyparflow.planning.plan import Plan
    from hyparflow.training.auto import PlanCache
    from hyparflow.training.parallel_model import ParallelModel
    from hyparflow.training.session import Session

__all__ = ["evaluate", "fit", "parallelize", "predict"]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_CACHE = "_hyparflow_parallel"  # attribute of a model: what was built for it


def _collective(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """One that all ranks call: MPI is started before it fails, so that one reports it for all."""
    return named(function, before=world)


@_collective
def parallelize(
    model: Any,
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
    plan: Plan | str | os.PathLike[str] | None = None,
) -> ParallelModel:
    """Spread `model` over the ranks of this job; the object that `fit` builds, to keep.

    Args:
        model: a Keras model. To be cut into partitions it must be Functional or Sequential.
        strategy: "data": every rank trains a replica on its part of the batch. "model": one
            replica, cut into as many partitions as there are ranks. "hybrid": both, as
            `num_partitions` and `num_replicas` say. "auto" or None: what the numbers say; data
            parallelism without any.
        num_partitions: partitions per replica.
        num_replicas: replicas; num_partitions x num_replicas must be the number of ranks.
        num_microbatches: micro-batches per replica and step, or "auto".
        schedule: "gpipe", "1f1b", "interleaved" (several stages per partition, which leave less
            time idle and send more), "zero-bubble" (gradients of weights while a partition would
            wait) or "auto" (1f1b).
        lpp: layers per partition: numbers of operations that override the load balancer; one per
            stage where a partition has several.
        batchnorm: what BatchNormalization layers normalize over, and when their moving statistics
            move. "local": a micro-batch of one replica, and with it. "deferred": the same, but
            statistics of the whole global batch move them, once per step. "sync": a micro-batch
            of all replicas; with one micro-batch that is what one process sees.
        sharded_data: whether data that are a stream (a dataset, a generator) are already sharded:
            each replica then reads the one that its own first rank passes, and a step takes a
            batch of each. An epoch ends when all have ended. `ParallelModel.replica` tells which
            shard to make. Otherwise rank 0 reads the stream and deals out its batches.
        stages_per_partition: of an interleaved schedule; 2 if not given. On one partition with
            several replicas, the pieces whose gradients are summed while others still compute.
        allreduce: what sums gradients over replicas: "mpi", or "horovod" where it is installed.
        compression: None, or "bf16" or "fp16": gradients travel between replicas as such, and are
            added up in 32 bits. Half as many bytes, but no longer plain Keras's numbers.
        plan: what `hyparflow.plan` returned, or the file where it was saved, in place of the
            arguments up to `lpp`.

    Returns:
        A `ParallelModel` with `fit`, `evaluate`, `predict` and `save`.

    Raises:
        ValueError: if an argument is not valid; the same on every rank.
        RuntimeError: if the launcher and MPI disagree on the number of ranks.

    Source: HyPar-Flow (Awan et al., ISC 2020), section 4 (strategies, LPP).
    """
    arguments = {
        "strategy": strategy,
        "num_partitions": num_partitions,
        "num_replicas": num_replicas,
        "num_microbatches": num_microbatches,
        "schedule": schedule,
        "lpp": lpp,
        "batchnorm": batchnorm,
        "sharded_data": sharded_data,
        "stages_per_partition": stages_per_partition,
        "allreduce": allreduce,
        "compression": compression,
    }
    from hyparflow.model.checks import check_model

    with abort.alike():
        ranks = world()  # first of all, so that one rank reports what is wrong for all
        check_model(model)
        if plan is not None:
            from hyparflow.planning.as_arguments import as_plan, planned

            plan = as_plan(plan)
            num_ranks = None if ranks is None else ranks.size
            arguments = planned(arguments, plan, model, num_ranks)
        return _parallelize(model, arguments, plan)


def _parallelize(model: Any, arguments: dict[str, Any], plan: Plan | None) -> Any:
    from hyparflow.training.plain_model import PlainModel

    ranks = world()
    if ranks is None:
        return PlainModel(model, arguments)
    options = resolve(ranks.size, **arguments)
    if ranks.size == 1 and options.num_microbatches in ("auto", 1):
        return PlainModel(model, {})
    import keras

    from hyparflow.model.checks import check_can_cut, check_model
    from hyparflow.training.parallel_model import ParallelModel
    from hyparflow.training.session import Session

    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "hyparflow trains with Keras's TensorFlow backend. "
            f"Received: the {keras.backend.backend()} backend. Set KERAS_BACKEND=tensorflow."
        )

    check_model(model)
    if options.num_stages > 1:
        check_can_cut(model)
    sessions = vars(model).setdefault(_CACHE, _Sessions()).by_layout
    # What a session is built for: all but what may differ from call to call.
    key = dataclasses.replace(options, num_microbatches=1, schedule="", sharded_data=False)
    if key not in sessions:
        sessions[key] = Session(model, options, ranks)
    return ParallelModel(model, options, ranks, sessions[key], plan)


class _Sessions:
    """What was built for one model object, so that a second `fit` need not compile again."""

    def __init__(self) -> None:
        self.by_layout: dict[Any, Session] = {}
        self.known: PlanCache | None = None  # of plans


@_collective
def fit(
    model: Any,
    *args: Any,
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
    plan: Plan | str | os.PathLike[str] | None = None,
    trace: str | os.PathLike[str] | None = None,
    launch: bool | Mapping[str, Any] = False,
    **kwargs: Any,
) -> Any:
    """Train `model` over the ranks of this job with the numbers of plain ``model.fit``.

    Every rank calls it with the same model and the whole data. `batch_size` is the global batch;
    the learning rate is never changed. Callbacks run on rank 0 only, as in one process.

    Args:
        model: a compiled Keras model.
        args, kwargs: as for Keras's ``model.fit``: x, y, batch_size, epochs and so on.
        strategy: as for `parallelize`; so are num_partitions, num_replicas, num_microbatches,
            schedule, lpp, batchnorm, sharded_data, stages_per_partition, allreduce, compression
            and plan. With strategy="auto" and no plan, what is not given is planned: rank 0
            measures what the model's layers cost, and all ranks train by the fastest layout that
            fits in memory.
        trace: a file into which to write what each rank did in the last 200 steps and when: every
            computation, message, wait and sum. Perfetto opens it, and ``hyparflow trace`` sums it
            up. With the environment variable HYPARFLOW_TRACE each call writes one in that folder.
        launch: True, in a process that no launcher started (a notebook, a script run by plain
            ``python``), starts as many ranks as the numbers of partitions and replicas say, trains
            on them and brings back History, weights and optimizer state, but nothing that
            callbacks keep in themselves; see `hyparflow.launch`.
            A mapping gives that function's keyword arguments. On a rank it changes nothing.

    Returns:
        Keras's History, the same on every rank. Afterwards `model` holds the trained weights, and
        its optimizer its state, on every rank.

    Raises:
        ValueError: if an argument is not valid; the same on every rank.
    """
    given = locals()
    parallel = {name: given[name] for name in _PARALLEL}
    options = _launch_options(launch)
    if options is not None and not launcher.is_launched():
        from hyparflow.training.fit_on_ranks import fit_on_ranks

        return fit_on_ranks(fit, model, args, kwargs, parallel | {"trace": trace}, options)
    if isinstance(strategy, str) and strategy == "auto" and plan is None:
        parallel, args, kwargs = _automatic(model, args, kwargs, parallel)
    return parallelize(model, **parallel).fit(*args, trace=trace, **kwargs)


def _launch_options(launch: Any) -> dict[str, Any] | None:
    """What `hyparflow.launch` is to be given; None if it is not to be called."""
    if isinstance(launch, Mapping):
        return dict(launch) or None
    if launch is not None and type(launch).__name__ not in ("bool", "bool_"):  # NumPy's
        world()  # so that one rank reports it for all
        raise abort.mark_collective(
            ValueError(
                "`launch` must be True, False, or a dict of hyparflow.launch's arguments. "
                f"Received: launch={shortened(launch)}"
            )
        )
    return {} if launch else None


def _automatic(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], parallel: dict[str, Any]
) -> tuple[dict[str, Any], tuple[Any, ...], dict[str, Any]]:
    """What strategy="auto" stands for, and the arguments of `fit`, in which a stream is opened.

    All is as given where there is nothing to plan.
    """
    with abort.alike():
        ranks = world()
    if ranks is None or ranks.size == 1:
        return parallel, args, kwargs
    from hyparflow.model.checks import check_model
    from hyparflow.training.auto import LEFT_OPEN, PlanCache, plan_fit
    from hyparflow.training.data_arguments import bound

    with abort.alike():
        check_model(model)
        fixed = {name: value for name, value in parallel.items() if name not in LEFT_OPEN}
        resolve(ranks.size, **{name: value for name, value in fixed.items() if name != "plan"})
        sessions = vars(model).setdefault(_CACHE, _Sessions())
        sessions.known = sessions.known or PlanCache()
        arguments = bound(model, "fit", args, kwargs)
        return plan_fit(model, ranks, arguments, parallel, sessions.known), (), arguments


@_collective
def evaluate(model: Any, *args: Any, **kwargs: Any) -> Any:
    """Evaluate `model` over the ranks of this job, as Keras's ``model.evaluate``.

    Args:
        model: a compiled Keras model.
        args, kwargs: as for ``model.evaluate``, and the parallel arguments of `parallelize`.

    Returns:
        What ``model.evaluate`` returns, the same on every rank.
    """
    parallel = {key: kwargs.pop(key) for key in _PARALLEL if key in kwargs}
    return parallelize(model, **parallel).evaluate(*args, **kwargs)


@_collective
def predict(model: Any, *args: Any, **kwargs: Any) -> Any:
    """Predict with `model` over the ranks of this job, as Keras's ``model.predict``.

    Args:
        model: a Keras model.
        args, kwargs: as for ``model.predict``, and the parallel arguments of `parallelize`.

    Returns:
        The predictions for all rows, on every rank.
    """
    parallel = {key: kwargs.pop(key) for key in _PARALLEL if key in kwargs}
    return parallelize(model, **parallel).predict(*args, **kwargs)


_PARALLEL = tuple(inspect.signature(parallelize).parameters)[1:]  # all but the model
