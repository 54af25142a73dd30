"""The files that a command writes, looked at before it has worked for minutes."""

from __future__ import annotations

from pathlib import Path

from hyparflow.formats.writing import require_writable

__all__ = ["require_outputs"]


def require_outputs(plot: str | None, *others: str | None) -> None:
    """Refuse what cannot be written.

    Args:
        plot: of a picture, whose ending tells its format; None for none.
        others: of other files.

    Raises:
        ValueError: if a file cannot be written.
    """
    for path in filter(None, (plot, *others)):
        if not Path(path).absolute().parent.is_dir():
            raise ValueError(f"Files are written into folders that exist. Received: {path}")
        require_writable(path)
    if plot:
        from hyparflow.planning.gantt import check_picture

        check_picture(plot)
