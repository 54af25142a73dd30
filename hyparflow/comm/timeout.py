"""How long a wait may last, and how long one has lasted."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping

__all__ = ["Waiting", "spin_seconds", "timeout_seconds"]

_PAUSE = 1.0  # a longer time between two looks is one in which this process was stopped


def timeout_seconds(environ: Mapping[str, str] = os.environ) -> float:
    """The deadline of a wait: ``HYPARFLOW_TIMEOUT``, in seconds.

    Raises:
        ValueError: if the variable is not a positive number.
    """
    text = environ.get("HYPARFLOW_TIMEOUT", "600")
    if not (seconds := _number(text)) > 0:
        raise ValueError(
            "HYPARFLOW_TIMEOUT must be a positive number of seconds. "
            f"Received: HYPARFLOW_TIMEOUT={text!r}"
        )
    return seconds


def spin_seconds() -> float | None:
    """How long a rank that waits keeps its core busy: ``HYPARFLOW_SPIN``, in seconds, if it is set.

    Raises:
        ValueError: if the variable is not a number of seconds.
    """
    text = os.environ.get("HYPARFLOW_SPIN")
    if text is None:
        return None
    if not (seconds := _number(text)) >= 0:
        raise ValueError(
            f"HYPARFLOW_SPIN must be a number of seconds. Received: HYPARFLOW_SPIN={text!r}"
        )
    return seconds


def _number(text: str) -> float:
    """`text` as a number; NaN, for which no comparison holds, if it is not one."""
    try:
        return float(text)
    except ValueError:
        return math.nan


class Waiting:
    """How long a wait has lasted, without the time in which this process did not run."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.seconds = 0.0

    def look(self) -> float:
        """The seconds so far; to be called often, to notice that the process was stopped."""
        now = time.monotonic()
        passed = now - self._last
        if passed < _PAUSE:
            self.seconds += passed
        self._last = now
        return self.seconds
