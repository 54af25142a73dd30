"""A folder of checkpoints, one of which is always whole.

Each is a folder of its own, and there once its index is. What has none is unfinished, or half
removed; it is ignored, and removed when the next is saved.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path

from hyparflow.formats.checkpoint.index import INDEX, Index

__all__ = ["CheckpointFolder"]

_STEP = re.compile(r"step-(\d{10,})")
# What may lie in the folder of a step, with the temporary names of `hyparflow.formats.writing`.
_OURS = re.compile(r"(index\.json(\.partial)?|(\.hyparflow-.+-)?[a-z]+-\d+\.(safetensors|json))")


class CheckpointFolder:
    """The checkpoints of one training.

    Args:
        path: of the folder, which need not be there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def step_folder(self, step: int) -> Path:
        """The folder of the checkpoint of a step."""
        return self.path / f"step-{step:010d}"

    def committed(self) -> list[int]:
        """The steps of whole checkpoints, the oldest first."""
        return [step for step in self._steps() if (self.step_folder(step) / INDEX).is_file()]

    def unfinished(self) -> list[int]:
        """The steps of what is not whole."""
        committed = set(self.committed())
        return [step for step in self._steps() if step not in committed]

    def newest(self) -> int | None:
        """The step of the newest checkpoint; None if there is none."""
        return max(self.committed(), default=None)

    def begin(self, step: int) -> Path:
        """Make the folder of a new checkpoint, and remove what is unfinished.

        Raises:
            OSError: if it cannot be made.
        """
        for old in self.unfinished():
            self._remove(old)
        folder = self.step_folder(step)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def commit(self, step: int, index: Index) -> None:
        """Make a checkpoint whole: its files are there, and synced.

        Raises:
            OSError: if the index cannot be written.
        """
        folder = self.step_folder(step)
        partial = folder / f"{INDEX}.partial"
        with open(partial, "wb") as file:
            file.write(index.text())
            file.flush()
            os.fsync(file.fileno())
        _sync(folder)
        os.rename(partial, folder / INDEX)
        _sync(folder)
        _sync(self.path)

    def prune(self, keep: int, also_kept: Collection[int] = ()) -> None:
        """Remove all but the newest, and those that are kept besides."""
        for step in self.committed()[:-keep]:
            if step not in also_kept:
                self._remove(step)

    def _steps(self) -> list[int]:
        if not self.path.is_dir():
            return []
        with os.scandir(self.path) as entries:
            found = [_STEP.fullmatch(e.name) for e in entries if e.is_dir(follow_symlinks=False)]
        return sorted(int(match[1]) for match in found if match)

    def _remove(self, step: int) -> None:
        """Remove a checkpoint; its index first, so that nothing half looks whole."""
        folder = self.step_folder(step)
        (folder / INDEX).unlink(missing_ok=True)
        for path in folder.iterdir():
            if _OURS.fullmatch(path.name) and not path.is_dir():
                path.unlink(missing_ok=True)
        if not any(folder.iterdir()):  # else something of the user's lies there
            folder.rmdir()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
