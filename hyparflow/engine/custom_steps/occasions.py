"""After which steps of the model's own replicas are compared, and the step is tried again."""

from __future__ import annotations

__all__ = ["is_due"]


def is_due(steps: int) -> bool:
    """Whether to look after so many steps: after 1, 3, 10, 30, 100, 300, 1000 and so on.

    What a step does may change late: with a count, a schedule, or rows of a kind that come late.
    The gaps grow with what was trained, so that looking takes a small part of any training.
    """
    while steps >= 10 and steps % 10 == 0:
        steps //= 10
    return steps in (1, 3)
