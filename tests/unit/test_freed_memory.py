"""Memory that was freed goes back to the machine."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# A thread of its own has a heap of its own; small pieces, which glibc does not give back by itself.
_SCRIPT = """
import threading
import psutil
from hyparflow.comm.freed_memory import give_back_freed_memory

def take():
    pieces = [bytearray(20_000) for _ in range(5_000)]
    last = bytearray(20_000)  # keeps the end of the heap
    del pieces
    kept.append(last)

def resident():
    return psutil.Process().memory_info().rss

kept = []
thread = threading.Thread(target=take)
thread.start()
thread.join()
before = resident()
give_back_freed_memory()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep less")
def test_freed_memory_is_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 50 << 20
