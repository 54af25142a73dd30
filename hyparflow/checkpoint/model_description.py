"""What a model is, beside its tensors: as in a `.keras` file."""

from __future__ import annotations

import json
from typing import Any

import keras

from hyparflow.formats.checkpoint.names import state_name

__all__ = ["MODEL_FILE", "described"]

MODEL_FILE = state_name("model")  # what the model is, as in a `.keras` file


def described(model: Any) -> str:
    """What a model is, as JSON; empty if its layers do not tell."""
    try:
        return json.dumps(keras.saving.serialize_keras_object(model))
    except Exception:  # whatever the user's `get_config` raises, or lacks
        return ""
