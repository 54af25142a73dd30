"""What a benchmark ran on: figures of one machine say little of another."""

import contextlib
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

__all__ = ["described", "machine"]

_PACKAGES = ("hyparflow", "tensorflow", "tensorflow-cpu", "keras", "mpi4py", "numpy")
# Without a processor made for neural networks TensorFlow leaves oneDNN out, unless it is told by
# TF_ENABLE_ONEDNN_OPTS; its own convolutions take 1.4 to 2.5 times as long. Only it knows which.
_ASK = "from tensorflow.python.util import _pywrap_util_port as port; print(port.IsMklEnabled())"


def machine() -> dict[str, Any]:
    """The processor, the kernels that TensorFlow takes on it, how many cores, and versions."""
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    asked = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True)
    kernels = {"True": "oneDNN", "False": "without oneDNN"}.get(asked.stdout.strip())
    return {
        "processor": _processor(),
        "kernels": kernels,
        "cores": psutil.cpu_count(),
        "versions": versions,
    }


def described(found: dict[str, Any]) -> str:
    """What `machine` found, in a few words."""
    known = [found.get(name) for name in ("processor", "kernels")]
    return ", ".join(text for text in known if text) or "not recorded"


def _processor() -> str | None:
    """Its name, where the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return None
