"""A request for tokens, and how it goes on. Pure data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from hyparflow.serving.scheduling.sampling import GREEDY, Sampling

__all__ = ["EndReason", "Request", "RequestProgress", "TokenLogprobs"]


class EndReason(Enum):
    """Why a request has ended."""

    STOP = "a stop token came"
    LENGTH = "it has as many tokens as it asked for"
    CANCELLED = "it was cancelled"
    DEADLINE = "its deadline has passed"
    FAILED = "the server failed"


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        number: of the request, in the order of arrival.
        prompt: its tokens, at least one.
        max_new_tokens: how many tokens may follow, at least one.
        stop_tokens: tokens after which nothing follows; they are given, too.
        sampling: how its tokens are chosen.
    """

    number: int
    prompt: tuple[int, ...]
    max_new_tokens: int
    stop_tokens: frozenset[int] = frozenset()
    sampling: Sampling = GREEDY

    @property
    def most_tokens(self) -> int:
        """The length that it may reach."""
        return len(self.prompt) + self.max_new_tokens


@dataclass(frozen=True)
class TokenLogprobs:
    """How likely a token was, before temperature and whatever else a sampler does.

    Attributes:
        chosen: the logarithm of the probability of the token.
        likeliest: the likeliest tokens and the logarithms of their probabilities.
    """

    chosen: float
    likeliest: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class RequestProgress:
    """What became of a request in one window.

    Attributes:
        number: of the request.
        tokens: that came.
        end: why it has ended; None if it goes on.
        logprobs: of the tokens, if they were asked for.
    """

    number: int
    tokens: tuple[int, ...]
    end: EndReason | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
