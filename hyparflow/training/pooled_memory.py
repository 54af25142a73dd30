"""Memory that TensorFlow has taken from the system and keeps, though no tensor lies in it."""

from __future__ import annotations

import tensorflow as tf

__all__ = ["pooled_memory"]


def pooled_memory() -> int:
    """The bytes of this process that tensors can have again without asking the system.

    At least: what they once had at the same time, less what they have now. 0 without a pool.
    """
    try:
        known = tf.config.experimental.get_memory_info("CPU:0")
    except ValueError:  # each tensor is taken from the system
        return 0
    return int(known["peak"] - known["current"])
