"""The table of all message tags.

Messages of a training step have a communicator of their own, with tags from 0
(`hyparflow.pipeline.lowering.tags_of`).
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["FIRST_OF_SUMS", "SMALLEST_LIMIT", "Tag"]

SMALLEST_LIMIT = 2**15  # every MPI allows tags below
FIRST_OF_SUMS = 2**14  # from here on, rounded sums number their messages


class Tag(IntEnum):
    """Tags among all ranks."""

    ROWS = 1  # of a batch, from the leader or a replica's reader
    PREDICTIONS = 2  # on their way to the leader
    NETWORK = 3  # measurements of the network
    CLOCK = 4  # comparison of clocks
    EVENTS = 5  # of a trace, on their way to the leader
    RING = 6  # trial messages to each rank's neighbours
    WEIGHTS = 7  # between the leader and their owners
    SERVED_TENSORS = 8  # from partition to partition, while tokens are generated
    SERVED_TOKENS = 9  # from the last partition to the first
    SERVED_RESULTS = 10  # of a replica's window, on their way to the leader
    SERVED_RECORDS = 11  # of windows, from the leader to the ranks of a replica
