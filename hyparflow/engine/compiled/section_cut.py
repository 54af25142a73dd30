"""Finds the sections of a computation in its graph, while that is traced, and their gradients.

Public API of TensorFlow, and what `hyparflow.engine.compiled.captured` knows of captures. For what
sections are see `hyparflow.engine.compiled.sections`, which runs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from hyparflow.engine.compiled.captured import captures_of
from hyparflow.engine.compiled.flat_tensors import tensors_of, unique
from hyparflow.engine.compiled.gradients_of import graph_gradients

__all__ = ["Carried", "Pause", "Section", "SectionCut", "Wanted", "present"]

# (section that makes a tensor, its place among what that section hands on)
Carried = tuple[int, int]


@dataclass
class Pause:
    """A place where a computation waits.

    Attributes:
        given: the tensors that it gives there.
        awaited: a placeholder for the tensor that it waits for.
    """

    given: list[Any]
    awaited: Any


@dataclass
class Wanted:
    """What a function that is traced in sections returns.

    Attributes:
        results: tensors that the last section makes.
        targets: those of them with a gradient: it is given later, or they are the loss.
        is_loss: whether `targets` are the loss, whose gradient is 1.
        places: where it waits, in order.
        tokens: the arguments that differ from position to position.
        sources: those of them whose gradients are wanted.
        further: placeholders that it made, for arguments that come after all others.
    """

    results: list[Any]
    targets: list[Any] = field(default_factory=list)
    is_loss: bool = False
    places: list[Pause] = field(default_factory=list)
    tokens: list[Any] = field(default_factory=list)
    sources: list[Any] = field(default_factory=list)
    further: list[Any] = field(default_factory=list)


@dataclass
class Section:
    """Tensors of the graph.

    Attributes:
        awaited: what it waits for; None for the first section.
        made: what it gives where the next begins; results of the last.
        targets: those of `made` with a gradient.
        handed_on: what it makes for later sections.
        taken: what it takes of sections before.
        sources: tensors, and numbers of weights, of which it makes the gradients.
        seeds: placeholders for the gradients of `targets` and `handed_on`.
        gradients: of tensors, then of weights; None where nothing depends on one.
    """

    awaited: Any
    made: list[Any]
    targets: list[Any]
    handed_on: list[Any] = field(default_factory=list)
    taken: list[Any] = field(default_factory=list)
    sources: tuple[list[Any], list[int]] = ([], [])
    seeds: list[Any] = field(default_factory=list)
    gradients: list[Any] = field(default_factory=list)


class SectionCut:
    """The sections of the graph that is being traced.

    Attributes:
        sections: in order.
        given: the tensors among the arguments, then the further ones.
        is_loss: whether the last section makes a loss.

    Args:
        wanted: what the function that is traced returned.
        given: the tensors among its arguments.
        weights: variables whose gradients are wanted.
        training: whether there are backwards.
    """

    def __init__(
        self, wanted: Wanted, given: Sequence[Any], weights: Sequence[Any], training: bool
    ) -> None:
        graph = tf.compat.v1.get_default_graph()
        self.given = [*given, *wanted.further]
        self.is_loss = wanted.is_loss
        self._weights = weights
        self._handles = _numbers_of_handles(graph, weights)
        self._levels = _levels(graph.get_operations(), wanted)
        last = len(wanted.places)
        self.sections = [
            Section(
                awaited=wanted.places[n - 1].awaited if n else None,
                made=wanted.places[n].given if n < last else wanted.results,
                targets=[x for x in wanted.places[n].given if x.dtype.is_floating]
                if n < last
                else wanted.targets,
            )
            for n in range(last + 1)
        ]
        for number in reversed(range(last + 1)):
            self._close(number, wanted, training)

    def section_of(self, operation: Any) -> int:
        """The number of the section that an operation is in."""
        return max(0, self._levels.get(operation, 0))

    def place(self, tensor: Any) -> Carried:
        """Where a tensor that is handed on is made."""
        origin = self._levels[tensor.op]
        handed = [x.ref() for x in self.sections[origin].handed_on]
        return origin, handed.index(tensor.ref())

    def tensors(self) -> list[list[Any]]:
        """All tensors of each forward, but for those that each section may make for itself."""
        found: list[list[Any]] = [[] for _ in self.sections]
        made = [x.op for section in self.sections for x in (*section.made, *section.handed_on)]
        for operation in _in_order(made):
            level = self._levels.get(operation, -1)
            if level >= 0:
                found[level] += operation.outputs
        return found

    def _close(self, number: int, wanted: Wanted, training: bool) -> None:
        """Complete a section; the later ones tell what it hands on."""
        section = self.sections[number]
        made = [*section.made, *section.handed_on]
        section.taken = self._taken(made, number)
        if training:
            self._differentiate(number, section, wanted)
            section.taken = unique(
                [*section.taken, *self._taken(tensors_of(section.gradients), number)]
            )
        for tensor in section.taken:
            handed = self.sections[self._levels[tensor.op]].handed_on
            if tensor.ref() not in {x.ref() for x in handed}:
                handed.append(tensor)

    def _differentiate(self, number: int, section: Section, wanted: Wanted) -> None:
        is_loss = wanted.is_loss and number == len(self.sections) - 1
        handed = [x for x in section.handed_on if x.dtype.is_floating]
        targets = [*section.targets, *handed]
        section.seeds = [
            tf.compat.v1.placeholder(x.dtype, x.shape) for x in ([] if is_loss else targets)
        ]
        tensors = [*present(section.awaited), *(x for x in section.taken if x.dtype.is_floating)]
        tensors += wanted.sources if number == 0 else []
        weights = self._weights_read(section)
        sources = [*tensors, *(self._weights[n] for n in weights)]
        section.sources = tensors, weights
        if not sources or not targets:
            section.gradients = [None] * len(sources)
            return
        seeds = None if is_loss else section.seeds
        found = graph_gradients(targets, sources, seeds, constant=tensors)
        for place, tensor in enumerate(tensors):
            gradient = found[place]
            zeros = gradient is None
            found[place] = tf.zeros_like(tensor) if zeros else tf.convert_to_tensor(gradient)
        section.gradients = found

    def _weights_read(self, section: Section) -> list[int]:
        """The numbers of the weights that a section's operations read."""
        ends = {x.op for x in [*present(section.awaited), *section.taken]}
        seen: set[Any] = set()
        found: set[int] = set()
        stack = [x.op for x in [*section.made, *section.handed_on]]
        while stack:
            operation = stack.pop()
            if operation in seen or operation in ends:
                continue
            seen.add(operation)
            found |= {self._handles[x.name] for x in operation.inputs if x.name in self._handles}
            stack += [x.op for x in operation.inputs]
        return sorted(found)

    def _taken(self, start: Sequence[Any], number: int) -> list[Any]:
        """The tensors of sections before that are needed to compute `start`."""
        found: list[Any] = []
        seen: set[Any] = set()
        stack = list(start)
        while stack:
            tensor = stack.pop()
            if 0 <= self._levels.get(tensor.op, number) < number:
                found.append(tensor)
            elif tensor.op not in seen:
                seen.add(tensor.op)
                stack += tensor.op.inputs
        return unique(found)


def _numbers_of_handles(graph: Any, weights: Sequence[Any]) -> dict[str, int]:
    """By the name of a captured handle, the number of its weight."""
    numbers = {id(weight.handle): number for number, weight in enumerate(weights)}
    return {
        inner.name: numbers[id(outer)]
        for outer, inner in captures_of(graph)
        if id(outer) in numbers
    }


def _levels(operations: Sequence[Any], wanted: Wanted) -> dict[Any, int]:
    """The section that each operation is in; -1 for those that each section may run for itself.

    These depend on no floating number that was made of tokens: masks, positions, weights.
    """
    levels: dict[Any, int] = {}
    awaited = {place.awaited.op: n + 1 for n, place in enumerate(wanted.places)}
    sources = {x.op for x in wanted.sources}
    of_tokens = {x.op for x in wanted.tokens} | set(awaited)
    for operation in _in_order(operations):
        before = [x.op for x in operation.inputs]
        before += [op for op in operation.control_inputs if op in levels]
        if operation in awaited:
            levels[operation] = awaited[operation]
            continue
        level = max((levels[op] for op in before), default=-1)
        if any(op in of_tokens for op in before):
            of_tokens.add(operation)
        floating = any(x.dtype.is_floating for x in operation.outputs)
        if level == -1 and floating and operation in of_tokens:
            made_of_them = bool(before) or operation in sources
            level = 0 if made_of_them else -1
        levels[operation] = level
    return levels


def _in_order(operations: Iterable[Any]) -> list[Any]:
    """These operations and all that they need, each after those whose tensors it takes.

    A kernel that was put in is read by operations that were traced before it.
    """
    found: dict[Any, None] = {}
    stack = list(operations)[::-1]
    while stack:
        operation = stack[-1]
        needed = [*(x.op for x in operation.inputs), *operation.control_inputs]
        before = [op for op in needed if op not in found]
        if operation in found or not before:
            found[stack.pop()] = None
        else:
            stack += before
    return list(found)


def present(tensor: Any) -> list[Any]:
    return [] if tensor is None else [tensor]
