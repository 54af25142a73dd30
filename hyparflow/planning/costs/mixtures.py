"""What a plan knows of a mixture of experts: plain data."""

from __future__ import annotations

from dataclasses import dataclass

from hyparflow.formats.records import Count, Number

__all__ = ["Mixture"]


@dataclass(frozen=True)
class Mixture:
    """A layer that is a mixture of experts.

    Attributes:
        operation: the number of the operation that calls it.
        top_k: how many experts a token visits.
    """

    operation: Number
    top_k: Count
