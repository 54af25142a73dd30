"""The memory of tensors that TensorFlow pools: what it keeps free, and what a computation takes."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

__all__ = ["peak_of", "pooled_memory"]

_POOL = "CPU:0"


def pooled_memory() -> int:
    """The bytes of this process that tensors can have again without asking the system.

    At least: what they once had at the same time, less what they have now. 0 without a pool.
    """
    known = _statistics()
    return 0 if known is None else known["peak"] - known["current"]


def peak_of(run: Callable[[], object]) -> int | None:
    """The bytes that tensors take at a time while `run` runs, beside those before it.

    None without a pool; then nothing runs.
    """
    before = _statistics()
    if before is None:
        return None
    tf.config.experimental.reset_memory_stats(_POOL)
    run()
    return int(tf.config.experimental.get_memory_info(_POOL)["peak"] - before["current"])


def _statistics() -> dict[str, int] | None:
    """Bytes that tensors have, and the most that they had; None without a pool."""
    try:
        known: dict[str, int] = tf.config.experimental.get_memory_info(_POOL)
    except ValueError:  # each tensor is taken from the system
        return None
    return known
