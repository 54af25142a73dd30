"""Sends a function and its arguments to new processes as files, and the results back.

Code and small values are pickled by cloudpickle, which takes functions of a notebook. Large arrays
are files of their own, which ranks map into memory instead of reading a copy each.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hyparflow.comm.portable_errors import portable
from hyparflow.launching.folder import explain_out_of_space
from hyparflow.launching.installation import install_command
from hyparflow.launching.pickled_models import is_model, keras_settings, reduce_model

__all__ = ["RemoteCall", "Outcome", "read_call", "read_outcomes", "write_call", "write_outcome"]

_LARGE = 1 << 20  # bytes; a larger array is a file of its own
_PLAIN = "biufc"  # kinds of numbers that NumPy's files can hold
_CALL, _OUTCOME = "call", "outcome-{}"


class RemoteCall(NamedTuple):
    """A function and its arguments."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Outcome(NamedTuple):
    """How a call ended on a rank.

    Attributes:
        rank: the rank.
        value: the value that it returned.
        error: the error that it raised, or None.
        text: the traceback of the error.
    """

    rank: int
    value: Any = None
    error: BaseException | None = None
    text: str = ""


def write_call(folder: Path, call: RemoteCall) -> None:
    """Write a call into `folder`, and "place.json", which a process must read before the call.

    It holds the working folder and module path of this process, and Keras's settings.

    Raises:
        RuntimeError: if there is no space left.
        ValueError: if something in it cannot be sent to another process.
    """
    with explain_out_of_space(folder):
        (folder / "place.json").write_text(json.dumps([sys.path, os.getcwd(), keras_settings()]))
    _write(folder, _CALL, tuple(call))


def read_call(folder: Path) -> RemoteCall:
    """Read the call that `write_call` wrote."""
    return RemoteCall(*_read(folder, _CALL))


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Write how a call ended; a value that cannot be sent becomes an error."""
    name = _OUTCOME.format(outcome.rank)
    try:
        _write(folder, name, _as_sent(outcome))
    except (RuntimeError, ValueError) as error:
        for part in (*folder.glob(f"array-{name}-*"), *folder.glob(f"part-{name}")):
            part.unlink()  # there may be space for the error then
        text = "".join(traceback.format_exception(error))
        _write(folder, name, _as_sent(Outcome(outcome.rank, error=error, text=text)))


def _as_sent(outcome: Outcome) -> tuple[Any, ...]:
    import cloudpickle

    recipe = outcome.error and portable(outcome.error, cloudpickle.dumps)
    return outcome.rank, outcome.value, recipe, outcome.text


def read_outcomes(folder: Path) -> list[Outcome]:
    """How the call ended, on the ranks that have written it, in the order of writing."""
    paths = sorted(folder.glob(_OUTCOME.format("*")), key=lambda path: path.stat().st_mtime_ns)
    found = [_read(folder, path.name) for path in paths]
    return [
        Outcome(rank, value, recipe and recipe[0](*recipe[1]), text)
        for rank, value, recipe, text in found
    ]


def _write(folder: Path, name: str, value: Any) -> None:
    """Pickle `value`: the file is complete or not there."""
    buffer = io.BytesIO()
    try:
        with explain_out_of_space(folder):
            _pickler(buffer, folder, name).dump(value)
            part = folder / f"part-{name}"
            part.write_bytes(buffer.getvalue())
            part.replace(folder / name)
    except Exception as error:  # pickling runs the code of what is pickled
        if isinstance(error, RuntimeError) and isinstance(error.__cause__, OSError):
            raise
        raise ValueError(
            "What goes to the ranks and comes back must be possible to pickle. "
            f"Received: {type(error).__name__}: {error}"
        ) from error


def _read(folder: Path, name: str) -> Any:
    with (folder / name).open("rb") as file:
        return _Unpickler(file, folder).load()


def _pickler(buffer: io.BytesIO, folder: Path, name: str) -> Any:
    try:
        import cloudpickle
    except ImportError as error:
        raise ImportError(
            "To start ranks for a function, hyparflow needs cloudpickle. Received: an environment "
            f"without it. Install it by: {install_command('notebook')}"
        ) from error

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        """Leaves large arrays in files."""

        known: dict[int, tuple[Any, ...]] = {}

        def persistent_id(self, value: Any) -> Any:
            # A subclass pickles itself, with its further parts, such as a mask.
            if type(value) not in (np.ndarray, np.memmap) or value.nbytes < _LARGE:
                return None
            if value.dtype.kind not in _PLAIN:
                return None
            if id(value) not in self.known:
                self.known[id(value)] = _as_file(
                    value, folder, f"array-{name}-{len(self.known)}.npy"
                )
            return self.known[id(value)]

        def reducer_override(self, value: Any) -> Any:
            if is_model(value):
                return reduce_model(value)
            return super().reducer_override(value)

    return Pickler(buffer, protocol=5)


def _as_file(array: np.ndarray, folder: Path, name: str) -> tuple[Any, ...]:
    """Write an array to a file: (file name, whether it is mapped, and for a mapped part of a file
    its offset, type and shape).
    """
    mapped = isinstance(array, np.memmap) and array.filename and array.mode in ("r", "r+")
    if mapped and array.flags.c_contiguous and not isinstance(array.base, np.ndarray):
        return str(array.filename), True, array.offset, array.dtype.str, array.shape  # type: ignore[attr-defined]
    np.save(folder / name, array)  # keeps Fortran order
    return name, isinstance(array, np.memmap)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, folder: Path) -> None:
        super().__init__(file)
        self._folder = folder
        self._known: dict[Any, np.ndarray] = {}

    def persistent_load(self, key: Any) -> Any:
        # "c", copy on write: changes by a rank stay its own.
        if key not in self._known:
            name, is_mapped, *rest = key
            if rest:
                offset, dtype, shape = rest
                self._known[key] = np.memmap(name, dtype, "c", offset, shape)
            else:
                array = np.load(self._folder / name, mmap_mode="c")
                self._known[key] = array if is_mapped else array.view(np.ndarray)
        return self._known[key]
