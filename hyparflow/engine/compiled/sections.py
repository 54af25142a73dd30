"""A computation that is traced as one graph and cut where it waits for tensors that others compute.

Attention is what it waits for: it gives queries, keys and values, and goes on with what comes of
them. All before the first such place is a section, and all between two, and all after the last; a
section's backward runs its forward again. Sections are found in the graph, so nothing need be known
of layers. Gradients are made in the graph that was traced, before it is cut: what
`tf.custom_gradient` keeps for its gradient are tensors of that graph.

Relies on what `hyparflow.engine.compiled.subgraph` relies on. Gain: memory that does not grow with
the square of the sequence (``benchmarks/longseq``). Seen to work on TensorFlow 2.21 with Keras
3.15. Without it sequences cannot be divided, and `num_sequence_chunks` is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.engine.compiled.direct_call import DirectCall
from hyparflow.engine.compiled.flat_tensors import packed_like, tensors_of
from hyparflow.engine.compiled.section_cut import Carried, Section, SectionCut, Wanted, present
from hyparflow.engine.compiled.subgraph import GraphParts

__all__ = ["Sections"]


class Sections:
    """The sections of a traced function, each a forward and, in training, a backward.

    Attributes:
        count: of sections.
        taken: of each section, the tensors of others that it takes, in order.
        differentiable: of each section, which of the tensors that it hands on have a gradient.

    Args:
        function: (arguments) -> `Wanted`; to be traced.
        arguments: types of the arguments, nested.
        weights: variables whose gradients are wanted.
        training: whether there are backwards.
    """

    def __init__(
        self,
        function: Callable[..., Wanted],
        arguments: Sequence[Any],
        weights: Sequence[Any],
        training: bool,
    ) -> None:
        self._weights = list(weights)
        self._forwards: dict[int, DirectCall] = {}
        self._backwards: dict[int, DirectCall] = {}

        def traced(*arguments: Any) -> list[Any]:
            wanted = function(*arguments)
            self._cut = SectionCut(wanted, tensors_of(arguments), self._weights, training)
            return tensors_of(wanted.results)

        concrete = tf.function(traced, autograph=False).get_concrete_function(*arguments)
        self._parts = GraphParts(concrete, jit_compile=False)
        self.taken: list[list[Carried]] = [
            [self._cut.place(x) for x in section.taken] for section in self._cut.sections
        ]
        self.differentiable = [
            [x.dtype.is_floating for x in section.handed_on] for section in self._cut.sections
        ]

    @property
    def count(self) -> int:
        """The number of sections."""
        return len(self._cut.sections)

    @property
    def largest_of_last(self) -> int:
        """Bytes of the largest tensor of the last section for one position of one row."""
        return max(map(_bytes_of_position, self._cut.tensors()[-1]), default=1)

    @property
    def largest_section(self) -> int:
        """Bytes of all tensors of the section with most, for one position of one row."""
        return max(sum(map(_bytes_of_position, tensors)) for tensors in self._cut.tensors())

    # --- what users call ---

    def forward(
        self, number: int, awaited: Any, taken: Sequence[Any], given: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Run a section: what it gives, or the results, and what it hands on.

        Args:
            number: of the section.
            awaited: what it waits for; None for the first.
            taken: tensors of other sections, as `Sections.taken` lists them.
            given: the tensors among the arguments, then the further ones.
        """
        section = self._cut.sections[number]
        if number not in self._forwards:
            self._forwards[number] = self._forward(number, section)
        made = self._forwards[number](*present(awaited), *taken, *given)
        count = len(section.made)
        return made[:count], made[count:]

    def backward(
        self,
        number: int,
        awaited: Any,
        taken: Sequence[Any],
        given: Sequence[Any],
        gradients: Sequence[Any],
        finish: Callable[[list[Any]], Any],
    ) -> tuple[list[Any], list[Any], Any]:
        """Run a section again, and its backward.

        Args:
            number, awaited, taken, given: as for `forward`.
            gradients: of what it gives or of the results that have one (none for a loss), then of
                the differentiable tensors that it hands on.
            finish: a function of the gradients of the weights, which is compiled with it; the same
                in each call.

        Returns:
            The results, if they are a loss; the gradients of what it waits for, of the floating
            tensors that it takes and of the wanted arguments (zeros where nothing depends on one);
            and what `finish` returns.
        """
        section = self._cut.sections[number]
        if number not in self._backwards:
            self._backwards[number] = self._backward(number, section, finish)
        call = self._backwards[number]
        results, of_tensors, finished = call(*present(awaited), *taken, *given, *gradients)
        return results, of_tensors, finished

    # --- compiling ---

    def _arguments(self, section: Section) -> list[Any]:
        return [*present(section.awaited), *section.taken, *self._cut.given]

    def _forward(self, number: int, section: Section) -> DirectCall:
        wanted = [*section.made, *section.handed_on]
        effects = [op for op in self._parts.effects if self._cut.section_of(op) == number]
        start = [*(x.op for x in wanted), *effects]
        operations = self._within(start, number, section)
        return self._parts.compile(self._arguments(section), wanted, operations)

    def _backward(
        self, number: int, section: Section, finish: Callable[[list[Any]], Any]
    ) -> DirectCall:
        count = len(section.sources[0])
        is_loss = self._cut.is_loss and number == self.count - 1
        results = section.made if is_loss else []
        like = results, section.gradients[:count], section.gradients[count:]

        def finished(made: list[Any]) -> Any:
            results, of_tensors, of_weights = packed_like(like, made)
            every: list[Any] = [None] * len(self._weights)
            for position, gradient in zip(section.sources[1], of_weights, strict=True):
                every[position] = gradient
            return results, of_tensors, finish(every)

        wanted = tensors_of(like)
        effects = [op for op in self._parts.effects if self._cut.section_of(op) == number]
        start = [*(x.op for x in wanted), *(effects if is_loss else [])]
        operations = self._within(start, number, section)
        given = [*self._arguments(section), *section.seeds]
        return self._parts.compile(given, wanted, operations, finished)

    def _within(self, start: Sequence[Any], number: int, section: Section) -> set[Any]:
        """The operations of a section that `start` needs."""
        ends = {x.op for x in self._arguments(section) if not self._is_input(x)}
        return self._parts.upstream(start, ends) - ends

    def _is_input(self, tensor: Any) -> bool:
        return bool(tensor.op.type == "Placeholder")


def _bytes_of_position(tensor: Any) -> int:
    """Bytes for each row and position; 0 of what is not known to have these axes first."""
    shape = tensor.shape.as_list() if tensor.shape.rank else []
    if len(shape) < 3 or None in shape[2:] or not tensor.dtype.size:
        return 0
    return int(np.prod(shape[2:])) * int(tensor.dtype.size)
