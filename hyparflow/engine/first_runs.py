"""Words for what a rank compiles: computations that run for the first time."""

from __future__ import annotations

from collections.abc import Sequence

from hyparflow.pipeline.actions import COMPUTATIONS, NAMES, Kind, Step

__all__ = ["FirstRuns", "compiling"]

_COMPILING = ", compiling "


def compiling(text: str) -> str:
    """What a rank compiles, of what it says that it does; "" if it compiles nothing."""
    return text.partition(_COMPILING)[2]


class FirstRuns:
    """Which computations of a rank have run.

    Attributes:
        are_prepared: whether stages were compiled before their inputs came.

    Args:
        stages: the numbers of the rank's stages.
    """

    def __init__(self, stages: Sequence[int]) -> None:
        self._stages = list(stages)
        self._ran: set[tuple[str, int, object]] = set()
        self.are_prepared = False

    def ahead(self, stage: int) -> str:
        """What the rank does when it compiles a stage before its inputs come."""
        return f"before its inputs{_COMPILING}{self._place(stage)}"

    def named(self, name: str, step: Step, purpose: object) -> str:
        """The name of a step, with what is compiled if it runs for the first time.

        Args:
            name: the name.
            step: the step.
            purpose: what it computes for, such as training, which has functions of its own.
        """
        key = (step.kind, step.stage, purpose)
        if key in self._ran or step.edge >= 0:
            return name
        self._ran.add(key)
        if step.kind == Kind.APPLY:
            return f"{name}{_COMPILING}the optimizer's step"
        if step.kind not in COMPUTATIONS:
            return name
        return f"{name}{_COMPILING}{self._place(step.stage)}, {NAMES[step.kind]}"

    def _place(self, stage: int) -> str:
        count = len(self._stages)
        place = f" ({self._stages.index(stage) + 1} of {count} here)" if count > 1 else ""
        return f"stage {stage}{place}"
