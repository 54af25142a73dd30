"""One GPU for each rank of a node, chosen before TensorFlow looks for them.

TensorFlow takes all GPUs that it sees, and all of their memory; several ranks would fight over
them. An environment variable decides which GPUs it sees, when it first looks.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import MutableMapping
from pathlib import Path

from hyparflow.comm import launcher

__all__ = ["choose_device", "count_devices"]

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_GROWTH = "TF_FORCE_GPU_ALLOW_GROWTH"
_NVIDIA = Path("/proc/driver/nvidia/gpus")  # a folder for each GPU


def count_devices(folder: Path = _NVIDIA) -> int:
    """How many NVIDIA GPUs this machine has."""
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def choose_device(
    environ: MutableMapping[str, str] = os.environ, available: int | None = None
) -> None:
    """Let this rank see one GPU, by its number on the node, and take memory as it needs it.

    If there are more ranks than GPUs, they share them. A rank for which the batch system has
    already chosen one GPU keeps it. A process that no launcher started keeps what it sees.

    Args:
        environ: environment variables.
        available: how many GPUs there are; None to look.
    """
    if not launcher.expected_size(environ)[1]:
        return
    environ.setdefault(_GROWTH, "true")
    if _VISIBLE in environ:
        seen = [device for device in environ[_VISIBLE].split(",") if device.strip()]
        # As in CUDA, -1 ends the list.
        seen = list(itertools.takewhile(lambda device: not device.strip().startswith("-"), seen))
    else:
        count = count_devices() if available is None else available
        seen = [str(number) for number in range(count)]
    if len(seen) > 1:
        environ[_VISIBLE] = seen[launcher.local_rank(environ) % len(seen)]
