"""Reads what is kept as JSON, and says which file it was if that is not what it should be."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["read_values"]


def read_values(path: str | os.PathLike[str], rule: str) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: the file.
        rule: says what it must be; begins the error.

    Raises:
        ValueError: if it cannot be read, or holds something else.
    """
    try:
        values = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:  # no text and no JSON are ValueErrors
        raise ValueError(f"{rule} Received: {path} ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{rule} Received: {path}, which holds a {type(values).__name__}")
    return values
