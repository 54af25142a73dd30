"""Words, folders, outputs and ends of a job, without ranks."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from hyparflow.cli.program import command_of
from hyparflow.launching.end import end_of
from hyparflow.launching.folder import explain_out_of_space, job_folder
from hyparflow.launching.output import checked_output
from hyparflow.launching.rank_process import Sink, Stream, decoded
from hyparflow.launching.relay import shown
from hyparflow.launching.words import as_one, sent

WORDS = ["a", ":", "", " ", "-n", "--", "@f", "=", "+", "%41", "l\n2", "q'\"", "é", "\udcff", "*"]


@pytest.mark.parametrize("words", [["a.py", *WORDS], ["a.py", "x" * 200_000, *WORDS]])
def test_words_arrive_whole(words: list[str], tmp_path: pathlib.Path) -> None:
    on_their_way = sent(words, tmp_path / "words")
    assert decoded(on_their_way) == words
    assert all(word and word != ":" for word in on_their_way)
    assert sum(map(len, on_their_way)) < 100_000


@pytest.mark.parametrize("words", [["echo", "a"], ["printf", "<%s>", "", ":", "a b"]])
def test_a_shell_takes_what_a_launcher_would_not(words: list[str]) -> None:
    said = [subprocess.check_output(command) for command in (words, as_one(words))]
    assert said[0] == said[1]
    assert ":" not in as_one(words)


def test_a_folder_is_private_and_goes(tmp_path: pathlib.Path, tmpdir_of_job: None) -> None:
    with job_folder() as folder:
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o777 == 0o700
        with job_folder() as other:  # which leaves the first, whose process lives
            assert folder.exists() and other != folder
        assert not other.exists()
    assert not list(tmp_path.iterdir())


MAKE = """
from hyparflow.launching.folder import job_folder
with job_folder() as f: print(f, flush=True); {}
"""


def test_what_a_killed_process_left_goes(tmp_path: pathlib.Path, tmpdir_of_job: None) -> None:
    code = MAKE.format("import time; time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.kill()
    end = time.monotonic() + 20
    while list(tmp_path.iterdir()) and time.monotonic() < end:
        time.sleep(0.1)
    assert not list(tmp_path.iterdir())


def test_what_a_whole_killed_job_left_goes(tmp_path: pathlib.Path, tmpdir_of_job: None) -> None:
    with job_folder() as folder:
        (folder / "lock").rename(tmp_path / "lock")
        (tmp_path / "hyparflow-job-left" / "more").mkdir(parents=True)
        lock = (tmp_path / "lock").read_bytes()
        (tmp_path / "lock").rename(folder / "lock")
    (tmp_path / "hyparflow-job-left" / "lock").write_bytes(lock)  # nobody locks it
    (tmp_path / "hyparflow-job-other").mkdir()
    (tmp_path / "hyparflow-job-other" / "lock").write_text("another machine's")
    (tmp_path / "hyparflow-job-link").symlink_to(tmp_path / "hyparflow-job-other")
    with job_folder():
        pass
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["hyparflow-job-link", "hyparflow-job-other"]


@pytest.mark.parametrize("number, left", [("0123abcd", 0), ("", 1)])
def test_what_a_job_left_before_a_reboot_goes(
    number: str,
    left: int,
    tmp_path: pathlib.Path,
    tmpdir_of_job: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The machine is known by its own number, and kept from others that have none."""
    boot, machine = tmp_path / "boot", tmp_path / "machine"
    monkeypatch.setattr("hyparflow.launching.folder._BOOT", boot)
    monkeypatch.setattr("hyparflow.launching.folder._MACHINE", machine)
    boot.write_text("first\n")
    machine.write_text(number)
    (tmp_path / "hyparflow-job-left").mkdir()
    with job_folder() as folder:
        lock = (folder / "lock").read_bytes()
    (tmp_path / "hyparflow-job-left" / "lock").write_bytes(lock)
    boot.write_text("second\n")
    with job_folder():
        pass
    assert len(list(tmp_path.glob("hyparflow-job-*"))) == left


@pytest.fixture
def tmpdir_of_job(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)  # it is looked up once
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def test_a_working_folder_must_be_there(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ValueError, match="the working folder, which must be there"), job_folder():
        pass
    os.chdir(tmp_path)


def test_a_full_disk_is_named(tmp_path: pathlib.Path) -> None:
    full = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    message = f"Received: .*No space left.*, in {tmp_path.parent}"
    with full, pytest.raises(RuntimeError, match=message), explain_out_of_space(tmp_path):
        full.write(b"x")
    with pytest.raises(FileNotFoundError), explain_out_of_space(tmp_path):
        open(tmp_path / "none")  # noqa: SIM115


def test_output_goes_to_a_folder_that_is_made(tmp_path: pathlib.Path) -> None:
    assert checked_output("--output", "leader") == "leader"
    assert checked_output("--output", tmp_path / "a" / "b") == str(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    checked_output("--output", tmp_path / "c", is_made=False)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("output", [None, 3, "", "{}/file", "{}/file/below", "a\0b"])
def test_no_output(output: object, tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    given = output.format(tmp_path) if isinstance(output, str) else output
    with pytest.raises(ValueError, match='--output takes "all", "leader" or a folder'):
        checked_output("--output", given)


def copied(sink: Sink, data: bytes, target: int) -> None:
    """Have `sink` take all of `data`."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as file:
        file.write(data)
    with os.fdopen(reading, "rb") as source:
        sink.take(source, target)


def test_a_rank_goes_on_without_its_file(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rank-0.txt").symlink_to("/dev/full")
    os.mkfifo(tmp_path / "rank-1.txt")
    (tmp_path / "rank-2.txt").mkdir()
    for rank, reason in enumerate(("No space left", "No such device", "Is a directory")):
        copied(Sink(rank, str(tmp_path), str(tmp_path / "record")), b"line\n" * 1000, 1)
        out, err = capfd.readouterr()
        assert out == ("line\n" * 1000 if rank == 0 else "")
        assert err.count("\n") == 1
        assert f"rank {rank}'s output is not written to {tmp_path}/rank-{rank}.txt" in err
        assert reason in err


def test_a_rank_goes_on_when_nobody_reads(tmp_path: pathlib.Path) -> None:
    sink = Sink(1, str(tmp_path), str(tmp_path / "record"))
    reading, writing = os.pipe()
    os.close(reading)
    copied(sink, b"Traceback (most recent call last)\n" + b"line\n" * 1000, writing)
    os.close(writing)
    assert len((tmp_path / "rank-1.txt").read_bytes()) == 5034
    full = Stream(os.open("/dev/full", os.O_WRONLY), True)
    full.write(b"x")
    assert full.target is None


def test_output_that_cannot_be_shown_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[tuple[int, str]] = []
    kept = os.dup(1)
    full = os.open("/dev/full", os.O_WRONLY)
    code = "import sys; sys.stdout.write('x' * 1000000); sys.exit(3)"
    try:
        os.dup2(full, 1)
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        with shown(process, lambda stream, error: lost.append((stream, type(error).__name__))):
            assert process.wait(20) == 3  # it was read to its end
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(full)
    assert lost == [(1, "OSError")]


@pytest.mark.parametrize(
    ("code", "record", "received", "status", "text"),
    [
        (0, None, [], 0, ""),
        (3, "1 3\n0 1\n", [], 3, "rank 1 ended with exit status 3"),
        (137, "1 -9\n", [], 137, "rank 1 was killed by signal 9 (SIGKILL); the system does so "),
        (135, "0 -7\n", [], 135, "rank 0 was killed by signal 7 (SIGBUS); the system does so "),
        (139, "0 -11\n", [], 139, "rank 0 was killed by signal 11 (SIGSEGV)"),
        (143, "0 -15\n", [], 143, "rank 0 was killed by signal 15 (SIGTERM); launchers do so, "),
        (-9, "1 5\n", [], 5, "rank 1 ended with exit status 5"),
        (-9, None, [], 137, "the launcher was killed by signal 9 (SIGKILL)"),
        (-9, "0 -15\n", [], 137, "the launcher was killed by signal 9 (SIGKILL)"),
        (255, None, [], 255, "the launcher ended with exit status 255, and no rank of this"),
        (1, "0 -15\n", [signal.SIGTERM], 143, ""),
        (0, None, [signal.SIGUSR1], 0, ""),
    ],
)
def test_ends(
    tmp_path: pathlib.Path,
    code: int,
    record: str | None,
    received: list[int],
    status: int,
    text: str,
) -> None:
    if record is not None:
        (tmp_path / "record").write_text(record)
    end = end_of(code, tmp_path / "record", received)
    assert end.code == status
    assert end.text.startswith(text) and bool(end.text) == bool(text)


def test_a_rank_that_left_before_others_were_ended_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "record").write_text("1 -15\n")
    (tmp_path / "record.well").write_text("0\n")
    assert end_of(143, tmp_path / "record", []).text.endswith(
        "Before, rank 0 had ended with exit status 0"
    )
    (tmp_path / "record").write_text("1 3\n")
    assert end_of(3, tmp_path / "record", []).text == "rank 1 ended with exit status 3"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("-", "several ranks cannot read it from one standard input"),
        ("--nprocs", "Received: --nprocs, which is none"),
        ("none.py", "none.py, which does not exist"),
        ("folder.py", "a folder without __main__.py"),
        ("folder", "on the PATH. Received: folder, a folder without __main__.py"),
        ("pipe.py", "a plain file: each rank reads it. Received: pipe.py, which is a named pipe"),
        ("piped", "Received: piped, a folder without __main__.py"),
        ("pipe", "Received: pipe, which is a named pipe"),
        ("./text", "Received: ./text, a file that may not be executed, and does not end with .py"),
        ("text", "which is not on the PATH. Name the file ./text, or with the ending .py"),
        ("", "on the PATH. Received: "),
    ],
)
def test_no_program(
    name: str, message: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("folder", "folder.py", "piped"):
        (tmp_path / folder).mkdir()
    for pipe in ("pipe", "pipe.py", "piped/__main__.py"):
        os.mkfifo(pipe)
    (tmp_path / "text").write_text("print(1)")
    with pytest.raises(ValueError, match=message):
        command_of([name, "a"], False)


def test_programs(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b:c").mkdir()
    (tmp_path / "a b:c" / "__main__.py").touch()
    (tmp_path / "link.py").symlink_to("a b:c/__main__.py")
    with zipfile.ZipFile(tmp_path / "app", "w") as file:
        file.writestr("__main__.py", "")
    for name in ("a b:c", "link.py", "app", "a b:c/__main__.py"):
        assert command_of([name, "-n"], False) == [sys.executable, name, "-n"]
    assert command_of(["sh", "-c"], False) == ["sh", "-c"]
    (tmp_path / "mine.py").touch()
    for name in ("mine", "http.server"):
        assert command_of([name, "x"], True) == [sys.executable, "-m", name, "x"]
    for name in ("no_such_module", "", ".a"):
        with pytest.raises(ValueError, match="must be a module with -m"):
            command_of([name], True)
