"""Makes a variable while TensorFlow traces a function, without the tracing noticing it.

Which gradients a backward adds up is known only while it is traced. If `tf.function` notices a new
variable it traces again, and in a later trace it raises an error.

Relies on TensorFlow tracing per thread. It lets backwards add up gradients inside
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
    """What `make` returns, called in a thread of its own, which traces nothing."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(make).result()
