"""Files written past the cache have the bytes that were written, on any file system."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hyparflow.formats.checkpoint import uncached_file
from hyparflow.formats.checkpoint.uncached_file import UncachedFile

PAGE = 4096
ROOM = 4 * PAGE


@pytest.fixture(params=["as the file system can", "through the cache", "refused in the middle"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the file system takes what is written past the cache."""
    monkeypatch.setattr(uncached_file, "_ROOM", ROOM)
    if request.param == "through the cache":
        monkeypatch.setattr(uncached_file, "_UNCACHED", 0)
    if request.param == "refused in the middle":
        written = []
        write = os.write

        def once_too_often(file: int, data: Any) -> int:
            written.append(data)
            if len(written) == 2 and getattr(os, "O_DIRECT", 0):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return write(file, data[:PAGE])  # less than was asked for

        monkeypatch.setattr(os, "write", once_too_often)
    return str(request.param)


@pytest.mark.parametrize("size", [0, 1, PAGE, PAGE + 1, ROOM - 1, ROOM, ROOM + 1, 5 * ROOM + 77])
@pytest.mark.parametrize("folder", ["disk", "memory"])
def test_all_bytes_are_there(way: str, size: int, folder: str, tmp_path: Path) -> None:
    if way == "refused in the middle" and size < ROOM:
        pytest.skip("one write past the cache, at most: nothing to refuse")
    memory = Path("/dev/shm")
    if folder == "memory" and not memory.is_dir():
        pytest.skip("no file system in memory")
    path = (tmp_path if folder == "disk" else memory) / f"uncached-{os.getpid()}"
    data = np.random.default_rng(size).bytes(size)
    try:
        with UncachedFile(path) as file:
            for start in range(0, size, 5000):
                file.write(data[start : start + 5000])
            file.sync()
        assert path.read_bytes() == data
    finally:
        path.unlink()


def test_what_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "there"
    path.write_text("before")
    with pytest.raises(FileExistsError):
        UncachedFile(path)
    assert path.read_text() == "before"


def test_other_errors_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with UncachedFile(tmp_path / "new") as file:
        file.write(b"some")
        with pytest.raises(OSError, match="No space"):
            file.sync()
