"""Checks the argument that says where the output of ranks goes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hyparflow.formats.plain_files import kind_of

__all__ = ["checked_output"]


def checked_output(name: str, output: Any, is_made: bool = True) -> str:
    """The value itself if "all" or "leader", else the absolute path of a folder, which is made.

    Args:
        name: the name of the argument.
        output: its value.
        is_made: whether the folder is made.

    Raises:
        ValueError: if it is none of these, or the folder cannot be written.
    """
    if isinstance(output, str) and output in ("all", "leader"):
        return output
    if not isinstance(output, str | os.PathLike) or not str(output):
        raise ValueError(f'{name} takes "all", "leader" or a folder. Received: {output!r}')
    folder = Path(output).absolute()
    if folder.exists() and not folder.is_dir():
        kind = kind_of(folder.stat().st_mode) or "a file"
        raise ValueError(f'{name} takes "all", "leader" or a folder. Received: {output}, {kind}')
    try:
        if is_made:
            folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f'{name} takes "all", "leader" or a folder that can be made. '
            f"Received: {output}; {error}"
        ) from error
    if is_made and not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(
            f'{name} takes "all", "leader" or a folder that may be written. '
            f"Received: {output}, which may not"
        )
    return str(folder)
