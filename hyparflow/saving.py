"""Files are complete or not there: written under a temporary name, synced, renamed.

After a parallel `fit`, a script's plain `model.save("m.keras")` runs on every rank. With a name
of its own for each rank's temporary file, and a rename at the end, they cannot spoil each other's
file, whichever ranks call it.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import Any

__all__ = ["save_atomically", "use_atomic_saves"]

_METHODS = ("save", "save_weights")


def save_atomically(model: Any, path: str | os.PathLike[str], **kwargs: Any) -> None:
    """Keras's `save` of `model` to `path`, by way of a temporary file beside it."""
    _write(type(model).save.__get__(model), path, **kwargs)


def use_atomic_saves(model: Any) -> None:
    """Let `save` and `save_weights` of this model object write atomically from now on."""
    for name in _METHODS:
        original = getattr(type(model), name).__get__(model)
        vars(model)[name] = _atomic(original)


def _atomic(original: Callable[..., Any]) -> Callable[..., Any]:
    def save(filepath: Any, *args: Any, **kwargs: Any) -> Any:
        return _write(original, filepath, *args, **kwargs)

    save.__doc__ = original.__doc__
    return save


def _write(original: Callable[..., Any], filepath: Any, *args: Any, **kwargs: Any) -> Any:
    """Call `original` on a temporary name beside `filepath`, sync it and rename it.

    What is not a plain new file (a directory, several files that name each other, a prompt before
    overwriting) is left to Keras.
    """
    path = pathlib.Path(filepath) if isinstance(filepath, str | os.PathLike) else None
    several = kwargs.get("zipped") is False or kwargs.get("max_shard_size") is not None
    if path is None or args or not kwargs.get("overwrite", True) or several:
        return original(filepath, *args, **kwargs)
    name = f".{path.name.split('.')[0]}-{os.uname().nodename}-{os.getpid()}"
    suffix = path.name[len(path.name.split(".")[0]) :]
    temporary = path.with_name(name + suffix)
    try:
        result = original(temporary, **kwargs)
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return result
