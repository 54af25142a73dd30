"""The types of what a trace's file holds: JSON in Chrome's format, with hyparflow's own fields."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from hyparflow.comm.recorder import EventKind
from hyparflow.engine.sequence.sequence_counts import SequenceCounts
from hyparflow.formats.records import Amount, Bytes, Count, Number
from hyparflow.pipeline.actions import NAMES

__all__ = ["Complete", "TraceFile", "check"]

_KINDS = {
    *NAMES,
    *(EventKind.TRAINING_STEP, EventKind.DATA, EventKind.WAIT),
    *(EventKind.SUM, EventKind.EXCHANGE),
}


class _Arguments(msgspec.Struct):
    """The parallel arguments that readers of a trace need."""

    num_partitions: Count
    num_replicas: Count
    num_sequence_shards: Count = 1
    batch_size: Count | None = None


class _About(msgspec.Struct):
    """The part of the file that is hyparflow's own."""

    arguments: dict[str, Any]
    ranks: Annotated[list[tuple[str, Number, Number]], Meta(min_length=1)]
    plan: dict[str, Any] | None = None
    rewritten: list[dict[str, Number]] = []
    sequences: list[SequenceCounts] = []


class _Known(msgspec.Struct):
    """The arguments of an event."""

    step: Number
    kind: str
    stage: Annotated[int, Meta(ge=-1, le=2**31)] = -1
    microbatch: Annotated[int, Meta(ge=-1, le=2**31)] = -1
    peer: Annotated[int, Meta(ge=-1, le=2**31)] = -1
    bytes: Bytes = 0
    text: str = msgspec.field(name="for", default="")


class Complete(msgspec.Struct, tag_field="ph", tag="X"):
    """An event with a begin and a length in microseconds."""

    pid: Number
    ts: float
    dur: Amount
    args: _Known


class _Name(msgspec.Struct, tag_field="ph", tag="M"):
    """A name of a rank or a row of the picture, for Perfetto."""


class TraceFile(msgspec.Struct):
    """The whole file."""

    otherData: _About  # noqa: N815 - Chrome's name
    traceEvents: list[Complete | _Name]  # noqa: N815


def check(content: TraceFile) -> None:
    """Refuse a trace that contradicts itself.

    Raises:
        ValueError: naming the field.
    """
    about = content.otherData
    try:
        known = msgspec.convert(about.arguments, _Arguments)
    except msgspec.ValidationError as error:
        raise ValueError(f"{error} - in `$.otherData.arguments`") from error
    ranks = known.num_partitions * known.num_replicas * known.num_sequence_shards
    if len(about.ranks) != ranks:
        count = len(about.ranks)
        raise ValueError(
            f"Expected `array` of length {ranks}, got {count} - at `$.otherData.ranks`"
        )
    for name in ("rewritten", "sequences"):
        if len(getattr(about, name)) not in (0, ranks):
            raise ValueError(f"Expected `array` of length {ranks} - at `$.otherData.{name}`")
    for index, (_, replica, partition) in enumerate(about.ranks):
        if replica >= known.num_replicas or partition >= known.num_partitions:
            raise ValueError(f"Expected a rank of the grid - at `$.otherData.ranks[{index}]`")
    _check_rows(content, ranks, known.num_partitions)


def _check_rows(content: TraceFile, ranks: int, num_partitions: int) -> None:
    counts = Counter(row.pid for row in content.traceEvents if isinstance(row, Complete))
    for index, row in enumerate(content.traceEvents):
        if not isinstance(row, Complete):
            continue
        where = f"`$.traceEvents[{index}]"
        if row.pid >= ranks:
            raise ValueError(f"Expected `int` < {ranks}, got {row.pid} - at {where}.pid`")
        if row.args.kind not in _KINDS:
            raise ValueError(f"Expected a kind of event, got {row.args.kind!r} - at {where}.kind`")
        # A step has at least one event, so there cannot be more steps.
        if row.args.step >= counts[row.pid]:
            most, step = counts[row.pid], row.args.step
            raise ValueError(f"Expected `int` < {most}, got {step} - at {where}.args.step`")
