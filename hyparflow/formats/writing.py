"""Every file is complete or not there: written under a temporary name, synced, renamed.

What is replaced keeps its mode, its owner where that is allowed, and the symbolic links that lead
to it. Other hard links keep the older content. What is no plain file is never replaced.

Libraries for this (atomicwrites, safer) are no longer kept, or replace links, modes and devices.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from hyparflow.formats.plain_files import kind_of
from hyparflow.formats.text import path_text

__all__ = ["final_name", "folder_beside", "replacing", "require_writable", "write_text"]

_LONGEST = 255  # bytes of a file's name
_MOST_LINKS = 40  # links that Linux follows in a row
_ABANDONED = 24 * 3600.0  # seconds since another machine wrote to a temporary file of its own
_TEMPORARY = re.compile(r"\.hyparflow-(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]{16}-(?P<name>.+)", re.S)


def write_text(path: str | bytes | os.PathLike[str], text: str) -> None:
    """Write `text` into the file `path`; an older one stays until the new one is complete.

    Raises:
        ValueError: if there is something at `path` that is no plain file.
        OSError: if it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: str | bytes | os.PathLike[str]) -> Iterator[Path]:
    """An empty file beside `path` to write to; at the end of the block it takes its place.

    It has the suffix of `path`, since some writers choose the format by it. If the block raises,
    the new file is removed, and the one at `path` is unchanged.

    Args:
        path: where the file is to be.

    Raises:
        ValueError: if there is something at `path` that is no plain file, or that another user
            put into a folder that all may write to.
        OSError: if it cannot be written.
    """
    wanted = Path(path_text(path)).absolute()
    target = _target(wanted)
    older = _stat(target)
    beside = target.with_name(wanted.name)  # a link may lead to a name with another ending
    _remove_abandoned(beside)
    temporary = _create(wanted, beside, 0o666 if older is None else 0o600)
    try:
        yield temporary
        _sync(temporary, older)
        os.replace(temporary, target)
    except BaseException as error:
        _name_the_file(error, str(temporary), str(wanted))
        raise
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)


def final_name(name: str) -> str:
    """The name that a temporary file of `replacing` was to have; any other name as it is."""
    match = _TEMPORARY.fullmatch(name)
    return name if match is None else match["name"]


@contextlib.contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, removed after the block, for files that name each other."""
    _remove_abandoned(path)
    folder = _temporary(path)
    folder.mkdir(0o700)
    try:
        yield folder
    except BaseException as error:
        _name_the_file(error, str(folder / path.name), str(path))
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def require_writable(path: str | bytes | os.PathLike[str]) -> None:
    """Refuse a place where `replacing` could not write; nothing is left there.

    Raises:
        ValueError, OSError: as `replacing`.
    """
    wanted = Path(path_text(path)).absolute()
    target = _target(wanted)
    _create(wanted, target, 0o600).unlink(missing_ok=True)


def _target(path: Path) -> Path:
    """Where the links at `path` lead, once it is known to be a plain file or nothing yet."""
    wanted = path
    for _ in range(_MOST_LINKS):
        for part in (*reversed(path.parents), path):
            _require_own(part, wanted)
        if not path.is_symlink():
            break
        if path.parts[:2] == ("/", "proc"):
            raise ValueError(_refusal(wanted, "which leads to a file that is open already"))
        path = path.parent / os.readlink(path)
    else:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(wanted))
    found = _stat(path)
    if found is not None and (kind := kind_of(found.st_mode)):
        raise ValueError(_refusal(wanted, f"which is {kind}"))
    if found is not None and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "The older file may not be written", str(wanted))
    return path


def _refusal(path: Path, reason: str) -> str:
    return (
        f"A file is written where there is none, or a plain one. Received: {path}, {reason}. "
        "Choose another place."
    )


def _require_own(path: Path, wanted: Path) -> None:
    """Refuse files of other users in a folder for all, as Linux does (protected_symlinks).

    Raises:
        ValueError: if `path` is a link or file of another user in such a folder.
    """
    found = _stat(path)
    if found is None or stat.S_ISDIR(found.st_mode) or found.st_uid == os.geteuid():
        return
    folder = path.parent.stat()
    shared = folder.st_mode & stat.S_ISVTX and folder.st_mode & stat.S_IWOTH
    if shared and found.st_uid != folder.st_uid:
        reason = f"where {path} belongs to another user and lies in a folder for all"
        raise ValueError(_refusal(wanted, reason))


def _stat(path: Path) -> os.stat_result | None:
    """What is at `path` itself, links not followed; None if nothing."""
    try:
        return path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _create(wanted: Path, beside: Path, mode: int) -> Path:
    """A new file beside another, under a name that nobody can foresee."""
    temporary = _temporary(beside)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        os.close(os.open(temporary, flags, mode))
    except OSError as error:
        _name_the_file(error, str(temporary), str(wanted))
        raise
    return temporary


def _temporary(target: Path) -> Path:
    prefix = f".hyparflow-{os.uname().nodename}-{os.getpid()}-{secrets.token_hex(8)}-"
    return target.with_name(prefix + _tail(target, len(os.fsencode(prefix))))


def _tail(target: Path, taken: int) -> str:
    """The end of the target's name, as long as there is room beside `taken` bytes."""
    return os.fsencode(target.name)[-(_LONGEST - taken) :].decode(errors="ignore") or "file"


def _remove_abandoned(target: Path) -> None:
    """Remove temporary files of `target` whose writers have ended."""
    with contextlib.suppress(OSError), os.scandir(target.parent) as entries:
        for entry in entries:
            match = _TEMPORARY.fullmatch(entry.name)
            if match is None:
                continue
            prefix = len(os.fsencode(entry.name[: match.start("name")]))
            found = entry.stat(follow_symlinks=False)
            if match["name"] != _tail(target, prefix) or not _is_abandoned(match, found):
                continue
            if stat.S_ISDIR(found.st_mode):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)


def _is_abandoned(match: re.Match[str], found: os.stat_result) -> bool:
    if match["host"] != os.uname().nodename:
        return time.time() - found.st_mtime > _ABANDONED
    try:
        begun = psutil.Process(int(match["pid"])).create_time()
    except psutil.AccessDenied:
        return False
    except (psutil.Error, OverflowError):
        return True
    return begun > found.st_mtime + 1.0  # another process has the number by now


def _sync(temporary: Path, older: os.stat_result | None) -> None:
    """Sync a file to the disk, with owner and mode of the file that it replaces."""
    descriptor = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if older is not None:
            for owner, group in ((-1, older.st_gid), (older.st_uid, -1)):
                with contextlib.suppress(OSError):  # only root may give files away
                    os.fchown(descriptor, owner, group)
            os.fchmod(descriptor, stat.S_IMODE(older.st_mode) & 0o777)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Sync a folder to the disk, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _name_the_file(error: BaseException, temporary: str, path: str) -> None:
    """Put the name of the user's file into an error, in place of the temporary one."""
    error.args = tuple(
        argument.replace(temporary, path) if isinstance(argument, str) else argument
        for argument in error.args
    )
    if isinstance(error, OSError) and str(error.filename) == temporary:
        error.filename = path
        if error.filename2 is not None:
            error.filename2 = path
