"""A trace: the events of all ranks, and its file, which Perfetto and chrome://tracing open."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hyparflow.comm.recorder import Event, EventKind
from hyparflow.engine.sequence.sequence_counts import SequenceCounts
from hyparflow.formats.records import read
from hyparflow.formats.writing import replacing
from hyparflow.pipeline.actions import COMPUTATIONS, NAMES, RECEIVES, SENDS
from hyparflow.planning.plan import Plan
from hyparflow.tracing.trace_file import Complete, TraceFile, check

__all__ = ["RankTrace", "Trace"]

_MADE_BY = "hyparflow"
_MICRO = 1e6  # the format counts microseconds
_LANES = {"steps": 0, "actions": 1, "sums over replicas": 2}  # rows of a rank, from above
_LANE_OF = {EventKind.TRAINING_STEP: 0, EventKind.SUM: 2}  # the others are actions
_WORDS = NAMES | {
    EventKind.TRAINING_STEP: "training step",
    EventKind.DATA: "data",
    EventKind.WAIT: "wait",
    EventKind.SUM: "sum over replicas",
    EventKind.EXCHANGE: "exchange of rows",
}


@dataclass
class RankTrace:
    """What one rank did.

    Attributes:
        name: the rank, its replica and its partition in words.
        replica, partition: its numbers.
        steps: the events of each step, in the order in which they ended, by the leader's clock.
        rewritten: how often which faster kernel was put in.
        sequences: what the call moved and kept of divided sequences.
    """

    name: str
    replica: int
    partition: int
    steps: list[list[Event]]
    rewritten: dict[str, int] = field(default_factory=dict)
    sequences: SequenceCounts = SequenceCounts()


@dataclass
class Trace:
    """What all ranks did in the last steps of a training.

    Attributes:
        ranks: rank by rank.
        arguments: the parallel arguments.
        plan: the plan that was followed, as JSON, or None.
    """

    ranks: list[RankTrace]
    arguments: dict[str, Any]
    plan: dict[str, Any] | None = None

    @property
    def has_sums(self) -> bool:
        """Whether several ranks have the same weights, and add up their gradients."""
        shards = self.arguments.get("num_sequence_shards") or 1
        return bool(self.arguments["num_replicas"] * shards > 1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON in Chrome's trace format: complete or not at all."""
        about: dict[str, Any] = {
            "made_by": _MADE_BY,
            "arguments": self.arguments,
            "plan": self.plan,
        }
        about["ranks"] = [[rank.name, rank.replica, rank.partition] for rank in self.ranks]
        about["rewritten"] = [rank.rewritten for rank in self.ranks]
        about["sequences"] = [dataclasses.asdict(rank.sequences) for rank in self.ranks]
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.write('{"displayTimeUnit": "ms", "otherData": ' + json.dumps(about))
            file.write(', "traceEvents": [\n')
            for number, row in enumerate(self._rows()):
                file.write((",\n" if number else "") + json.dumps(row))
            file.write("\n]}\n")

    def _rows(self) -> Iterator[dict[str, Any]]:
        starts = [event.start for rank in self.ranks for step in rank.steps for event in step]
        zero = min(starts, default=0.0)
        for number, rank in enumerate(self.ranks):
            base = {"ph": "M", "pid": number, "tid": 0}
            yield base | {"name": "process_name", "args": {"name": rank.name}}
            yield base | {"name": "process_sort_index", "args": {"sort_index": number}}
            for lane, tid in _LANES.items():
                yield base | {"tid": tid, "name": "thread_name", "args": {"name": lane}}
            for index, step in enumerate(rank.steps):
                for event in step:
                    yield _row(number, index, event, zero)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trace:
        """Read the trace that `save` wrote.

        Raises:
            ValueError: if the file holds no trace of hyparflow's.
        """
        rule = "A trace is a file that hyparflow.fit(..., trace=...) wrote."
        return read(path, TraceFile, rule, cls._from_file)

    @classmethod
    def _from_file(cls, content: TraceFile) -> Trace:
        check(content)
        about = content.otherData
        count = len(about.ranks)
        rewritten = about.rewritten or [{} for _ in range(count)]
        sequences = about.sequences or [SequenceCounts()] * count
        known = zip(about.ranks, rewritten, sequences, strict=True)
        ranks = [
            RankTrace(
                name=name,
                replica=replica,
                partition=partition,
                steps=[],
                rewritten=kernels,
                sequences=counts,
            )
            for (name, replica, partition), kernels, counts in known
        ]
        for row in content.traceEvents:
            if isinstance(row, Complete):
                steps, index = ranks[row.pid].steps, row.args.step
                steps += [[] for _ in range(index + 1 - len(steps))]
                steps[index].append(_event(row))
        if about.plan is not None:
            Plan.from_values(about.plan)
        return cls(ranks, about.arguments, about.plan)


def _row(rank: int, step: int, event: Event, zero: float) -> dict[str, Any]:
    """An event in Chrome's trace format."""
    known: dict[str, Any] = {"step": step, "kind": event.kind}
    known |= {k: v for k in ("stage", "microbatch", "peer") if (v := getattr(event, k)) >= 0}
    if event.moved:
        known["bytes"] = event.moved
    if event.text:
        known["for"] = event.text
    name = _WORDS[event.kind]
    if event.kind in (*COMPUTATIONS, *SENDS, *RECEIVES):
        name = f"{name} {event.microbatch}"
    return {
        "ph": "X",
        "pid": rank,
        "tid": _LANE_OF.get(event.kind, 1),
        "name": name,
        "ts": (event.start - zero) * _MICRO,
        "dur": (event.end - event.start) * _MICRO,
        "args": known,
    }


def _event(row: Complete) -> Event:
    known, start = row.args, row.ts / _MICRO
    end = start + row.dur / _MICRO
    return Event(
        kind=known.kind,
        start=start,
        end=end,
        stage=known.stage,
        microbatch=known.microbatch,
        peer=known.peer,
        moved=known.bytes,
        text=known.text,
    )
