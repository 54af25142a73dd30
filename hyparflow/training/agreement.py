"""Checks that all ranks have the same model, data and arguments."""

from __future__ import annotations

from typing import Any, NamedTuple

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

__all__ = ["Compared", "collect", "device_kind", "require_same"]

_JIT = "argument `jit_compile` of `compile`"
_DEVICE = "device"  # is shown to explain a difference, and may itself differ
_LONGEST = 40  # characters of a value that a message shows


class Compared(NamedTuple):
    """Something that all ranks must be given alike.

    Attributes:
        text: the value as text, or a hash of a long one.
        is_shown: whether a message shows the text.
    """

    text: str
    is_shown: bool = False

    @staticmethod
    def of(value: Any) -> Compared:
        """A value that a message shows if it is short."""
        text = repr(value)
        return Compared(text, True) if len(text) <= _LONGEST else Compared(digest(value))


def collect(
    model: Any,
    options: Options,
    sources: dict[str, ArraySource],
    method: str,
    arguments: dict[str, Any],
    rows: int | None,
) -> dict[str, Compared]:
    """Everything that all ranks must pass alike to one call.

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
    hashes = {
        "model": model_fingerprint(model),
        "values and code of layers": values_fingerprint(model),
        "optimizer and loss": compile_fingerprint(model),
        _JIT: str(compile_arguments(model).get("jit_compile")),
        _DEVICE: device_kind(),
        "number of partitions and replicas": digest(options.grid),
        "argument `placement`": digest(_placed(options)),
    }
    values = {
        "method": method,
        **{f"argument `{name}`": getattr(options, name) for name in _own_names()},
        "rounding by `sequence_store`": options.sequence_store == "bf16",
        "batch size": rows,
        **{f"argument `{name}`": value for name, value in sorted(simple.items())},
    }
    data = digest({name: source.fingerprint() for name, source in sources.items()})
    compared = {name: Compared(text) for name, text in hashes.items()}
    compared |= {name: Compared.of(value) for name, value in values.items()}
    return compared | {"data": Compared(data)}  # last, for other differences explain it


def _own_names() -> list[str]:
    """The names of the parallel arguments that are compared one by one."""
    # Each node may have a folder of its own for what waits on disk.
    others = ("num_partitions", "num_replicas", "sequence_store", "placement")
    return [name for name in declared() if name not in others]


def _placed(options: Options) -> Any:
    """Which replica has which expert, which a placement does not print."""
    placement = options.placement
    return None if placement is None else (placement.layers, placement.ranks)


def require_same(world: Communicator, items: dict[str, Compared]) -> None:
    """Check that every rank has the same `items`. Collective.

    Args:
        world: all ranks.
        items: by name.

    Raises:
        ValueError: on all ranks alike, naming what differs and where.
    """
    everyone = world.all_gather_objects(items, "the comparison of models and arguments")
    names = dict.fromkeys(name for other in everyone for name in other if name != _DEVICE)
    for name in names:
        values = [other.get(name) for other in everyone]
        odd = [rank for rank, value in enumerate(values) if value != values[0]]
        if odd:
            kinds = [other[_DEVICE].text if _DEVICE in other else "" for other in everyone]
            by_device = name == _JIT and len(set(kinds)) > 1
            error = _by_device(kinds) if by_device else _differing(name, odd, values)
            raise abort.mark_collective(error)


def _differing(name: str, odd: list[int], values: list[Compared | None]) -> ValueError:
    first, other = values[0], values[odd[0]]
    shown = ""
    if first is not None and other is not None and first.is_shown and other.is_shown:
        shown = f": {other.text} in place of {first.text}"
    return ValueError(
        f"All ranks must be given the same {name}. Received: on "
        f"{'rank' if len(odd) == 1 else 'ranks'} {', '.join(map(str, odd))} "
        f"{'it differs' if len(odd) == 1 else 'they differ'} from rank 0's{shown}. "
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
