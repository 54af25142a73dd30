"""The random numbers that decide the order of samples: their states in a checkpoint, and back."""

from __future__ import annotations

import random
import secrets
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.engine.compiled import choice
from hyparflow.model.keras_internals.layers import default_seed, set_default_seed
from hyparflow.training.checkpoints.json_values import to_json

__all__ = ["seed_of_order", "set_state", "state_now"]


def seed_of_order() -> int:
    """TensorFlow's seed, which is set if it was not: samples can then be drawn again alike."""
    seed = choice.compiler().seed()
    if seed is None:
        seed = secrets.randbits(31)
        tf.random.set_seed(seed)
    return int(seed)


def state_now() -> dict[str, Any]:
    """The states of Python's, NumPy's and Keras's generators."""
    keras_state = default_seed()
    return {
        "python": to_json(random.getstate()),
        "numpy": to_json(np.random.get_state()),
        "keras": None if keras_state is None else to_json(keras_state),
    }


def set_state(state: dict[str, Any]) -> None:
    """Let generators go on from what `state_now` returned."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    if state["keras"] is not None:
        set_default_seed(np.array(state["keras"], np.uint32))
