"""What is written is complete or not there, and spoils nothing that was there before."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyparflow.formats.writing import folder_beside, replacing, require_writable, write_text
from hyparflow.planning.costs.cluster import Cluster
from hyparflow.tracing.trace import Trace

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """No file grows beyond 4 KiB, as on a full disk; nor does one that shows pytest's output."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_the_older_file_stays_when_the_disk_is_full(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_text(path, "old")
    with small_files(), pytest.raises(OSError):
        write_text(path, "new" * 10_000)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["plan.json"]


def test_a_link_and_where_it_leads_stay(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "real").write_text("old")
    (tmp_path / "other").symlink_to("store/real")
    (tmp_path / "link").symlink_to(tmp_path / "other")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "other").is_symlink()
    assert (tmp_path / "store" / "real").read_text() == "new"
    assert names(tmp_path) == ["link", "other", "store"] and names(tmp_path / "store") == ["real"]


def test_a_link_to_a_name_with_another_ending(tmp_path: Path) -> None:
    (tmp_path / "model.keras").symlink_to("blob")
    with replacing(tmp_path / "model.keras") as temporary:
        assert temporary.suffix == ".keras"
        temporary.write_text("new")
    assert (tmp_path / "blob").read_text() == "new"
    assert names(tmp_path) == ["blob", "model.keras"]


def test_a_link_to_nothing_yet_gets_its_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(OSError, match="symbolic links"):
        write_text(tmp_path / "a", "new")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o755])
def test_the_mode_stays(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(mode)
    with replacing(path) as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
        temporary.write_text("new")
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_umasks_mode(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "file", "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


@as_root
def test_the_owner_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    os.chown(path, 4321, 1234)
    write_text(path, "new")
    assert (path.stat().st_uid, path.stat().st_gid) == (4321, 1234)


@as_root
@pytest.mark.parametrize("what", ["link", "file", "folder"])
def test_what_others_planted_in_a_folder_for_all_is_refused(tmp_path: Path, what: str) -> None:
    shared, mine = tmp_path / "shared", tmp_path / "mine"
    shared.mkdir()
    shared.chmod(0o1777)
    mine.mkdir()
    (mine / "precious").write_text("old")
    planted = shared / "m.keras"
    if what == "file":
        planted.write_text("theirs")
    else:
        planted.symlink_to(mine / "precious" if what == "link" else mine)
    os.chown(planted, 4321, 1234, follow_symlinks=False)
    path = planted / "precious" if what == "folder" else planted
    for write in (lambda: write_text(path, "new"), lambda: require_writable(path)):
        with pytest.raises(ValueError, match="belongs to another user"):
            write()
    assert (mine / "precious").read_text() == "old"
    assert names(shared) == ["m.keras"] and names(mine) == ["precious"]


def special(folder: Path, what: str) -> Path:
    path = folder / what
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    elif what == "link to a device":
        path.symlink_to("/dev/null")
    else:
        return Path(what)
    return path


@pytest.mark.parametrize(
    "what",
    ["folder", "pipe", "socket", "link to a device", "/dev/null", "/dev/full", "/dev/stdout", "/"],
)
def test_what_is_no_plain_file_is_refused_and_stays(tmp_path: Path, what: str) -> None:
    path = special(tmp_path, what)
    before, inside = path.lstat(), names(tmp_path)
    for write in (
        lambda: write_text(path, "new"),
        lambda: require_writable(path),
        lambda: Trace([], {}, None).save(path),
        lambda: Cluster().save(path),
    ):
        with pytest.raises(ValueError, match="where there is none, or a plain one. Received"):
            write()
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert names(tmp_path) == inside


def test_errors_name_the_file_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        write_text(tmp_path / "no" / "plan.json", "new")
    assert raised.value.filename == str(tmp_path / "no" / "plan.json")
    (tmp_path / "file").write_text("old")
    with pytest.raises(NotADirectoryError) as raised_:
        write_text(tmp_path / "file" / "plan.json", "new")
    assert raised_.value.filename == str(tmp_path / "file" / "plan.json")


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127, "a b\n*?[", "-rf", ".hidden", "\udcff"])
def test_names_of_all_kinds(tmp_path: Path, name: str) -> None:
    for text in ("old", "new"):
        write_text(tmp_path / name, text)
        assert (tmp_path / name).read_text() == text
    assert names(tmp_path) == [name]


def test_other_hard_links_keep_the_older_content(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    os.link(tmp_path / "a", tmp_path / "b")
    write_text(tmp_path / "a", "new")
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("new", "old")


def test_a_relative_path_is_where_it_was_when_writing_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with replacing("file") as temporary:
        os.chdir("elsewhere")
        temporary.write_text("new")
    assert (tmp_path / "file").read_text() == "new"
    assert names(tmp_path / "elsewhere") == []


KILLED = """
import os, pathlib, signal, sys
from hyparflow.formats.writing import folder_beside, replacing
path = pathlib.Path(sys.argv[1])
with replacing(path) as temporary, folder_beside(path):
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_goes_with_the_next(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_text(path, "old")
    subprocess.run([sys.executable, "-c", KILLED, str(path)], timeout=60)
    assert len(names(tmp_path)) == 3 and path.read_text() == "old"
    write_text(tmp_path / "other.json", "other")
    assert len(names(tmp_path)) == 4  # not its own
    write_text(path, "new")
    assert names(tmp_path) == ["other.json", "plan.json"]


def test_what_another_writes_now_stays(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with replacing(path) as temporary, folder_beside(path) as folder:
        temporary.write_text("first")
        write_text(path, "second")
        assert temporary.exists() and folder.exists() and path.read_text() == "second"
    assert path.read_text() == "first"


def test_of_other_machines_only_what_is_old_goes(tmp_path: Path) -> None:
    for age, host in ((0, "fresh"), (3 * 24 * 3600, "old")):
        file = tmp_path / f".hyparflow-{host}-1-{'0' * 16}-plan.json"
        file.write_text("half")
        os.utime(file, (time.time() - age,) * 2)
    write_text(tmp_path / "plan.json", "new")
    assert names(tmp_path) == [f".hyparflow-fresh-1-{'0' * 16}-plan.json", "plan.json"]


def test_a_place_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    require_writable(tmp_path / "file")
    assert names(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        require_writable(tmp_path / "no" / "file")
