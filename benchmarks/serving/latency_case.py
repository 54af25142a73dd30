"""A job of the benchmark: requests that come at random to `hyparflow.serve`, and what parts cost.

    python latency_case.py FOLDER

See `workers.obey`.
"""

import statistics
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from case import LIMITS, Case, window_of
from language_models import prompts_of
from latency import DRAWN, drawn, key_of
from workers import obey

import hyparflow as hf
from hyparflow.serving.ranks.runner import warm_up_window
from hyparflow.serving.scheduling.sampling import GREEDY
from hyparflow.serving.scheduling.window import Piece, Window

_REPEATS = 3
_LONG = replace(LIMITS, max_batch=8, max_length=1088, shortest=272)


class LatencyCase(Case):
    """What can be asked for."""

    def __init__(self) -> None:
        super().__init__("gpt2", False)

    def warm_up(self) -> None:
        """Compile whatever requests need."""
        for limits in (LIMITS, _LONG):
            for shape in limits.shapes:
                self._runner.warm_up(warm_up_window(limits, shape, GREEDY))
        self._runner.close()

    def costs(self, long: bool = False) -> dict[str, float]:
        """Seconds of each part of a window, by caches of each size: medians of wall time."""
        limits, found = _LONG if long else LIMITS, dict[str, float]()
        for shape in limits.shapes:
            rows = range(shape.rows)
            self._runner.run(window_of(shape, rows, True))
            step = self._median(window_of(shape, rows, False))
            found[key_of("step", shape.rows, shape.length)] = step / limits.window
            empty = window_of(shape, range(0), False)
            found[key_of("move", shape.rows, shape.length)] = self._median(
                replace(empty, sources=tuple(rows))
            )
            if shape.rows == 8:
                for size in limits.piece_sizes(min(shape.length, limits.piece)):
                    for count in (1, *limits.together):
                        pieces = tuple(Piece(n, 0, (1,) * size, size) for n in range(count))
                        asked = replace(empty, pieces=pieces, together=limits.together)
                        if count * size <= limits.piece * limits.pieces_while_idle:
                            found[key_of(f"{count} of", size, shape.length)] = self._median(asked)
            self._runner.close()
        return found

    def live(self, gap: float, count: int, seed: int) -> dict[str, list[float]]:
        """Serve requests with exponential gaps: seconds to the first token, and per token."""
        arrivals, lengths = drawn(gap, count, seed)
        prompts = prompts_of(lengths, seed)
        with hf.serve(
            self._model, max_batch=LIMITS.max_batch, max_length=LIMITS.max_length, warm_up=False
        ) as server:
            start, asked = time.monotonic(), []
            for arrival, prompt in zip(arrivals, prompts, strict=True):
                time.sleep(max(0.0, start + arrival - time.monotonic()))
                asked.append(server.submit(prompt, max_new_tokens=DRAWN))
            for request in asked:
                request.tokens()
        times = [request.times for request in asked]
        return {
            "first": [float((x.first or 0.0) - x.submitted) for x in times],
            "each": [((x.last or 0.0) - (x.first or 0.0)) / (DRAWN - 1) for x in times],
        }

    def delayed(self) -> dict[str, Any]:
        """Six requests run; a prompt of 1,000 tokens comes: how long the others' gaps become."""
        came: list[list[float]] = [[] for _ in range(6)]

        def listen(request: Any, times: list[float]) -> None:
            for _ in request.pieces():
                times.append(time.monotonic())

        with hf.serve(
            self._model, max_batch=_LONG.max_batch, max_length=_LONG.max_length, warm_up=False
        ) as server:
            threads = []
            for times, prompt in zip(came, prompts_of([32] * 6), strict=True):
                request = server.submit(prompt, max_new_tokens=240)
                threads.append(threading.Thread(target=listen, args=(request, times)))
                threads[-1].start()
            while min(len(times) for times in came) < 8:
                time.sleep(0.01)
            begun = time.monotonic()
            (prompt,) = prompts_of([1000])
            long = server.submit(prompt, max_new_tokens=8)
            long.tokens()
            for thread in threads:
                thread.join()
        first = long.times.first or 0.0
        gaps = [(b, b - a) for times in came for a, b in zip(times, times[1:], strict=False)]
        return {
            "before": statistics.median(gap for end, gap in gaps if end <= begun),
            "meanwhile": sorted(gap for end, gap in gaps if begun < end <= first),
            "after": statistics.median(gap for end, gap in gaps if end > first),
            "first": first - long.times.submitted,
        }

    def _median(self, window: Window) -> float:
        self._runner.run(window)
        found = []
        for _ in range(_REPEATS):
            start = time.perf_counter()
            self._runner.run(window)
            found.append(time.perf_counter() - start)
        return statistics.median(found)


def main() -> None:
    case = LatencyCase()
    names = ("warm_up", "costs", "live", "delayed")
    obey(Path(sys.argv[1]), {name: getattr(case, name) for name in names})


if __name__ == "__main__":
    main()
