"""Many random requests at once: arrivals, stops, cancels, growing caches, too little memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from language_models import VOCABULARY, alone

from hyparflow.serving.engine import ServingEngine
from hyparflow.serving.scheduling.limits import Limits
from hyparflow.serving.scheduling.request import EndReason, Request

__all__ = ["ManyRequests", "random_limits"]

LENGTH = 300  # of the longest


def random_limits(random: np.random.Generator, multiple: int = 1) -> Limits:
    """Windows of 1 to 16 tokens, and memory for some of the requests at a time."""
    batch = int(random.choice([4, 8, 12]))
    return Limits(
        max_batch=batch,
        max_length=LENGTH,
        window=int(random.integers(1, 17)),
        piece=int(random.choice([16, 64, 256])),
        cache=max(2 * multiple * LENGTH, 700),
        shortest=64,
        fewest=2 * multiple,
        multiple=multiple,
    )


@dataclass
class ManyRequests:
    """Requests, and what each is given.

    Attributes:
        asked: the requests, with the number of the window in which each arrives.
        cancels: number of a request -> the window after which it is cancelled.
        given: number -> tokens.
        ends: number -> why it has ended.
    """

    asked: list[tuple[int, Request]]
    cancels: dict[int, int]
    given: dict[int, list[int]] = field(default_factory=dict)
    ends: dict[int, EndReason] = field(default_factory=dict)

    @classmethod
    def random(cls, random: np.random.Generator, count: int) -> ManyRequests:
        """Lengths of 1 to 300, of which some must be preempted; a tenth is cancelled."""
        asked = []
        for number in range(count):
            size = int(random.integers(1, 120 if number % 4 else 250))
            most = int(random.integers(1, min(90, LENGTH - size)))
            stops = frozenset(random.integers(1, VOCABULARY, number % 3).tolist())
            prompt = tuple(random.integers(1, VOCABULARY, size).tolist())
            asked.append((int(random.integers(0, 4)), Request(number, prompt, most, stops)))
        cancels = {n: int(random.integers(1, 30)) for n in range(0, count, 10)}
        return cls(sorted(asked, key=lambda pair: pair[0]), cancels)

    def run(self, engine: ServingEngine) -> None:
        """Serve them all."""
        waiting, windows = list(self.asked), 0
        while waiting or not engine.is_idle:
            while waiting and waiting[0][0] <= windows:
                engine.submit(waiting.pop(0)[1])
            for number in [n for n, when in self.cancels.items() if when == windows]:
                engine.cancel(number)
            for progress in engine.advance():
                self.given.setdefault(progress.number, []).extend(progress.tokens)
                if progress.end is not None:
                    self.ends[progress.number] = progress.end
            windows += 1

    def faults(self, model: Any) -> list[int]:
        """The requests that were given other tokens than alone."""
        found = []
        for _, request in self.asked:
            whole = alone(model, list(request.prompt), LENGTH - len(request.prompt))
            whole = whole[: request.max_new_tokens]
            stop = next((n for n, token in enumerate(whole) if token in request.stop_tokens), None)
            right = whole if stop is None else whole[: stop + 1]
            given, end = self.given.get(request.number, []), self.ends[request.number]
            if end is EndReason.CANCELLED:
                right = right[: len(given)]
            elif end is not (EndReason.LENGTH if stop is None else EndReason.STOP) and (
                stop != len(whole) - 1
            ):
                found.append(request.number)
            if given != right:
                found.append(request.number)
        return found
