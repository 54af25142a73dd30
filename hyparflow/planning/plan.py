"""A plan: how to spread a model over ranks, the expected costs, and the next best layouts.

Plain data that prints itself, goes to JSON and back, and tells `hyparflow.fit` what to do.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from hyparflow.formats.records import Amount, Bytes, Count, Number, Share, made, read, schema_of
from hyparflow.formats.text import Page, counted
from hyparflow.formats.writing import write_text
from hyparflow.options import planned_names
from hyparflow.pipeline.actions import Kind
from hyparflow.pipeline.grid import Grid
from hyparflow.pipeline.placement import Placement
from hyparflow.pipeline.schedules import in_words, placement_of
from hyparflow.planning.plan_check import check
from hyparflow.planning.plan_page import page_of
from hyparflow.planning.search.predict_memory import Memory

__all__ = ["Alternative", "PartitionPlan", "Plan", "Bar"]

_MOST_ROWS = 32  # a picture shows up to this number of ranks one by one


@dataclass(frozen=True)
class PartitionPlan:
    """One partition of a plan.

    Attributes:
        layers: names of its operations, in order.
        parameters: number of bytes of its weights.
        forward, backward: seconds for a micro-batch.
        memory: bytes at the peak.
        sent: bytes sent in a step, by the partition that gets them.
        summed: bytes of weights whose gradients replicas sum; `None`: as many as `parameters`.
    """

    layers: Annotated[tuple[str, ...], Meta(min_length=1)]
    parameters: Bytes
    forward: Amount
    backward: Amount
    memory: Memory
    sent: dict[Number, Bytes]
    summed: Bytes | None = None


@dataclass(frozen=True)
class Bar:
    """A `hyparflow.pipeline.actions.Step` of a partition, from `start` to `end` (seconds)."""

    kind: str
    stage: Number
    microbatch: Number
    start: Amount
    end: Amount


@dataclass(frozen=True)
class Alternative:
    """Another layout: its time, the memory of the rank that needs most, and what makes it worse."""

    name: str
    step_seconds: Amount
    memory: Bytes
    reason: str


@dataclass(frozen=True)
class Plan:
    """A layout of a model over ranks, with the time and memory that it is expected to take.

    Made by `hyparflow.plan`. It prints as a table of its partitions.

    Attributes:
        model: String. The name of the model.
        fingerprint: String. A hash of the structure of the model.
        batch_size: Integer. The number of rows of the global batch.
        num_replicas: Integer. The number of replicas.
        num_partitions: Integer. The number of partitions of each replica.
        num_microbatches: Integer. The number of micro-batches of each replica and step.
        schedule: String. The schedule.
        stages_per_partition: Integer. The number of stages of each partition.
        lpp: Tuple of integers. The number of layers of each stage.
        partitions: Tuple. For each partition its layers, times, memory and messages.
        step_seconds: Float. The expected time of a training step, in seconds.
        single_seconds: Float. The same in one process, with the batch in one piece.
        single_memory: Integer. The memory that it needs, in bytes.
        idle_share: Float from 0 to 1. The share of all ranks' time in which nothing is computed.
        memory_limit: Integer or `None`. The memory that training may add to a rank, in bytes.
        alternatives: Tuple. The next best layouts, each with its time and what makes it worse.
        work: Tuple. For each partition what it does in a step, and when.
        costs: String. Where the costs come from: `"measured"` or `"estimated"`.
        cores: Integer or `None`. The cores of this machine, if it has fewer than ranks.
        gather: Boolean. Whether all ranks get all weights at the end. If not, the model fits only
            where it is built with `hyparflow.deferred`, and weights stay at their owners.
        recompute: String or `None`. What computes forwards again: `"block"` or `"segments"`.
        shard_optimizer: Boolean. Whether replicas share out the optimizer's state.
        expert_parallel: Boolean. Whether replicas share out experts.
        num_sequence_shards: Integer. The number of ranks that share each sequence.
        num_sequence_chunks: Integer. The number of chunks of a sequence.
        sequence_store: String. Where chunks wait for their backward.
        sequence_length: Integer or `None`. The length of sequences that costs are for, where the
            model leaves it open.
        all_cores_seconds: Float or `None`. The expected time of a step, in seconds, in one process
            that has the cores of all ranks, which share a node; `None` if it is not known.
    """

    model: str
    fingerprint: str
    batch_size: Count
    num_replicas: Count
    num_partitions: Count
    num_microbatches: Count
    schedule: str
    stages_per_partition: Count
    lpp: tuple[Count, ...]
    partitions: tuple[PartitionPlan, ...]
    step_seconds: Annotated[float, Meta(gt=0)]
    single_seconds: Amount
    single_memory: Bytes
    idle_share: Share
    memory_limit: Bytes | None
    alternatives: tuple[Alternative, ...]
    work: tuple[tuple[Bar, ...], ...]
    costs: str
    cores: Count | None = None
    gather: bool = True
    recompute: str | None = None
    shard_optimizer: bool = False
    expert_parallel: bool = False
    num_sequence_shards: Count = 1
    num_sequence_chunks: Count = 1
    sequence_store: str = "memory"
    sequence_length: Count | None = None
    all_cores_seconds: Amount | None = None

    @property
    def num_ranks(self) -> int:
        """Integer. The number of ranks that the plan is for."""
        return self.num_replicas * self.num_sequence_shards * self.num_partitions

    @property
    def arguments(self) -> dict[str, Any]:
        """Dict. The plan as parallel arguments of `hyparflow.fit`."""
        found = {name: getattr(self, name) for name in planned_names()} | {"lpp": list(self.lpp)}
        return found if self.gather else found | {"gather": False}

    @property
    def divides_sequences(self) -> bool:
        """Boolean. Whether sequences are divided, over ranks or into chunks."""
        return self.num_sequence_shards * self.num_sequence_chunks > 1

    @property
    def samples_per_second(self) -> float:
        """Float. The expected number of rows that are trained per second."""
        return self.batch_size / self.step_seconds

    @property
    def speedup(self) -> float:
        """Float. How many times as fast as one process that trains the batch in one piece."""
        return self.single_seconds / self.step_seconds

    @property
    def between_seconds(self) -> float:
        """Time of a step that is spent between it and the next."""
        return self.step_seconds - max(work.end for works in self.work for work in works)

    @property
    def sums_share(self) -> float:
        """The share of all ranks' time that goes to sums over replicas."""
        works = [work for works in self.work for work in works if work.kind == Kind.REDUCE]
        total = sum(work.end - work.start for work in works)
        return total / (self.step_seconds * self.num_partitions)

    def to_values(self) -> dict[str, Any]:
        """The plan as values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_values(cls, values: Any) -> Plan:
        """The plan from values that `to_values` made, also after JSON.

        Raises:
            ValueError: if a field is missing, unknown or wrong.
        """
        plan = made(values, cls)
        check(plan)
        return plan

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to the file `path`, as JSON: complete or not at all."""
        write_text(path, json.dumps(self.to_values(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read the plan that `save` wrote to the file `path`.

        Raises:
            ValueError: If the file holds no plan. The message names the field that is wrong.
        """
        rule = "A plan is a file that Plan.save wrote."
        return read(path, schema_of(cls), rule, cls.from_values)

    def rows(self) -> tuple[str, list[Sequence[Bar]]]:
        """The rows of a picture: what a row is, and the work of each.

        A row is a rank; of many ranks, a partition, since all replicas do the same.
        """
        if self.num_ranks > _MOST_ROWS:
            return "partition", list(self.work)
        each: list[Sequence[Bar]] = [
            works for works in self.work for _ in range(self.num_sequence_shards)
        ]
        return "rank", each * self.num_replicas

    def plot(self, path: str | Path) -> None:
        """Draw one training step, rank by rank, with the time and memory of each partition.

        Args:
            path: String or path. The file to write: `.png`, `.pdf`, `.svg` and the like.

        Raises:
            ImportError: If matplotlib is not installed; the extra `plot` brings it.
            ValueError: If matplotlib writes no files with this suffix.
        """
        from hyparflow.planning.plot import draw

        draw(self, path)

    @property
    def placement(self) -> Placement:
        """Which partition holds which stage."""
        return placement_of(self.schedule, self.num_partitions, self.stages_per_partition)

    @property
    def grid(self) -> Grid:
        """Replicas, shards of sequences and partitions."""
        counts = self.num_partitions, self.num_replicas
        return Grid(*counts, self.placement, self.num_sequence_shards)

    @property
    def pipeline(self) -> str:
        """The schedule in words; an empty string if there is no pipeline."""
        return in_words(self.schedule, self.placement)

    def page(self) -> Page:
        """The text of the plan: a head, a table of the partitions, and a summary."""
        return page_of(self)

    def __str__(self) -> str:
        return self.page().plain()

    def __repr__(self) -> str:
        parts = counted(self.num_microbatches, "micro-batch", "micro-batches")
        schedule = f", {self.pipeline}" if self.pipeline else ""
        step = f"{self.step_seconds * 1e3:.1f} ms a step of {self.batch_size} rows"
        return f"<Plan of {self.model!r}: {self.grid.in_words}, {parts}{schedule}, {step}>"

    def _repr_html_(self) -> str:
        """For notebooks, which would break the lines of the table."""
        return f'<pre style="white-space: pre; overflow-x: auto">{html.escape(str(self))}</pre>'
