"""What the user of the planner fixed."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any

from hyparflow.options import check_choice, lpp_of
from hyparflow.schedule import SCHEDULES
from hyparflow.text import shortened

__all__ = ["Wishes", "limited"]

# Beyond these the search would take hours, for what no machine has.
_MOST = {
    "num_ranks": 2**17,
    "num_partitions": 2**17,
    "num_replicas": 2**17,
    "num_microbatches": 2**16,
    "stages_per_partition": 2**16,
}


@dataclass(frozen=True)
class Wishes:
    """What the user fixed; None leaves it to the planner.

    Attributes:
        num_ranks: ranks to use, all of them.
        num_partitions, num_replicas, num_microbatches, schedule: as for `hyparflow.parallelize`.
        stages_per_partition: of an interleaved schedule.
        lpp: operations per stage, in place of the search.
        memory_limit: bytes that a rank may use, beyond what it uses before training.
    """

    num_ranks: int
    num_partitions: int | None = None
    num_replicas: int | None = None
    num_microbatches: int | None = None
    schedule: str | None = None
    stages_per_partition: int | None = None
    lpp: tuple[int, ...] | None = None
    memory_limit: int | None = None

    def __post_init__(self) -> None:
        counts = ("num_partitions", "num_replicas", "num_microbatches", "stages_per_partition")
        for name in ("num_ranks", *counts):
            value = getattr(self, name)
            if name == "num_ranks" or value is not None:
                object.__setattr__(self, name, limited(name, value, _MOST[name]))
        if self.schedule is not None:
            check_choice("schedule", self.schedule, SCHEDULES, " or None")
        if self.lpp is not None:
            object.__setattr__(self, "lpp", lpp_of(self.lpp))
        several = (self.stages_per_partition or 1) > 1
        if several and self.schedule not in (None, "interleaved"):
            raise ValueError(
                "Only schedule='interleaved' has several stages per partition. Received: "
                f"schedule={self.schedule!r}, stages_per_partition={self.stages_per_partition}"
            )
        parts, replicas = self.num_partitions or 1, self.num_replicas or 1
        exact = self.num_partitions is not None and self.num_replicas is not None
        if parts * replicas != self.num_ranks if exact else self.num_ranks % (parts * replicas):
            raise ValueError(
                "The number of ranks must be num_partitions x num_replicas. Received: "
                f"num_partitions={self.num_partitions}, num_replicas={self.num_replicas} for "
                f"num_ranks={self.num_ranks}"
            )


def limited(name: str, value: Any, most: int) -> int:
    """The value of the argument `name`, a positive integer of at most `most`.

    Raises:
        ValueError: if it is not.
    """
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_integer or not 1 <= value <= most:
        raise ValueError(
            f"`{name}` of a plan must be a positive integer, {most} at most. "
            f"Received: {name}={shortened(value)}"
        )
    return int(value)
