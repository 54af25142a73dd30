"""How a request's tokens are chosen from logits. Pure data."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GREEDY", "MOST_LOGPROBS", "SamplerKind", "Sampling"]

MOST_LOGPROBS = 20


@dataclass(frozen=True)
class SamplerKind:
    """What a compiled choice of tokens depends on.

    Attributes:
        sampler: a class of KerasHub's samplers, or one's own.
        state: the pickled attributes of the sampler that stay as they are.
        generators: the names of its attributes that draw random numbers.
    """

    sampler: type
    state: bytes
    generators: tuple[str, ...]


@dataclass(frozen=True)
class Sampling:
    """How one request's tokens are chosen.

    Attributes:
        kind: of the sampler; None chooses the token with the largest logit.
        temperature: by which logits are divided.
        p: the probability of the tokens to choose from, if the sampler reads it.
        seed: the n-th token is drawn with the seed `[seed, n]`, so that it depends on nobody else.
        num_logprobs: of how many of the likeliest tokens to give the logarithms of probabilities,
            at most `MOST_LOGPROBS`; None to give none, not even of the chosen ones.
    """

    kind: SamplerKind | None = None
    temperature: float = 1.0
    p: float = 1.0
    seed: int = 0
    num_logprobs: int | None = None


GREEDY = Sampling()
