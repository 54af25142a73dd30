"""A variable that is made while TensorFlow traces a function, and that the tracing does not see.

What a backward adds up is known only while it is traced. A variable that `tf.function` sees being
made lets it trace all again.
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
