"""What the models of the benchmarks are trained with, and how large they are, for any framework."""

from typing import Any

import numpy as np

__all__ = ["LENGTH", "SYMBOLS", "check_size", "data", "rows_of_steps"]

LENGTH, SYMBOLS = 64, 96  # of a text

# Numbers that are trained, and others (moving means and variances): a model of another framework is
# the same only if it has as many.
_SIZES = {
    "resnet20": (273_066, 1_376),
    "resnet56": (857_706, 4_064),
    "resnet110": (1_734_666, 8_096),
    "vgg16": (33_638_218, 0),
    "transformer": (818_016, 0),
    "transformer6": (1_214_560, 0),
}


def data(name: str, rows: int) -> tuple[Any, Any]:
    """`rows` random samples for the model called `name`."""
    random = np.random.default_rng(0)
    if name.startswith("transformer") or name == "lstm":
        x = random.integers(0, SYMBOLS, (rows, LENGTH)).astype("int32")
        return x, random.integers(0, SYMBOLS, (rows, LENGTH))
    return random.random((rows, 32, 32, 3), dtype=np.float32), random.integers(0, 10, rows)


def rows_of_steps(name: str, batch: int, steps: int) -> tuple[Any, Any]:
    """Samples for so many steps, few of them different."""
    x, y = data(name, batch * 4)
    rows = batch * steps
    repeats = -(-rows // len(x))
    return x.repeat(repeats, 0)[:rows], y.repeat(repeats, 0)[:rows]


def check_size(name: str, trained: int, others: int) -> None:
    """That a model is as large as the one of this name in other frameworks, where one is known."""
    if _SIZES.get(name, (trained, others)) != (trained, others):
        raise RuntimeError(
            f"The model {name} must have the same size in all frameworks. Received: {trained} "
            f"trained numbers and {others} others, in place of {_SIZES[name]}."
        )
