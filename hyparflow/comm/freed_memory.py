"""Memory that was freed, and that the C library keeps for the process."""

from __future__ import annotations

import contextlib
import ctypes

__all__ = ["give_back_freed_memory"]


def give_back_freed_memory() -> None:
    """Give the machine what the C library keeps of freed memory, where it is glibc.

    It keeps the memory of each thread apart: what one has freed, another cannot take.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))
