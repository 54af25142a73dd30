"""TensorFlow computes with oneDNN on ranks, also on processors where it does not by itself.

It does so by itself only where a processor has instructions made for neural networks. On one with
AVX2 alone, oneDNN's convolutions, matrix products and recurrent layers take 0.6 to 0.9 of the time
of TensorFlow's own (`benchmarks/kernels`). Numbers differ in rounding.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from hyparflow.comm import launcher

__all__ = ["choose_one_dnn", "is_left_off", "processor_flags"]

_CHOICE = "TF_ENABLE_ONEDNN_OPTS"
_NEEDED = frozenset(["avx2", "fma"])
# With any of these TensorFlow takes oneDNN by itself.
_BY_ITSELF = frozenset(
    ["avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"]
)
_CPUS = Path("/proc/cpuinfo")


def choose_one_dnn(
    environ: MutableMapping[str, str] = os.environ,
    flags: frozenset[str] | None = None,
    is_rank: bool | None = None,
) -> None:
    """Have TensorFlow take oneDNN on this rank; it reads the variable when it is imported.

    A process that no launcher started keeps what TensorFlow does, and so does one that has imported
    it. What the user chose stays.

    Args:
        environ: environment variables.
        flags: what the processor can do; None to look.
        is_rank: whether it is, or stands for, a rank; None to look.
    """
    launched = bool(launcher.expected_size(environ)[1]) if is_rank is None else is_rank
    if launched and "tensorflow" not in sys.modules and is_left_off(environ, flags):
        environ[_CHOICE] = "1"


def is_left_off(environ: Mapping[str, str], flags: frozenset[str] | None = None) -> bool:
    """Whether TensorFlow leaves oneDNN off where it would be faster, and nobody has chosen that."""
    known = processor_flags() if flags is None else flags
    return _CHOICE not in environ and known >= _NEEDED and not known & _BY_ITSELF


def processor_flags(file: Path = _CPUS) -> frozenset[str]:
    """What the processor can do, by Linux's names; empty where that is not known."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return frozenset()
    found = (line.partition(":")[2].split() for line in lines if line.startswith("flags"))
    return frozenset(next(found, []))
