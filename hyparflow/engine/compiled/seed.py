"""TensorFlow's global seed, which its public API sets but does not tell."""

from __future__ import annotations

from typing import Any

__all__ = ["global_seed"]


def global_seed() -> Any:
    """What `tf.random.set_seed` was last given, or None."""
    from tensorflow.python.eager import context

    return context.global_seed()
