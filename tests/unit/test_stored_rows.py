"""Rows of a tensor in a checkpoint, however it is divided there and where it is needed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hyparflow.checkpoint.stored_tensor import StoredTensor
from hyparflow.formats.checkpoint.folder import CheckpointFolder
from hyparflow.formats.checkpoint.index import Index, Layout, ShardEntry, TensorEntry
from hyparflow.formats.checkpoint.names import shard_name
from hyparflow.formats.checkpoint.reader import CheckpointReader
from hyparflow.formats.checkpoint.shard_file import write_shards
from hyparflow.formats.checkpoint.shard_header import ShardSpec

SHAPE = (12, 2, 5)


def saved(folder: Path, value: np.ndarray, pieces: int) -> CheckpointReader:
    """A checkpoint with a tensor, in pieces along its first axis."""
    found = CheckpointFolder(folder)
    found.begin(1)
    place, file = found.step(1), shard_name(0)
    parts = np.array_split(value, pieces)
    specs = [ShardSpec(str(n), value.dtype.name, part.shape) for n, part in enumerate(parts)]
    sums = write_shards(place / file, specs, parts)
    ends = np.cumsum([len(part) for part in parts]).tolist()
    rest = value.shape[1:]
    shards = tuple(
        ShardEntry(file, str(n), (end - len(part), *[0] * len(rest)), (end, *rest), checksum)
        for n, (end, part, checksum) in enumerate(zip(ends, parts, sums, strict=True))
    )
    index = Index(
        step=1, epoch=0, step_in_epoch=0, created="2026-01-02T03:04:05Z", hyparflow="0.1.0",
        layout=Layout(1, 1), tensors={"w": TensorEntry(value.shape, value.dtype.name, shards)},
        state={}, files={file: (place / file).stat().st_size},
    )  # fmt: skip
    found.commit(1, index)
    return CheckpointReader(place)


@pytest.mark.parametrize("stored", [SHAPE, (math.prod(SHAPE),)], ids=["as it is", "flat"])
@pytest.mark.parametrize("view", [SHAPE, (math.prod(SHAPE),)], ids=["as it is", "flat"])
@pytest.mark.parametrize("pieces", [1, 5])
def test_any_rows(tmp_path: Path, stored: Any, view: Any, pieces: int) -> None:
    value = np.random.default_rng(0).normal(size=stored).astype("float32")
    tensor = StoredTensor(saved(tmp_path, value, pieces), "w", SHAPE)
    np.testing.assert_array_equal(tensor(), value.reshape(SHAPE))
    for start, stop in ((0, view[0]), (0, 1), (3, 7), (view[0] - 1, view[0]), (4, 4)):
        found = tensor.rows(view, slice(start, stop))
        np.testing.assert_array_equal(found, value.reshape(view)[start:stop])


def test_rows_are_read_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value = np.arange(12.0).reshape(12, 1)
    reader = saved(tmp_path, value, 6)
    read: list[Any] = []
    whole = CheckpointReader.read

    def noted(self: Any, name: str, *box: Any) -> np.ndarray:
        read.append(box)
        return whole(self, name, *box)

    monkeypatch.setattr(CheckpointReader, "read", noted)
    StoredTensor(reader, "w", (12, 1)).rows((12, 1), slice(4, 6))
    assert read == [((4, 0), (6, 1))]
