"""Checks that all ranks have the same model, data and arguments."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from hyparflow.comm import abort
from hyparflow.comm.communicator import Communicator
from hyparflow.model.fingerprint import (
    compile_fingerprint,
    digest,
    model_fingerprint,
    values_fingerprint,
)
from hyparflow.model.keras_internals.compiled import compile_arguments
from hyparflow.options import Options, declared
from hyparflow.training.data.array_source import ArraySource

__all__ = ["collect", "device_kind", "require_same"]

_JIT = "argument `jit_compile` of `compile`"
_DEVICE = "device"  # is shown to explain a difference, and may itself differ


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
        _JIT: str(compile_arguments(model).get("jit_compile")),
        _DEVICE: device_kind(),
        "method": method,
        "number of partitions and replicas": digest(options.grid),
        **{f"argument `{name}`": digest(getattr(options, name)) for name in _own_names()},
        "batch size": digest(rows),
        **{f"argument `{name}`": digest(value) for name, value in sorted(simple.items())},
        "data": digest({name: source.fingerprint() for name, source in sources.items()}),
    }


def _own_names() -> list[str]:
    """The names of the parallel arguments that are compared one by one."""
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
    names = dict.fromkeys(name for other in everyone for name in other if name != _DEVICE)
    for name in names:
        values = [other.get(name) for other in everyone]
        odd = [rank for rank, value in enumerate(values) if value != values[0]]
        if odd:
            kinds = [other.get(_DEVICE, "") for other in everyone]
            by_device = name == _JIT and len(set(kinds)) > 1
            raise abort.mark_collective(_by_device(kinds) if by_device else _differing(name, odd))


def _differing(name: str, odd: list[int]) -> ValueError:
    return ValueError(
        f"All ranks must be given the same {name}. Received: on "
        f"{'rank' if len(odd) == 1 else 'ranks'} {', '.join(map(str, odd))} "
        f"{'it differs' if len(odd) == 1 else 'they differ'} from rank 0's. "
        "Every rank runs the whole script with the whole data; hyparflow deals it out."
    )


def _by_device(kinds: list[str]) -> ValueError:
    where = ", ".join(f"{kind} on rank {rank}" for rank, kind in enumerate(kinds[:8]))
    more = f" and {len(kinds) - 8} more ranks" if len(kinds) > 8 else ""
    return ValueError(
        "All ranks must compute on devices of one kind for jit_compile='auto' to mean the same on "
        f"all: XLA compiles on GPUs only. Received: {where}{more}. Start as many ranks per node as "
        "there are GPUs, hide them from all ranks (CUDA_VISIBLE_DEVICES=-1), or compile the model "
        "with jit_compile=False."
    )


def device_kind() -> str:
    """The kind of device on which TensorFlow computes here: "CPU" if it sees no other."""
    kinds = [device.device_type for device in tf.config.list_physical_devices()]
    return next((kind for kind in kinds if kind != "CPU"), "CPU")
