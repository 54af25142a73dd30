"""``hyparflow checkpoint show`` and ``verify``, as typed in a shell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from hyparflow.cli.main import main
from hyparflow.formats.checkpoint.folder import CheckpointFolder
from hyparflow.formats.checkpoint.index import Index, Layout, ShardEntry, TensorEntry
from hyparflow.formats.checkpoint.names import shard_name
from hyparflow.formats.checkpoint.shard_file import write_shards
from hyparflow.formats.checkpoint.shard_header import ShardSpec


def save(folder: CheckpointFolder, step: int) -> Path:
    """A checkpoint of one tensor on one rank."""
    path = folder.begin(step) / shard_name(0)
    array = np.arange(4096, dtype=np.float32)
    (checksum,) = write_shards(path, [ShardSpec("k", "float32", array.shape)], [array])
    shard = ShardEntry(path.name, "k", (0,), array.shape, checksum)
    index = Index(
        step=step, epoch=3, step_in_epoch=7, created="2026-01-02T03:04:05Z", hyparflow="0.1.0",
        layout=Layout(4, 2, 1, True), state={},
        tensors={"dense/kernel": TensorEntry(array.shape, "float32", (shard,))},
        files={path.name: path.stat().st_size},
    )  # fmt: skip
    folder.commit(step, index)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    """Two checkpoints, and one whose saving was cut short."""
    made = CheckpointFolder(tmp_path / "run1")
    for step in (100, 120):
        save(made, step)
    (made.begin(130) / shard_name(0)).write_bytes(b"half")
    return made


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["checkpoint", *map(str, arguments)])


def test_show(folder: CheckpointFolder) -> None:
    result = command("show", folder.path)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == f"{folder.path}: 2 checkpoints"
    cells = [line.split("  ") for line in lines[3:5]]
    expected = [
        "4 x 2, optimizer sharded",
        "16.1 KiB",
        "2026-01-02 03:04:05",
        "yes",
    ]
    for step, row in zip(("100", "120"), cells, strict=True):
        filled = [cell.strip() for cell in row if cell.strip()]
        assert filled == [step, "3", "7", *expected]
    assert lines[-1].startswith("step 130: not saved to the end")


def test_show_tells_what_is_not_whole(folder: CheckpointFolder) -> None:
    """A file that is cut short, and an index that is none."""
    path = folder.step(120) / shard_name(0)
    os.truncate(path, 5000)
    (folder.step(100) / "index.json").write_text("{")
    result = command("show", folder.path)
    assert result.exit_code == 0
    rows = {line.split()[0]: line.split()[-1] for line in result.stdout.splitlines()[3:5]}
    assert rows == {"100": "no", "120": "no"}
    assert f"step 120: `A file of shards` in {path} is damaged" in result.stdout
    assert "step 100: The index of a checkpoint must be one" in result.stdout


def test_verify(folder: CheckpointFolder) -> None:
    result = command("verify", folder.path)
    assert result.exit_code == 0 and result.stderr == ""
    assert result.stdout.splitlines()[:2] == [
        "step 100: whole, 16.1 KiB",
        "step 120: whole, 16.1 KiB",
    ]
    assert "step 130: not saved to the end" in result.stdout


def test_verify_finds_one_flipped_bit(folder: CheckpointFolder) -> None:
    """Which the quick check can not: the message names file, tensor and the step that is whole."""
    path = folder.step(120) / shard_name(0)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "no" not in command("show", folder.path).stdout.splitlines()[4].split()
    result = command("verify", folder.path)
    assert result.exit_code == 2
    assert f"step 120: `dense/kernel` in {path} is damaged" in result.stderr
    assert result.stderr.count("damaged:") == 1 and "Go on from step 100." in result.stderr
    (folder.step(100) / shard_name(0)).unlink()
    result = command("verify", folder.path)
    assert result.exit_code == 2 and "2 damaged steps" in result.stderr
    assert "Copy them again" in result.stderr


@pytest.mark.parametrize("name", ["show", "verify"])
def test_a_folder_without_checkpoints(name: str, folder: CheckpointFolder, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    CheckpointFolder(tmp_path / "begun").begin(1)
    for path, words in [
        (tmp_path / "empty", "which has none"),
        (tmp_path / "begun", "1 whose saving did not end"),
        (folder.step(120), f"Pass {folder.path}"),
        (tmp_path / "gone", "does not exist"),
        (tmp_path / "file", "is a file"),
    ]:
        result = command(name, path)
        assert result.exit_code == 2, path
        assert words in result.stderr and result.stderr.count("Error:") == 1
        assert result.stdout == ""


ALONE = """
import sys
from hyparflow.cli.main import main

try:
    main(["checkpoint", *sys.argv[1:]])
finally:
    loaded = {name for name in ("tensorflow", "keras", "mpi4py.MPI") if name in sys.modules}
    print("loaded:", sorted(loaded))
"""


@pytest.mark.parametrize("name", ["show", "verify"])
def test_neither_tensorflow_nor_mpi_is_loaded(name: str, folder: CheckpointFolder) -> None:
    words = [sys.executable, "-c", ALONE, name, str(folder.path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "loaded: []"
    assert "120" in done.stdout


def test_one_rank_reports(folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a launcher the others say nothing."""
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    result = command("show", folder.path)
    assert result.exit_code == 0 and result.output == ""
