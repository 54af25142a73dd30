"""Other frameworks that train in turns with Keras and hyparflow, each by a Python that has it."""

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from turns import Setup

__all__ = ["RIVALS", "Rival", "version"]


class Rival(NamedTuple):
    """A framework.

    Attributes:
        name: what it is called.
        package, module: what is installed, and what is imported to see whether it is.
        install: how to get it.
        setups: what it trains besides, by the names of `--setups`.
        groups: the setups that are in memory together if `--rivals` asks for it.
        models: that it has; None if it trains those of Keras.
    """

    name: str
    package: str
    module: str
    install: str
    setups: dict[str, Setup] = {}
    groups: tuple[tuple[str, ...], ...] = ()
    models: tuple[str, ...] | None = None


def _torch(name: str, ranks: int = 1, threads: int | None = 1, **options: Any) -> Setup:
    return Setup(f"PyTorch{name}", "torch", ranks, threads, options, is_traced=False)


def _pipeline(name: str, schedule: str, most: int, stages: int = 1) -> Setup:
    asked = {"schedule": schedule, "most_microbatches": most, "stages_per_rank": stages}
    return _torch(f" x2, {name}", 2, **asked)


_TORCH = {
    "torch": _torch(", default threads", threads=None),
    "torch1": _torch(", 1 thread"),
    "torch-ddp": _torch(" x2, DDP", 2, replicas=True),
    "torch-gpipe": _pipeline("gpipe", "gpipe", 8),
    # In short tries on a busy machine (ResNet-56, 128 rows) 4 micro-batches were faster than 8 in
    # five of six turns, for each of the next two.
    "torch-1f1b": _pipeline("1f1b", "1f1b", 4),
    "torch-interleaved": _pipeline("interleaved, V=2", "interleaved", 4, stages=2),
}
# Each with what its ratios need: plain Keras, and what hyparflow does in the same way.
_PLAIN = ("plain", "plain1")
_TORCH_GROUPS = (
    (*_PLAIN, "torch", "torch1", "data", "torch-ddp"),
    (*_PLAIN, "1f1b", "interleaved", "torch-gpipe", "torch-1f1b", "torch-interleaved"),
)
_TORCH_MODELS = ("resnet20", "resnet56", "resnet110", "vgg16", "transformer", "transformer6")

# By the kinds of their setups.
RIVALS = {
    "horovod": Rival(
        "Horovod", "horovod", "horovod.tensorflow", "scripts/install_horovod.sh installs it"
    ),
    "torch": Rival(
        "PyTorch",
        "torch",
        "torch.distributed.pipelining",
        "--rivals-python names a Python that has it",
        _TORCH,
        _TORCH_GROUPS,
        _TORCH_MODELS,
    ),
}


@functools.cache
def version(kind: str, python: str) -> str | None:
    """Of the rival that `python` has; None if it has none."""
    rival = RIVALS[kind]
    ask = f"from importlib import metadata; import {rival.module}"
    ask += f"; print(metadata.version({rival.package!r}))"
    found = subprocess.run([python, "-c", ask], capture_output=True, text=True)
    # What importing says comes first.
    return found.stdout.split()[-1] if found.returncode == 0 else None
