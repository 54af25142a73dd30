"""How many iterations requests take that come at random: the scheduler alone, by a virtual clock.

    python benchmarks/serving/arrivals.py

An iteration takes 11.3 ms, whatever its batch, as in Flover (arXiv 2305.13484), whose table has one
draw of each row. Nothing is computed.
"""

import json
import math
import statistics
from dataclasses import replace
from typing import Any

import numpy as np

from hyparflow.serving.scheduling.limits import Limits
from hyparflow.serving.scheduling.request import Request
from hyparflow.serving.scheduling.scheduler import Scheduler

__all__ = ["PUBLISHED", "at_once", "poisson", "simulated"]

STEP, COUNT, TOKENS = 11.3, 32, 512  # ms
# Mean gap in ms -> iterations in Flover's table.
PUBLISHED = {20: 557, 100: 748, 200: 911, 500: 1537, 1000: 2621, 2000: 5483, 5000: 10694}


def simulated(
    arrivals: Any, counts: Any, limits: Limits, joins_at_once: bool = False
) -> tuple[int, float]:
    """Run requests that come at these times.

    Args:
        arrivals: milliseconds, in order.
        counts: tokens of each.
        limits: of the scheduler.
        joins_at_once: whether requests join after any iteration, as with windows of one: each
            window ends where the next request comes.

    Returns:
        Iterations, and the share of rows that made a token that was wanted.
    """
    scheduler, clock, came = Scheduler(limits), 0.0, 0
    while came < len(arrivals) or not scheduler.is_idle:
        if scheduler.is_idle:
            clock = max(clock, float(arrivals[came]))
        while came < len(arrivals) and arrivals[came] <= clock:
            scheduler.submit(Request(came, (1,), int(counts[came])))
            came += 1
        if joins_at_once:
            far = arrivals[came] - clock if came < len(arrivals) else STEP * TOKENS
            scheduler.limits = replace(limits, window=max(1, math.ceil(far / STEP)))
        window = scheduler.plan()
        if window is not None:
            scheduler.report([[0] * len(window.live)] * window.steps)
            clock += STEP * window.steps
    return scheduler.counts.iterations, scheduler.counts.useful / scheduler.counts.issued


def poisson(gap: int, seeds: int, joins_at_once: bool, fewest: int = 1) -> dict[str, float]:
    """Requests with exponential gaps, as many draws as seeds."""
    limits = Limits(COUNT, 1024, fewest=fewest)
    found = []
    for seed in range(seeds):
        gaps = np.random.default_rng(seed).exponential(gap, COUNT)
        arrivals = np.cumsum(gaps) - gaps[0]
        found.append(simulated(arrivals, [TOKENS] * COUNT, limits, joins_at_once))
    iterations = [count for count, _ in found]
    mean, deviation = statistics.mean(iterations), statistics.stdev(iterations)
    return {
        "gap": gap,
        "mean": mean,
        "deviation": deviation,
        "published": PUBLISHED[gap],
        "distance": (PUBLISHED[gap] - mean) / deviation,
        "useful": statistics.mean(useful for _, useful in found),
    }


def at_once(seeds: int, rows: int) -> float:
    """The useful share of rows for 32 requests at once, of 128 to 512 tokens."""
    limits = Limits(rows, 1024)
    shares = []
    for seed in range(seeds):
        counts = np.random.default_rng(seed).integers(128, 513, COUNT)
        shares.append(simulated([0.0] * COUNT, counts, limits)[1])
    return statistics.mean(shares)


def measured(seeds: int) -> dict[str, Any]:
    """All of it."""
    return {
        "seeds": seeds,
        "rows": [
            poisson(gap, seeds, True)
            | {
                "in windows": poisson(gap, seeds, False),
                "four rows or more": poisson(gap, seeds, False, 4)["useful"],
            }
            for gap in PUBLISHED
        ],
        "at once, 32 rows": at_once(seeds, COUNT),
        "at once, 8 rows": at_once(seeds, 8),
    }


if __name__ == "__main__":
    print(json.dumps(measured(200), indent=1))
