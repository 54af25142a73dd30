"""Placements as arguments: objects, or paths of files.

What reads and holds them needs NumPy, which importing hyparflow does not load; a call that has one
does.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyparflow.formats.text import shortened

if TYPE_CHECKING:
    from hyparflow.experts.placement import ExpertPlacement

__all__ = ["given_placement"]


def given_placement(name: str, value: Any) -> ExpertPlacement:
    """A placement, or the one of a file.

    Args:
        name: of the argument.
        value: what was passed.

    Raises:
        ValueError: if it is neither.
    """
    from hyparflow.experts.placement import ExpertPlacement

    if isinstance(value, ExpertPlacement):
        return value
    if isinstance(value, str | os.PathLike):
        return ExpertPlacement.load(Path(os.fsdecode(value)))
    raise ValueError(
        "`placement` must be a hyparflow.ExpertPlacement, or the path of one. "
        f"Received: {name}={shortened(value)}"
    )
