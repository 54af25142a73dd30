"""What an error of Keras or TensorFlow says, for the messages of errors of ours."""

from __future__ import annotations

import re

__all__ = ["cause_of"]


def cause_of(error: Exception) -> str:
    """The kind of an error and what it says, in one line.

    Keras puts the layer that failed before what it says, and its arguments behind.
    """
    text = str(error).split("Arguments received by")[0]
    lines = [line.strip() for line in re.sub(r"\x1b\[\d*m", "", text).splitlines()]
    lines = [x for x in lines if x and not x.startswith("Exception encountered when")]
    return ": ".join([type(error).__name__, *lines[:1]])
