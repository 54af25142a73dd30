"""Writes a traced function for a process that only computes with it: `contention_process.py`.

A SavedModel would do, but takes seconds to be written, for what nobody reads. Variables are written
by type and shape; their values do not matter there. Public API of TensorFlow only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.engine.compiled.captured import captures_of
from hyparflow.model.keras_internals.deferred_variables import handle_of, raw_variable

__all__ = ["write_graph"]


def write_graph(concrete: Any, inputs: int, variables: Sequence[Any], folder: str) -> None:
    """Write "graph.pb", "graph.json" and, for constants, "graph.npz" into a folder.

    Args:
        concrete: a traced function.
        inputs: how many tensors it is given; their first axis is rows.
        variables: Keras's variables that it may read.

    Raises:
        ValueError: if it needs what another process cannot have.
    """
    known = {id(handle_of(v)): raw_variable(v) for v in variables}
    read: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    for outside, inside in captures_of(concrete.graph):
        if not inside.consumers():
            continue
        if id(outside) in known:
            variable = known[id(outside)]
            read[inside.name] = [variable.dtype.name, list(variable.shape)]
        elif outside.dtype in (tf.resource, tf.variant):
            raise ValueError(f"it reads {inside.name}, which is no variable of the model")
        else:
            constants[inside.name] = np.asarray(outside)
    known_by_name = {
        "inputs": [[x.name, x.dtype.name, x.shape[1:].as_list()] for x in concrete.inputs[:inputs]],
        "variables": read,
        "outputs": [x.name for x in concrete.outputs],
    }
    path = Path(folder)
    path.joinpath("graph.pb").write_bytes(concrete.graph.as_graph_def().SerializeToString())
    path.joinpath("graph.json").write_text(json.dumps(known_by_name))
    np.savez(path / "graph.npz", **constants)
