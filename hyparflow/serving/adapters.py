"""Which way a model decodes."""

from __future__ import annotations

from typing import Any

from hyparflow.serving.cached_model import CachedModel
from hyparflow.serving.decoder import Decoder
from hyparflow.serving.hooked_model import HookedModel

__all__ = ["cached_model_of", "decoder_of"]


def cached_model_of(model: Any) -> CachedModel:
    """The model with caches from outside.

    Raises:
        ValueError: if there is no way.
    """
    hooked = HookedModel(model)
    if not hooked.cache_sizes:
        raise ValueError(
            "A model that is served must have attention with KerasHub's serving hook. "
            f"Received: '{model.name}' of class '{type(model).__name__}', which has none. Use "
            "another model, or `model.generate`."
        )
    return hooked


def decoder_of(model: Any, jit: bool = False) -> Decoder:
    """A decoder of a whole model, in one process; see `Decoder`."""
    return Decoder(cached_model_of(model), jit)
