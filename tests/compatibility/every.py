"""All rows: importing a module adds those that it declares."""

from __future__ import annotations

from compatibility import (  # noqa: F401
    arguments,
    callbacks,
    data_kinds,
    hub,
    keras_io,
    losses,
    metrics,
    models,
    normalization,
    optimizers,
    own_callbacks,
    patterns,
    transformers,
    whole_batch,
)
from compatibility.rows import ROWS

__all__ = ["ROWS"]
