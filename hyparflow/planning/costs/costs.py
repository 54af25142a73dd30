"""The costs of a model's operations: time forward and backward, and memory. Pure data.

`hyparflow.planning.costs.measure` fills it by measuring, `hyparflow.planning.costs.estimate` by
counting.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

import msgspec
import numpy as np

from hyparflow.engine.compiled.section_sizes import SectionSizes
from hyparflow.formats.records import Amount, Bytes, Count, Number, made, read, schema_of
from hyparflow.formats.text import counted
from hyparflow.formats.writing import write_text
from hyparflow.planning.costs.attention import Attention
from hyparflow.planning.costs.costs_check import check
from hyparflow.planning.costs.mixtures import Mixture
from hyparflow.planning.costs.overheads import Overheads
from hyparflow.planning.costs.straight_lines import at_rows

__all__ = ["Costs", "Times", "Weight"]

_ARRAYS = (
    *("forward", "backward", "fused", "crowded"),
    *("kept", "working", "program", "by_xla", "tensors", "linear"),
)


@dataclass(frozen=True)
class Weight:
    """A variable of the model.

    Attributes:
        size: bytes.
        trainable: whether it is trained.
        num_experts: of how many experts it has the weights, one after the other; 0 if of none.
    """

    size: Bytes
    trainable: bool
    num_experts: Number = 0


@dataclass(frozen=True)
class Times:
    """Seconds of every operation for micro-batches of one size.

    Attributes:
        forward, backward: as two calls with the activations kept between them.
        fused: both as one call, as the last stage runs them.
    """

    forward: np.ndarray
    backward: np.ndarray
    fused: np.ndarray


@dataclass(frozen=True)
class Costs:
    """The time and memory that each operation of a model takes.

    `hyparflow.plan` measures or estimates them. Saved to a file, they serve for other plans of the
    same model.

    Attributes:
        operations: Tuple of strings. The names of the operations, in execution order.
        rows: Tuple of integers. The sizes of micro-batches for which times are known.
        forward: Array (operation, size). Seconds of a forward.
        backward: Array (operation, size). Seconds of a backward.
        fused: Array (operation, size). Seconds of a forward and backward in one call.
        kept: Array. Bytes per row that an operation keeps from its forward to its backward.
        working: Array. Bytes per row that it needs beside those while it runs.
        program: Array. Operations of TensorFlow that it is compiled to, backward included.
        by_xla: Array. 1 where XLA compiles some of these, or 0.
        tensors: Array. Bytes per row of each tensor, by its number.
        weights: Tuple. The size of each variable, and whether it is trainable.
        used: Tuple. For each operation the numbers of its variables.
        slots: Float. Bytes of optimizer state per byte of trained weights.
        divides: Boolean. Whether replicas that share out this state divide weights.
        halves: Tuple of two floats. The time of the two parts of a split backward, that of inputs
            and that of weights, as multiples of a backward in one piece.
        crowd: Integer. How many ranks of a node computed at a time for `crowded`.
        crowded: Array ((forward, backward, fused), size), or `None`. How many times longer each
            then took.
        gain_of_all_cores: Float or `None`. How many times as fast as a rank alone one process with
            the cores of all ranks of a node computes; `None` if that was not tried.
        rewritten: Boolean. Whether faster kernels compute some operations: then hyparflow's engine
            trains in a single process, too.
        length: Integer or `None`. Of sequences, where the model leaves it open.
        linear: Array ((forward, backward, fused, kept, working), operation), or `None`. How much of
            each grows as sequences do, 0 to 1; the rest grows as their square.
        attention: Tuple. What attention costs where sequences are divided; empty where they
            cannot be, or are short.
        sections: Tuple. What the parts of the model between attention take there.
        mixtures: Tuple. The mixtures of experts.
        overheads: What a step costs beside its operations.
        source: String, `"measured"` or `"estimated"`.
        machine: Dict. Where and how the costs were measured.
    """

    operations: tuple[str, ...]
    rows: tuple[Count, ...]
    forward: np.ndarray
    backward: np.ndarray
    fused: np.ndarray
    kept: np.ndarray
    working: np.ndarray
    program: np.ndarray
    by_xla: np.ndarray
    tensors: np.ndarray
    weights: tuple[Weight, ...]
    used: tuple[tuple[Number, ...], ...]
    slots: Amount = 0.0
    divides: bool = True
    halves: tuple[Amount, Amount] = (0.5, 0.5)
    crowd: Count = 1
    crowded: np.ndarray | None = None
    gain_of_all_cores: Amount | None = None
    rewritten: bool = False
    length: Count | None = None
    linear: np.ndarray | None = None
    attention: tuple[Attention, ...] = ()
    sections: tuple[SectionSizes, ...] = ()
    mixtures: tuple[Mixture, ...] = ()
    overheads: Overheads = field(default_factory=Overheads)
    source: str = "measured"
    machine: dict[str, Any] = field(default_factory=dict)

    def times(self, rows: float, at_once: float = 1.0) -> Times:
        """The seconds of every operation for a micro-batch of `rows` rows.

        Between the known sizes, and beyond them, times follow straight lines. But below the
        smallest known size a row is not cheaper: a line through noisy times might say so, and a
        plan would then cut batches into single rows.

        Args:
            rows: the rows of a micro-batch.
            at_once: how many ranks compute on a node at a time, on average.
        """
        at = at_rows(self.rows, rows)
        slower = self._slower(at_once)
        known = (self.forward, self.backward, self.fused)
        times = [x @ (at * factors) for x, factors in zip(known, slower, strict=True)]
        # At least in proportion to the time of the smallest known size.
        part = rows / self.rows[0] if rows < self.rows[0] else 0.0
        least = [part * x[:, 0] * factors[0] for x, factors in zip(known, slower, strict=True)]
        return Times(*(np.maximum(low, x) for low, x in zip(least, times, strict=True)))

    def _slower(self, at_once: float) -> np.ndarray:
        """How many times longer a rank computes beside others, [(F, B, FB), size].

        Each further rank adds the same factor, up to the number that was tried.
        """
        if self.crowded is None or self.crowd < 2:
            return np.ones((3, len(self.rows)))
        return 1 + np.clip((at_once - 1) / (self.crowd - 1), 0.0, 1.0) * (self.crowded - 1)

    @cached_property
    def fixed_bytes(self) -> int:
        """Bytes of all weights and of the optimizer's state."""
        return self.weight_bytes(range(len(self.operations))) + self.slot_bytes

    @cached_property
    def largest_weight(self) -> int:
        """Bytes of the largest variable."""
        return max((weight.size for weight in self.weights), default=0)

    @cached_property
    def base_bytes(self) -> int:
        """Bytes that every rank takes besides: for TensorFlow, and for the objects of the model."""
        over, trained = self.overheads, sum(weight.trainable for weight in self.weights)
        objects = over.operation * len(self.operations) + over.variable * len(self.weights)
        return round(over.runtime + objects + over.trained * trained)

    @cached_property
    def updated(self) -> np.ndarray:
        """How many trained variables each operation has."""
        return np.array([len(self.trained_sizes([n])) for n in range(len(self.operations))])

    @cached_property
    def slot_bytes(self) -> int:
        """Bytes of the optimizer's state of all weights."""
        return round(self.weight_bytes(range(len(self.operations)), trainable=True) * self.slots)

    def weight_bytes(self, operations: Iterable[int], trainable: bool = False) -> int:
        """Bytes of the variables of these operations, each counted once.

        With `trainable`, only those of trainable variables.
        """
        if trainable:
            return sum(self.trained_sizes(operations))
        return sum(self.weights[n].size for n in self._variables(operations))

    def trained_sizes(self, operations: Iterable[int]) -> list[int]:
        """The bytes of each trained variable of these operations."""
        weights = map(self.weights.__getitem__, self._variables(operations))
        return [weight.size for weight in weights if weight.trainable]

    def _variables(self, operations: Iterable[int]) -> set[int]:
        return set().union(*map(self.used.__getitem__, operations))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the costs to a file, as JSON.

        Args:
            path: String or path. The file to write.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["weights"] = [[x.size, x.trainable, x.num_experts] for x in self.weights]
        write_text(path, json.dumps(values, default=_plain) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Costs:
        """Read costs that `save` wrote.

        Args:
            path: String or path. The file to read.

        Returns:
            The `Costs`.

        Raises:
            ValueError: If the file holds no costs.
        """
        rule = '`costs` must be "measure", "estimate", or a file that Costs.save wrote.'
        return read(path, _schema(), rule, _from_file)

    def __repr__(self) -> str:
        return f"Costs({counted(len(self.operations), 'operation', 'operations')}, {self.source})"


def _plain(value: Any) -> Any:
    """An array, or a record, as JSON has it."""
    return value.tolist() if isinstance(value, np.ndarray) else asdict(value)


def _schema() -> Any:
    """The schema of a file of costs."""
    row, matrix = tuple[Amount, ...], tuple[tuple[Amount, ...], ...]
    others: dict[str, Any] = dict.fromkeys(("kept", "working", "program", "by_xla", "tensors"), row)
    others |= dict.fromkeys(("forward", "backward", "fused"), matrix)
    others |= dict.fromkeys(("crowded", "linear"), matrix | None)
    weight: list[Any] = [("size", Bytes), ("trainable", bool), ("num_experts", Number, 0)]
    kind = msgspec.defstruct("Weight", weight, array_like=True, forbid_unknown_fields=True)
    return schema_of(Costs, weights=tuple[kind, ...], **others)  # type: ignore[valid-type]


def _from_file(content: Any) -> Costs:
    """The costs that a file holds, if its fields fit each other.

    Raises:
        ValueError: naming the field that does not fit.
    """
    check(content)
    values = {f.name: getattr(content, f.name) for f in fields(Costs)}
    for name in _ARRAYS:
        values[name] = None if values[name] is None else np.array(values[name], float)
    values["weights"] = tuple(made(each, Weight) for each in content.weights)
    values["overheads"] = made(content.overheads, Overheads)
    lists = (("attention", Attention), ("sections", SectionSizes), ("mixtures", Mixture))
    for name, kind in lists:
        values[name] = tuple(made(each, kind) for each in getattr(content, name))
    return Costs(**values)
