"""TensorFlow's global seed, which its public API can set but not read.

Reads a private module. No gain in time: with it `fit(..., launch=True)` shuffles on its ranks as
this process would, whatever the seed. Seen to work on TensorFlow 2.21 with Keras 3.15. Without it
seeds of 2**31 - 1 and more come out modulo that, and 87654321 as none.
"""

from __future__ import annotations

from typing import Any

__all__ = ["global_seed"]


def global_seed() -> Any:
    """The last argument of `tf.random.set_seed`, or None."""
    from tensorflow.python.eager import context

    return context.global_seed()
