"""Times to the first token and between tokens: served live, and by a virtual clock."""

import statistics
from typing import Any

import numpy as np
from workers import Worker

from hyparflow.serving.ranks.runner import put_together
from hyparflow.serving.requests.statistics import Percentiles
from hyparflow.serving.scheduling.limits import Limits
from hyparflow.serving.scheduling.request import Request
from hyparflow.serving.scheduling.scheduler import Scheduler
from hyparflow.serving.scheduling.window import Window

__all__ = ["DRAWN", "GAPS", "drawn", "key_of", "measured", "predicted"]

DRAWN = 96  # tokens of each request
# Mean gap in ms -> requests.
GAPS = {250: 60, 500: 60, 2000: 30}
_LIMITS = Limits(32, 256, pieces_while_idle=4, shortest=64, together=(8, 4))  # as `case.LIMITS`


def drawn(gap: float, count: int, seed: int) -> tuple[list[float], list[int]]:
    """When requests come, in seconds, and how long their prompts are."""
    random = np.random.default_rng(seed)
    gaps = random.exponential(gap / 1e3, count)
    arrivals = np.cumsum(gaps) - gaps[0]
    return arrivals.tolist(), random.integers(16, 65, count).tolist()


def key_of(part: str, count: int, length: int) -> str:
    """The name of a cost."""
    return f"{part} {count} x {length}"


def cost_of(window: Window, costs: dict[str, float]) -> float:
    """The seconds of a window."""
    rows, length = window.shape.rows, window.shape.length
    seconds = window.steps * costs[key_of("step", rows, length)]
    if window.sources is not None:
        seconds += costs[key_of("move", rows, length)]
    for pieces in put_together(window):
        count, size = len(pieces), pieces[0].padded
        alone = costs[key_of("1 of", size, length)]
        seconds += costs.get(key_of(f"{count} of", size, length), count * alone)
    return seconds


def predicted(gap: float, count: int, seed: int, costs: dict[str, float]) -> dict[str, list[float]]:
    """What `latency_case.LatencyCase.live` measures, by a virtual clock."""
    arrivals, lengths = drawn(gap, count, seed)
    scheduler, clock, came = Scheduler(_LIMITS), 0.0, 0
    first, last = dict[int, float](), dict[int, float]()
    while came < count or not scheduler.is_idle:
        if scheduler.is_idle:
            clock = max(clock, arrivals[came])
        while came < count and arrivals[came] <= clock:
            scheduler.submit(Request(came, (1,) * lengths[came], DRAWN))
            came += 1
        window = scheduler.plan()
        if window is None:
            continue
        clock += cost_of(window, costs)
        for progress in scheduler.report([[0] * len(window.live)] * window.steps):
            if progress.tokens:
                first.setdefault(progress.number, clock)
                last[progress.number] = clock
    return {
        "first": [first[n] - arrivals[n] for n in range(count)],
        "each": [(last[n] - first[n]) / (DRAWN - 1) for n in range(count)],
    }


def measured(runs: int) -> dict[str, Any]:
    """Live and predicted percentiles for each gap, and what a long prompt does to others."""
    worker = Worker("latency", "latency_case.py")
    worker.ask("warm_up")
    found: dict[str, Any] = {"gaps": {}}
    after = worker.ask("costs")[0]
    for gap, count in GAPS.items():
        entries = []
        for run in range(runs):
            before = after
            live = worker.ask("live", gap=gap, count=count, seed=run)[0]
            after = worker.ask("costs")[0]
            costs = {key: (before[key] + after[key]) / 2 for key in before}
            entry = {
                "live": _percentiles(live),
                "predicted": _percentiles(predicted(gap, count, run, costs)),
                "drift": statistics.median(after[key] / before[key] for key in before),
            }
            entries.append(entry)
            print(gap, entry, flush=True)
        found["gaps"][str(gap)] = entries
    found["costs of a long prompt"] = worker.ask("costs", long=True)[0]
    found["a long prompt"] = [worker.ask("delayed")[0] for _ in range(runs)]
    worker.end()
    return found


def _percentiles(times: dict[str, list[float]]) -> dict[str, list[float]]:
    """Milliseconds: half and 99 percent are shorter."""
    found = {name: Percentiles.of(values) for name, values in times.items()}
    return {name: [1e3 * x.p50, 1e3 * x.p99] for name, x in found.items()}
