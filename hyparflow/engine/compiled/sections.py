"""A computation that is traced as one graph and cut where it waits for tensors that others compute.

Attention is what it waits for: it gives queries, keys and values, and goes on with what comes of
them. All before the first such place is a section, and all between two, and all after the last; a
section's backward runs its forward again, or takes what that kept for it. Sections are found in the
graph, so nothing need be known of layers. Gradients are made in the graph that was traced, before
it is cut: what `tf.custom_gradient` keeps for its gradient are tensors of that graph.

Relies on what `hyparflow.engine.compiled.subgraph` relies on. Gain: memory that does not grow with
the square of the sequence (``benchmarks/longseq``). Seen to work on TensorFlow 2.21 with Keras
3.15. Without it sequences cannot be divided, and `num_sequence_chunks` is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.engine.compiled.direct_call import DirectCall
from hyparflow.engine.compiled.flat_tensors import packed_like, tensors_of, unique
from hyparflow.engine.compiled.front import with_shapes
from hyparflow.engine.compiled.recomputed import cheap
from hyparflow.engine.compiled.section_cut import Carried, Section, SectionCut, Wanted, present
from hyparflow.engine.compiled.section_sizes import SectionSizes
from hyparflow.engine.compiled.subgraph import GraphParts
from hyparflow.engine.compiled.tensor_lifetimes import needed_in_order, peak_bytes

__all__ = ["Sections"]

_ROW_NUMBER = 8  # bytes of the number of a row, as ranks send it


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
        self._forwards: dict[tuple[int, bool], DirectCall] = {}
        self._backwards: dict[tuple[int, bool], DirectCall] = {}
        self._kept: dict[int, list[Any]] = {}

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
    def is_loss(self) -> bool:
        """Whether the last section makes a loss."""
        return self._cut.is_loss

    @functools.cached_property
    def largest_of_last(self) -> int:
        """Bytes of the largest tensor of the last section for one position of one row."""
        return max(map(_bytes_of_position, self._cut.tensors()[-1]), default=1)

    def sizes(self, tables: Collection[int] = ()) -> list[SectionSizes]:
        """What each section takes in training.

        Args:
            tables: positions of weights whose gradients are added up as dense ones.
        """
        dense = set(tables)
        for section in self._cut.sections:
            count = len(section.sources[0])
            of_weights = zip(section.sources[1], section.gradients[count:], strict=True)
            dense |= {n for n, x in of_weights if isinstance(x, tf.Tensor)}
        made = self._cut.tensors()
        return [self._sizes(n, made[n], dense) for n in range(self.count)]

    @functools.cached_property
    def bytes_kept(self) -> list[int]:
        """Bytes that the forward of each section keeps if asked, for a position of a row."""
        return [sum(map(_bytes_of_position, self._kept_by(n))) for n in range(self.count)]

    # --- what users call ---

    def forward(
        self,
        number: int,
        awaited: Any,
        taken: Sequence[Any],
        given: Sequence[Any],
        keeps: bool = False,
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """Run a section: what it gives, or the results; what it hands on; what it keeps.

        Args:
            number: of the section.
            awaited: what it waits for; None for the first.
            taken: tensors of other sections, as `Sections.taken` lists them.
            given: the tensors among the arguments, then the further ones.
            keeps: whether to keep what its backward needs.
        """
        section = self._cut.sections[number]
        if (number, keeps) not in self._forwards:
            self._forwards[number, keeps] = self._forward(number, section, keeps)
        made = self._forwards[number, keeps](*present(awaited), *taken, *given)
        first, last = len(section.made), len(section.made) + len(section.handed_on)
        return made[:first], made[first:last], made[last:]

    def backward(
        self,
        number: int,
        awaited: Any,
        taken: Sequence[Any],
        given: Sequence[Any],
        gradients: Sequence[Any],
        finish: Callable[[list[Any]], Any],
        kept: Sequence[Any] | None = None,
    ) -> tuple[list[Any], list[Any], Any]:
        """Run the backward of a section, and before it its forward if nothing was kept.

        Args:
            number, awaited, taken, given: as for `forward`.
            gradients: of what it gives or of the results that have one (none for a loss), then of
                the differentiable tensors that it hands on.
            finish: a function of the gradients of the weights, which is compiled with it; the same
                in each call.
            kept: what the forward kept.

        Returns:
            The results, if they are a loss; the gradients of what it waits for, of the floating
            tensors that it takes and of the wanted arguments (zeros where nothing depends on one);
            and what `finish` returns.
        """
        section, again = self._cut.sections[number], kept is None
        if (number, again) not in self._backwards:
            self._backwards[number, again] = self._backward(number, section, finish, again)
        call = self._backwards[number, again]
        given = [*taken, *given, *(kept or []), *gradients]
        results, of_tensors, finished = call(*present(awaited), *given)
        return results, of_tensors, finished

    # --- what sections take ---

    def _sizes(self, number: int, made: list[Any], dense: Collection[int]) -> SectionSizes:
        section = self._cut.sections[number]
        wanted, count = tensors_of(section.gradients), len(section.sources[0])
        behind = self._behind(section)
        forward = self._within([x.op for x in (*section.made, *section.handed_on)], section)
        backward = self._within([x.op for x in wanted], section, behind)
        again = self._within([x.op for x in wanted], section)
        in_order = [op for op in self._parts.operations if op in again]
        ordered = needed_in_order(in_order, in_order)
        ordered = [operation for operation in ordered if operation in again]
        pairs = zip(section.sources[1], section.gradients[count:], strict=True)
        of_weights = {n: x for n, x in pairs if x is not None}
        rows = [n for n in of_weights if n not in dense]
        weights = {n: _bytes_of_weight(self._weights[n]) for n in of_weights}
        sizes = list(map(_bytes_of_position, made))
        given = [*self._arguments(section), *section.seeds]
        return SectionSizes(
            made=sum(sizes),
            largest=max(sizes, default=0),
            kept=self.bytes_kept[number],
            working=peak_bytes(ordered, wanted, _bytes_of_position)
            + sum(map(_bytes_of_position, given)),
            rows=sum(_bytes_of_row(of_weights[n]) for n in rows),
            tables=sum(weights[n] for n in rows),
            weight=max((weights[n] for n in weights if n in dense), default=0),
            forward=len(forward),
            backward=len(backward),
            again=len(again),
        )

    # --- compiling ---

    def _arguments(self, section: Section) -> list[Any]:
        return [*present(section.awaited), *section.taken, *self._cut.given]

    def _forward(self, number: int, section: Section, keeps: bool) -> DirectCall:
        wanted = [*section.made, *section.handed_on, *(self._kept_by(number) if keeps else [])]
        start = [*(x.op for x in wanted), *self._effects(number)]
        operations = self._within(start, section)
        return self._parts.compile(self._arguments(section), wanted, operations)

    def _backward(
        self, number: int, section: Section, finish: Callable[[list[Any]], Any], again: bool
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
        start = [*(x.op for x in wanted), *(self._effects(number) if is_loss else [])]
        kept = [] if again else self._kept_by(number)
        behind = set() if again else self._behind(section)
        operations = self._within(start, section, behind)
        given = [*self._arguments(section), *kept, *section.seeds]
        return self._parts.compile(given, wanted, operations, finished)

    def _kept_by(self, number: int) -> list[Any]:
        """The tensors of a section's forward that its backward needs, but for its arguments."""
        if number not in self._kept:
            section = self._cut.sections[number]
            behind = self._behind(section) | self._ends(section)
            start = [x.op for x in tensors_of(section.gradients)]
            arguments = {x.ref() for x in self._arguments(section)}
            needed = self._parts.needed(start, behind)
            needed += [x for x in tensors_of(section.gradients) if x.op in behind]
            self._kept[number] = [x for x in unique(needed) if x.ref() not in arguments]
        return self._kept[number]

    def _behind(self, section: Section) -> set[Any]:
        """The operations of a section that its backward need not run, if the forward keeps."""
        made = [*section.made, *section.handed_on]
        forward = self._within([x.op for x in made], section)
        whole = self._within([x.op for x in tensors_of(section.gradients)], section)
        later = [op for op in self._parts.operations if op in whole and op not in forward]
        front = with_shapes(forward | self._ends(section), later) - self._ends(section)
        constant = {id(weight.handle) for weight in self._weights}
        return front - cheap(forward, self._parts.captured, constant)

    def _effects(self, number: int) -> list[Any]:
        return [op for op in self._parts.effects if self._cut.section_of(op) == number]

    def _ends(self, section: Section) -> set[Any]:
        """The operations that make what a section takes."""
        return {x.op for x in self._arguments(section) if not self._is_input(x)}

    def _within(
        self, start: Sequence[Any], section: Section, behind: Collection[Any] = ()
    ) -> set[Any]:
        """The operations of a section that `start` needs, but for those `behind`."""
        ends = self._ends(section)
        return self._parts.upstream(start, ends | set(behind)) - ends

    def _is_input(self, tensor: Any) -> bool:
        return bool(tensor.op.type == "Placeholder")


def _bytes_of_position(tensor: Any) -> int:
    """Bytes for each row and position; 0 of what does not grow with these."""
    if tensor.op.type == "Reshape":  # sizes that were multiplied are no longer known
        tensor = tensor.op.inputs[0]
    shape = tensor.shape.as_list() if tensor.shape.rank else []
    if None not in shape[:2] or not tensor.dtype.size:
        return 0
    return int(np.prod([n for n in shape if n is not None])) * int(tensor.dtype.size)


def _bytes_of_row(gradient: Any) -> int:
    """Bytes of one row of a sparse gradient, with its number."""
    known = [n for n in gradient.values.shape.as_list() if n is not None]
    return int(np.prod(known)) * int(gradient.dtype.size) + _ROW_NUMBER


def _bytes_of_weight(weight: Any) -> int:
    return int(np.prod(weight.shape.as_list())) * int(weight.dtype.size)
