"""Reads any box of any tensor of a checkpoint, however its shards are cut."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hyparflow.formats.checkpoint.boxes import overlap, slices
from hyparflow.formats.checkpoint.dtypes import dtype_named
from hyparflow.formats.checkpoint.index import Index, TensorEntry, read_index
from hyparflow.formats.checkpoint.names import INDEX
from hyparflow.formats.checkpoint.opened_shards import OpenedShards
from hyparflow.formats.text import shortened

__all__ = ["CheckpointReader"]


class CheckpointReader:
    """The tensors of one step's folder; files are opened when something of them is read.

    Attributes:
        folder: of the step.
        index: what the checkpoint holds.

    Args:
        folder: of the step.
        is_checked: whether the checksum of a shard that is read as a whole is compared.

    Raises:
        ValueError: if its index cannot be read.
    """

    def __init__(self, folder: str | os.PathLike[str], is_checked: bool = True) -> None:
        self.folder = Path(folder)
        self._is_checked = is_checked
        self._files: dict[str, OpenedShards] = {}
        self.index: Index = read_index(self.folder / INDEX)

    def read(
        self,
        name: str,
        start: Sequence[int] | None = None,
        stop: Sequence[int] | None = None,
        into: np.ndarray | None = None,
    ) -> np.ndarray:
        """A box of a tensor; few more bytes are read than it has.

        Args:
            name: the tensor's.
            start, stop: the first index and the one after the last on each axis; by default the
                tensor is read as a whole.
            into: an array of the tensor's type and the box's shape to fill.

        Returns:
            `into`, or a new array.

        Raises:
            ValueError: if there is no such tensor or box, or a file is damaged.
            OSError: if a file cannot be read.
        """
        tensor = self._tensor(name)
        first = (0,) * len(tensor.shape) if start is None else tuple(start)
        last = tensor.shape if stop is None else tuple(stop)
        _require_inside(name, tensor, first, last)
        result = _target(name, tensor, slices(first, last, first), into)
        for shard in tensor.shards:
            if (common := overlap(first, last, shard.start, shard.stop)) is not None:
                place: Any = (*slices(*common, first), ...)  # with it, a scalar is a view as well
                part = result[place]
                file = self.file(shard.file)
                file.read(name, tensor, shard, slices(*common, shard.start), part)
                if self._is_checked and common == (shard.start, shard.stop):
                    file.check(name, tensor, shard, part)
        return result

    def check(self, name: str) -> None:
        """Read all shards of a tensor, and compare their checksums.

        Raises:
            ValueError: if one is damaged.
            OSError: if a file cannot be read.
        """
        tensor = self._tensor(name)
        for shard in tensor.shards:
            self.file(shard.file).check(name, tensor, shard)

    def file(self, name: str) -> OpenedShards:
        """A file of the index, opened once.

        Raises:
            ValueError: if it is not as the index says.
            OSError: if it cannot be opened.
        """
        if name not in self._files:
            self._files[name] = OpenedShards(self.folder / name, self.index.files[name])
        return self._files[name]

    def _tensor(self, name: str) -> TensorEntry:
        if name not in self.index.tensors:
            raise ValueError(
                f"A checkpoint is asked for tensors that it holds. Received: {shortened(name)} of "
                f"{self.folder}, which has {len(self.index.tensors)} others. "
                "Load it into the model that was saved."
            )
        return self.index.tensors[name]


def _require_inside(
    name: str, tensor: TensorEntry, start: tuple[int, ...], stop: tuple[int, ...]
) -> None:
    axes = len(tensor.shape)
    if not len(start) == len(stop) == axes or not all(
        0 <= a <= b <= c for a, b, c in zip(start, stop, tensor.shape, strict=True)
    ):
        raise ValueError(
            "A box that is read lies within its tensor. "
            f"Received: {list(start)} to {list(stop)} of {shortened(name)}, whose shape is "
            f"{list(tensor.shape)}. Load the checkpoint into the model that was saved."
        )


def _target(
    name: str, tensor: TensorEntry, box: tuple[slice, ...], into: np.ndarray | None
) -> np.ndarray:
    """The array to fill: the one given, if it is of the right kind, or a new one."""
    shape, dtype = tuple(part.stop for part in box), dtype_named(tensor.dtype)
    if into is None:
        return np.empty(shape, dtype)
    if into.shape != shape or into.dtype != dtype:
        raise ValueError(
            "A tensor is read into an array of its own type and of the box's shape. Received: "
            f"{into.dtype} of {list(into.shape)} for {shortened(name)}, which is {dtype} of "
            f"{list(shape)}. Load the checkpoint into the model that was saved."
        )
    return into
