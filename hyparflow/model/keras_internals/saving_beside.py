"""Files of which weights are still to be read, and to which the user saves: they are replaced.

Keras writes into the file that has the name. While `stored_values.py` holds that file open for
weights that nobody has read, a save writes a new one beside it, which then takes its name.

Reasons for private parts: models are saved by their methods and by functions of `keras.saving`,
which have nothing else in common.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keras.src.saving import saving_lib

from hyparflow.formats.file_part import open_files
from hyparflow.formats.writing import replacing

__all__ = ["save_beside"]

_SAVES = ("save_model", "save_weights_only")
_MARK = "_hyparflow_beside"  # attribute of a function that is in place of Keras's


def save_beside() -> None:
    """From now on, Keras writes no file from which weights are still to be read."""
    for name in _SAVES:
        original = getattr(saving_lib, name)
        if not hasattr(original, _MARK):
            setattr(saving_lib, name, _beside(original))


def _beside(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def save(model: Any, filepath: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(filepath, str | os.PathLike):
            return original(model, filepath, *args, **kwargs)
        held, path = open_files(), Path(filepath)
        if path.is_file() and any(path.samefile(file) for file in held):
            with replacing(path) as temporary:
                return original(model, temporary, *args, **kwargs)
        for file in held:
            if path.suffix == ".json" and _is_shard(file, path):
                file.unlink()  # it lives on until it is read
        return original(model, filepath, *args, **kwargs)

    setattr(save, _MARK, True)
    return save


def _is_shard(file: Path, index: Path) -> bool:
    """Whether a file is one of several that a save to `index` writes."""
    file, index = file.resolve(), index.resolve()
    stem = index.name.removesuffix(".json").removesuffix(".weights")
    return file.parent == index.parent and file.name.startswith(f"{stem}_")
