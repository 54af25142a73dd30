"""Saves models completely or not at all, whichever ranks save them.

After a parallel `fit`, a script's plain `model.save("m.keras")` runs on every rank. Each rank's
temporary file has a name of its own, and a rename ends the save, so ranks cannot damage each
other's file. For the same reason files of callbacks, and of jobs that are killed while they save,
are complete.
"""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyparflow.formats.writing import folder_beside, replacing
from hyparflow.model.keras_internals.saved_model import exporting_by_disk

__all__ = ["save_atomically", "use_atomic_saves"]

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
_LAST = (".json", ".pb")  # files that name others; a SavedModel's "saved_model.pb" comes last


def save_atomically(
    model: Any, path: str | os.PathLike[str], method: str = "save", **kwargs: Any
) -> None:
    """Keras's `save`, `save_weights` or `export` of `model`, by way of a temporary name."""
    write = _export if method == "export" else _write
    write(_own(model, method), path, **kwargs)


def use_atomic_saves(model: Any) -> None:
    """Let `save`, `save_weights` and `export` of this model write atomically from now on."""
    for name, write in (("save", _write), ("save_weights", _write), ("export", _export)):
        if hasattr(type(model), name):
            vars(model)[name] = _atomic(_own(model, name), write)


def _own(model: Any, name: str) -> Callable[..., Any]:
    """Keras's method, not the one that replaces it; one that has few weights in memory."""
    original = getattr(type(model), name).__get__(model)
    return exporting_by_disk(original) if name == "export" else original


def _atomic(original: Callable[..., Any], write: Callable[..., Any]) -> Callable[..., Any]:
    def save(filepath: Any, *args: Any, **kwargs: Any) -> Any:
        return write(original, filepath, *args, **kwargs)

    save.__doc__ = original.__doc__
    return save


def _write(original: Callable[..., Any], filepath: Any, *args: Any, **kwargs: Any) -> Any:
    """Call `original` on a temporary name beside `filepath`, and rename the result.

    Paths that are no local files (buckets, streams), and prompts before overwriting, are left to
    Keras.
    """
    if not _is_here(filepath):
        return original(filepath, *args, **kwargs)
    path = Path(os.fsdecode(filepath)).absolute()
    if args:
        kwargs = inspect.signature(original).bind(filepath, *args, **kwargs).arguments
        kwargs |= kwargs.pop("kwargs", {})
        del kwargs["filepath"]
    if not kwargs.get("overwrite", True):
        if os.path.lexists(path):
            return original(filepath, **kwargs)
        kwargs["overwrite"] = True  # the temporary file
    if kwargs.get("zipped") is False or kwargs.get("max_shard_size") is not None:
        return _write_several(original, path, kwargs)
    with replacing(path) as temporary:
        return original(temporary, **kwargs)


def _is_here(filepath: Any) -> bool:
    return isinstance(filepath, str | bytes | os.PathLike) and "://" not in os.fsdecode(filepath)


def _write_several(original: Callable[..., Any], path: Path, kwargs: dict[str, Any]) -> Any:
    """Let `original` write files that name each other; the index of them comes last."""
    with folder_beside(path) as folder:
        result = original(folder / path.name, **kwargs)
        _move(folder, path.parent)
    return result


def _move(folder: Path, parent: Path) -> None:
    """Move the content of `folder` into `parent`, file by file; other files there stay."""
    made: list[Path] = []
    for root, _, names in os.walk(folder):
        (parent / Path(root).relative_to(folder)).mkdir(parents=True, exist_ok=True)
        made += [Path(root, name) for name in names]
    for file in sorted(made, key=lambda file: (file.suffix in _LAST, file)):
        with replacing(parent / file.relative_to(folder)) as temporary:
            os.replace(file, temporary)


def _export(original: Callable[..., Any], filepath: Any, *args: Any, **kwargs: Any) -> Any:
    """Call Keras's `export` on a name in a folder beside `filepath`, and rename the result.

    A folder is renamed as a whole: its files belong together, and are not mixed with those of
    another rank. It does not replace a folder that another rank has put there in the meantime.
    """
    if not _is_here(filepath):
        return original(filepath, *args, **kwargs)
    path = Path(os.fsdecode(filepath)).absolute()
    path = path.resolve() if path.is_dir() else path
    path.parent.mkdir(parents=True, exist_ok=True)  # as TensorFlow does
    before = _identity(path)
    with folder_beside(path) as folder:
        made = folder / path.name
        # Some formats look at the ending of a text.
        given = made if isinstance(filepath, os.PathLike) else str(made)
        told = _Renaming(sys.stdout, str(made), os.fsdecode(filepath))
        with contextlib.redirect_stdout(told if sys.stdout else None):
            result = original(given, *args, **kwargs)
        if not made.is_dir():
            _move(folder, path.parent)
        elif _identity(path) == before:
            _put(made, path)
    return result


def _identity(path: Path) -> int | None:
    """The number that tells a folder from one that replaces it; None if there is no folder."""
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _put(made: Path, path: Path) -> None:
    """Put a folder into its place; files that only the older folder there has stay."""
    if not path.is_dir():
        try:
            os.rename(made, path)
        except OSError:
            if not path.is_dir():  # else another rank was faster
                raise
        return
    for root, _, names in os.walk(path):
        place = made / Path(root).relative_to(path)
        place.mkdir(exist_ok=True)
        shutil.copymode(root, place)
        for name in names:
            copy = shutil.copymode if os.path.lexists(place / name) else shutil.copy2
            copy(Path(root, name), place / name, follow_symlinks=False)
    if not _exchange(made, path):
        os.rename(path, made.with_name(f"{made.name}.older"))
        os.rename(made, path)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders at once; whether the system can."""
    words = (_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)
    try:
        return bool(ctypes.CDLL(None).renameat2(*words) == 0)
    except AttributeError:
        return False


class _Renaming:
    """A stream that replaces the temporary name by the user's in what Keras writes."""

    def __init__(self, stream: Any, old: str, new: str) -> None:
        self._stream, self._old, self._new = stream, old, new

    def write(self, text: str) -> Any:
        """Write `text` with the user's name."""
        return self._stream.write(text.replace(self._old, self._new))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
