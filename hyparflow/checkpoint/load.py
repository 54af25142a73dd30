"""`hyparflow.load_checkpoint`: the weights of a checkpoint in a model of any layout."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hyparflow.checkpoint.own_variables import announce_odd, restore_own
from hyparflow.checkpoint.restore import restore
from hyparflow.checkpoint.tensor_names import named_variables
from hyparflow.formats.checkpoint.folder import CheckpointFolder
from hyparflow.formats.checkpoint.reader import CheckpointReader
from hyparflow.formats.checkpoint.verify import quick_check, verify_step
from hyparflow.model.keras_internals.deferred_variables import bring_in, is_absent

__all__ = ["load_checkpoint"]


def load_checkpoint(folder: str | os.PathLike[str], model: Any, step: int | None = None) -> Any:
    """Give a model the weights of a checkpoint, and its optimizer the state.

    The layout that saved it does not matter. A model that was built with `hyparflow.deferred` reads
    each weight when it is needed, and so each rank those of its own partition only.

    Args:
        folder: String or path. The folder that `hyparflow.fit(..., checkpoint=folder)` was given.
        model: A built Keras model, of the structure of the one that was saved. The optimizer's
            state is loaded if it is compiled.
        step: Integer or `None`. The training step of the checkpoint, by default the newest.

    Returns:
        `model`.

    Raises:
        ValueError: If the model is not built, if there is no such checkpoint, or if it is damaged
            or another model's; all that differs is named.

    Example::

        model = hf.load_checkpoint("run1/", build_model())
        model.save("trained.keras")
    """
    if not isinstance(folder, str | os.PathLike):
        raise ValueError(f"`folder` must be a string or a path. Received: folder={folder!r}")
    if not model.built:
        raise ValueError(
            "A checkpoint is loaded into a model that is built, so that it has weights. Received: "
            f"'{model.name}', which is not. Begin it with keras.Input, or call its `build`."
        )
    found = CheckpointFolder(Path(folder).absolute())
    steps = found.committed() if found.path.is_dir() else []
    wanted = (steps or [0])[-1] if step is None else step
    if wanted not in steps:
        others = f"has whole ones of the steps {steps}. Choose one of these."
        others = others if steps else "has none. Pass the folder that `fit` was given."
        raise ValueError(
            f"A checkpoint must be whole to be loaded. Received: step={step} of {folder}, which "
            f"{others}"
        )
    # Before weights of the model are given up; what is read later is compared later.
    is_read_later = any(map(is_absent, model.variables))
    checked = (quick_check if is_read_later else verify_step)(found, wanted)
    if checked.faults:
        raise ValueError(checked.faults[0])
    reader = CheckpointReader(found.step(wanted))
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and not optimizer.built and _has_slots(reader, optimizer):
        optimizer.build(model.trainable_variables)
    variables = named_variables(model)
    later = {name for name, variable in variables.items() if is_absent(variable)}
    restore(model, reader, with_optimizer=optimizer is not None)
    announce_odd(restore_own(model, reader), reader.folder)
    for name, variable in variables.items():
        if name not in later:
            bring_in(variable)
    return model


def _has_slots(reader: CheckpointReader, optimizer: Any) -> bool:
    """Whether a checkpoint has more of the optimizer than before it is built.

    It has none where a step of one's own trains by other optimizers.
    """
    stored = [name for name in reader.index.tensors if name.startswith("optimizer/")]
    return len(stored) > len(optimizer.variables)
