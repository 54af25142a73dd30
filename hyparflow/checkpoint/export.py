"""Writes an ordinary Keras file from a checkpoint, tensor by tensor and without other ranks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hyparflow.checkpoint.load import load_checkpoint
from hyparflow.checkpoint.model_description import MODEL_FILE
from hyparflow.checkpoint.tensor_names import named_variables
from hyparflow.formats.checkpoint.folder import CheckpointFolder
from hyparflow.formats.checkpoint.reader import CheckpointReader
from hyparflow.formats.checkpoint.verify import read_json_state
from hyparflow.model.deferred import deferred
from hyparflow.model.keras_internals.deferred_variables import release, source_of
from hyparflow.model.keras_internals.stored_values import saving_by_disk
from hyparflow.model.saving import save_atomically

__all__ = ["export"]


def export(folder: str | os.PathLike[str], path: str | os.PathLike[str], step: int | None) -> Any:
    """Write the model of a checkpoint into a `.keras` or `.weights.h5` file, or as a SavedModel.

    No more than one tensor is in memory, beside what the file's library holds.

    Args:
        folder: of checkpoints.
        path: of the new file; without a suffix, of the folder of the SavedModel.
        step: of the checkpoint; None for the newest.

    Returns:
        The model; its weights are read when they are needed.

    Raises:
        ValueError: if there is no such checkpoint, or it does not tell what the model is.
        OSError: if the file cannot be written.
    """
    import keras

    found = CheckpointFolder(folder)
    described_in = found.step(found.newest() or 0 if step is None else step) / MODEL_FILE
    if not described_in.is_file():
        raise ValueError(
            "A checkpoint that is exported must tell what the model is. Received: one without "
            f"{described_in}: there is no such step, or a layer has no `get_config`. Build the "
            "model in a script, and use `hyparflow.load_checkpoint` and `model.save`."
        )
    checksum = CheckpointReader(described_in.parent).index.checksums.get(MODEL_FILE, "")
    description = read_json_state(described_in, checksum)
    with deferred():
        model = keras.saving.deserialize_keras_object(json.loads(description))
        load_checkpoint(folder, model, step)
    lender = _Lender()
    for variable in named_variables(model).values():
        source = source_of(variable)
        if source is not None:
            release(variable, _Lent(variable, source, lender))
    with saving_by_disk():
        method, more = _method(Path(path))
        save_atomically(model, path, method, **more)
    lender.take_back()
    return model


def _method(path: Path) -> tuple[str, dict[str, Any]]:
    """Keras's method that writes such a file, and its other arguments."""
    if path.name.endswith(".weights.h5"):
        return "save_weights", {}
    return ("save", {}) if path.suffix else ("export", {"verbose": False})


class _Lender:
    """Lets one variable at a time have its memory."""

    def __init__(self) -> None:
        self._lent: _Lent | None = None

    def lend(self, lent: _Lent) -> None:
        """Let this one have it, and the last one no longer."""
        self.take_back()
        self._lent = lent

    def take_back(self) -> None:
        """Let none have it."""
        if self._lent is not None:
            self._lent.release()
            self._lent = None


class _Lent:
    """The source of a variable's value, until another variable's is asked for."""

    def __init__(self, variable: Any, source: Any, lender: _Lender) -> None:
        self._variable, self._source, self._lender = variable, source, lender

    def __call__(self) -> Any:
        """The value."""
        self._lender.lend(self)
        return self._source()

    def release(self) -> None:
        """Give back the memory of the variable."""
        release(self._variable, self)
