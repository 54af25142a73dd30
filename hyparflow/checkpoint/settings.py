"""`hyparflow.Checkpoint`: where, when and how many checkpoints of a training are kept."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyparflow.formats import argument_checks as checks

__all__ = ["Checkpoint", "as_checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """Where, when and how many checkpoints `hyparflow.fit` keeps.

    One is saved at the end of each epoch besides. If the folder holds one, training goes on from
    the newest.

    Args:
        folder: String or path. The folder that has them; all ranks must see it.
        every_steps: Integer or `None`. Save after so many training steps.
        every_minutes: Number or `None`. Save when so many minutes have passed since the last.
        keep: Integer. How many of the newest to keep.
        keep_best: String or `None`. The name of a metric, such as `"val_loss"`: the checkpoint of
            the epoch with its best value is kept, too. The least is best, but of metrics whose name
            has `acc`, `auc` or `f1` in it the largest.
        asynchronous: Boolean. Whether training goes on while files are written, from a copy in
            memory of what each rank writes.

    Raises:
        ValueError: If an argument is not valid.
    """

    folder: str | os.PathLike[str]
    every_steps: int | None = None
    every_minutes: float | None = 10.0
    keep: int = 3
    keep_best: str | None = None
    asynchronous: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.folder, str | os.PathLike) or not os.fspath(self.folder):
            raise ValueError(
                "`folder` must be the path of a folder for checkpoints. Received: "
                f"folder={self.folder!r}"
            )
        meant: dict[str, Any] = {
            "every_steps": checks.or_none(checks.count_of)("every_steps", self.every_steps),
            "keep": checks.count_of("keep", self.keep),
            "keep_best": checks.or_none(checks.text)("keep_best", self.keep_best),
            "asynchronous": checks.flag("asynchronous", self.asynchronous),
            "every_minutes": _minutes(self.every_minutes),
        }
        for name, value in meant.items():
            object.__setattr__(self, name, value)

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self.folder).absolute()

    def is_better(self, new: float, old: float) -> bool:
        """Whether a value of `keep_best` is better than another."""
        is_score = any(part in (self.keep_best or "") for part in ("acc", "auc", "f1"))
        return new > old if is_score else new < old


def _minutes(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(
            f"`every_minutes` must be a positive number, or None. Received: every_minutes={value!r}"
        )
    return float(value)


def as_checkpoint(value: Any) -> Checkpoint | None:
    """What `checkpoint=` of `hyparflow.fit` means: a folder, all of it, or none.

    Raises:
        ValueError: if it is neither.
    """
    if value is None or isinstance(value, Checkpoint):
        return value
    if isinstance(value, str | os.PathLike):
        return Checkpoint(value)
    raise ValueError(
        f"`checkpoint` must be a folder or a hyparflow.Checkpoint. Received: checkpoint={value!r}"
    )
