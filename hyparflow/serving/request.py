"""A request for tokens, and how it goes on. Pure data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from hyparflow.serving.sampling import GREEDY, Sampling

__all__ = ["EndReason", "Request", "RequestProgress"]


class EndReason(Enum):
    """Why a request has ended."""

    STOP = "a stop token came"
    LENGTH = "it has as many tokens as it asked for"
    CANCELLED = "it was cancelled"
    DEADLINE = "its deadline has passed"


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        number: of the request, in the order of arrival.
        prompt: its tokens, at least one.
        max_new_tokens: how many tokens may follow, at least one.
        stop_tokens: tokens after which nothing follows; they are given, too.
        deadline: the iteration after which nobody waits for it; None without one.
        sampling: how its tokens are chosen.
    """

    number: int
    prompt: tuple[int, ...]
    max_new_tokens: int
    stop_tokens: frozenset[int] = frozenset()
    deadline: int | None = None
    sampling: Sampling = GREEDY

    @property
    def most_tokens(self) -> int:
        """The length that it may reach."""
        return len(self.prompt) + self.max_new_tokens


@dataclass(frozen=True)
class RequestProgress:
    """What became of a request in one window.

    Attributes:
        number: of the request.
        tokens: that came.
        end: why it has ended; None if it goes on.
    """

    number: int
    tokens: tuple[int, ...]
    end: EndReason | None = None
