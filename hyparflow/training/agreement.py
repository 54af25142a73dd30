"""Whether all ranks were given the same model, data and arguments."""

from __future__ import annotations

from typing import Any

from hyparflow.comm import abort
from hyparflow.comm.communicator import Communicator
from hyparflow.model.fingerprint import (
    compile_fingerprint,
    digest,
    model_fingerprint,
    values_fingerprint,
)
from hyparflow.options import Options, declared
from hyparflow.training.data.array_source import ArraySource

__all__ = ["collect", "require_same"]


def collect(
    model: Any,
    options: Options,
    sources: dict[str, ArraySource],
    method: str,
    arguments: dict[str, Any],
    rows: int | None,
) -> dict[str, str]:
    """Hashes of everything that all ranks must pass alike to one call.

    Args:
        model: the user's model.
        options: the parallel arguments.
        sources: the arrays of the call.
        method: "fit", "evaluate" or "predict".
        arguments: Keras's arguments of the call; `verbose` may differ.
        rows: rows of a full batch.
    """
    simple = {
        name: value
        for name, value in arguments.items()
        if isinstance(value, int | float | str) and name != "verbose"
    }
    return {
        "model": model_fingerprint(model),
        "values and code of layers": values_fingerprint(model),
        "optimizer and loss": compile_fingerprint(model),
        "method": method,
        "number of partitions and replicas": digest(options.grid),
        **{f"argument `{name}`": digest(getattr(options, name)) for name in _own_names()},
        "batch size": digest(rows),
        **{f"argument `{name}`": digest(value) for name, value in sorted(simple.items())},
        "data": digest({name: source.fingerprint() for name, source in sources.items()}),
    }


def _own_names() -> list[str]:
    """The parallel arguments that have names of their own."""
    return [name for name in declared() if name not in ("num_partitions", "num_replicas")]


def require_same(world: Communicator, items: dict[str, str]) -> None:
    """Check that every rank has the same `items`. Collective.

    Args:
        world: all ranks.
        items: name -> hash.

    Raises:
        ValueError: on all ranks alike, naming what differs and where.
    """
    everyone = world.all_gather_objects(items, "the comparison of models and arguments")
    names = dict.fromkeys(name for other in everyone for name in other)
    for name in names:
        values = [other.get(name) for other in everyone]
        odd = [rank for rank, value in enumerate(values) if value != values[0]]
        if odd:
            error = ValueError(
                f"All ranks must be given the same {name}. Received: on "
                f"{'rank' if len(odd) == 1 else 'ranks'} {', '.join(map(str, odd))} "
                f"{'it differs' if len(odd) == 1 else 'they differ'} from rank 0's. "
                "Every rank runs the whole script with the whole data; hyparflow deals it out."
            )
            raise abort.mark_collective(error)
