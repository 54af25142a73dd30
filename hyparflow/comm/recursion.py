"""Deep models and Python's recursion limit.

Keras (3.15 too) goes through the graph of a new model by recursion, a call for each layer of the
shortest way through it, so that Python's usual limit of 1000 ends a chain of a thousand layers.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import TracebackType

__all__ = ["DEEP", "allow_deep_models", "deep_models", "remedy"]

# Before 3.11 a call of Python takes half a kilobyte of the thread's stack, mostly of 8 MiB.
DEEP = 100_000 if sys.version_info >= (3, 11) else 10_000


def allow_deep_models() -> None:
    """Raise Python's recursion limit to `DEEP`, if it is lower."""
    sys.setrecursionlimit(max(sys.getrecursionlimit(), DEEP))


@contextlib.contextmanager
def deep_models() -> Iterator[None]:
    """While open, models may be built that are thousands of layers deep.

    Afterwards the limit is as before, unless another has set it meanwhile.
    """
    before = sys.getrecursionlimit()
    allow_deep_models()
    raised = sys.getrecursionlimit()
    try:
        yield
    finally:
        if sys.getrecursionlimit() == raised:
            sys.setrecursionlimit(before)


def remedy(error: BaseException, trace: TracebackType | None) -> str:
    """What helps against `error`, if a deep model was its cause; "" for any other error."""
    if not isinstance(error, RecursionError) or not _in_keras(trace):
        return ""
    limit = sys.getrecursionlimit()
    if limit >= DEEP:  # then it is no deep model
        return ""
    return (
        "hyparflow: Keras goes through the layers of a model by recursion, which Python limits. "
        f"Received: RecursionError in Keras with a limit of {limit} calls. For a model of this "
        "depth write, before it is built or loaded: "
        f"import sys; sys.setrecursionlimit({DEEP:_})\n"
    )


def _in_keras(trace: TracebackType | None) -> bool:
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").startswith("keras."):
            return True
        trace = trace.tb_next
    return False
