"""Leaves out cases of tests for their time; EVERYTHING=1 runs them all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

__all__ = ["leave_out", "thin"]


def thin(items: Iterable[Any], every: int, first: int = 0) -> None:
    """Leave out all but every so many cases of each test that has several.

    Args:
        items: tests; those that are skipped anyway do not count.
        every: one of so many runs.
        first: the first that does; the first of all where there are fewer.
    """
    tests: dict[Any, list[Any]] = {}
    for item in items:
        if not any(item.get_closest_marker(mark) for mark in ("skip", "slow")):
            tests.setdefault((item.path, item.cls, item.originalname), []).append(item)
    for cases in tests.values():
        kept = cases[first::every] or cases[:1]
        for item in cases:
            if item not in kept:
                leave_out(item, f"one of {every} cases; all with --everything")


def leave_out(item: Any, reason: str) -> None:
    """Skip a test."""
    item.add_marker(pytest.mark.skip(reason=reason))
