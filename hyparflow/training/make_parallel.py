"""Which object trains a model: one over ranks, one in a process by blocks, or Keras itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hyparflow.formats.argument_checks import is_auto
from hyparflow.options import Options, resolve
from hyparflow.training.plain_model import PlainModel, wanted_ranks

if TYPE_CHECKING:
    from hyparflow.comm.world import World
    from hyparflow.planning.plan import Plan
    from hyparflow.training.auto import PlanCache
    from hyparflow.training.parallel_model import ParallelModel
    from hyparflow.training.session import Session

__all__ = ["Sessions", "make_parallel"]

_BUILT = "_hyparflow_parallel"  # attribute of a model that holds what was built for it


class Sessions:
    """What was built for one model object, so that a second `fit` need not compile again.

    Attributes:
        by_layout: the sessions.
        known: the plans.
    """

    def __init__(self) -> None:
        self.by_layout: dict[Any, Session] = {}
        self.known: PlanCache | None = None

    @classmethod
    def of(cls, model: Any) -> Sessions:
        """Those of a model."""
        found: Sessions = getattr(model, "__dict__", {}).setdefault(_BUILT, cls())
        return found


def make_parallel(
    model: Any, arguments: dict[str, Any], plan: Plan | None, ranks: World | None
) -> Any:
    """What trains the model, evaluates it and predicts with it.

    Args:
        model: a Keras model.
        arguments: the parallel arguments, those of the plan included.
        plan: where they come from.
        ranks: all ranks, or None in a process that no launcher started.

    Raises:
        ValueError: if an argument is not valid, or the model cannot be cut.
    """
    if plan is None and is_auto(arguments["recompute"]):
        raise ValueError(
            "`recompute='auto'` plans for the batches of `hyparflow.fit`. Received: "
            "recompute='auto' for hyparflow.parallelize. Pass 'block', 'segments' or None, or "
            "plan=hyparflow.plan(model, batch_size=..., recompute='auto')."
        )
    if ranks is None:
        if arguments["num_sequence_chunks"] != 1 and wanted_ranks(arguments) in (None, 1):
            return _in_chunks(model, arguments, plan)
        alone = _plain(model, None, arguments, arguments)
        return _in_engine(model, None, arguments) or alone
    options = resolve(ranks.size, **arguments)
    if ranks.size > 1 and plan is None and is_auto(arguments["strategy"]):
        raise ValueError(
            "`strategy='auto'` plans for the batches of `hyparflow.fit`, and what it planned for a "
            "model serves `evaluate` and `predict` too. Received: strategy='auto' before any `fit` "
            "of this model. Leave it out, or pass plan=hyparflow.plan(model, batch_size=...)."
        )
    is_alone = ranks.size == 1 and not options.divides_sequences
    if is_alone and options.num_microbatches in ("auto", 1):
        return _in_engine(model, ranks, arguments) or _plain(model, ranks, {}, arguments)
    _require_tensorflow()
    from hyparflow.model.checks import check_can_cut, check_model

    check_model(model)
    if options.grid.placement.num_stages > 1:
        check_can_cut(model)
    return _in_session(model, options, ranks, plan)


def _plain(
    model: Any, ranks: World | None, asked: dict[str, Any], arguments: Mapping[str, Any]
) -> PlainModel:
    """Plain Keras, which the engine replaces where checkpoints are saved."""

    def in_engine() -> Any:
        _require_tensorflow()
        from hyparflow.comm.one_process import one_process
        from hyparflow.model.checks import check_model

        check_model(model)
        options = resolve(1, recompute=arguments["recompute"], kernels=arguments["kernels"])
        return _in_session(model, options, ranks or one_process(), None)

    return PlainModel(model, asked, in_engine)


def _in_chunks(model: Any, arguments: Mapping[str, Any], plan: Plan | None) -> ParallelModel:
    """What trains the model in one process, its sequences in chunks."""
    _require_tensorflow()
    from hyparflow.comm.one_process import one_process
    from hyparflow.model.checks import check_model

    check_model(model)
    options = resolve(1, **{**arguments, "strategy": None})
    return _in_session(model, options, one_process(), plan)


def _uses_tensorflow() -> bool:
    import keras

    return bool(keras.backend.backend() == "tensorflow")


def _require_tensorflow() -> None:
    if not _uses_tensorflow():
        import keras

        raise ValueError(
            "hyparflow trains with Keras's TensorFlow backend. "
            f"Received: the {keras.backend.backend()} backend. Set KERAS_BACKEND=tensorflow."
        )


def _in_engine(model: Any, ranks: World | None, arguments: Mapping[str, Any]) -> Any:
    """What trains the model in one process by the engine, or None if plain Keras does.

    Blocks that repeat are compiled once, faster kernels are put in, or forwards of blocks are
    computed again.
    """
    recompute = arguments["recompute"]
    options = resolve(1, recompute=recompute, kernels=arguments["kernels"])
    if recompute is not None:
        _require_tensorflow()
    elif not _uses_tensorflow():
        return None
    from hyparflow.comm.one_process import one_process
    from hyparflow.training.in_engine import gains_by_engine

    if recompute is None:
        known = options.built_for in Sessions.of(model).by_layout  # the graph was looked at
        if not gains_by_engine(model, options, known):
            return None
    return _in_session(model, options, ranks or one_process(), None)


def _in_session(model: Any, options: Options, ranks: World, plan: Plan | None) -> ParallelModel:
    from hyparflow.training.parallel_model import ParallelModel
    from hyparflow.training.session import Session

    sessions = Sessions.of(model).by_layout
    key = options.built_for
    if key not in sessions:
        sessions[key] = Session(model, options, ranks)
    return ParallelModel(model, options, ranks, sessions[key], plan)
