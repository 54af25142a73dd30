"""Keras models on their way to another process, with what is not Keras's in them."""

from __future__ import annotations

import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["is_model", "keras_settings", "reduce_model", "use_keras_settings"]

_LIBRARIES = ("builtins", "hyparflow", "keras", "numpy", "tensorflow")  # what every process has


def keras_settings() -> dict[str, Any]:
    """What was set for Keras in this process, as JSON; nothing if it has not been imported."""
    keras = sys.modules.get("keras")
    if keras is None:
        return {}
    config = keras.config
    return {
        "floatx": config.floatx(),
        "epsilon": config.epsilon(),
        "image_data_format": config.image_data_format(),
        "dtype_policy": config.dtype_policy().name,
    }


def use_keras_settings(settings: Mapping[str, Any]) -> None:
    """Set for this process what `keras_settings` told of another."""
    if settings:
        import keras

        for name, value in settings.items():
            getattr(keras.config, f"set_{name}")(value)


def is_model(value: Any) -> bool:
    """Whether `value` is a Keras model; imports nothing."""
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(value, keras.Model)


def reduce_model(model: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """What pickle needs of a model: a function and its arguments.

    Keras's own way finds a layer, loss or metric of the user's only if it is registered. Here these
    classes and functions go with the model, by value where they are a notebook's.
    """
    with tempfile.TemporaryDirectory(prefix="hyparflow-") as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        is_new = model.compiled and not model.optimizer.built
        return _restore, (path.read_bytes(), _custom_objects(model), is_new)


def _restore(content: bytes, custom_objects: dict[str, Any], is_new: bool) -> Any:
    """The model; one whose optimizer `is_new` has nothing saved of the state that Keras makes."""
    import keras

    with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="hyparflow-") as folder:
        path = Path(folder) / "model.keras"
        path.write_bytes(content)
        if is_new:
            warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
        # As trustworthy as the pickle that this came with.
        return keras.models.load_model(path, custom_objects, safe_mode=False)


def _custom_objects(model: Any) -> dict[str, Any]:
    """The user's own classes and functions in `model`, by the names that Keras gives them."""
    import keras

    found = {}
    for own in _own(model):
        found[own.__name__] = own
        found[keras.saving.get_registered_name(own)] = own
    return found


def _own(model: Any) -> Iterator[Any]:
    """Those of its layers, of what they are made with, and of what it is compiled with."""
    from hyparflow.model.keras_internals.compiled import compile_arguments
    from hyparflow.model.keras_internals.layers import all_layers

    layers = all_layers(model)
    made_with = [value for layer in layers for value in _leaves(dict(vars(layer)))]
    compiled = compile_arguments(model) if model.compiled else {}
    for value in (*layers, *made_with, *_leaves(compiled)):
        if hasattr(value, "__wrapped__"):  # a method that Keras has put into the object itself
            continue
        if isinstance(value, type | types.FunctionType):
            own = value
        elif hasattr(value, "get_config"):
            own = type(value)
        else:
            continue
        if (own.__module__ or "builtins").split(".")[0] not in _LIBRARIES:
            yield own


def _leaves(value: Any) -> Iterator[Any]:
    """What a value of lists and dictionaries holds; Keras's trees would sort keys, of any type."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list | tuple | set):
        yield value
        return
    for part in value:
        yield from _leaves(part)
