"""How a pipeline of a rival is cut: a batch into micro-batches, blocks into stages."""

from collections.abc import Sequence
from itertools import accumulate

__all__ = ["equal_parts", "number_of_microbatches"]

_SMALLEST = 16  # rows of a micro-batch, as hyparflow chooses by itself


def number_of_microbatches(batch: int, most: int) -> int:
    """The largest even number up to `most` that leaves 16 rows in each; at least two.

    Even, for two ranks interleave pairs of micro-batches.
    """
    found = range(2, min(most, batch // _SMALLEST) + 1, 2)
    return max((number for number in found if batch % number == 0), default=2)


def equal_parts(costs: Sequence[float], parts: int) -> list[range]:
    """Indices of consecutive blocks for each part, cut where costs are nearest to equal."""
    before = [0.0, *accumulate(costs)]
    cuts = [0]
    for part in range(1, parts):
        # A block at least is left for each part.
        possible = range(cuts[-1] + 1, len(costs) - (parts - part) + 1)
        wanted = before[-1] * part / parts
        cuts.append(min(possible, key=lambda cut: abs(before[cut] - wanted)))
    return [range(a, b) for a, b in zip(cuts, [*cuts[1:], len(costs)], strict=True)]
