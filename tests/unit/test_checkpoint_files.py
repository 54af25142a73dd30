"""Checkpoints on a disk: any box of any tiling, hostile and damaged files, and killed writers."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import deserialize, safe_open

from hyparflow.formats.checkpoint.boxes import fault_of_tiling
from hyparflow.formats.checkpoint.dtypes import NAMES, dtype_named, stored_name
from hyparflow.formats.checkpoint.folder import CheckpointFolder
from hyparflow.formats.checkpoint.index import (
    Index,
    Layout,
    ShardEntry,
    TensorEntry,
    encoded,
    read_index,
)
from hyparflow.formats.checkpoint.names import shard_name, state_name, step_of
from hyparflow.formats.checkpoint.reader import CheckpointReader
from hyparflow.formats.checkpoint.shard_file import write_shards
from hyparflow.formats.checkpoint.shard_header import ShardSpec
from hyparflow.formats.checkpoint.verify import quick_check, verify
from hyparflow.formats.writing import replacing

Box = tuple[tuple[int, ...], tuple[int, ...]]


def values(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> np.ndarray:
    """Random bytes as an array of a type; no two elements of a wide type are equal."""
    size = int(np.prod(shape, dtype=np.int64))
    if dtype == "bool":
        return np.random.default_rng(seed).integers(0, 2, size).astype(bool).reshape(shape)
    raw = np.random.default_rng(seed).bytes(size * dtype_named(dtype).itemsize)
    return np.frombuffer(raw, dtype_named(dtype)).reshape(shape)


def same_bytes(one: np.ndarray, other: np.ndarray) -> bool:
    return (
        one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()
    )


def save(
    folder: CheckpointFolder,
    step: int,
    tensors: dict[str, np.ndarray],
    tilings: dict[str, list[Box]] | None = None,
    ranks: int = 2,
    state: dict[str, Any] | None = None,
) -> Path:
    """Save as `ranks` ranks would: the boxes of each tensor go round the ranks."""
    place = folder.begin(step)
    owned: list[list[tuple[str, str, Box]]] = [[] for _ in range(ranks)]
    turn = 0
    for name, array in tensors.items():
        whole = [((0,) * array.ndim, array.shape)]
        for box in (tilings or {}).get(name, whole):
            owned[turn % ranks].append((name, f"{name}:{turn}", box))
            turn += 1
    shards: dict[str, list[ShardEntry]] = {name: [] for name in tensors}
    files = {}
    for rank, mine in enumerate(owned):
        parts = [tensors[name][cut(box)] for name, _, box in mine]
        specs = [
            ShardSpec(key, part.dtype.name, part.shape)
            for (_, key, _), part in zip(mine, parts, strict=True)
        ]
        sums = write_shards(place / shard_name(rank), specs, iter(parts))
        files[shard_name(rank)] = (place / shard_name(rank)).stat().st_size
        for (name, key, (start, stop)), checksum in zip(mine, sums, strict=True):
            shards[name].append(ShardEntry(shard_name(rank), key, start, stop, checksum))
    entries = {
        name: TensorEntry(array.shape, array.dtype.name, tuple(shards[name]))
        for name, array in tensors.items()
    }
    folder.commit(step, an_index(step, entries, files, state))
    return place


def an_index(
    step: int,
    tensors: dict[str, TensorEntry],
    files: dict[str, int],
    state: dict[str, Any] | None = None,
) -> Index:
    return Index(
        step=step, epoch=1, step_in_epoch=2, created="2026-01-02T03:04:05Z", hyparflow="0.1.0",
        layout=Layout(2, 1), tensors=tensors, state=state or {}, files=files,
    )  # fmt: skip


def cut(box: Box) -> tuple[slice, ...]:
    return tuple(map(slice, *box))


def halves(shape: tuple[int, ...]) -> list[Box]:
    """Two boxes that cover a tensor, one above the other."""
    middle = shape[0] // 2
    zeros = (0,) * (len(shape) - 1)
    return [((0, *zeros), (middle, *shape[1:])), ((middle, *zeros), shape)]


@st.composite
def tilings(draw: Any) -> tuple[tuple[int, ...], list[Box], Box]:
    """A shape, boxes that cover it (cut in two again and again), and one more box in it."""
    shape = tuple(draw(st.lists(st.integers(0, 7), max_size=4)))
    boxes: list[Box] = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 6)) if shape else 0):
        start, stop = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        axis = draw(st.integers(0, len(shape) - 1))
        at = draw(st.integers(start[axis], stop[axis]))
        boxes.append((start, (*stop[:axis], at, *stop[axis + 1 :])))
        boxes.append(((*start[:axis], at, *start[axis + 1 :]), stop))
    ends = [sorted((draw(st.integers(0, n)), draw(st.integers(0, n)))) for n in shape]
    return shape, boxes, (tuple(a for a, _ in ends), tuple(b for _, b in ends))


@settings(max_examples=60, deadline=None)
@given(
    tilings(),
    st.sampled_from(NAMES),
    st.integers(1, 3),
    st.sampled_from([(2**14, 2**24), (8, 32), (0, 1)]),
)
def test_any_box_of_any_tiling(
    tmp_path_factory: pytest.TempPathFactory,
    tiling: tuple[tuple[int, ...], list[Box], Box],
    dtype: str,
    ranks: int,
    pieces: tuple[int, int],
) -> None:
    """Also where rows are long, and what is read at once is short."""
    shape, boxes, box = tiling
    array = values(shape, dtype)
    folder = CheckpointFolder(tmp_path_factory.mktemp("run"))
    place = save(folder, 1, {"a/b": array, "other": values((3,))}, {"a/b": boxes}, ranks)
    part = array[(*cut(box), ...)].copy()
    with pytest.MonkeyPatch.context() as patch:
        for name, size in zip(("_SHORT", "_PIECE"), pieces, strict=True):
            patch.setattr(f"hyparflow.formats.checkpoint.opened_shards.{name}", size)
        reader = CheckpointReader(place)
        assert same_bytes(reader.read("a/b"), array)
        assert same_bytes(reader.read("a/b", *box), part)
        into = np.zeros(part.shape[::-1], part.dtype).T  # in the other order
        assert reader.read("a/b", *box, into=into) is into and same_bytes(into, part)
        assert [found.faults for found in verify(folder)] == [[]]


@settings(max_examples=60, deadline=None)
@given(tilings(), st.data())
def test_a_tiling_with_a_fault_is_found(
    tiling: tuple[tuple[int, ...], list[Box], Box], data: st.DataObject
) -> None:
    """One that is left out, or takes the place of another of the same size."""
    shape, boxes, _ = tiling
    assert fault_of_tiling(shape, boxes) == ""
    filled = [box for box in boxes if all(a < b for a, b in zip(*box, strict=True))]
    if len(filled) > 1:
        gone = data.draw(st.sampled_from(filled))
        rest = [box for box in boxes if box != gone]
        assert "elements" in fault_of_tiling(shape, rest)
        size = np.prod(np.subtract(gone[1], gone[0]))
        twice = [box for box in filled if box != gone and np.prod(np.subtract(*box[::-1])) == size]
        if twice:
            assert "overlap" in fault_of_tiling(shape, [*rest, twice[0]])


@pytest.mark.parametrize("count", [65, 2000, 10_000])
def test_many_shards(count: int) -> None:
    """Rows of a long tensor: whole, and with one row twice in place of its neighbour."""
    rows: list[Box] = [((row, 0), (row + 1, 4)) for row in range(count)]
    random.Random(0).shuffle(rows)
    assert fault_of_tiling((count, 4), rows) == ""
    assert "overlap" in fault_of_tiling((count, 4), [*rows[:-1], rows[0]])


def test_a_pinwheel() -> None:
    """Boxes between which no plane passes."""
    boxes: list[Box] = [
        ((0, 0), (1, 2)), ((0, 2), (2, 3)), ((2, 1), (3, 3)), ((1, 0), (3, 1)), ((1, 1), (2, 2)),
    ]  # fmt: skip
    assert fault_of_tiling((3, 3), boxes) == ""
    assert "overlap" in fault_of_tiling((3, 3), [*boxes[:-1], ((0, 0), (1, 1))])


@pytest.mark.parametrize("dtype", NAMES)
def test_safetensors_reads_the_file(tmp_path: Path, dtype: str) -> None:
    """The library of the format itself, and all types of elements."""
    arrays = {
        "k": values((3, 5), dtype),
        "scalar": values((), dtype),
        "none": values((0, 2), dtype),
    }
    specs = [ShardSpec(key, dtype, array.shape) for key, array in arrays.items()]
    path = tmp_path / shard_name(0)
    write_shards(path, specs, arrays.values())
    with safe_open(path, "np") as file:
        assert sorted(file.keys()) == sorted(arrays)
        for key, array in arrays.items():
            assert file.get_slice(key).get_shape() == list(array.shape)
    stored = dict(deserialize(path.read_bytes()))  # get_tensor knows no float8 of NumPy
    for key, array in arrays.items():
        assert bytes(stored[key]["data"]) == array.tobytes()
        assert stored[key]["dtype"] == stored_name(dtype)


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a.T,
        lambda a: a[::2, 1:],
        lambda a: a.astype(">f4"),
        lambda a: a[:1].T[::3],
        lambda a: np.broadcast_to(a[0], (3, *a[0].shape)),
    ],
    ids=["transposed", "strided", "big-endian", "column", "broadcast"],
)
def test_views_are_written_as_they_are_seen(
    tmp_path: Path, view: Callable[[np.ndarray], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pieces far smaller than they are."""
    monkeypatch.setattr("hyparflow.formats.checkpoint.shard_file._PIECE", 64)
    array = view(np.arange(40 * 30, dtype=np.float32).reshape(40, 30))
    path = tmp_path / shard_name(0)
    sums = write_shards(path, [ShardSpec("k", "float32", array.shape)], [array])
    plain = np.ascontiguousarray(array, np.float32)
    again = write_shards(
        tmp_path / shard_name(1), [ShardSpec("k", "float32", array.shape)], [plain]
    )
    assert sums == again
    with safe_open(path, "np") as file:
        assert same_bytes(file.get_tensor("k"), plain)


def test_arrays_may_be_made_one_by_one(tmp_path: Path) -> None:
    """Ten tensors of 20 MB, of which one is there at a time."""
    shape = (5_000_000,)
    path = tmp_path / shard_name(0)

    def arrays() -> Iterator[np.ndarray]:
        for number in range(10):
            yield np.full(shape, number, np.float32)

    import tracemalloc

    tracemalloc.start()
    try:
        write_shards(path, [ShardSpec(str(n), "float32", shape) for n in range(10)], arrays())
        assert tracemalloc.get_traced_memory()[1] < 60e6  # the last one, and the next one
    finally:
        tracemalloc.stop()
    with safe_open(path, "np") as file:
        assert all((file.get_tensor(str(n)) == n).all() for n in range(10))


def test_other_arrays_than_announced_are_refused(tmp_path: Path) -> None:
    path, spec = tmp_path / shard_name(0), ShardSpec("k", "float32", (2,))
    wrong: list[list[np.ndarray]] = [
        [], [np.zeros(2)], [np.zeros(3, np.float32)], [np.zeros(2, np.float32)] * 2,
    ]  # fmt: skip
    for arrays in wrong:
        with pytest.raises(ValueError, match="as the header of their file says"):
            write_shards(path, [spec], arrays)
        assert not path.exists()
    with pytest.raises(ValueError, match="A checkpoint holds tensors of"):
        write_shards(path, [ShardSpec("k", "complex128", (2,))], [np.zeros(2, complex)])
    with pytest.raises(ValueError, match="a key of their own"):
        write_shards(path, [spec, spec], [np.zeros(2, np.float32)] * 2)


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """No file grows beyond 4 KiB, as on a full disk."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_a_full_disk(tmp_path: Path) -> None:
    """Full while shards are written, and while the index is: the older checkpoint stays."""
    folder = CheckpointFolder(tmp_path)
    save(folder, 1, {"a": values((4,))})
    with small_files(), pytest.raises(OSError) as caught:
        save(folder, 2, {"a": values((4000,))})
    assert str(caught.value.filename) == str(folder.step(2) / shard_name(0))
    assert list(folder.step(2).iterdir()) == []
    with small_files(), pytest.raises(OSError) as caught:
        save(folder, 3, {"a": values((4,))}, state={"text": "x" * 5000})
    assert "index.json" in str(caught.value.filename)
    assert folder.committed() == [1] and folder.unfinished() == [3]
    save(folder, 4, {"a": values((4,))})
    assert folder.committed() == [1, 4] and folder.unfinished() == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, if this process may make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(words, capture_output=True, timeout=30).returncode:
        pytest.skip("only root may mount a disk, and not in each container")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True, timeout=30)


def test_a_disk_that_fills_up(small_disk: Path) -> None:
    """Checkpoints until there is no more room, and again once older ones are gone."""
    folder, step = CheckpointFolder(small_disk / "run"), 0
    tensors = {"k": values((64, 128))}
    with pytest.raises(OSError) as caught:
        while step < 20:
            step += 1
            save(folder, step, tensors)
    assert caught.value.errno == errno.ENOSPC and "rank-0000" in str(caught.value)
    assert folder.unfinished() == [step] and folder.newest() == step - 1 > 2
    assert all(found.faults == [] for found in verify(folder))
    folder.prune(2)
    save(folder, step, tensors)
    assert folder.newest() == step and next(verify(folder)).faults == []


def test_only_the_bytes_needed_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 64 GB that is all hole but for its header, of which one row is read."""
    folder = CheckpointFolder(tmp_path)
    place = folder.begin(1)
    rows, width = 2**23, 2**11
    from hyparflow.formats.checkpoint.shard_header import encode_header

    header = encode_header([ShardSpec("k", "float32", (rows, width))])
    path = place / shard_name(0)
    row = values((width,))
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(len(header) + rows * width * 4)
        file.seek(len(header) + 5_000_000 * width * 4)
        file.write(row.tobytes())
    shard = ShardEntry(path.name, "k", (0, 0), (rows, width), "xxh3:" + "0" * 16)
    tensor = TensorEntry((rows, width), "float32", (shard,))
    folder.commit(1, an_index(1, {"k": tensor}, {path.name: path.stat().st_size}))
    count, original = [0], os.preadv

    def counted(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        count[0] += sum(len(buffer) for buffer in buffers)
        return original(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", counted)
    read = CheckpointReader(place).read("k", (5_000_000, 0), (5_000_002, width))
    assert same_bytes(read[0], row) and not read[1].any()
    assert count[0] == len(header) + 2 * width * 4
    read = CheckpointReader(place).read("k", (5_000_000, 7), (5_000_002, 9))
    assert same_bytes(read[0], row[7:9])
    assert count[0] == 2 * (len(header) + 2 * width * 4)  # rows that are short are read whole


def test_a_file_that_is_cut_short_while_it_is_open(tmp_path: Path) -> None:
    """An error, and not the end of the process by SIGBUS."""
    place = save(CheckpointFolder(tmp_path), 1, {"k": values((10_000,))}, ranks=1)
    reader = CheckpointReader(place)
    assert reader.read("k", (0,), (1,)).shape == (1,)
    os.truncate(place / shard_name(0), 8000)
    with pytest.raises(OSError, match="is damaged.*it ends at byte 8000"):
        reader.read("k")


def test_what_is_read_must_be_there(tmp_path: Path) -> None:
    reader = CheckpointReader(save(CheckpointFolder(tmp_path), 1, {"a": values((4, 2))}))
    with pytest.raises(ValueError, match="is asked for tensors that it holds.*'b'"):
        reader.read("b")
    for start, stop in [((0,), (1,)), ((0, 0), (5, 2)), ((-1, 0), (1, 1)), ((2, 0), (1, 1))]:
        with pytest.raises(ValueError, match="A box that is read lies within"):
            reader.read("a", start, stop)
    for into in (np.zeros((4, 3), np.float32), np.zeros((4, 2))):
        with pytest.raises(ValueError, match="into an array of its own type"):
            reader.read("a", into=into)


ONE = {"dense/kernel": values((6, 4)), "dense/bias": values((4,), "bfloat16")}


def damage(path: Path, at: int, how: Callable[[int], int]) -> None:
    data = bytearray(path.read_bytes())
    data[at] = how(data[at])
    path.write_bytes(data)


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    """At each place of a file: by the reader if it reads there, and by `verify`."""
    folder = CheckpointFolder(tmp_path)
    place = save(folder, 1, ONE, {"dense/kernel": halves((6, 4))})
    for path in sorted(place.iterdir()):
        whole = path.read_bytes()
        for at in range(len(whole)):
            damage(path, at, lambda byte: byte ^ 0x10)
            (found,) = verify(folder)
            assert found.faults, f"byte {at} of {path.name}"
            assert all(path.name in fault for fault in found.faults)
            path.write_bytes(whole)
        assert next(verify(folder)).faults == []


def test_the_reader_names_file_and_tensor(tmp_path: Path) -> None:
    place = save(CheckpointFolder(tmp_path), 1, ONE, {"dense/kernel": halves((6, 4))})
    damage(place / shard_name(1), -1, lambda byte: byte ^ 1)
    words = rf"`dense/kernel` in .*step-0000000001/{shard_name(1)} is damaged"
    with pytest.raises(ValueError, match=words):
        CheckpointReader(place).read("dense/kernel")
    # A part of a shard has no checksum of its own, and whoever asks for none gets none.
    assert CheckpointReader(place).read("dense/kernel", (4, 0), (6, 4)).shape == (2, 4)
    assert CheckpointReader(place, is_checked=False).read("dense/kernel").shape == (6, 4)


def test_missing_and_cut_files_are_found(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    path = save(folder, 1, ONE) / shard_name(1)
    whole = path.read_bytes()
    for size in (0, 4, 8, 20, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert [path.name in fault for fault in quick_check(folder, 1).faults] == [True]
    path.write_bytes(whole + b"\0")
    assert "were written" in quick_check(folder, 1).faults[0]
    path.unlink()
    assert str(path) in quick_check(folder, 1).faults[0] and len(next(verify(folder)).faults) == 1
    path.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_bytes(whole)
    assert len(quick_check(folder, 1).faults) == 1
    path.unlink()
    os.mkfifo(path)
    assert "named pipe" in quick_check(folder, 1).faults[0]


def test_a_header_that_contradicts_the_index(tmp_path: Path) -> None:
    """The same bytes as another type, as another shape, or of another tensor."""
    folder = CheckpointFolder(tmp_path)
    path = save(folder, 1, {"k": values((2, 4))}, ranks=1) / shard_name(0)
    whole = path.read_bytes()
    swaps = [
        (b'"F32"', b'"I32"'),
        (b"[2,4]", b"[4,2]"),
        (b'"k:0"', b'"k:1"'),
        (b"[0,32]", b"[8,32]"),
    ]
    for old, new in swaps:
        assert whole.count(old) == 1
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(ValueError, match="is damaged"):
            CheckpointReader(path.parent).read("k", (0, 0), (1, 1))
        assert len(quick_check(folder, 1).faults) == 1


def hostile(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], bytes]:
    def changed(content: dict[str, Any]) -> bytes:
        change(content)
        return json.dumps(content).encode()

    return changed


def shard(content: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = content["tensors"]["k"]["shards"][0]
    return found


def rename(content: dict[str, Any], name: str) -> None:
    content["files"][name] = content["files"].pop(shard_name(0))
    shard(content)["file"] = name


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], bytes], str]] = {
    "upwards": (hostile(lambda c: rename(c, "../rank-00000.safetensors")), "no name of a file"),
    "absolute": (hostile(lambda c: rename(c, "/etc/passwd")), "no name of a file"),
    "newline": (hostile(lambda c: rename(c, "rank-00000.safetensors\n")), "no name of a file"),
    "other digits": (hostile(lambda c: rename(c, "rank-٠٠٠٠٠.safetensors")), "no name of a file"),
    "the index": (hostile(lambda c: rename(c, "index.json")), "no name of a file"),
    "state as shards": (hostile(lambda c: rename(c, "state-a.json")), "not among the files"),
    "unknown file": (hostile(lambda c: shard(c).update(file=shard_name(7))), "not among"),
    "huge": (
        hostile(lambda c: (c["tensors"]["k"].update(shape=[2**50, 2**50]),
                           shard(c).update(stop=[2**50, 2**50]))),
        "too small for its tensors",
    ),
    "huge dimension": (hostile(lambda c: c["tensors"]["k"].update(shape=[2**60, 4])), "<= 9007"),
    "negative": (hostile(lambda c: shard(c).update(start=[-1, 0])), ">= 0"),
    "a float": (hostile(lambda c: shard(c).update(start=[0.5, 0])), "Expected `int`"),
    "gap": (hostile(lambda c: shard(c).update(start=[1, 0])), "have 4 elements, and it has 8"),
    "outside": (hostile(lambda c: shard(c).update(stop=[3, 4])), "does not lie within"),
    "axes": (hostile(lambda c: shard(c).update(start=[0], stop=[2])), "axes"),
    "33 axes": (hostile(lambda c: c["tensors"]["k"].update(shape=[1] * 33)), "33 axes"),
    "no shards": (hostile(lambda c: c["tensors"]["k"].update(shards=[])), "0 shards"),
    "twice": (
        hostile(lambda c: c["tensors"].update(other=c["tensors"]["k"])), "is used twice"
    ),
    "dtype": (hostile(lambda c: c["tensors"]["k"].update(dtype="object")), "holds tensors of"),
    "checksum": (hostile(lambda c: shard(c).update(checksum="md5:0")), "no checksum"),
    "no checksum": (hostile(lambda c: c.pop("checksum")), "its own checksum"),
    "changed": (hostile(lambda c: c.update(epoch=7)), "its own checksum"),
    "version": (hostile(lambda c: c.update(version=2, more=1)), "version 2"),
    "older": (hostile(lambda c: c.update(version=0)), "version 0"),
    "unknown field": (hostile(lambda c: c.update(more=1)), "`more`"),
    "missing field": (hostile(lambda c: c.pop("layout")), "`layout`"),
    "NaN": (hostile(lambda c: c["state"].update(loss=float("nan"))), "malformed"),
    "infinite": (hostile(lambda c: c["state"].update(loss=float("inf"))), "malformed"),
    "too large": (lambda c: json.dumps(c).replace('"s": 1', '"s": 1e999').encode(), "out of range"),
    "deep": (
        lambda c: json.dumps(c).replace('"s": 1', '"s": ' + "[" * 99 + "]" * 99).encode(), "deep"
    ),
    "deeper": (
        lambda c: json.dumps(c).replace('"s": 1', '"s": ' + "[" * 10**6).encode(), "recursion"
    ),
    "twice in JSON": (
        lambda c: json.dumps(c).replace('"s": 1', '"s": 1, "s": 1').encode(), "`s` stands"
    ),
    "not UTF-8": (lambda c: json.dumps(c).encode().replace(b'"s"', b'"\xff"'), "Received"),
    "empty": (lambda c: b"", "Received"),
    "no object": (lambda c: b"[]", "Expected `object`"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_indices(tmp_path: Path, name: str) -> None:
    """One ValueError that names the file, whoever reads it; nothing large is allocated."""
    change, words = HOSTILE[name]
    folder = CheckpointFolder(tmp_path)
    place = save(folder, 1, {"k": values((2, 4))}, ranks=1, state={"s": 1})
    path = place / "index.json"
    path.write_bytes(change(json.loads(path.read_bytes())))
    with pytest.raises(ValueError) as caught:
        CheckpointReader(place)
    message = str(caught.value)
    assert words in message and str(path) in message
    assert message.startswith("The index of a checkpoint must be one that hyparflow wrote.")
    assert next(verify(folder)).faults == [message]


@pytest.mark.parametrize(
    "state",
    [{"a": float("nan")}, {"a": [float("inf")]}, {1: 2}, {"a": (1,)}, {"a": 2**64}, {"a": {1}},
     {"a": np.float32(1)}, {"a": b"x"}, {"a": "\ud800"}],
)  # fmt: skip
def test_a_state_that_json_would_change_is_refused(tmp_path: Path, state: dict[str, Any]) -> None:
    folder = CheckpointFolder(tmp_path)
    with pytest.raises(ValueError, match="The index of a checkpoint must be one"):
        save(folder, 1, {"k": values((2,))}, state=state)
    assert folder.committed() == []


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    state = {
        "a": [1, -(2**63), 2**64 - 1, 0.1, -0.0, 1e300, 5e-324, None, True, "ä\u2028\0"],
        "": {},
    }
    place = save(CheckpointFolder(tmp_path), 1, {"k": values((2,))}, state=state)
    again = CheckpointReader(place).index.state
    assert again == state and str(again) == str(state)


def test_an_index_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    place = save(folder, 1, {"k": values((2, 4))}, ranks=1)
    good = read_index(place / "index.json")
    tensor = good.tensors["k"]
    bad = msgspec.structs.replace(tensor, shape=(np.int64(2), np.int64(5)))
    with pytest.raises(ValueError, match="must be one that hyparflow wrote"):
        encoded(msgspec.structs.replace(good, tensors={"k": bad}))
    with pytest.raises(ValueError, match="must be one that hyparflow wrote"):
        encoded(msgspec.structs.replace(good, epoch=-1))
    place = folder.begin(2)
    with pytest.raises(ValueError, match="after all its files were written.*nothing at"):
        folder.commit(2, msgspec.structs.replace(good, step=2))
    with pytest.raises(ValueError, match="after all its files were written.*of step 1"):
        folder.commit(2, good)
    assert folder.committed() == [1]


def test_steps_come_and_go(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "new" / "run")
    assert folder.committed() == [] and folder.newest() is None and folder.unfinished() == []
    for step in (10, 20, 30, 40, 50):
        save(folder, step, ONE)
    assert folder.committed() == [10, 20, 30, 40, 50] and folder.newest() == 50
    with pytest.raises(ValueError, match="A step is saved once"):
        folder.begin(30)
    assert folder.prune(2, also_kept=[20]) == [10, 30]
    assert folder.committed() == [20, 40, 50]
    assert folder.prune(0) == [20, 40] and folder.committed() == [50]
    (folder.begin(60) / shard_name(0)).write_bytes(b"half")
    assert folder.unfinished() == [60] and folder.newest() == 50
    folder.begin(55)
    assert folder.unfinished() == [55] and not folder.step(60).exists()


def test_what_a_killed_rank_was_writing_goes(tmp_path: Path) -> None:
    """A file that was to take another's place, and never did, in the folder of an older step."""
    folder = CheckpointFolder(tmp_path)
    place = folder.begin(1)
    with contextlib.suppress(Killed), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # it could do nothing any more
        with replacing(place / state_name("share-00001")):
            raise Killed
    assert len(list(place.iterdir())) == 1
    (place / ".hyparflow-host-1-0123456789abcdef-notes.json").write_text("mine")
    save(folder, 2, ONE)
    assert folder.unfinished() == [1]
    assert [path.name[-10:] for path in place.iterdir()] == ["notes.json"]
    (place / ".hyparflow-host-1-0123456789abcdef-notes.json").unlink()
    save(folder, 3, ONE)
    assert folder.unfinished() == [] and folder.committed() == [2, 3]


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    """Files beside the steps and within, links, and names that are nearly ours."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / shard_name(0)).write_text("mine")
    run = tmp_path / "run"
    folder = CheckpointFolder(run)
    save(folder, 1, ONE)
    (run / "step-0000000002").symlink_to(outside)
    for name in ("step-3", "step-0000000003x", "notes", "step-00000000004"):
        (run / name).mkdir()
        (run / name / "index.json").write_text("mine")
    (folder.step(1) / "notes.json").write_text("mine")
    (folder.step(1) / shard_name(9)).mkdir()
    (folder.step(1) / shard_name(8)).symlink_to(outside / shard_name(0))
    save(folder, 5, ONE)
    assert folder.committed() == [1, 5]
    folder.prune(1)
    folder.begin(6)
    assert folder.committed() == [5]
    kept = sorted(path.name for path in folder.step(1).iterdir())
    assert kept == ["notes.json", shard_name(9)]
    assert (outside / shard_name(0)).read_text() == "mine"
    assert (run / "step-00000000004" / "index.json").read_text() == "mine"
    assert (run / "step-0000000002").is_symlink()
    (run / "step-0000000007").symlink_to(outside)
    with pytest.raises(FileExistsError):
        folder.begin(7)
    assert step_of("step-٠٠٠٠٠٠٠٠٠٠") is None


class Killed(BaseException):
    """The process ends here."""


def killed_at(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process end before the call number `count` that changes or syncs a folder."""
    left = [count]

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return function(*arguments, **named)

        return call

    for name in ("unlink", "rmdir", "rename", "fsync", "mkdir"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))


def test_each_moment_to_be_killed_at(tmp_path: Path) -> None:
    """A save and a removal that end before each of their calls, one after the other."""
    moments = 0
    for count in range(200):
        folder = CheckpointFolder(tmp_path / str(count))
        save(folder, 1, ONE)
        save(folder, 2, ONE)
        (folder.begin(9) / shard_name(0)).write_bytes(b"half")
        with pytest.MonkeyPatch.context() as patch:
            killed_at(count, patch)
            try:
                save(folder, 3, ONE)
                folder.prune(1)
            except Killed:
                moments += 1
        assert all(found.faults == [] for found in verify(folder)), count
        assert folder.newest() in (2, 3), count
        if moments == count:  # it came to its end
            break
        save(folder, 4, ONE)  # whatever is there, the next one can be saved
        assert folder.newest() == 4 and folder.unfinished() == []
    assert 15 < moments < 100 and folder.committed() == [3]


WRITER = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[2])
from test_checkpoint_files import ONE, CheckpointFolder, halves, save, values

folder = CheckpointFolder(sys.argv[1])
step = (folder.newest() or 0) + 1
print("ready", flush=True)
while True:
    tensors = {"k": values((64, 64), seed=step)}
    save(folder, step, tensors, {"k": halves((64, 64))}, ranks=4)
    folder.prune(2)
    step += 1
"""


def test_a_killed_writer_leaves_whole_checkpoints(tmp_path: Path) -> None:
    """Killed at random moments of saving and removing: what is committed is always whole."""
    folder, chance, newest = CheckpointFolder(tmp_path / "run"), random.Random(), 0
    seed = chance.randrange(2**32)
    chance.seed(seed)
    unfinished = 0
    for _ in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder.path), str(Path(__file__).parent)],
            stdout=subprocess.PIPE,
        )
        try:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            time.sleep(chance.uniform(0.05, 0.25))
        finally:
            process.kill()
            process.communicate()
        found = list(verify(folder))
        assert [one.faults for one in found] == [[]] * len(found), f"seed {seed}"
        committed = folder.committed()
        assert len(committed) <= 3 and (folder.newest() or 0) >= newest, f"seed {seed}"
        newest = folder.newest() or 0
        unfinished += len(folder.unfinished())
        if newest:
            read = CheckpointReader(folder.step(newest)).read("k")
            assert same_bytes(read, values((64, 64), seed=newest)), f"seed {seed}"
    assert newest > 3
