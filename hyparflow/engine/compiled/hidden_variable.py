"""A variable that is made while TensorFlow traces a function, and that the tracing does not see.

What a backward adds up is known only while it is traced. A variable that `tf.function` sees being
made lets it trace all again, and in a later trace it refuses one.

Relies on what is traced being known by thread. It lets backwards add gradients up inside
(`hyparflow.engine.compiled.accumulator`). Gain: without it a step of small layers in four
micro-batches took 28 to 44 % more processor time (``benchmarks/border``). Seen to work on
TensorFlow 2.21 with Keras 3.15. Without it backwards return gradients, which are added up by one
more call.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["hidden"]


def hidden(make: Callable[[], Any]) -> Any:
    """What `make` makes, in a thread of its own: what is traced is known by thread."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(make).result()
