"""A lowered list with its message tags, receives and names, worked out before it runs."""

from __future__ import annotations

from collections.abc import Sequence

from hyparflow.pipeline.actions import Kind, Step

__all__ = ["Program"]


class Program:
    """The list of steps that an engine executes.

    Args:
        steps: this rank's steps.
        tags: the tag of each step that is a message, -1 for the others.
        num_microbatches: M.
    """

    def __init__(self, steps: Sequence[Step], tags: Sequence[int], num_microbatches: int) -> None:
        self.steps = list(steps)
        self.num_microbatches = num_microbatches
        self.names = [str(step) for step in steps]
        self.tags = list(tags)
        # Receives are posted one computation ahead: while a micro-batch is computed, the next
        # one's tensors find their buffers waiting.
        self.post: list[list[int]] = [[] for _ in steps]
        computation = 0
        for index, step in enumerate(steps):
            if step.kind == Kind.RECEIVE_ACTIVATION:
                self.post[computation].append(index)
            elif step.edge < 0:
                computation = index
