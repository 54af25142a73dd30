"""Where TensorFlow leaves oneDNN off, though much would be faster with it.

It takes oneDNN by itself only where a processor has instructions made for neural networks. On one
with AVX2 alone, oneDNN's convolutions, batched products and recurrent layers take 0.6 to 0.9 of the
time of TensorFlow's own, but gradients of depthwise convolutions many times as long
(`benchmarks/kernels`). So it is not chosen as a whole, but for single operations.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

__all__ = ["is_left_off", "processor_flags"]

_CHOICE = "TF_ENABLE_ONEDNN_OPTS"
_NEEDED = frozenset(["avx2", "fma"])
# With any of these TensorFlow takes oneDNN by itself.
_BY_ITSELF = frozenset(
    ["avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"]
)
_CPUS = Path("/proc/cpuinfo")


def is_left_off(environ: Mapping[str, str], flags: frozenset[str] | None = None) -> bool:
    """Whether TensorFlow leaves oneDNN off where it may be faster, and nobody has chosen that.

    Args:
        environ: environment variables.
        flags: what the processor can do; None to look.
    """
    known = processor_flags() if flags is None else flags
    return _CHOICE not in environ and known >= _NEEDED and not known & _BY_ITSELF


@functools.cache  # it is asked for each operation of a graph
def processor_flags(file: Path = _CPUS) -> frozenset[str]:
    """What the processor can do, by Linux's names; empty where that is not known."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return frozenset()
    found = (line.partition(":")[2].split() for line in lines if line.startswith("flags"))
    return frozenset(next(found, []))
