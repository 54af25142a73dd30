"""A job's folder for temporary files: private, with free space, and removed with the job."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["explain_out_of_space", "job_folder"]

# Lock file, held by the process that made the folder; the janitor waits for it.
_LOCK = "lock"
_BOOT = Path("/proc/sys/kernel/random/boot_id")  # identifies this boot of this machine
_MACHINE = Path("/etc/machine-id")  # is the same after a reboot; empty or absent in containers
_PREFIX = "hyparflow-job-"
_SPACE = 1 << 20  # bytes that a job needs for its launcher's files
_OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@contextlib.contextmanager
def job_folder() -> Iterator[Path]:
    """A folder that only this user may enter. Folders left by killed jobs are removed first.

    Raises:
        ValueError: if no folder can be made, or the working folder is gone.
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
                # While the janitor lives: it goes on where this process is killed.
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # if the lock or the janitor could not be made


@contextlib.contextmanager
def explain_out_of_space(folder: Path) -> Iterator[None]:
    """While open, replace an out-of-space error in `folder` by one that explains it.

    Raises:
        RuntimeError: the error that explains it.
    """
    try:
        yield
    except OSError as error:
        # NumPy's error has no errno; only its text tells.
        is_numpys = error.errno is None and ("free space" in str(error) or "written" in str(error))
        if error.errno not in _OUT_OF_SPACE and not is_numpys:
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
    """Hold a lock, so that other jobs do not remove the folder. Tries first that it has space."""
    try:
        trial = folder / "trial"
        trial.write_bytes(bytes(_SPACE))
        trial.unlink()
        file = os.open(folder / "new", os.O_CREAT | os.O_WRONLY, 0o600)
    except OSError as error:
        raise _refusal(error, folder.parent) from error
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            os.write(file, "\n".join(_identity()).encode())
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(folder / "new", folder / _LOCK)  # after it is locked: nobody sees it unlocked
        yield
    finally:
        os.close(file)


@contextlib.contextmanager
def _watched(folder: Path) -> Iterator[None]:
    """Run janitor.py, which removes the folder if this process is killed."""
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


def _identity() -> tuple[str, str]:
    """This boot of this machine, and this machine: empty if it has no number of its own."""
    machine = ""
    with contextlib.suppress(OSError):
        machine = _MACHINE.read_text().strip()
    return _BOOT.read_text().strip(), machine and f"{machine} {socket.gethostname()}"


def _remove_left(parent: Path) -> None:
    """Remove the folders of this user and machine whose processes were killed."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.lstat().st_uid != os.geteuid() or folder.is_symlink():
                continue
            with open(folder / _LOCK, "rb+") as file:
                boot, machine = _identity()
                owner = file.read().decode(errors="replace").split("\n")
                # On a shared disk a lock of another machine may not be visible here.
                if boot not in owner and (not machine or machine not in owner):
                    continue
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while it is in use
                shutil.rmtree(folder)
