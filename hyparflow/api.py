"""What users call: `fit`, `evaluate`, `predict` and `parallelize`."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from hyparflow.comm import abort, launcher
from hyparflow.comm.ranks import world
from hyparflow.formats.argument_checks import is_auto
from hyparflow.formats.text import shortened
from hyparflow.model.arguments import named
from hyparflow.model.versions import require_versions
from hyparflow.options import declared, planned_names, resolve, taking_options

if TYPE_CHECKING:
    from hyparflow.checkpoint.settings import Checkpoint
    from hyparflow.experts.placement import ExpertPlacement
    from hyparflow.planning.plan import Plan
    from hyparflow.training.parallel_model import ParallelModel

__all__ = ["evaluate", "fit", "parallelize", "predict"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _collective(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Wrap a function that all ranks call: it starts MPI first, so that one rank reports errors."""

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            require_versions()  # before what relies on them is imported
        except ImportError as error:
            world()
            raise abort.mark_collective(error) from None
        return function(*args, **kwargs)

    return named(call, before=world)


@_collective
@taking_options()
def parallelize(
    model: Any,
    *,
    strategy: str | None = None,
    num_partitions: int | None = None,
    num_replicas: int | None = None,
    num_sequence_shards: int | None = None,
    num_sequence_chunks: int | str = 1,
    sequence_store: str = "memory",
    num_microbatches: int | str = "auto",
    schedule: str = "auto",
    lpp: Sequence[int] | None = None,
    batchnorm: str = "local",
    sharded_data: bool = False,
    stages_per_partition: int | None = None,
    allreduce: str = "mpi",
    gather: bool | None = None,
    compression: str | None = None,
    recompute: str | None = None,
    shard_optimizer: bool = False,
    expert_parallel: bool = False,
    placement: ExpertPlacement | str | os.PathLike[str] | None = None,
    kernels: str = "auto",
    plan: Plan | str | os.PathLike[str] | None = None,
) -> ParallelModel:
    """Spread a model over the ranks of this job, and keep what is built for it.

    `fit`, `evaluate` and `predict` build the same object for each call.

    Args:
        model: A Keras model. To be cut into partitions it must be Functional or Sequential.
        {options}
        plan: A `hyparflow.Plan`, the path of a file that holds one, or `None`. It takes the place
            of the arguments that a plan decides.

    Returns:
        A `ParallelModel` with the methods `fit`, `evaluate`, `predict` and `save`.

    Raises:
        ValueError: If an argument is not valid. It is the same on every rank.
        RuntimeError: If the launcher and MPI disagree on the number of ranks.

    Source: HyPar-Flow (Awan et al., ISC 2020), section 4 (strategies, LPP).
    """
    given = locals()
    arguments = {name: given[name] for name in declared()}
    from hyparflow.model.checks import check_model

    with abort.alike():
        ranks = world()  # first of all, so that one rank reports what is wrong for all
        check_model(model)
        if plan is not None:
            from hyparflow.planning.as_arguments import as_plan, planned

            plan = as_plan(plan)
            num_ranks = None if ranks is None else ranks.size
            arguments = planned(arguments, plan, model, num_ranks)
        from hyparflow.training.make_parallel import make_parallel

        return make_parallel(model, arguments, plan, ranks)


@_collective
@taking_options()
def fit(
    model: Any,
    *args: Any,
    plan: Plan | str | os.PathLike[str] | None = None,
    trace: str | os.PathLike[str] | None = None,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
    launch: bool | Mapping[str, Any] = False,
    **kwargs: Any,
) -> Any:
    """Train a model over the ranks of this job, with the numbers of plain ``model.fit``.

    Every rank calls it with the same model and the whole data. `batch_size` is the global batch,
    and the learning rate is never changed. Callbacks run on rank 0 only, as in one process.

    Args:
        model: A compiled Keras model.
        args, kwargs: The arguments of Keras's ``model.fit``: `x`, `y`, `batch_size`, `epochs` and
            so on.
        {options}
        plan: A `hyparflow.Plan`, the path of a file that holds one, or `None`. It takes the place
            of the arguments that a plan decides.
        trace: The path of a file, or `None`. What each rank did in the last 200 steps, and when,
            is written there: every computation, message, wait and allreduce. Perfetto opens it,
            and ``hyparflow trace`` sums it up. With the environment variable HYPARFLOW_TRACE each
            call writes one in that folder.
        checkpoint: A folder, a `hyparflow.Checkpoint` or `None`. Each rank writes its share of a
            checkpoint there, every ten minutes and at the end of each epoch; if the folder has one,
            training goes on from the newest, whatever layout saved it. All ranks must see it.
        launch: Boolean, or a dict of the keyword arguments of `hyparflow.launch`. In a process
            that no launcher started (a notebook, a script run by plain ``python``), `True` starts
            as many ranks as the numbers of partitions and replicas say, trains on them, and brings
            back the History, the weights and the state of the optimizer, but nothing that
            callbacks keep in themselves. On a rank it changes nothing.

    Returns:
        Keras's `History`, the same on every rank. Afterwards `model` holds the trained weights, and
        its optimizer its state, on every rank.

    Raises:
        ValueError: If an argument is not valid. It is the same on every rank.

    Example::

        history = hf.fit(model, x, y, batch_size=256, epochs=10, strategy="hybrid",
                         num_partitions=2, num_replicas=2)
    """
    parallel, kwargs = _parted(kwargs)
    parallel["plan"] = plan
    options = _launch_options(launch)
    if options is not None and not launcher.is_launched():
        from hyparflow.training.fit_on_ranks import fit_on_ranks

        return fit_on_ranks(
            fit, model, args, kwargs, parallel | {"trace": trace, "checkpoint": checkpoint}, options
        )
    if _is_automatic(parallel):
        parallel, args, kwargs = _automatic(model, args, kwargs, parallel)
    trained = parallelize(model, **parallel)
    return trained.fit(*args, trace=trace, checkpoint=checkpoint, **kwargs)


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
    """What "auto" stands for, and the arguments of `fit`, in which a stream is opened.

    All is as given where there is nothing to plan.
    """
    with abort.alike():
        ranks = world()
    if (ranks is None or ranks.size == 1) and not is_auto(parallel["recompute"]):
        return parallel, args, kwargs
    from hyparflow.comm.one_process import one_process
    from hyparflow.model.checks import check_model
    from hyparflow.training.auto import PlanCache, plan_fit
    from hyparflow.training.data_arguments import keras_arguments
    from hyparflow.training.make_parallel import Sessions

    with abort.alike():
        check_model(model)
        left_open = {*planned_names(), "plan"}
        ranks = ranks or one_process()
        resolve(ranks.size, **{k: v for k, v in parallel.items() if k not in left_open})
        sessions = Sessions.of(model)
        sessions.known = sessions.known or PlanCache()
        arguments = keras_arguments(model, "fit", args, kwargs)
        return plan_fit(model, ranks, arguments, parallel, sessions.known), (), arguments


@_collective
@taking_options()
def evaluate(model: Any, *args: Any, plan: Any = None, **kwargs: Any) -> Any:
    """Evaluate a model over the ranks of this job, as Keras's ``model.evaluate`` does.

    Args:
        model: A compiled Keras model.
        args, kwargs: The arguments of Keras's ``model.evaluate``.
        {options}
        plan: A `hyparflow.Plan`, the path of a file that holds one, or `None`. It takes the place
            of the arguments that a plan decides.

    Returns:
        What ``model.evaluate`` returns, the same on every rank.
    """
    parallel, kwargs = _parted(kwargs)
    parallel = _as_planned(model, parallel | {"plan": plan})
    return parallelize(model, **parallel).evaluate(*args, **kwargs)


@_collective
@taking_options()
def predict(model: Any, *args: Any, plan: Any = None, **kwargs: Any) -> Any:
    """Predict with a model over the ranks of this job, as Keras's ``model.predict`` does.

    Args:
        model: A Keras model.
        args, kwargs: The arguments of Keras's ``model.predict``.
        {options}
        plan: A `hyparflow.Plan`, the path of a file that holds one, or `None`. It takes the place
            of the arguments that a plan decides.

    Returns:
        The predictions for all rows, on every rank.
    """
    parallel, kwargs = _parted(kwargs)
    parallel = _as_planned(model, parallel | {"plan": plan})
    return parallelize(model, **parallel).predict(*args, **kwargs)


def _as_planned(model: Any, parallel: dict[str, Any]) -> dict[str, Any]:
    """For "auto", the arguments that the last `fit` of this model has planned."""
    from hyparflow.training.make_parallel import Sessions

    if not _is_automatic(parallel):
        return parallel
    known = Sessions.of(model).known
    if known is not None and known.last is not None:
        return parallel | known.last
    # Without a backward nothing is computed again.
    return parallel | ({"recompute": None} if is_auto(parallel["recompute"]) else {})


def _is_automatic(parallel: dict[str, Any]) -> bool:
    """Whether `fit` plans what was not given."""
    asked = is_auto(parallel["strategy"]) or is_auto(parallel["recompute"])
    return asked and parallel["plan"] is None


def _parted(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parallel arguments among those of a call, with defaults, and Keras's."""
    parallel = {name: kwargs.get(name, option.default) for name, option in declared().items()}
    return parallel, {name: value for name, value in kwargs.items() if name not in parallel}
