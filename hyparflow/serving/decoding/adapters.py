"""Which way a model decodes."""

from __future__ import annotations

import contextlib
from typing import Any

from hyparflow.model.experts.expert_banks import ExpertBanks
from hyparflow.model.experts.expert_layers import expert_layers
from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.model.keras_internals.own_cache import decodes_itself
from hyparflow.serving.decoding.cached_model import Around, CachedModel
from hyparflow.serving.decoding.decoder import Decoder
from hyparflow.serving.decoding.hooked_model import HookedModel
from hyparflow.serving.decoding.row_index_model import RowIndexModel
from hyparflow.serving.decoding.text_inputs import require_text_inputs

__all__ = ["cached_model_of", "decoder_of", "hook_missing"]


def cached_model_of(model: Any, around: Around = contextlib.nullcontext) -> CachedModel:
    """The model with caches from outside.

    Args:
        model: a `keras_hub.models.CausalLM`.
        around: see `Around`.

    Raises:
        ValueError: if there is no way.
    """
    require_text_inputs(model)
    hooked = HookedModel(model, around)
    if hooked.cache_sizes:
        return hooked
    if decodes_itself(model):
        return RowIndexModel(model, around)
    raise ValueError(
        "A model that is served must have attention with KerasHub's serving hook, or cached "
        f"decoding of its own. Received: '{model.name}' of class '{type(model).__name__}', which "
        "has neither. Use another model, or `model.generate`."
    )


def decoder_of(model: Any, jit: bool = False) -> Decoder:
    """A decoder of a whole model, in one process; see `Decoder`.

    Where there are experts, only those compute that tokens were routed to. How many tokens an
    expert has is not known before, so XLA compiles no such model.
    """
    layers = all_layers(model)
    banks = ExpertBanks(layers)
    is_dense = not expert_layers(layers)
    return Decoder(cached_model_of(model, banks.sparse), layers, jit, compiles=is_dense)


def hook_missing(model: Any) -> ValueError:
    """What is wrong with a model that is cut over ranks, and whose attention lacks the hook."""
    return ValueError(
        "A model that is served in partitions or shards must have attention with KerasHub's "
        f"serving hook. Received: '{model.name}' of class '{type(model).__name__}', which has "
        "none. Use num_partitions=1 and num_shards=1."
    )
