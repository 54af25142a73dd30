"""A job's folder for temporary files: private, with room, and gone with the job."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["job_folder", "room_needed"]

# A file that the process locks which has made the folder; the janitor waits for it.
_LOCK = "lock"
_BOOT = Path("/proc/sys/kernel/random/boot_id")  # tells a machine from others
_PREFIX = "hyparflow-job-"
_ROOM = 1 << 20  # bytes that a job needs for its launcher's files
_WITHOUT_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@contextlib.contextmanager
def job_folder() -> Iterator[Path]:
    """A folder that only this user may enter; what killed processes left is removed, too.

    Raises:
        ValueError: if there is no place for one, or the working folder is gone.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise ValueError(
            f"Ranks start in the working folder, which must be there. Received: {error}. "
            "Go to another folder first."
        ) from error
    try:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    except OSError as error:
        raise _refusal(error, "all that were tried") from error
    try:
        with _locked(folder), _watched(folder):
            _remove_left(folder.parent)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def room_needed(folder: Path) -> Iterator[None]:
    """While open, an error for want of room in `folder` says so.

    Raises:
        RuntimeError: in place of that error.
    """
    try:
        yield
    except OSError as error:
        # NumPy tells no number.
        is_numpys = error.errno is None and ("free space" in str(error) or "written" in str(error))
        if error.errno not in _WITHOUT_ROOM and not is_numpys:
            raise
        raise RuntimeError(
            "What goes to the ranks and comes back is written into a temporary folder. "
            f"Received: {error}, in {folder.parent}. Make room, or set TMPDIR to another folder."
        ) from error


def _refusal(error: OSError, where: object) -> ValueError:
    return ValueError(
        "A job needs a folder with some room for temporary files. "
        f"Received: {error.strerror or error}, at {where}. "
        "Make room, or set TMPDIR to a folder on another disk."
    )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """While open, others see by a lock that the folder is in use."""
    try:
        trial = folder / "room"
        trial.write_bytes(bytes(_ROOM))
        trial.unlink()
        file = os.open(folder / "new", os.O_CREAT | os.O_WRONLY, 0o600)
    except OSError as error:
        raise _refusal(error, folder.parent) from error
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            os.write(file, _BOOT.read_bytes())
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(folder / "new", folder / _LOCK)  # locked from its first moment on
        yield
    finally:
        os.close(file)


@contextlib.contextmanager
def _watched(folder: Path) -> Iterator[None]:
    """While open, another process waits for this one to be killed."""
    janitor = subprocess.Popen(
        [sys.executable, "-ISE", str(Path(__file__).with_name("janitor.py")), str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        janitor.kill()
        janitor.wait()


def _remove_left(parent: Path) -> None:
    """Remove the folders of this user whose processes were killed."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.lstat().st_uid != os.geteuid() or folder.is_symlink():
                continue
            with open(folder / _LOCK, "rb+") as file:
                if file.read() != _BOOT.read_bytes():  # of another machine
                    continue
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while it is in use
                shutil.rmtree(folder)
