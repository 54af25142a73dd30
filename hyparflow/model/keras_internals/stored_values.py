"""Weights that stay in their file until they are read.

Keras's own code loads a model: it walks the layers, opens the file, and assigns each array to its
variable. While `loading_later` is open, the arrays that it assigns are places in the file, and the
variable keeps such a place as the source of its value (`deferred_variables.py`). What else asks for
the array, like a layer that converts it first, reads it at once.

Reasons for private parts: Keras has no hook between its file and `Variable.assign`.
"""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Iterator
from typing import Any

import h5py
import keras
import ml_dtypes
import numpy as np
import tensorflow as tf
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.saving import saving_lib

from hyparflow.formats.file_part import FilePart, OpenFile
from hyparflow.model.keras_internals.deferred_variables import raw_variable, release
from hyparflow.model.keras_internals.patched import patched
from hyparflow.model.keras_internals.saving_beside import save_beside

__all__ = ["Stored", "loading_at_once", "loading_later", "saving_by_disk"]

_STORE: Any = saving_lib.H5IOStore
_ITEM, _OPEN = _STORE.__getitem__, _STORE._get_h5_file
_LOAD = saving_lib._load_model_from_fileobj
_AT_ONCE = "_hyparflow_at_once"  # attribute of the class of stores: nothing is read later
_PARTS = "_hyparflow_parts"  # attribute of a store: the files that it reads, by name
_HEADER, _LENGTHS = 30, slice(26, 30)  # bytes of the header of a member of an archive


class Stored:
    """An array in a file.

    Args:
        part: the file, or the part of one, that the array's file is.
        offset: of the array in it, in bytes.
        shape, dtype: of the array there.
        given: the type in which `__call__` returns it.
    """

    def __init__(
        self, part: FilePart, offset: int, shape: tuple[int, ...], dtype: Any, given: Any = None
    ) -> None:
        self._part, self._offset = part, offset
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._given = np.dtype(self.dtype if given is None else given)

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    def as_type(self, dtype: Any) -> Stored:
        """The same array, given in another type."""
        return Stored(self._part, self._offset, self.shape, self.dtype, dtype)

    def __call__(self) -> np.ndarray:
        """Read it."""
        values = np.empty(self.shape, self.dtype)
        self._part.file.read(self._part.start + self._offset, values.reshape(-1).view(np.uint8))
        return values.astype(self._given, copy=False)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self().astype(self._given if dtype is None else dtype, copy=False)

    def __getitem__(self, index: Any) -> Any:
        return self()[index]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for those that other ranks read from a file that looks the same."""
        place = self._part.start + self._offset
        return ("stored", self._part.file.key, place, self.shape, str(self.dtype), str(self._given))


@contextlib.contextmanager
def loading_later() -> Iterator[None]:
    """While open, what Keras loads from `.keras` and `.weights.h5` files is read when needed."""
    if _AT_ONCE in vars(_STORE):
        yield
        return
    save_beside()
    assign = keras.Variable.assign

    def assign_later(self: Any, value: Any) -> Any:
        eager = tf.executing_eagerly() and not in_stateless_scope()
        if isinstance(value, Stored) and eager and value.shape == tuple(self.shape):
            raw = raw_variable(self)
            if release(raw, value.as_type(raw.dtype.as_numpy_dtype)):
                return value
        return assign(self, np.asarray(value) if isinstance(value, Stored) else value)

    with (
        patched(_STORE, __getitem__=_stored, _get_h5_file=_opened),
        patched(saving_lib, _load_model_from_fileobj=_load_from_archive),
        patched(keras.Variable, assign=assign_later),
    ):
        yield


@contextlib.contextmanager
def loading_at_once() -> Iterator[None]:
    """While open, `loading_later` has no effect: what is assigned is seen by all who look."""
    with patched(_STORE, __getitem__=_ITEM, _get_h5_file=_OPEN, **{_AT_ONCE: True}):
        yield


@contextlib.contextmanager
def saving_by_disk() -> Iterator[None]:
    """While open, Keras writes the weights to a file before they go into a `.keras` archive."""
    with patched(saving_lib, is_memory_sufficient=lambda model: False):
        yield


def _load_from_archive(*args: Any, **kwargs: Any) -> Any:
    """Load a model from a `.keras` file, without a copy of the weights in it."""

    def refuse(model: Any) -> bool:
        raise MemoryError("the weights are read when they are needed")  # which Keras catches

    with patched(saving_lib, is_memory_sufficient=refuse):
        return _LOAD(*args, **kwargs)


def _opened(self: Any, path_or_io: Any, mode: str | None = None) -> Any:
    """Open the file of a store, and note where its arrays are to be read."""
    if (mode or self.mode) != "r":
        return _OPEN(self, path_or_io, mode)
    parts = vars(self).setdefault(_PARTS, {})
    part = _part(self.archive, path_or_io)
    if part is None:
        return _OPEN(self, path_or_io, mode)
    file = h5py.File(part, "r") if self.archive else _OPEN(self, path_or_io, mode)
    parts.setdefault(file.filename, part)
    return file


def _part(archive: zipfile.ZipFile | None, path_or_io: Any) -> FilePart | None:
    """The part of a file on this machine that the store reads; None if there is no such part."""
    if archive is None:
        if isinstance(path_or_io, io.IOBase):
            return None
        file = OpenFile(path_or_io)
        return FilePart(file, 0, file.size)
    member = archive.getinfo(str(path_or_io))
    name = archive.filename
    if name is None or member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        return None
    file = OpenFile(name)
    header = bytearray(_HEADER)
    file.read(member.header_offset, header)
    lengths = np.frombuffer(bytes(header[_LENGTHS]), "<u2")
    start = member.header_offset + _HEADER + int(lengths.sum())
    return FilePart(file, start, member.file_size)


def _stored(self: Any, key: str) -> Any:
    """The array of a store as a place in its file, where it is stored as it is."""
    group = self._h5_entry_group
    entry = group.get(key, None)
    part = None if entry is None else vars(self).get(_PARTS, {}).get(entry.file.filename)
    if part is None or not isinstance(entry, h5py.Dataset):
        return _ITEM(self, key)
    offset, dtype = entry.id.get_offset(), entry.dtype
    if entry.attrs.get("dtype") == "bfloat16" and dtype.itemsize == 2:
        dtype = np.dtype(ml_dtypes.bfloat16)
    if offset is None or entry.external or dtype.kind not in "fiubV" or dtype.names:
        return _ITEM(self, key)
    return Stored(part, offset, entry.shape, dtype)
