"""Whether the fields of a file of costs fit each other."""

from __future__ import annotations

import itertools
from collections.abc import Sized
from typing import Any

__all__ = ["check"]


def check(content: Any) -> None:
    """Refuse costs that contradict themselves.

    Args:
        content: what a file holds, with the fields of `hyparflow.planning.costs.costs.Costs`.

    Raises:
        ValueError: naming the field that does not fit.
    """
    sizes, count = len(content.rows), len(content.operations)
    _require_length("rows", content.rows, sizes if sizes else 1)
    if any(low >= high for low, high in itertools.pairwise(content.rows)):
        raise ValueError("Expected sizes in rising order - at `$.rows`")
    for name in ("forward", "backward", "fused", "kept", "working", "program", "by_xla", "used"):
        _require_length(name, getattr(content, name), count)
    for name in ("forward", "backward", "fused", "crowded"):
        if name == "crowded" and content.crowded is not None:
            _require_length(name, content.crowded, 3)
        for number, row in enumerate(getattr(content, name) or ()):
            _require_length(f"{name}[{number}]", row, sizes)
    _require_lengths(content, count)
    for index, numbers in enumerate(content.used):
        if any(number >= len(content.weights) for number in numbers):
            raise ValueError(f"Expected `int` < {len(content.weights)} - at `$.used[{index}]`")


def _require_lengths(content: Any, count: int) -> None:
    """Check what layers of some kinds cost, for so many operations."""
    if content.linear is not None:
        _require_length("linear", content.linear, 5)
    for number, row in enumerate(content.linear or ()):
        _require_length(f"linear[{number}]", row, count)
    for name in ("attention", "mixtures"):
        for index, layer in enumerate(getattr(content, name)):
            if layer.operation >= count:
                raise ValueError(f"Expected `int` < {count} - at `$.{name}[{index}].operation`")


def _require_length(name: str, found: Sized, expected: int) -> None:
    if len(found) != expected:
        raise ValueError(f"Expected `array` of length {expected}, got {len(found)} - at `$.{name}`")
