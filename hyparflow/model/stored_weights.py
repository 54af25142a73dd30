"""Loads weights so that each rank reads those that it needs: `hyparflow.load_weights`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

__all__ = ["load_weights"]

# The files of a preset of KerasHub.
_OF_BACKBONE = ("model.weights.h5", "model.weights.json")
_OF_TASK = "task.weights.h5"


def load_weights(model: Any, path: str | os.PathLike[str], **kwargs: Any) -> None:
    """Load weights as ``model.load_weights(path)`` does, but read them when they are needed.

    On a model that was built with `deferred`, each rank then reads the weights of its own partition
    only. The file is held open, and may be replaced under its name, as Keras's own saves then do,
    but not be written to. All ranks must be able to read it.

    Args:
        model: A built Keras model.
        path: A `.keras` or `.weights.h5` file, the `.weights.json` file of a divided one, or the
            folder of a KerasHub preset for `model`, a backbone or a task. Files in the older `.h5`
            format are read at once.
        **kwargs: Keyword arguments of ``model.load_weights``.

    Raises:
        ValueError: If `path` is no path, if the folder is no preset of KerasHub, or as Keras
            raises it.
        OSError: If the file cannot be read, or, later, if something has written to it meanwhile.

    Example::

        with hf.deferred():
            model = build_model()
        hf.load_weights(model, "large.keras")
        hf.fit(model, x, y, strategy="model", gather=False)
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"`path` must be a string or a path. Received: path={path!r}")
    from hyparflow.model.keras_internals.stored_values import loading_later

    with loading_later():
        if os.path.isdir(path):
            _load_preset(model, Path(path), kwargs)
        else:
            model.load_weights(path, **kwargs)


def _load_preset(model: Any, folder: Path, kwargs: dict[str, Any]) -> None:
    file = next((folder / name for name in _OF_BACKBONE if (folder / name).is_file()), None)
    if file is None:
        raise ValueError(
            "A folder to load weights from must be a preset that KerasHub saved, with "
            f"{' or '.join(_OF_BACKBONE)} in it. Received: {folder}, with "
            f"{', '.join(sorted(os.listdir(folder))[:8]) or 'no files'}. Save the model with "
            "`save_to_preset`, or give the path of a .keras or .weights.h5 file."
        )
    backbone = getattr(model, "backbone", model)
    if backbone is not model and (folder / _OF_TASK).is_file():
        model.load_task_weights(folder / _OF_TASK)
    backbone.load_weights(file, **kwargs)
