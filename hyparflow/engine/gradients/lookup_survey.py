"""Finds out, while a stage trains, by which lookups the sparse gradients of its weights arise.

A compiled stage does the same in each step, so one trial call tells. A stage that runs as Python
may look up other rows in a later step, or none; it is tried again when the number of rows looked
up is not the one that earlier trials let expect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from hyparflow.engine.gradients.common_lookups import (
    Aside,
    Gradients,
    Lookups,
    lookups_of_types,
    lookups_of_values,
    rows_of,
)

__all__ = ["LookupSurvey"]

_COMMON, _EACH, _UNCLEAR = "common", "each", "unclear"
_ENOUGH = 8  # equal results of trials, after which a weight is not tried again

_Example = tuple[Any, Any]  # inputs and share of a micro-batch


class LookupSurvey:
    """Which rows of its weights one stage looks up: the same for all samples, or each its own.

    Args:
        gradients: computes the gradients of the stage's weights, for trials.
        aside: makes the context of a trial, which leaves no effects.
        eager: whether the stage runs as Python.
    """

    def __init__(self, gradients: Gradients, aside: Aside, eager: bool) -> None:
        self._gradients, self._aside, self._eager = gradients, aside, eager
        # Of a compiled stage:
        self._found: Lookups | None = None
        self._types: Any = None
        self._sparse: frozenset[int] | None = None  # positions, once there are gradients
        self._example: _Example | None = None
        # Of a stage that runs as Python:
        self._known: dict[int, list[tuple[str, int, int]]] = {}  # kind, looked up, samples
        self._kinds: dict[int, str] = {}  # in this step
        self._unseen: dict[tuple[tuple[int, int], ...], _Example] = {}

    @property
    def needs_inputs(self) -> bool:
        """Whether `note` needs an example: inputs and share of the micro-batch."""
        return self._eager or self._sparse is None

    def begin(self) -> None:
        """Begin a step."""
        self._kinds.clear()
        self._unseen.clear()

    def see(self, inputs: Any, share: Any) -> None:
        """Note the types of the inputs and the share."""
        if self._types is None and not self._eager:
            self._types = keras.tree.map_structure(_type_of, (inputs, share))

    def note(self, gradients: Sequence[Any], example: _Example | None) -> None:
        """Keep the example of a micro-batch, if the survey will have to try it.

        Args:
            gradients: of the weights.
            example: inputs and share that they were computed from; None if not needed.
        """
        if example is None:
            return
        sparse = [(p, g) for p, g in enumerate(gradients) if isinstance(g, tf.IndexedSlices)]
        if not self._eager:
            self._sparse = frozenset(position for position, _ in sparse)
            self._example = example if sparse else None
            return
        samples = rows_of(example[0])
        counts = {position: int(gradient.indices.shape[0]) for position, gradient in sparse}
        unseen = {p: n for p, n in counts.items() if not self._is_known(p, n, samples)}
        if unseen:
            self._unseen.setdefault(tuple(unseen.items()), example)

    def __call__(self) -> Lookups:
        """The lookups of this step's gradients; tries the stage where they are not known."""
        if not self._eager:
            if self._found is None:
                self._found = self._of_compiled()
                self._example = None
            return self._found
        for counts, example in self._unseen.items():
            self._ask(dict(counts), example)
        self._unseen.clear()
        return Lookups(self._of_kind(_COMMON), self._of_kind(_UNCLEAR))

    def _of_kind(self, kind: str) -> frozenset[int]:
        return frozenset(position for position, other in self._kinds.items() if other == kind)

    def _of_compiled(self) -> Lookups:
        try:
            found = lookups_of_types(self._gradients, self._types)
        except Exception:  # a layer takes some numbers of rows only
            found = Lookups(unclear=self._sparse or frozenset())
        if not found.unclear or self._example is None:
            return found
        return lookups_of_values(self._gradients, self._example, True, self._aside) or found

    def _is_known(self, position: int, count: int, samples: int) -> bool:
        """Whether earlier trials tell the kind of a gradient with `count` rows looked up."""
        known = self._known.get(position, [])
        kinds = {
            kind
            for kind, before, of in known
            if kind == _UNCLEAR
            or (count == before if kind == _COMMON else count * of == before * samples)
        }
        if not kinds and len(known) >= _ENOUGH and len({kind for kind, *_ in known}) == 1:
            kinds = {known[0][0]}
        if len(kinds) != 1:
            return False
        self._take(position, kinds.pop())
        return True

    def _ask(self, counts: dict[int, int], example: _Example) -> None:
        """Try the stage, for the weights at these positions."""
        found = lookups_of_values(self._gradients, example, False, self._aside)
        for position, count in counts.items():
            kind = _EACH
            if found is None or position in found.unclear:
                kind = _UNCLEAR
            elif position in found.common:
                kind = _COMMON
            self._known.setdefault(position, []).append((kind, count, rows_of(example[0])))
            self._take(position, kind)

    def _take(self, position: int, kind: str) -> None:
        """Note the kind of a gradient in this step: unclear, if micro-batches differ in it."""
        before = self._kinds.setdefault(position, kind)
        if before != kind:
            self._kinds[position] = _UNCLEAR


def _type_of(value: Any) -> Any:
    """The type of a tensor."""
    return tf.TensorSpec(value.shape, value.dtype) if isinstance(value, tf.Tensor) else value
