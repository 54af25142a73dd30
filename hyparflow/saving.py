"""Models are saved complete or not at all, whichever ranks save them.

After a parallel `fit`, a script's plain `model.save("m.keras")` runs on every rank. With a name
of its own for each rank's temporary file, and a rename at the end, they cannot spoil each other's
file, whichever ranks call it.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyparflow.writing import folder_beside, replacing

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
    """Call `original` on a temporary name beside `filepath`; what it wrote takes its place.

    What is no file here (a bucket, a stream), and a prompt before overwriting, is left to Keras.
    """
    if not isinstance(filepath, str | bytes | os.PathLike) or "://" in os.fsdecode(filepath):
        return original(filepath, *args, **kwargs)
    path = Path(os.fsdecode(filepath)).absolute()
    if args:
        kwargs = inspect.signature(original).bind(filepath, *args, **kwargs).arguments
        kwargs |= kwargs.pop("kwargs", {})
        del kwargs["filepath"]
    if not kwargs.get("overwrite", True):
        if os.path.lexists(path):
            return original(filepath, **kwargs)
        kwargs["overwrite"] = True  # of the temporary file
    if kwargs.get("zipped") is False or kwargs.get("max_shard_size") is not None:
        return _write_several(original, path, kwargs)
    with replacing(path) as temporary:
        return original(temporary, **kwargs)


def _write_several(original: Callable[..., Any], path: Path, kwargs: dict[str, Any]) -> Any:
    """Let `original` write files that name each other; the index of them comes last."""
    with folder_beside(path) as folder:
        result = original(folder / path.name, **kwargs)
        made = [Path(root, name) for root, _, names in os.walk(folder) for name in names]
        for file in sorted(made, key=lambda file: (file.suffix == ".json", file)):
            place = path.parent / file.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            with replacing(place) as temporary:
                os.replace(file, temporary)
    return result
