"""Whether forwards can be computed again, and whether that saves anything."""

from __future__ import annotations

import warnings

from hyparflow.comm import abort
from hyparflow.comm.leader import LEADER
from hyparflow.comm.log import users_stack_level
from hyparflow.engine.compiled.compiler import Compiler
from hyparflow.model.graph import FlatGraph
from hyparflow.pipeline.partition import Partitioning
from hyparflow.pipeline.units import Units

__all__ = ["announce_nothing_saved", "require_dividing", "require_recomputing"]


def require_recomputing(compiler: Compiler, recompute: str | None) -> None:
    """Check that a compiler can compute forwards again, if that is asked for.

    Raises:
        ValueError: on all ranks, if it cannot.
    """
    if recompute is not None and not compiler.shares:
        raise abort.mark_collective(
            ValueError(
                "`recompute` needs stages that are compiled with private parts of TensorFlow. "
                f"Received: recompute={recompute!r}, where stages are compiled by its public API "
                "(HYPARFLOW_COMPILED=plain, or another version of TensorFlow). Leave it out."
            )
        )


def require_dividing(compiler: Compiler, divides_sequences: bool) -> None:
    """Check that a compiler can run stages in sections, if sequences are divided.

    Raises:
        ValueError: on all ranks, if it cannot.
    """
    if divides_sequences and not compiler.shares:
        raise abort.mark_collective(
            ValueError(
                "Sequences are divided in stages that are compiled with private parts of "
                "TensorFlow. Received: num_sequence_shards or num_sequence_chunks, where stages "
                "are compiled by its public API (HYPARFLOW_COMPILED=plain, or another version of "
                "TensorFlow). Leave them out."
            )
        )


def announce_nothing_saved(
    rank: int,
    recompute: str | None,
    stages: Partitioning,
    units: tuple[FlatGraph, Units] | None,
) -> None:
    """Warn on the leader where the model is a single block, whose backward follows at once."""
    alone = stages.num_stages == 1 and (units is None or units[1].table.num_stages == 1)
    if alone and recompute is not None and rank == LEADER:
        warnings.warn(
            "`recompute` saves nothing where a model is one block. Received: "
            f"recompute={recompute!r} and a model that cannot be divided: it is neither Functional "
            "nor Sequential, has steps of its own, or all its layers change one variable. Remedy: "
            "build its layers under keras.RematScope, or leave it out.",
            stacklevel=users_stack_level(),
        )
