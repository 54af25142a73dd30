"""Weight regularization, the part of a loss that belongs to no row, as one rank counts it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from keras import ops

from hyparflow.engine.compiled.fast_call import FixedFunction
from hyparflow.engine.compiled.likeness import Likeness
from hyparflow.model.keras_internals.optimizer import same_settings

__all__ = ["Penalty", "regularization"]


class Penalty:
    """The sum of the regularization of some weights.

    Args:
        groups: the weights, each with a regularizer and its place among all; groups of one kind
            may be alike.
    """

    def __init__(self, groups: Sequence[tuple[int, Sequence[tuple[int, Any]]]]) -> None:
        self._groups = [(kind, [v for _, v in members]) for kind, members in groups]
        places = [place for _, members in groups for place, _ in members]
        self._order = sorted(range(len(places)), key=places.__getitem__)
        self._steps: dict[str, list[FixedFunction]] = {}

    def __call__(self, step: str) -> float:
        """The sum with the present weights.

        Args:
            step: "train" or "test"; each is compiled when it is first run, as Keras's are.
        """
        if not self._groups:
            return 0.0
        if step not in self._steps:
            self._steps[step] = self._compiled()
        # Added up in one operation, and in the order of the model: groups change no digit.
        found = [x for penalties in self._steps[step] for x in penalties([])]
        return float(tf.add_n([found[place] for place in self._order]))

    def compile_anew(self, step: str) -> None:
        """Compile the sum of this kind of step again, with the present settings of regularizers."""
        self._steps.pop(step, None)

    def _compiled(self) -> list[FixedFunction]:
        """The penalties of each group, traced once for those that are alike."""
        first: dict[int, tuple[Sequence[Any], FixedFunction]] = {}
        made = []
        for kind, variables in self._groups:
            others, function = first.get(kind, (variables, None))
            if function is None or not _alike(others, variables):
                function = FixedFunction(functools.partial(_penalties, variables))
                first.setdefault(kind, (variables, function))
                made.append(function)
            else:
                likeness = Likeness([v.value for v in others], [v.value for v in variables])
                made.append(function.on(likeness.replace))
        return made


def _penalties(variables: Sequence[Any], nothing: list[Any]) -> list[Any]:
    return [regularization(variable) for variable in variables]


def _alike(left: Sequence[Any], right: Sequence[Any]) -> bool:
    """Whether two groups of weights are regularized alike."""
    return len(left) == len(right) and all(
        same_settings(a.regularizer, b.regularizer) and a.shape == b.shape
        for a, b in zip(left, right, strict=True)
    )


def regularization(variable: Any) -> Any:
    """What the regularizer of one weight adds to the loss."""
    return ops.sum(variable.regularizer(variable))
