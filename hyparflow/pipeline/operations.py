"""A model as pure data: operations in execution order, and the tensors between them."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Operation", "OperationGraph"]


@dataclass(frozen=True)
class Operation:
    """One call in the model's graph.

    Attributes:
        name: for messages and tables.
        inputs: tensors read, as numbers.
        outputs: tensors made.
        cost: estimated time, any unit.
        state: variables that change as it runs (random seeds, moving statistics).
        crossing: what each output costs at either end, in the same unit, if it crosses a cut;
            empty for no cost.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    cost: float = 1.0
    state: frozenset[int] = frozenset()
    crossing: tuple[float, ...] = ()


@dataclass(frozen=True)
class OperationGraph:
    """The model as operations in execution order."""

    operations: tuple[Operation, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    gradient_tensors: frozenset[int] = field(default_factory=frozenset)
