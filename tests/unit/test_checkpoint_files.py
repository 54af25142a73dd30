"""The files of checkpoints: rows by ranks, an index that is true, and nothing half."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyparflow.formats.checkpoint.folder import CheckpointFolder
from hyparflow.formats.checkpoint.index import (
    VERSION,
    Index,
    Layout,
    ShardEntry,
    TensorEntry,
    read_index,
)
from hyparflow.formats.checkpoint.reader import CheckpointReader
from hyparflow.formats.checkpoint.shard_file import ShardFile, write_tensors
from hyparflow.formats.checkpoint.verify import verified

VALUES = np.arange(60, dtype="float32").reshape(10, 3, 2)


def saved(path: Path, step: int, value: np.ndarray = VALUES, cuts: tuple[int, ...] = (4,)) -> Path:
    """A checkpoint of one tensor, of which each rank has written some rows."""
    folder = CheckpointFolder(path)
    made = folder.begin(step)
    bounds = [0, *cuts, len(value)]
    shards, files = [], {}
    for rank, (start, stop) in enumerate(zip(bounds, bounds[1:], strict=False)):
        name = f"rank-{rank:05d}.safetensors"
        sums = write_tensors(made / name, [("a/kernel", value[start:stop])])
        shards.append(ShardEntry(name, start, stop, sums["a/kernel"]))
        files[name] = (made / name).stat().st_size
    entry = TensorEntry(value.shape, value.dtype.name, value.shape, tuple(shards))
    index = Index(
        version=VERSION,
        step=step,
        epoch=1,
        step_in_epoch=2,
        created="2026-12-01T00:00:00+00:00",
        hyparflow="0.1.0",
        layout=Layout(2, 1, 1, False),
        tensors={"a/kernel": entry},
        state={"history": {"loss": [1.5]}},
        files=files,
    )
    folder.commit(step, index)
    return made


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 10), max_size=4).map(sorted),
    start=st.integers(0, 10),
    count=st.integers(0, 10),
)
def test_rows_of_any_ranks(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], start: int, count: int
) -> None:
    reader = CheckpointReader(saved(tmp_path_factory.mktemp("run"), 7, cuts=tuple(cuts)))
    assert np.array_equal(reader.read("a/kernel"), VALUES)
    stop = min(10, start + count)
    assert np.array_equal(reader.read_rows("a/kernel", min(start, stop), stop), VALUES[start:stop])


@pytest.mark.parametrize(
    "value",
    [
        *(np.arange(6).astype(kind) for kind in ("int8", "uint16", "int64", "float16", "float64")),
        np.array([True, False]),
        np.array(3.5),
        np.zeros((0, 4), "float32"),
        np.arange(4).astype(ml_dtypes.bfloat16),
        np.arange(4).astype(ml_dtypes.float8_e4m3fn),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}",
)
def test_types_and_shapes(tmp_path: Path, value: np.ndarray) -> None:
    write_tensors(tmp_path / "a.safetensors", [("x", VALUES), ("y", value)])
    file = ShardFile(tmp_path / "a.safetensors")
    read = file.tensor("y", value.dtype.name, value.shape)
    assert read.dtype == value.dtype
    assert np.array_equal(read, value)


def test_other_programs_read_the_tensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    write_tensors(tmp_path / "a.safetensors", [("x", VALUES), ("y", np.array([1, 2]))])
    read = safetensors.load_file(tmp_path / "a.safetensors")
    assert np.array_equal(read["x"], VALUES)
    assert read["y"].tolist() == [1, 2]


def test_what_no_format_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="numbers and booleans.*named 'x'"):
        write_tensors(tmp_path / "a.safetensors", [("x", np.array([1j]))])


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


SECOND = "rank-00001.safetensors"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: flip(f / SECOND, -3), f"{SECOND}, where tensor 'a/kernel' is damaged"),
        (lambda f: os.truncate(f / SECOND, 120), "120 bytes in place of"),
        (lambda f: os.truncate(f / SECOND, 3), "3 bytes in place of"),
        (lambda f: (f / SECOND).unlink(), f"{SECOND} is missing"),
        (lambda f: flip(f / SECOND, 12), "it has no tensor"),
        (lambda f: (f / "index.json").write_text("{"), "needs an index"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Callable[[Path], Any], said: str) -> None:
    damage(saved(tmp_path, 7))
    folder = CheckpointFolder(tmp_path)
    (fault,) = verified(folder, 7, reads_all=True).faults
    assert said in fault
    assert str(folder.step_folder(7)) in fault
    with pytest.raises(ValueError, match="checkpoint"):
        CheckpointReader(folder.step_folder(7)).read("a/kernel")


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "version 2"),
        ({"version": "1"}, "Expected `int`"),
        ({"files": {"../../etc/passwd": 5}}, "is no name of a file in the folder"),
        ({"files": {"/etc/passwd": 5}}, "is no name of a file in the folder"),
        ({"files": {}}, "and all files 0"),
        ({"tensors.shape": [2**60, 2**60], "tensors.view": [2**120]}, "Expected `int`"),
        ({"tensors.shape": [2**60], "tensors.view": [2**60]}, "and all files"),
        ({"tensors.shape": [-1]}, ">= 0"),
        ({"tensors.dtype": "object"}, "unknown type 'object'"),
        ({"tensors.view": [5, 12]}, "has the view"),
        ({"tensors.shards": []}, "rows of tensor 'a/kernel' are missing"),
        ({"shards.start": 1}, "are missing, or there twice, at 0"),
        ({"shards.file": "other.safetensors"}, "which `files` has not"),
        ({"shards.file": "../x.safetensors"}, "which `files` has not"),
        ({"shards.checksum": "zz"}, "matching regex"),
        ({"more": 1}, "more"),
        ({"step": -1}, ">= 0"),
    ],
    ids=str,
)
def test_an_index_of_a_hostile_hand(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = saved(tmp_path, 7) / "index.json"
    content = json.loads(path.read_text())
    tensor = content["tensors"]["a/kernel"]
    for name, value in change.items():
        place, _, key = name.rpartition(".")
        {"": content, "tensors": tensor, "shards": tensor["shards"][0]}[place][key] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="needs an index that hyparflow wrote") as caught:
        read_index(path.parent)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "text", ["NaN", '{"version": NaN}', "[" * 100_000, "null", "", '{"version": 1, "version": 1}']
)
def test_a_text_that_is_no_index(tmp_path: Path, text: str) -> None:
    path = saved(tmp_path, 7) / "index.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="needs an index that hyparflow wrote"):
        read_index(path.parent)


def test_what_is_unfinished_is_ignored_and_removed(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    folder = CheckpointFolder(tmp_path)
    half = folder.begin(9)
    (half / "rank-00000.safetensors").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    assert (folder.committed(), folder.unfinished(), folder.newest()) == ([5], [9], 5)
    folder.begin(12)
    assert not half.exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_what_is_the_users_is_never_removed(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "run")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "rank-00000.json").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "step-0000000003").symlink_to(outside)
    mine = folder.begin(4) / "thesis.txt"
    mine.write_text("mine")
    for step in (5, 6, 7):
        saved(tmp_path / "run", step)
    folder.prune(1)
    assert folder.committed() == [7]
    assert mine.read_text() == (outside / "rank-00000.json").read_text() == "mine"


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        saved(tmp_path, step)
    folder = CheckpointFolder(tmp_path)
    folder.prune(2, [1])
    assert folder.committed() == [1, 3, 4]


SAVES = """
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[2])
from test_checkpoint_files import saved
from hyparflow.formats.checkpoint.folder import CheckpointFolder
for step in range(1, 100000):
    saved(Path(sys.argv[1]), step, np.full((40, 1000), step, "float32"), (10, 20))
    CheckpointFolder(Path(sys.argv[1])).prune(2)
    print(step, flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_whole_one(tmp_path: Path) -> None:
    folder, draw = CheckpointFolder(tmp_path), random.Random(0)
    for _ in range(4):
        command = [sys.executable, "-c", SAVES, str(tmp_path), str(Path(__file__).parent)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            last = 0
            for _ in range(draw.randrange(1, 6)):
                last = int(process.stdout.readline())
            time.sleep(draw.random() / 50)
            process.send_signal(signal.SIGKILL)
        newest = folder.newest()
        assert newest is not None
        assert newest >= last
        seen = verified(folder, newest, reads_all=True)
        assert seen.faults == []
        value = CheckpointReader(folder.step_folder(newest)).read("a/kernel")
        assert np.all(value == newest)
        for step in folder.committed():
            (folder.step_folder(step) / "index.json").unlink()


def test_a_full_disk_leaves_the_one_before(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            saved(tmp_path, 2, np.zeros((1 << 16, 2)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    folder = CheckpointFolder(tmp_path)
    assert (folder.newest(), folder.unfinished()) == (1, [2])
    assert verified(folder, 1, reads_all=True).faults == []


def command(*words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-X", "importtime", "-m", "hyparflow", *words]
    line[3:5] = ["-c", "import sys; from hyparflow.cli.main import main; main()"]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)


def test_the_commands(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    saved(tmp_path, 9)
    CheckpointFolder(tmp_path).step_folder(11).mkdir()
    shown = command("checkpoint", "show", str(tmp_path))
    assert shown.returncode == 0
    assert [line.split()[0] for line in shown.stdout.splitlines()] == ["step", "5", "9", "11"]
    assert "2, step 2" in shown.stdout
    assert "unfinished" in shown.stdout
    assert "tensorflow" not in shown.stderr  # of what it imports
    assert "mpi4py.MPI" not in shown.stderr
    assert command("checkpoint", "verify", str(tmp_path)).returncode == 0
    flip(CheckpointFolder(tmp_path).step_folder(9) / SECOND, -1)
    found = command("checkpoint", "verify", str(tmp_path))
    assert found.returncode == 2
    assert "step 5: whole" in found.stdout
    assert "tensor 'a/kernel' is damaged" in found.stderr
    nothing = command("checkpoint", "show", str(tmp_path / "other"))
    assert nothing.returncode == 2
    assert "in which there is none" in nothing.stderr


def test_an_index_is_read_as_it_was_written(tmp_path: Path) -> None:
    index = read_index(saved(tmp_path, 7))
    assert index.state == {"history": {"loss": [1.5]}}
    assert index.nbytes == VALUES.nbytes
    again = replace(index, step=8)
    CheckpointFolder(tmp_path).begin(8)
    CheckpointFolder(tmp_path).commit(8, again)
    assert read_index(CheckpointFolder(tmp_path).step_folder(8)) == again
