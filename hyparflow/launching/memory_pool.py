"""TensorFlow keeps the memory that it frees and gives it out again, also on processors.

It does so by itself only where there are GPUs. Without a pool, each tensor of more than 128 KiB is
taken from the system and given back: the pages are cleared again and again, a tenth of a step's
time; and what lies between two long-lived tensors is lost.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

import psutil

from hyparflow.comm import launcher
from hyparflow.comm.free_memory import is_limited

__all__ = ["choose_memory_pool"]

_POOL = "TF_CPU_ALLOCATOR_USE_BFC"
_LIMIT = "TF_CPU_BFC_MEM_LIMIT_IN_MB"  # TensorFlow's own, 64 GiB, is less than machines have


def choose_memory_pool(
    environ: MutableMapping[str, str] = os.environ,
    limited: bool | None = None,
    is_rank: bool | None = None,
) -> None:
    """Have TensorFlow pool its memory on this rank; it reads these variables at its first tensor.

    A process that no launcher started keeps what TensorFlow does: a notebook should not hold what
    it once needed. So does one with a limit on its address space (`ulimit -v` or `-d`): a pool
    takes more of that than it uses. What the user chose stays.

    Args:
        environ: environment variables.
        limited: whether this process has such a limit; None to look.
        is_rank: whether it is, or stands for, a rank; None to look.
    """
    launched = bool(launcher.expected_size(environ)[1]) if is_rank is None else is_rank
    if not launched or (is_limited() if limited is None else limited):
        return
    environ.setdefault(_POOL, "true")
    environ.setdefault(_LIMIT, str(2 * psutil.virtual_memory().total >> 20))
