"""The folder of a training's checkpoints: which steps are committed, and how one comes and goes.

A step is committed from the moment its index is renamed into place until its index is removed; so
whatever is killed leaves whole checkpoints and unfinished ones, and nothing between.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from hyparflow.formats.checkpoint.index import Index, encoded
from hyparflow.formats.checkpoint.names import (
    INDEX,
    PARTIAL_INDEX,
    is_own_file,
    step_name,
    step_of,
)

__all__ = ["CheckpointFolder"]

_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)  # file systems that know no such thing


class CheckpointFolder:
    """The steps of one training, each in a folder of its own.

    Only one process changes it. Files and folders with names that are not hyparflow's own stay as
    they are, and links are not followed.

    Attributes:
        path: of the folder, which `begin` makes.

    Args:
        path: as the user gives it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def step(self, step: int) -> Path:
        """The folder of a step, whether it is there or not."""
        return self.path / step_name(step)

    def committed(self) -> list[int]:
        """The steps that were saved to the end, oldest first."""
        return [step for step in self._steps() if self._is_committed(step)]

    def newest(self) -> int | None:
        """The last step that was saved to the end; None if there is none."""
        return max(self.committed(), default=None)

    def unfinished(self) -> list[int]:
        """The steps whose saving or removal did not come to its end, oldest first."""
        return [step for step in self._steps() if not self._is_committed(step)]

    def begin(self, step: int) -> Path:
        """Make an empty folder for a step, and remove unfinished ones.

        Returns:
            The folder, into which ranks may write now.

        Raises:
            ValueError: if the step is committed already.
            OSError: if the folder cannot be made.
        """
        if self._is_committed(step):
            raise ValueError(
                f"A step is saved once. Received: step {step}, which is in {self.step(step)}. "
                "Go on from it, or remove its folder."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        for older in self.unfinished():
            self._remove(older)
        try:
            self.step(step).mkdir()
        except FileExistsError:  # the user put something of another name into it, which stays
            if not stat.S_ISDIR(self.step(step).lstat().st_mode):
                raise
        _sync_folder(self.path)
        return self.step(step)

    def commit(self, step: int, index: Index) -> None:
        """Make a step valid, after all its files were written and synced.

        Raises:
            ValueError: if the index is not that of the step, or a file is not as it says.
            OSError: if it cannot be written; the step is unfinished then.
        """
        data = encoded(index)
        folder = self.step(step)
        _require_files(step, folder, index)
        _sync_folder(folder)  # the names of the ranks' files, before the index that trusts in them
        partial = folder / PARTIAL_INDEX
        try:
            with open(partial, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            error.filename = error.filename or str(partial)
            raise
        os.rename(partial, folder / INDEX)
        _sync_folder(folder)
        _sync_folder(self.path)

    def discard(self, step: int) -> None:
        """Remove a step; if that is interrupted, it counts as unfinished.

        Raises:
            OSError: if its index cannot be removed.
        """
        self._remove(step)

    def prune(self, keep: int, also_kept: Collection[int] = ()) -> list[int]:
        """Remove committed steps but for the last ones.

        Args:
            keep: how many of the last steps stay; at least 1.
            also_kept: other steps that stay.

        Returns:
            The steps that were removed.
        """
        older = self.committed()[: -max(keep, 1)]
        removed = [step for step in older if step not in also_kept]
        for step in removed:
            self._remove(step)
        return removed

    def _steps(self) -> list[int]:
        """The steps that have a folder, which is no link."""
        try:
            with os.scandir(self.path) as entries:
                names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []
        return sorted(step for name in names if (step := step_of(name)) is not None)

    def _is_committed(self, step: int) -> bool:
        try:
            return stat.S_ISREG((self.step(step) / INDEX).lstat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _remove(self, step: int) -> None:
        """Remove what is hyparflow's own of a step, the index first."""
        with _opened(self.step(step)) as folder:
            if folder is None:
                return
            with contextlib.suppress(FileNotFoundError):
                os.unlink(INDEX, dir_fd=folder)
                os.fsync(folder)
            with os.scandir(folder) as entries:
                names = [e.name for e in entries if not e.is_dir(follow_symlinks=False)]
            for name in filter(is_own_file, names):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=folder)
        with contextlib.suppress(OSError):  # something of the user's is in it
            os.rmdir(self.step(step))


def _require_files(step: int, folder: Path, index: Index) -> None:
    reason = f"the index of step {index.step}" if index.step != step else ""
    for name, size in index.files.items():
        found = (folder / name).lstat() if (folder / name).exists() else None
        if found is None or not stat.S_ISREG(found.st_mode) or found.st_size != size:
            there = "nothing" if found is None else f"{found.st_size} bytes"
            reason = reason or f"{there} at {folder / name}, which has {size} bytes in the index"
    if reason:
        raise ValueError(
            "A checkpoint is committed after all its files were written. "
            f"Received: {reason}, for step {step}. Do all ranks see the same folder?"
        )


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int | None]:
    """A folder that is no link, as a descriptor; None if there is none."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Sync the names in a folder to the disk, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)
